//! Cgroups v2 for tests of the same-host path: for the daemon, for the applications, and for servers alone.

// Between fork and exec: the move into a cgroup.
#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Directories below the cgroup of this process, removed when dropped. Its own place is the applications': a
/// socket belongs to the cgroup of the process that makes it, so clients and backends that are threads of a test are
/// applications, and the daemon is moved out.
#[derive(Debug)]
pub struct Cgroups {
    daemon: PathBuf,
    servers: PathBuf,
}

/// Where this process went; it stays there, since its sockets belong there.
static APPLICATIONS: OnceLock<Result<PathBuf, String>> = OnceLock::new();

impl Cgroups {
    /// Moves this process into a cgroup of its own, once, and makes another one for a daemon.
    ///
    /// # Errors
    /// Where there is no cgroup v2 file system that may be written to.
    pub fn create() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let applications = APPLICATIONS.get_or_init(|| settle().map_err(|error| error.to_string()));
        let applications = applications.as_ref().map_err(|error| io::Error::other(error.as_str()))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let beside =
            |what: &str| applications.with_file_name(format!("{}-{number}", name_of(what, std::process::id())));
        let cgroups = Self { daemon: beside("daemon"), servers: beside("servers") };
        fs::create_dir(&cgroups.daemon)?;
        fs::create_dir(&cgroups.servers)?;
        Ok(cgroups)
    }

    /// Moves this process back when the guard is dropped, and removes the cgroup it was in: for a program that ends
    /// then. Tests leave theirs to the next one, as others of them may still run.
    #[must_use]
    pub fn leave_at_the_end() -> impl Drop {
        Out
    }

    /// The applications', in which this process is.
    pub fn applications(&self) -> &'static Path {
        match APPLICATIONS.get() {
            Some(Ok(path)) => path,
            _ => Path::new("/"),
        }
    }

    /// One for servers, where clients that are threads of the test shall not be applications.
    pub fn servers(&self) -> &Path {
        &self.servers
    }

    /// The daemon's.
    pub fn daemon(&self) -> &Path {
        &self.daemon
    }
}

struct Out;

impl Drop for Out {
    fn drop(&mut self) {
        let Some(Ok(applications)) = APPLICATIONS.get() else { return };
        let moved = applications.parent().map(|parent| fs::write(parent.join("cgroup.procs"), "0"));
        if moved.is_some_and(|moved| moved.is_ok()) {
            let _ = fs::remove_dir(applications);
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Who was in them may have ended a moment ago only.
        for directory in [&self.daemon, &self.servers] {
            let busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
            let mut tries = 0..100;
            while fs::remove_dir(directory).is_err_and(|error| busy(&error)) && tries.next().is_some() {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Makes `command` start in the cgroup.
pub(super) fn place(command: &mut Command, cgroup: &Path) -> io::Result<()> {
    let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
    // SAFETY: between fork and exec the closure makes one system call; 0 is the process that writes.
    unsafe { command.pre_exec(move || (&procs).write_all(b"0")) };
    Ok(())
}

/// What begins the name of a cgroup that this process makes: who made it is known from its name.
fn name_of(what: &str, process: u32) -> String {
    format!("edgeproxy-{what}-{process}")
}

/// The process that made a cgroup of this name.
fn maker_of(name: &str) -> Option<u32> {
    name.strip_prefix("edgeproxy-")?.split('-').nth(1)?.parse().ok()
}

fn settle() -> io::Result<PathBuf> {
    let own = own().ok_or_else(|| io::Error::other("no cgroup v2 file system is mounted"))?;
    remove_left_over(&own);
    let applications = own.join(name_of("apps", std::process::id()));
    fs::create_dir(&applications)?;
    fs::write(applications.join("cgroup.procs"), "0")?;
    Ok(applications)
}

/// A process can't remove the cgroup that it is in, nor any if it was killed: the next one does it. Those of processes
/// that live are left alone, also empty ones: a daemon is about to be started there.
fn remove_left_over(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let maker = maker_of(&entry.file_name().to_string_lossy());
        // This process has made none yet: one of its number was another's.
        let lives = |maker: u32| maker != std::process::id() && Path::new(&format!("/proc/{maker}")).exists();
        if maker.is_some_and(|maker| !lives(maker)) {
            // Fails while somebody is in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The cgroup v2 directory of this process.
fn own() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?;
    let cgroup = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(mount).join(own.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_cgroup_tells_who_made_it() {
        assert_eq!(maker_of(&name_of("apps", 17)), Some(17));
        assert_eq!(maker_of(&format!("{}-3", name_of("daemon", 4_711))), Some(4_711));
        assert_eq!([maker_of("edgeproxy.service"), maker_of("edgeproxy-1"), maker_of("user-2-3")], [None; 3]);
    }

    /// What two benchmarks at a time do to each other.
    #[test]
    fn only_the_cgroups_of_processes_that_are_gone_are_left_over() {
        let parent = tempfile::tempdir().expect("a directory");
        let mut gone = Command::new("true").spawn().expect("a process");
        let dead = gone.id();
        gone.wait().expect("its end");
        let make = |what: &str, process: u32| {
            let path = parent.path().join(format!("{}-0", name_of(what, process)));
            fs::create_dir(&path).expect("a directory");
            path
        };
        let of_others = parent.path().join("edgeproxy.service");
        fs::create_dir(&of_others).expect("a directory");
        let (living, left) = (make("daemon", std::os::unix::process::parent_id()), make("daemon", dead));
        let number_again = make("servers", std::process::id());
        remove_left_over(parent.path());
        assert!(living.exists() && of_others.exists());
        assert!(!left.exists() && !number_again.exists());
    }
}
