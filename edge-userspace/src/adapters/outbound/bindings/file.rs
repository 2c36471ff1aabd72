//! The bindings on disk, so that they outlive the daemon.
//!
//! ```text
//! "EDGEBIND" version:u32 saved:u64        milliseconds since 1970
//! 1 length:u8 bytes                       an app; apps are numbered as they come
//! 2 length:u8 bytes                       a backend, likewise
//! 4 app:u32 backend:u32 bits:u8 idle:u64 address:4     a binding of an IPv4 client; idle in milliseconds
//! 6 app:u32 backend:u32 bits:u8 idle:u64 address:16    of an IPv6 client
//! 255 count:u64 crc32:u32                 the end; the checksum is of everything before it
//! ```
//!
//! All numbers are little-endian. A file is written beside its place and then moved there, so a crash leaves the old
//! one. What can't be understood is not used: affinity is a service to clients, not a promise.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{BindingTable, Clock};
use crate::application::bindings::Bound;
use crate::domain::{AppName, BackendId, BindingKey, ClientPrefix};

const MAGIC: &[u8; 8] = b"EDGEBIND";
const VERSION: u32 = 1;
/// 100,000,000 IPv6 bindings have 3.4 GB; a file beyond this is none of ours.
const MAX_BYTES: u64 = 4 << 30;

/// The usual CRC-32, in the quickest of the crate's ways: a file may have 30 MB.
static SUM: crc::Crc<u32, crc::Table<16>> = crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISO_HDLC);

const APP: u8 = 1;
const BACKEND: u8 = 2;
const V4: u8 = 4;
const V6: u8 = 6;
const END: u8 = 255;

/// Why bindings could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum BindingFileError {
    #[error(
        "bindings can't be saved to {path}: {why}; set bindings_path to a file in a directory that this user may write"
    )]
    Write { path: PathBuf, why: io::Error },
    #[error("bindings_path {path} is in use by another daemon (it holds {lock}): give each a file of its own")]
    InUse { path: PathBuf, lock: PathBuf },
    #[error("saved bindings {path} can't be read: {why}")]
    Read { path: PathBuf, why: io::Error },
    #[error("saved bindings {path} are not used: {why}")]
    Content { path: PathBuf, why: Damage },
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("the file is none of edgeproxy's")]
    Foreign,
    #[error("it is of version {0}, and this program knows version {VERSION}")]
    Version(u32),
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it contradicts itself")]
    Nonsense,
    #[error("it is larger than any that edgeproxy writes")]
    TooLarge,
}

/// What one save did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    pub bindings: u64,
    pub bytes: u64,
}

/// A place for the bindings, which nobody else has meanwhile.
#[derive(Debug)]
pub struct BindingFile {
    path: PathBuf,
    draft: PathBuf,
    /// Locked (`flock(2)`) as long as it is open. A file of its own, for the bindings' is replaced by each save; it
    /// stays, for who removes a lock file may remove one that another has just locked.
    _lock: File,
}

impl BindingFile {
    /// Takes the place, and finds out whether it can be written, by writing beside it.
    pub fn at(path: &Path) -> Result<Self, BindingFileError> {
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        let unwritable = |why| BindingFileError::Write { path: path.to_owned(), why };
        let (draft, lock) = (beside(".new"), beside(".lock"));
        let locked = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let locked = locked.map_err(unwritable)?;
        match locked.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BindingFileError::InUse { path: path.to_owned(), lock }),
            Err(TryLockError::Error(why)) => return Err(unwritable(why)),
        }
        let file = Self { path: path.to_owned(), draft, _lock: locked };
        file.create().and_then(|_| fs::remove_file(&file.draft)).map_err(unwritable)?;
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all bindings whose time isn't over. Holds up nobody: they are read a thousand at a time.
    pub fn save<C: Clock>(&self, table: &BindingTable<C>, now: SystemTime) -> Result<Saved, BindingFileError> {
        let saved = self.write(table, now);
        if saved.is_err() {
            // Half a file is of no use to anyone.
            let _ = fs::remove_file(&self.draft);
        }
        saved.map_err(|why| self.unwritable(why))
    }

    fn write<C: Clock>(&self, table: &BindingTable<C>, now: SystemTime) -> io::Result<Saved> {
        let mut out = Encoder::new(self.create()?, now)?;
        for at in 0..table.pages() {
            for bound in table.page(at) {
                out.binding(&bound)?;
            }
        }
        let (file, saved) = out.finish()?;
        file.sync_all()?;
        fs::rename(&self.draft, &self.path)?;
        // Without this the old file could be back after a power failure. It would only be older.
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(saved)
    }

    /// Addresses of clients are nobody else's business.
    fn create(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.draft)
    }

    /// Restores what was saved, as far as its time isn't over, and says how many that were. Without a file there are
    /// none.
    pub fn load<C: Clock>(&self, table: &BindingTable<C>, now: SystemTime) -> Result<usize, BindingFileError> {
        let unreadable = |why| BindingFileError::Read { path: self.path.clone(), why };
        let content = |why| BindingFileError::Content { path: self.path.clone(), why };
        match fs::metadata(&self.path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(why) => return Err(unreadable(why)),
            Ok(metadata) if metadata.len() > MAX_BYTES => return Err(content(Damage::TooLarge)),
            Ok(_) => {}
        }
        let bytes = fs::read(&self.path).map_err(unreadable)?;
        let mut restored = 0;
        decode(&bytes, now, |bound| restored += usize::from(table.restore(bound))).map_err(content)?;
        Ok(restored)
    }

    fn unwritable(&self, why: io::Error) -> BindingFileError {
        BindingFileError::Write { path: self.path.clone(), why }
    }
}

/// Writes the format.
struct Encoder {
    out: BufWriter<File>,
    sum: crc::Digest<'static, u32, crc::Table<16>>,
    apps: HashMap<AppName, u32>,
    backends: HashMap<BackendId, u32>,
    saved: Saved,
}

impl Encoder {
    fn new(file: File, now: SystemTime) -> io::Result<Self> {
        let mut encoder = Self {
            out: BufWriter::with_capacity(256 * 1024, file),
            sum: SUM.digest(),
            apps: HashMap::new(),
            backends: HashMap::new(),
            saved: Saved { bindings: 0, bytes: 0 },
        };
        encoder.put(MAGIC)?;
        encoder.put(&VERSION.to_le_bytes())?;
        encoder.put(&millis(now.duration_since(UNIX_EPOCH).unwrap_or_default()).to_le_bytes())?;
        Ok(encoder)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.saved.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn binding(&mut self, bound: &Bound) -> io::Result<()> {
        let app = self.app(&bound.key.app)?;
        let backend = self.backend(&bound.backend)?;
        let (kind, address, length) = match bound.key.client.ip() {
            std::net::IpAddr::V4(ip) => (V4, ip.to_ipv6_mapped().octets(), 4),
            std::net::IpAddr::V6(ip) => (V6, ip.octets(), 16),
        };
        let mut record = [0; 34];
        let (head, tail) = record.split_at_mut(18);
        let fields = [&[kind][..], &app.to_le_bytes(), &backend.to_le_bytes(), &[bound.key.client.bits()]];
        let fields = fields.concat().into_iter().chain(millis(bound.idle).to_le_bytes());
        head.iter_mut().zip(fields).for_each(|(place, byte)| *place = byte);
        // The last 4 bytes of a mapped address are the IPv4 one.
        tail.iter_mut().zip(address.iter().skip(16 - length)).for_each(|(place, byte)| *place = *byte);
        self.saved.bindings += 1;
        self.put(record.get(..18 + length).unwrap_or_default())
    }

    fn app(&mut self, name: &AppName) -> io::Result<u32> {
        if let Some(number) = self.apps.get(name) {
            return Ok(*number);
        }
        let number = number(self.apps.len())?;
        self.name(APP, name.as_str())?;
        self.apps.insert(name.clone(), number);
        Ok(number)
    }

    fn backend(&mut self, name: &BackendId) -> io::Result<u32> {
        if let Some(number) = self.backends.get(name) {
            return Ok(*number);
        }
        let number = number(self.backends.len())?;
        self.name(BACKEND, name.as_str())?;
        self.backends.insert(name.clone(), number);
        Ok(number)
    }

    fn name(&mut self, kind: u8, name: &str) -> io::Result<()> {
        let length = u8::try_from(name.len()).map_err(|_| io::Error::other("a name is too long"))?;
        self.put(&[kind, length])?;
        self.put(name.as_bytes())
    }

    fn finish(mut self) -> io::Result<(File, Saved)> {
        self.put(&[END])?;
        self.put(&self.saved.bindings.to_le_bytes())?;
        let sum = self.sum.finalize();
        self.out.write_all(&sum.to_le_bytes())?;
        let saved = Saved { bytes: self.saved.bytes + 4, ..self.saved };
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, saved))
    }
}

fn number(count: usize) -> io::Result<u32> {
    u32::try_from(count).map_err(|_| io::Error::other("there are too many names"))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the format; nothing is given to `take` before the checksum was found right.
fn decode(bytes: &[u8], now: SystemTime, mut take: impl FnMut(Bound)) -> Result<(), Damage> {
    let mut rest = Reader(bytes.strip_prefix(MAGIC).ok_or(Damage::Foreign)?);
    let version = rest.u32().ok_or(Damage::Foreign)?;
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or(Damage::Checksum)?;
    if SUM.checksum(body) != u32::from_le_bytes(*sum) {
        return Err(Damage::Checksum);
    }
    let saved = UNIX_EPOCH + Duration::from_millis(rest.u64().ok_or(Damage::Nonsense)?);
    // A clock that was set back since makes nothing younger.
    let since = now.duration_since(saved).unwrap_or_default();
    let mut decoder = Decoder { rest, since, apps: Vec::new(), backends: Vec::new() };
    while let Some(bound) = decoder.next().ok_or(Damage::Nonsense)? {
        take(bound);
    }
    Ok(())
}

struct Decoder<'a> {
    rest: Reader<'a>,
    /// The time since the file was written.
    since: Duration,
    apps: Vec<AppName>,
    backends: Vec<BackendId>,
}

impl Decoder<'_> {
    /// The next binding; the inner `None` is the end, the outer one nonsense.
    fn next(&mut self) -> Option<Option<Bound>> {
        loop {
            match self.rest.u8()? {
                APP => self.apps.push(AppName::parse(self.rest.name()?).ok()?),
                BACKEND => self.backends.push(BackendId::parse(self.rest.name()?).ok()?),
                V4 => return self.binding(|rest| Some(rest.array::<4>()?.into())).map(Some),
                V6 => return self.binding(|rest| Some(rest.array::<16>()?.into())).map(Some),
                END => return Some(None),
                _ => return None,
            }
        }
    }

    fn binding(&mut self, ip: fn(&mut Reader<'_>) -> Option<std::net::IpAddr>) -> Option<Bound> {
        let app = self.apps.get(self.rest.u32()? as usize)?.clone();
        let backend = self.backends.get(self.rest.u32()? as usize)?.clone();
        let bits = self.rest.u8()?;
        let idle = Duration::from_millis(self.rest.u64()?).saturating_add(self.since);
        let client = ClientPrefix::new(ip(&mut self.rest)?, bits).ok()?;
        Some(Bound { key: BindingKey { app, client }, backend, idle })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self) -> Option<&str> {
        let length = usize::from(self.u8()?);
        let (name, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(name).ok()
    }
}

#[cfg(test)]
mod tests;
