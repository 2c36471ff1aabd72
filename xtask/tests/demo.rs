//! The demo leaves nothing behind, also when it is interrupted half-way.
#![allow(clippy::unwrap_used)]
// Signals.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn an_interrupted_demo_removes_its_files() {
    let tmp = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(tmp.path()).unwrap().count();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let command = command.args(["demo", "--once"]).env("TMPDIR", tmp.path()).stdout(Stdio::null());
    let mut demo = command.process_group(0).spawn().unwrap();
    // The daemon may have to be built first.
    let deadline = Instant::now() + Duration::from_secs(600);
    while files() == 0 && demo.try_wait().unwrap().is_none() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(300));
    // As a terminal does: to the demo and to all it has started.
    // SAFETY: no pointers; a child that has not been waited for keeps its number.
    unsafe { libc::kill(-demo.id().cast_signed(), libc::SIGINT) };
    let status = demo.wait().unwrap();
    assert_eq!(status.signal(), None, "it died of the signal");
    // 101 would be a panic, 0 a signal that came too late.
    assert_eq!(status.code(), Some(1));
    assert_eq!(files(), 0);
}
