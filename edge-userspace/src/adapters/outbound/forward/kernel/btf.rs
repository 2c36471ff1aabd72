//! Offsets of kernel structure members, read from the running kernel's BTF.
//!
//! aya relocates C programs only, so the programs in Rust get their offsets as globals. The reader covers what that
//! takes: find a struct by name, find a member in it, through anonymous structs and unions. The libraries that could
//! do it are either under a licence we can't link or build an index of all 150,000 types first, 30 times slower.
//! Format: `Documentation/bpf/btf.rst` of the kernel.

use std::fs;
use std::ops::Deref;
use std::path::Path;

use super::mapped::MappedFile;

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Anonymous members nest a few levels deep in practice; a malformed file must not recurse for ever.
const MAX_DEPTH: u32 = 8;

#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("kernel type information {0} cannot be read: the kernel was built without CONFIG_DEBUG_INFO_BTF")]
    Unreadable(String),
    #[error("kernel type information is malformed")]
    Malformed,
    #[error("this kernel has no member {0}.{1}")]
    NoMember(&'static str, &'static str),
}

/// The type information of a kernel.
#[derive(Debug)]
pub(super) struct Btf<D = Data> {
    data: D,
    strings: usize,
    /// Offset of each type's record; index 0 is `void`.
    types: Vec<u32>,
}

/// Six megabytes that are in memory anyway: Linux 6.16 and newer let them be mapped, others have them copied.
#[derive(Debug)]
pub(super) enum Data {
    Mapped(MappedFile),
    Read(Vec<u8>),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Read(bytes) => bytes,
        }
    }
}

impl Btf {
    pub(super) fn of_running_kernel() -> Result<Self, BtfError> {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let mapped = MappedFile::open(path).map(Data::Mapped);
        let data = mapped.or_else(|_| fs::read(path).map(Data::Read));
        Self::parse(data.map_err(|_| BtfError::Unreadable(path.display().to_string()))?)
    }
}

impl<D: Deref<Target = [u8]>> Btf<D> {
    fn parse(data: D) -> Result<Self, BtfError> {
        let bad = || BtfError::Malformed;
        if data.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(bad());
        }
        let header = word(&data, 4).ok_or_else(bad)?;
        let section = |at: usize| Some((header.checked_add(word(&data, at)?)? as usize, word(&data, at + 4)? as usize));
        let (types_at, types_len) = section(8).ok_or_else(bad)?;
        let (strings, _) = section(16).ok_or_else(bad)?;
        let mut types = vec![0];
        let mut at = types_at;
        while at < types_at + types_len {
            types.push(u32::try_from(at).map_err(|_| bad())?);
            at += record_len(word(&data, at + 4).ok_or_else(bad)?).ok_or_else(bad)?;
        }
        Ok(Self { data, strings, types })
    }

    /// Offset in bytes of `member` in `struct name`.
    pub(super) fn offset_of(&self, name: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let found = self.types.iter().skip(1).find_map(|&at| {
            let at = at as usize;
            (kind(word(&self.data, at + 4)?) == KIND_STRUCT && self.is_named(word(&self.data, at)?, name))
                .then(|| self.member_bits(at, member, 0))?
        });
        found.map(|bits| bits / 8).ok_or(BtfError::NoMember(name, member))
    }

    fn member_bits(&self, record: usize, member: &str, depth: u32) -> Option<u32> {
        let info = word(&self.data, record + 4)?;
        if depth > MAX_DEPTH || !matches!(kind(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let has_bitfields = info >> 31 == 1;
        (0..(info & 0xffff) as usize).find_map(|i| {
            let at = record + 12 + i * 12;
            let (name, of_type, offset) = (word(&self.data, at)?, word(&self.data, at + 4)?, word(&self.data, at + 8)?);
            let bits = if has_bitfields { offset & 0x00ff_ffff } else { offset };
            if self.is_named(name, member) {
                return Some(bits);
            }
            let anonymous = self.data.get(self.strings + name as usize) == Some(&0);
            let inner = *self.types.get(of_type as usize)?;
            if anonymous { Some(bits + self.member_bits(inner as usize, member, depth + 1)?) } else { None }
        })
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        let at = self.strings + offset as usize;
        self.data.get(at..at + name.len()) == Some(name.as_bytes()) && self.data.get(at + name.len()) == Some(&0)
    }
}

fn kind(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

/// Length of a type record by its `info` word.
fn record_len(info: u32) -> Option<usize> {
    let members = (info & 0xffff) as usize;
    let extra = match kind(info) {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => members * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => members * 8,
        _ => return None,
    };
    Some(12 + extra)
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct s { int a; union { int b; struct { int pad; int c; }; }; }, built by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0c\0pad\0int\0";
        let mut types = Vec::new();
        let mut put = |words: &[u32]| types.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        put(&[13, 1 << 24, 4, 32]); // 1: int
        put(&[0, KIND_STRUCT << 24 | 2, 8, 9, 1, 0, 7, 1, 32]); // 2: struct { int pad; int c; }
        put(&[0, KIND_UNION << 24 | 2, 8, 5, 1, 0, 0, 2, 0]); // 3: union { int b; struct 2; }
        put(&[1, KIND_STRUCT << 24 | 2, 12, 3, 1, 0, 0, 3, 32]); // 4: struct s
        let mut data = Vec::new();
        data.extend(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        let types_len = u32::try_from(types.len()).unwrap();
        for w in [24, 0, types_len, types_len, u32::try_from(strings.len()).unwrap()] {
            data.extend(w.to_ne_bytes());
        }
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn finds_members_through_anonymous_structs_and_unions() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset_of("s", "a").unwrap(), 0);
        assert_eq!(btf.offset_of("s", "b").unwrap(), 4);
        assert_eq!(btf.offset_of("s", "c").unwrap(), 8);
        assert!(matches!(btf.offset_of("s", "d"), Err(BtfError::NoMember("s", "d"))));
        assert!(btf.offset_of("t", "a").is_err());
    }

    #[test]
    fn every_truncation_is_an_error_or_an_answer_never_a_panic() {
        let whole = sample();
        for len in 0..whole.len() {
            if let Ok(btf) = Btf::parse(whole.get(..len).unwrap().to_vec()) {
                let _ = btf.offset_of("s", "c");
            }
        }
    }
}
