//! Where this process stands in the cgroup v2 tree.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

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
    let path = own()?;
    File::open(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
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
