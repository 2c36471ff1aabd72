//! The cgroups whose applications take part.
//!
//! A service manager removes the cgroup of a service that it stops, the program that is attached goes with it, and the
//! one that it makes at the next start has the name only. So it is looked at again and again. The kernel takes no
//! capability for attaching a program of this type that is loaded, so it can be done when none is left.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::ProgramError;
use aya::programs::sock_ops::SockOpsLinkId;

use super::SameHostError;
use super::cgroup;

/// A cgroup that is there and can't be attached to is not likely to be better the next moment.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The program that takes in applications. Its lock is one that the data path needs: nothing else is done under it.
pub(super) trait Adopt {
    /// As a bpf_link, which other programs in the same cgroup don't disturb; it counts for cgroups below, too, also for
    /// those that are made later.
    fn attach(&self, cgroup: File) -> Result<SockOpsLinkId, ProgramError>;
    fn detach(&self, link: SockOpsLinkId);
}

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
    attached: Result<Attached, Failure>,
}

/// Why the program is not attached.
#[derive(Debug)]
struct Failure {
    why: String,
    /// Of the directory that was there.
    inode: Option<u64>,
    /// Not to be tried again before, while that one is there.
    until: Instant,
}

/// The directory that the program is attached to, by its inode number: no other cgroup has it before the next boot.
#[derive(Debug)]
struct Attached {
    inode: u64,
    link: SockOpsLinkId,
}

impl Applications {
    /// Attaches the program wherever there is a cgroup; one that is not there yet may come.
    pub(super) fn attach(adopt: &impl Adopt, paths: &[PathBuf], now: Instant) -> Result<Self, SameHostError> {
        let each = |path: &PathBuf| match attach(adopt, path) {
            Err(why) if !why.may_pass() => Err(why),
            attached => {
                let attached = attached.map_err(|why| Failure { why: why.to_string(), inode: None, until: now });
                Ok(Named { path: path.clone(), attached })
            }
        };
        paths.iter().map(each).collect::<Result<_, _>>().map(Self)
    }

    /// Attaches the program to cgroups that have come since, and lets go those that are gone. Cheap where nothing changed.
    pub(super) fn look(&mut self, adopt: &impl Adopt, now: Instant) -> Vec<CgroupNews> {
        self.0.iter_mut().filter_map(|named| named.look(adopt, now)).collect()
    }

    /// Those whose applications don't take part, and why.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.0.iter().filter_map(|named| Some((named.path.as_path(), named.why_not()?)))
    }

    /// Whether any applications do.
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|named| named.attached.is_ok())
    }
}

impl Named {
    /// Why its applications don't take part.
    fn why_not(&self) -> Option<&str> {
        self.attached.as_ref().err().map(|failure| failure.why.as_str())
    }

    /// Whether there is nothing to do.
    fn is_settled(&self, now: Instant) -> bool {
        match (&self.attached, inode(&self.path)) {
            (Ok(attached), Ok(inode)) => attached.inode == inode,
            (Err(failure), Ok(inode)) => failure.inode == Some(inode) && now < failure.until,
            (Err(failure), Err(error)) => failure.why == absent(&self.path, error).to_string(),
            (Ok(_), Err(_)) => false,
        }
    }

    fn look(&mut self, adopt: &impl Adopt, now: Instant) -> Option<CgroupNews> {
        if self.is_settled(now) {
            return None;
        }
        let inode = inode(&self.path).ok();
        let attached = attach(adopt, &self.path);
        let attached = attached.map_err(|why| Failure { why: why.to_string(), inode, until: now + TRY_AGAIN });
        let before = std::mem::replace(&mut self.attached, attached);
        let same = matches!(&before, Err(before) if self.why_not() == Some(before.why.as_str()));
        if let Ok(Attached { link, .. }) = before {
            // Its cgroup is gone: there is nothing to detach from, but a descriptor to close.
            adopt.detach(link);
        }
        (!same).then(|| CgroupNews { path: self.path.clone(), why_not: self.why_not().map(str::to_owned) })
    }
}

fn attach(adopt: &impl Adopt, path: &Path) -> Result<Attached, SameHostError> {
    check_cgroup(path)?;
    let cgroup = File::open(path).map_err(|error| absent(path, error))?;
    let inode = cgroup.metadata().map_err(|error| absent(path, error))?.st_ino();
    let link = adopt.attach(cgroup).map_err(|why| match self::inode(path) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Never;

    impl Adopt for Never {
        fn attach(&self, _: File) -> Result<SockOpsLinkId, ProgramError> {
            panic!("no ordinary directory is attached to")
        }

        fn detach(&self, _: SockOpsLinkId) {}
    }

    #[test]
    fn what_can_not_be_attached_to_is_left_alone_for_some_seconds_unless_another_comes() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("no-cgroup");
        let start = Instant::now();
        let mut all = Applications::attach(&Never, std::slice::from_ref(&path), start).unwrap();
        assert!(all.0[0].is_settled(start), "it may come");
        fs::create_dir(&path).unwrap();
        let news = all.look(&Never, start);
        assert!(news[0].why_not.as_ref().unwrap().contains("is not a directory of a cgroup v2"), "{news:?}");
        let soon = start + TRY_AGAIN / 2;
        assert!(all.0[0].is_settled(soon));
        assert!(!all.0[0].is_settled(start + TRY_AGAIN));
        assert_eq!(all.look(&Never, start + TRY_AGAIN), [], "told once");
        assert!(all.0[0].is_settled(start + TRY_AGAIN + TRY_AGAIN / 2));
        // While the first is still there, so that the second has a number of its own.
        fs::rename(&path, parent.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!all.0[0].is_settled(soon), "another is looked at at once");
        fs::remove_dir(&path).unwrap();
        assert!(!all.0[0].is_settled(soon));
        assert!(all.look(&Never, soon)[0].why_not.as_ref().unwrap().ends_with("is not there"));
    }
}
