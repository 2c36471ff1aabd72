//! `cargo xtask demo`: a whole little internet around one POP, and an account of every byte that crossed it.

mod report;
mod stage;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::lab::Lab;
use crate::lab::requirements::Need;
use crate::{process, setup, workspace};
use stage::Stage;

/// Options of `demo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// End after the account; the exit code is 0 only if every check held.
    #[arg(long)]
    pub once: bool,
    /// Build with optimisation: takes minutes longer, and the processor times mean something.
    #[arg(long)]
    pub release: bool,
}

/// Builds, plays, prints the account, and stays up until Ctrl-C.
///
/// # Errors
/// When something can't be built or started, or a check does not hold.
pub fn run(args: &Args) -> Result<()> {
    on_interrupt();
    if let Err(error) = setup::ensure(setup::Need::Lab) {
        eprintln!("warning: {error:#}");
    }
    let binary = build(args.release)?;
    go_on()?;
    let started = Instant::now();
    let stage = Stage::set(&binary, make_lab()?)?;
    // What an interrupted daemon did wrong is of no interest.
    let scenes = stage.play().or_else(|error| go_on().and(Err(error)))?;
    let failed = report::print(&stage, &scenes)?;
    println!("\n{:.1} s from the start of the lab to here", started.elapsed().as_secs_f64());
    if !args.once {
        stay(&stage);
    }
    if !failed.is_empty() {
        bail!("{} checks did not hold: {}", failed.len(), failed.join("; "));
    }
    Ok(())
}

/// Compiles the daemon. Without optimisation by default: the objects are those the tests use, so it is soon done.
fn build(release: bool) -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root()).args(["build", "--package", "edge-userspace", "--bin", "edgeproxy"]);
    if release {
        command.arg("--release");
    }
    println!("building the daemon");
    process::run(&mut command)?;
    let binary = workspace::target_dir().join(if release { "release" } else { "debug" }).join("edgeproxy");
    binary.canonicalize().with_context(|| format!("{} was not built", binary.display()))
}

/// Network namespaces where they can be made, else addresses of this host's loopback interface.
fn make_lab() -> Result<Lab> {
    match [Need::Root, Need::Namespaces].iter().find_map(|need| need.missing()) {
        None => Ok(Lab::new()?),
        Some(reason) => {
            println!(
                "no network namespaces ({reason}): clients and backends get loopback addresses, and the setting \
                 geo_override tells their countries"
            );
            Ok(Lab::loopback())
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Keeps everything running until Ctrl-C.
fn stay(stage: &Stage) {
    let daemon = stage.daemon();
    let (socket, pid) = (daemon.admin_socket().display(), daemon.pid());
    println!("\nThe POP stays up. Ctrl-C ends it and removes everything.");
    println!("  admin socket  {socket}");
    println!("  status        curl --unix-socket {socket} http://localhost/api/v1/status");
    println!("  metrics       curl --unix-socket {socket} http://localhost/metrics");
    if stage.lab().is_isolated() {
        println!("  its network   nsenter --net=/proc/{pid}/ns/net ss -tn");
    }
    while !INTERRUPTED.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(100));
    }
    println!();
}

/// Between two steps: ends in good order if Ctrl-C was pressed.
fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { bail!("interrupted") } else { Ok(()) }
}

/// Notes the first Ctrl-C instead of dying of it, so that destructors run; the second one kills.
#[allow(unsafe_code, reason = "the standard library has no signal handlers")]
fn on_interrupt() {
    extern "C" fn note(signal: libc::c_int) {
        INTERRUPTED.store(true, Ordering::SeqCst);
        // SAFETY: may be called in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let handler = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler stores to an atomic and resets itself, which is safe at any moment.
        unsafe { libc::signal(signal, handler) };
    }
}
