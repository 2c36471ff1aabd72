//! Notices changes of the routing database and reads it.
//!
//! The file is opened read-only. That works for a process that may write neither the file nor its directory, with one
//! difference: a database in WAL mode whose `-wal` file is gone (its last writer has closed) can't be opened the
//! ordinary way then, because SQLite would have to create the `-shm` file. Such a file is complete in itself, so it is
//! read as immutable, and the read counts only if the file was the same before and after.
//!
//! A writer that died in the middle of a transaction leaves a rollback journal, and a file that may hold half of what it
//! wrote. SQLite has whoever reads next roll it back, which takes write access: the file is opened for that alone. Where that is
//! not allowed nothing is read.
//!
//! The file may be replaced by renaming another over it. Its `-wal`, `-shm` and `-journal` files, where there are any, must be
//! removed first, as `edgeproxy db init --force` does: SQLite takes a log or journal that stays behind for the new file's.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, ffi};

use super::rows::{DatabaseError, backend_batches, is_locked, read_others};
use crate::adapters::outbound::file_identity::FileIdentity;
use crate::application::ports::{RoutingSource, SourceError};
use crate::domain::{RawBackend, RawRouting};

/// A writer that holds the file longer is waited for at the next look instead.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

/// Takes the backends, batch by batch.
type Sink<'a> = &'a mut dyn FnMut(Vec<RawBackend>);

/// The routing database as a source of rows.
#[derive(Debug)]
pub struct SqliteSource {
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// Before the last read.
    identity: FileIdentity,
    /// `PRAGMA data_version` before the last read: differs when another process has committed since.
    version: i64,
    immutable: bool,
}

impl SqliteSource {
    /// Opens nothing yet: the file may come later.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), open: None }
    }

    fn identity(&self) -> Result<FileIdentity, SourceError> {
        FileIdentity::of(&self.path).map_err(|why| match why.kind() {
            std::io::ErrorKind::NotFound => SourceError::Missing { path: self.shown() },
            _ => self.unreadable(&why),
        })
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn unreadable(&self, why: &dyn std::fmt::Display) -> SourceError {
        SourceError::Unreadable { path: self.shown(), why: why.to_string() }
    }

    /// A look and a read that meet the same lock say the same: what is told once for each reason is told once.
    fn failed(&self, why: &DatabaseError) -> SourceError {
        match why {
            DatabaseError::Sqlite(error) if is_locked(error) => SourceError::Locked { path: self.shown() },
            why => self.unreadable(why),
        }
    }

    /// With a write-ahead log commits don't touch the main file, and writing the log back changes nothing.
    fn has_log(&self) -> bool {
        has_beside(&self.path, "-wal")
    }

    fn read_ordinary(&mut self, identity: FileIdentity, backends: Sink<'_>) -> Result<RawRouting, DatabaseError> {
        let mut connection = match self.open.take() {
            Some(open) if !open.immutable && open.identity == identity => open.connection,
            _ => connect(&self.path, "")?,
        };
        let (version, raw) = read_rows(&mut connection, backends)?;
        self.open = Some(Open { connection, identity, version, immutable: false });
        Ok(raw)
    }

    /// Reads a file whose write-ahead log is gone, without needing to write beside it.
    pub(super) fn read_without_log(&mut self, backends: Sink<'_>) -> Result<RawRouting, SourceError> {
        let identity = self.identity()?;
        let mut connection = connect(&self.path, "?immutable=1").map_err(|why| self.unreadable(&why))?;
        let (version, raw) = read_rows(&mut connection, backends).map_err(|why| self.unreadable(&why))?;
        if self.identity()? != identity || self.has_log() || has_journal(&self.path) {
            return Err(self.unreadable(&"it changed while it was read; it is tried again"));
        }
        self.open = Some(Open { connection, identity, version, immutable: true });
        Ok(raw)
    }
}

impl RoutingSource for SqliteSource {
    fn changed(&mut self) -> Result<bool, SourceError> {
        let identity = self.identity()?;
        let has_log = self.has_log();
        let Some(open) = &self.open else { return Ok(true) };
        if !identity.is_same_file(&open.identity) || (open.immutable && has_log) {
            return Ok(true);
        }
        // A file that was overwritten in place shows by its size and time, whatever its version says.
        if identity != open.identity && !has_log {
            return Ok(true);
        }
        match data_version(&open.connection).map_err(DatabaseError::from) {
            Ok(version) => Ok(version != open.version),
            // The writer died before it touched the file: reading rolls back what is in the journal.
            Err(why) if is_unfinished(&why) => Ok(true),
            Err(why) => Err(self.failed(&why)),
        }
    }

    fn read(&mut self, backends: Sink<'_>) -> Result<RawRouting, SourceError> {
        let mut begun = false;
        let noting = &mut |batch| {
            begun = true;
            backends(batch);
        };
        let mut read = self.read_ordinary(self.identity()?, noting);
        if read.as_ref().is_err_and(is_unfinished) {
            if let Err(why) = roll_back(&self.path).map_err(DatabaseError::from)
                && !needs_write_access(&why)
            {
                return Err(self.failed(&why));
            }
            read = self.read_ordinary(self.identity()?, noting);
        }
        match read {
            Ok(raw) => Ok(raw),
            Err(why) if is_unfinished(&why) => Err(SourceError::Unfinished { path: self.shown() }),
            // That shows before the first row.
            Err(why) if needs_write_access(&why) && !begun && !self.has_log() && !has_journal(&self.path) => {
                self.read_without_log(backends)
            }
            Err(why) => Err(self.failed(&why)),
        }
    }
}

/// Has SQLite roll back what a writer left that died in the middle of a transaction. Takes write access, and does nothing
/// while that writer lives.
pub fn roll_back(path: &Path) -> Result<(), rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
}

/// Whether there is a rollback journal that counts: the file alone may be half of a transaction. One that begins with 0 is
/// over (`journal_mode = persist`) or was never begun.
pub fn has_journal(path: &Path) -> bool {
    let mut first = [0];
    let read = std::fs::File::open(beside(path, "-journal")).and_then(|mut file| file.read_exact(&mut first));
    read.is_ok() && first != [0]
}

fn has_beside(path: &Path, suffix: &str) -> bool {
    std::fs::metadata(beside(path, suffix)).is_ok_and(|metadata| metadata.len() > 0)
}

/// Where SQLite has a file's log or journal: beside the file itself, not beside a link to it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).into_os_string();
    beside.push(suffix);
    beside.into()
}

fn connect(path: &Path, query: &str) -> Result<Connection, rusqlite::Error> {
    // NO_MUTEX: the connection stays on one thread at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if query.is_empty() {
        Connection::open_with_flags(path, flags)?
    } else {
        let uri = format!("file:{}{query}", escaped(path));
        Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
    };
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// The path for a URI, in which `?`, `#` and `%` mean something.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

/// The version is read first: a commit between the two is seen by the next look.
fn read_rows(connection: &mut Connection, backends: Sink<'_>) -> Result<(i64, RawRouting), DatabaseError> {
    let version = data_version(connection)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
    backend_batches(&transaction, backends)?;
    let raw = read_others(&transaction)?;
    transaction.finish()?;
    Ok((version, raw))
}

fn data_version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0))
}

/// There is a journal to be rolled back, and a reader must not.
fn is_unfinished(error: &DatabaseError) -> bool {
    let DatabaseError::Sqlite(error) = error else { return false };
    error.sqlite_extended_error_code() == Some(ffi::SQLITE_READONLY_ROLLBACK)
}

fn needs_write_access(error: &DatabaseError) -> bool {
    let DatabaseError::Sqlite(error) = error else { return false };
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}
