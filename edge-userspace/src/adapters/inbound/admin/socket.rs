//! The Unix socket of the admin API: one daemon owns it, and takes it away when it ends.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// Owner and group may administer, others may not.
const MODE: u32 = 0o660;
/// A daemon that does not accept within this time is hung, which is still alive.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Why the admin API is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("another edgeproxy answers on admin socket {path}: stop it, or set another admin_socket")]
    InUse { path: PathBuf },
    #[error("admin socket {path} is a file of another kind: remove it, or set another admin_socket")]
    NotASocket { path: PathBuf },
    #[error("admin socket {path} could not be made: {why}; set admin_socket to a path that this user may write")]
    Socket { path: PathBuf, why: io::Error },
    #[error("admin address {addr} could not be bound: {why}; set another admin_listen")]
    Tcp { addr: std::net::SocketAddr, why: io::Error },
}

/// The bound socket. When it is dropped, its file goes, unless another daemon has put its own there.
#[derive(Debug)]
pub(super) struct AdminSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of our file.
    identity: (u64, u64),
}

impl AdminSocket {
    /// Takes the place of a socket whose daemon is dead, never of a live one.
    pub(super) async fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |why| AdminError::Socket { path: path.to_owned(), why };
        refuse_if_taken(path).await?;
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            make(directory).map_err(failed)?;
        }
        // Under its own name it would be open to all until the mode is set, and a client could find it half made.
        let draft = draft_of(path);
        let _ = fs::remove_file(&draft);
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        let placed = fs::set_permissions(&draft, fs::Permissions::from_mode(MODE))
            .and_then(|()| fs::rename(&draft, path))
            .and_then(|()| identity(path));
        match placed {
            Ok(identity) => Ok(Self { listener, path: path.to_owned(), identity }),
            Err(why) => {
                let _ = fs::remove_file(&draft);
                Err(failed(why))
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn refuse_if_taken(path: &Path) -> Result<(), AdminError> {
    let failed = |why| AdminError::Socket { path: path.to_owned(), why };
    match fs::symlink_metadata(path) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(failed(why)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(AdminError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match timeout(PROBE_LIMIT, UnixStream::connect(path)).await {
        Ok(Err(why)) if matches!(why.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        // EAGAIN: its queue is full, so that there is someone.
        Ok(Ok(_)) | Err(_) => Err(AdminError::InUse { path: path.to_owned() }),
        Ok(Err(why)) if why.kind() == ErrorKind::WouldBlock => Err(AdminError::InUse { path: path.to_owned() }),
        Ok(Err(why)) => Err(failed(why)),
    }
}

/// Makes a directory whose parent exists: `/run/edgeproxy` may be missing after a restart of the host, but what is
/// missing further up is a slip of the pen.
fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(why) if why.kind() == ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    PathBuf::from(name)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let first = AdminSocket::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let astray = dir.path().join("rnu/edgeproxy/admin.sock");
        assert!(AdminSocket::bind(&astray).await.unwrap_err().to_string().contains("could not be made"));
        assert!(!dir.path().join("rnu").exists(), "a path that is wrong makes no directories");
        let error = AdminSocket::bind(&path).await.unwrap_err();
        assert!(error.to_string().contains("another edgeproxy answers"), "{error}");
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = AdminSocket::bind(&path).await.unwrap();
        drop(second);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_ordinary_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(AdminSocket::bind(&path).await, Err(AdminError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _second = AdminSocket::bind(&path).await.unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_written_is_named() {
        let error = AdminSocket::bind(Path::new("/proc/edgeproxy/admin.sock")).await.unwrap_err();
        assert!(error.to_string().starts_with("admin socket /proc/edgeproxy/admin.sock could not be made"), "{error}");
    }
}
