//! What a test needs from the machine, and what happens when it is not there.
// System calls without a safe wrapper.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::OnceLock;

use super::Namespace;

/// Tests that cannot run append a line `SKIP <test>: <reason>` to the file named here.
pub const SKIP_LOG: &str = "EDGEPROXY_SKIP_LOG";
/// Set to 1, a test that cannot run fails instead.
pub const REQUIRE_KERNEL: &str = "EDGEPROXY_REQUIRE_KERNEL";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Root,
    Namespaces,
    Bpf,
    Nginx,
    Openssl,
    /// HAProxy, and nginx with its module for other protocols than HTTP.
    OtherProxies,
}

/// Proof that the needs of a test are met.
#[derive(Debug, Clone, Copy)]
pub struct Met(());

/// `None`, and a line in the skip log, where a need of the test is not met.
///
/// # Panics
/// Where kernel tests are required (`EDGEPROXY_REQUIRE_KERNEL=1`) and a need is not met.
pub fn require(needs: &[Need], test: &str) -> Option<Met> {
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else { return Some(Met(())) };
    assert!(std::env::var(REQUIRE_KERNEL).as_deref() != Ok("1"), "{test} cannot run: {reason}");
    skip(test, &reason);
    None
}

impl Need {
    /// Why the need is not met.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!is_root()).then(|| "needs root".to_owned()),
            Self::Namespaces => namespaces_missing(),
            Self::Bpf => bpf_missing(),
            Self::Openssl => crate::process::find("openssl").is_none().then(|| "openssl is not installed".to_owned()),
            Self::OtherProxies => other_proxies_missing(),
            Self::Nginx => super::nginx::binary().is_none().then(|| "nginx is not installed".to_owned()),
        }
    }
}

fn other_proxies_missing() -> Option<String> {
    let missing = crate::process::find_system("haproxy").is_none() || super::nginx::binary().is_none();
    let missing = missing || !super::other::nginx_streams();
    missing.then(|| "haproxy, nginx or libnginx-mod-stream is not installed".to_owned())
}

fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn namespaces_missing() -> Option<String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    let probe = || Namespace::create().and_then(|namespace| super::setup::ip(&namespace, "link set lo up"));
    ANSWER.get_or_init(|| probe().err().map(|error| format!("cannot make network namespaces: {error}"))).clone()
}

/// Tries the least that BPF allows: an array of one number.
fn bpf_missing() -> Option<String> {
    const BPF_MAP_CREATE: libc::c_long = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    let attributes: [u32; 8] = [BPF_MAP_TYPE_ARRAY, 4, 4, 1, 0, 0, 0, 0];
    // SAFETY: the kernel reads exactly the bytes of `attributes`.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attributes.as_ptr(), size_of_val(&attributes)) };
    let Ok(descriptor @ 0..) = i32::try_from(descriptor) else {
        return Some(format!("cannot use BPF: {}", io::Error::last_os_error()));
    };
    // SAFETY: a descriptor this function has just made and nobody else knows.
    unsafe { libc::close(descriptor) };
    None
}

fn skip(test: &str, reason: &str) {
    let line = format!("SKIP {test}: {reason}\n");
    let written = std::env::var_os(SKIP_LOG).map(|path| append(&path, &line));
    if !matches!(written, Some(Ok(()))) {
        eprint!("{line}");
    }
}

fn append(path: &std::ffi::OsStr, line: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}
