//! Where this process stands in the cgroup v2 tree.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::SameHostError;

/// A cgroup that is this daemon's alone: none of the same kind is in it, above or below. Programs count for the cgroups
/// below theirs, too.
///
/// Which programs are attached the kernel tells to CAP_NET_ADMIN, but whose they are to CAP_SYS_ADMIN only. A lock on
/// the directory tells it to everybody, and ends with its owner, however that ends.
#[derive(Debug)]
pub(super) struct Place(File);

impl Place {
    /// The cgroup of this process.
    pub(super) fn take() -> Result<Self, SameHostError> {
        let own = own().map_err(SameHostError::NoOwnCgroup)?;
        let directory = open(&own).map_err(SameHostError::NoOwnCgroup)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(SameHostError::Shared(own)),
            Err(why) => return Err(SameHostError::NoOwnCgroup(why.into())),
        }
        let above = own.ancestors().skip(1).take_while(|path| is_one(path)).map(Path::to_owned);
        match above.chain(below(&own)).find(|path| is_taken(path)) {
            Some(theirs) => Err(SameHostError::Shared(theirs)),
            None => Ok(Self(directory)),
        }
    }

    pub(super) fn cgroup(&self) -> &File {
        &self.0
    }
}

/// Whether a daemon has locked it. One that can't be opened is no place for one.
fn is_taken(path: &Path) -> bool {
    let shared = File::open(path).map(|directory| flock(&directory, FlockOperation::NonBlockingLockShared));
    shared.is_ok_and(|lock| lock == Err(Errno::WOULDBLOCK))
}

/// All cgroups below that one.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![path.to_owned()];
    while let Some(next) = left.pop() {
        let entries = fs::read_dir(next).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let directories: Vec<_> = directories.map(|entry| entry.path()).collect();
        left.extend_from_slice(&directories);
        found.extend(directories);
    }
    found
}

/// The cgroup v2 directory of this process.
pub(super) fn own() -> io::Result<PathBuf> {
    own_path(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string("/proc/self/cgroup")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup v2 file system is mounted"))
}

/// Whether the directory is one of a cgroup v2 file system.
pub(super) fn is_one(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|file_system| file_system.f_type == CGROUP2)
}

/// `CGROUP2_SUPER_MAGIC` (`linux/magic.h`).
const CGROUP2: rustix::fs::FsWord = 0x6367_7270;

/// Opens the cgroup v2 directory of this process.
pub(super) fn open_own() -> io::Result<File> {
    open(&own()?)
}

fn open(path: &Path) -> io::Result<File> {
    File::open(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// From `/proc/self/mountinfo` (proc(5): `id parent dev root mountpoint options… - type …`) and the `0::` line of
/// `/proc/self/cgroup`.
fn own_path(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let mount = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        if right.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = left.split(' ').skip(3);
        Some((fields.next()?, fields.next()?))
    })?;
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (root, mount_point) = mount;
    // In a container the mount shows a subtree: what is above its root is not there.
    let below = own.strip_prefix(root).unwrap_or(own).trim_start_matches('/');
    Some(PathBuf::from(mount_point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_own_directory_in_hybrid_and_container_layouts() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        let own = "12:pids:/x\n0::/system.slice/edgeproxy.service\n";
        let want = PathBuf::from("/sys/fs/cgroup/unified/system.slice/edgeproxy.service");
        assert_eq!(own_path(hybrid, own), Some(want));
        let container = "31 30 0:27 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_path(container, "0::/kubepods/pod1/a\n"), Some(PathBuf::from("/sys/fs/cgroup/a")));
        assert_eq!(own_path("30 24 0:26 / /x ro - tmpfs tmpfs ro\n", own), None);
    }
}
