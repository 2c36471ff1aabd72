//! The cgroups whose applications take part.
//!
//! A service manager removes the cgroup of a service that it stops, the program that is attached goes with it, and the
//! one that it makes at the next start has the name only. So it is looked at again and again. The kernel takes no
//! capability for attaching a program of this type that is loaded, so it can be done when none is left.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::sock_ops::SockOpsLinkId;
use aya::programs::{CgroupAttachMode, SockOps};

use super::SameHostError;
use super::cgroup;

/// What has become of a named cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupNews {
    pub path: PathBuf,
    /// Why its applications don't take part; `None`: they do, from now on.
    pub why_not: Option<String>,
}

/// All that are named.
#[derive(Debug)]
pub(super) struct Applications(Vec<Named>);

#[derive(Debug)]
struct Named {
    path: PathBuf,
    attached: Result<Attached, String>,
}

/// The directory that the program is attached to, by its inode number: no other cgroup has it before the next boot.
#[derive(Debug)]
struct Attached {
    inode: u64,
    link: SockOpsLinkId,
}

impl Applications {
    /// Attaches the program wherever there is a cgroup; one that is not there yet may come.
    pub(super) fn attach(adopt: &mut SockOps, paths: &[PathBuf]) -> Result<Self, SameHostError> {
        let each = |path: &PathBuf| match attach(adopt, path) {
            Err(why) if !why.may_pass() => Err(why),
            attached => Ok(Named { path: path.clone(), attached: attached.map_err(|why| why.to_string()) }),
        };
        paths.iter().map(each).collect::<Result<_, _>>().map(Self)
    }

    /// Attaches the program to cgroups that have come since, and lets go those that are gone.
    pub(super) fn look(&mut self, adopt: &mut SockOps) -> Vec<CgroupNews> {
        self.0.iter_mut().filter_map(|named| named.look(adopt)).collect()
    }

    /// Those whose applications don't take part, and why.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.0.iter().filter_map(|named| Some((named.path.as_path(), named.attached.as_ref().err()?.as_str())))
    }

    /// Whether any applications do.
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|named| named.attached.is_ok())
    }

    /// Whether nothing has changed, without attaching anything.
    pub(super) fn is_settled(&self) -> bool {
        self.0.iter().all(Named::is_settled)
    }
}

impl Named {
    fn is_settled(&self) -> bool {
        match (&self.attached, inode(&self.path)) {
            (Ok(attached), Ok(inode)) => attached.inode == inode,
            (Err(why), Err(error)) => *why == absent(&self.path, error).to_string(),
            _ => false,
        }
    }

    fn look(&mut self, adopt: &mut SockOps) -> Option<CgroupNews> {
        if self.is_settled() {
            return None;
        }
        let now = attach(adopt, &self.path).map_err(|why| why.to_string());
        let before = std::mem::replace(&mut self.attached, now);
        let same = matches!((&before, &self.attached), (Err(before), Err(now)) if before == now);
        if let Ok(Attached { link, .. }) = before {
            // Its cgroup is gone: there is nothing to detach from, but a descriptor to close.
            let _ = adopt.detach(link);
        }
        (!same).then(|| CgroupNews { path: self.path.clone(), why_not: self.attached.as_ref().err().cloned() })
    }
}

fn attach(adopt: &mut SockOps, path: &Path) -> Result<Attached, SameHostError> {
    check_cgroup(path)?;
    let cgroup = File::open(path).map_err(|error| absent(path, error))?;
    let inode = cgroup.metadata().map_err(|error| absent(path, error))?.st_ino();
    // As a bpf_link, which other programs in the same cgroup don't disturb; it counts for cgroups below, too, also for
    // those that are made later.
    let link = adopt.attach(cgroup, CgroupAttachMode::Single);
    let link = link.map_err(|why| match self::inode(path) {
        Ok(now) if now == inode => SameHostError::Attach(path.to_owned(), why),
        // It went at this very moment.
        _ => SameHostError::Absent(path.to_owned()),
    })?;
    Ok(Attached { inode, link })
}

/// Whether the applications of a cgroup can take part.
fn check_cgroup(path: &Path) -> Result<(), SameHostError> {
    let named = path.canonicalize().map_err(|error| absent(path, error))?;
    if !cgroup::is_one(&named) {
        return Err(SameHostError::NotACgroup(path.to_owned()));
    }
    let own = cgroup::own().map_err(SameHostError::NoOwnCgroup)?;
    if own.starts_with(&named) { Err(SameHostError::HoldsDaemon(path.to_owned())) } else { Ok(()) }
}

/// What is wrong with the cgroups for good, without loading anything; those that are not there yet.
pub fn check_cgroups(cgroups: &[PathBuf]) -> Result<Vec<SameHostError>, SameHostError> {
    cgroup::own().map_err(SameHostError::NoOwnCgroup)?;
    let wrong: Vec<_> = cgroups.iter().filter_map(|path| check_cgroup(path).err()).collect();
    let (missing, mut bad): (Vec<_>, Vec<_>) = wrong.into_iter().partition(SameHostError::may_pass);
    if bad.is_empty() { Ok(missing) } else { Err(bad.swap_remove(0)) }
}

fn inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| metadata.st_ino())
}

fn absent(path: &Path, error: io::Error) -> SameHostError {
    let path = path.to_owned();
    if error.kind() == ErrorKind::NotFound { SameHostError::Absent(path) } else { SameHostError::NoCgroup(path, error) }
}
