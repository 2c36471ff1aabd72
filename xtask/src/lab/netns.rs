//! A network namespace that lives as long as somebody holds it.
//!
//! The namespaces have no name under `/run/netns`: a descriptor keeps each alive, so the kernel removes them, with
//! their links and routes, however this process ends. To look inside while a lab is up, use
//! `nsenter --net=/proc/<pid of the daemon>/ns/net`.
//!
//! `ip netns exec` is not used because it remounts `/sys` and hides the BPF file system and the cgroups.
// System calls without a safe wrapper.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::Arc;
use std::thread;

/// A handle to a network namespace; clones share it. `Namespace::host()` is the one this process runs in.
#[derive(Debug, Clone)]
pub struct Namespace {
    descriptor: Option<Arc<OwnedFd>>,
}

impl Namespace {
    /// The namespace of this process: entering it does nothing.
    pub fn host() -> Self {
        Self { descriptor: None }
    }

    /// Makes an empty namespace. Needs CAP_SYS_ADMIN.
    pub fn create() -> io::Result<Self> {
        let made = thread::spawn(|| {
            // SAFETY: no pointers; unshare changes this thread only, and the thread ends with this closure.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        let file = made.join().map_err(|_| io::Error::other("the thread that makes a namespace panicked"))??;
        Ok(Self { descriptor: Some(Arc::new(file.into())) })
    }

    /// A path other processes may use to refer to the namespace while this process holds it.
    pub fn path(&self) -> String {
        let pid = std::process::id();
        match &self.descriptor {
            Some(descriptor) => format!("/proc/{pid}/fd/{}", descriptor.as_raw_fd()),
            None => format!("/proc/{pid}/ns/net"),
        }
    }

    /// Starts a thread inside the namespace. Sockets it makes stay there wherever they are used.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.enter_or_panic();
            work()
        })
    }

    /// Runs `work` inside the namespace and waits for it; a panic in `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if self.descriptor.is_none() {
            return work();
        }
        let outcome = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter_or_panic();
                work()
            });
            inside.join()
        });
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Makes `command` start inside the namespace.
    pub fn place<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let Some(descriptor) = self.descriptor.clone() else { return command };
        // SAFETY: between fork and exec the closure makes one system call and touches no lock or allocator.
        unsafe { command.pre_exec(move || enter(&descriptor)) }
    }

    fn enter_or_panic(&self) {
        if let Some(descriptor) = &self.descriptor
            && let Err(error) = enter(descriptor)
        {
            panic!("cannot enter a network namespace of the lab: {error}");
        }
    }
}

/// Moves the calling thread into the namespace.
fn enter(descriptor: &OwnedFd) -> io::Result<()> {
    // SAFETY: a valid descriptor and no pointers; affects the calling thread only.
    match unsafe { libc::setns(descriptor.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
