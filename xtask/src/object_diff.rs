//! Whether two BPF objects hold the same programs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _};

/// Sections in which LLVM numbers types by their address in memory: two builds may number them differently.
const TYPE_SECTIONS: [&str; 2] = [".BTF", ".rel.BTF"];

/// How two objects compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Byte for byte the same.
    None,
    /// The same programs, maps, data and debug information; type information of the same size in another order.
    TypeOrder,
    /// These sections differ.
    Sections(Vec<String>),
}

impl Difference {
    /// Compares two files.
    ///
    /// # Errors
    /// When one can't be read or is no object.
    pub fn of(fresh: &Path, committed: &Path) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        Self::between(&read(fresh)?, &read(committed)?)
    }

    fn between(fresh: &[u8], committed: &[u8]) -> Result<Self> {
        if fresh == committed {
            return Ok(Self::None);
        }
        let (fresh, committed) = (sections(fresh)?, sections(committed)?);
        let differ: Vec<String> = fresh
            .keys()
            .chain(committed.keys().filter(|name| !fresh.contains_key(*name)))
            .filter(|name| !alike(name, fresh.get(*name), committed.get(*name)))
            .cloned()
            .collect();
        Ok(if differ.is_empty() { Self::TypeOrder } else { Self::Sections(differ) })
    }
}

fn alike(name: &str, fresh: Option<&Vec<u8>>, committed: Option<&Vec<u8>>) -> bool {
    match (fresh, committed) {
        (Some(a), Some(b)) if TYPE_SECTIONS.iter().any(|types| name.starts_with(types)) => a.len() == b.len(),
        (a, b) => a == b,
    }
}

fn sections(file: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let object = object::File::parse(file).context("not an object file")?;
    object.sections().map(|section| Ok((section.name()?.to_owned(), section.data()?.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::workspace;

    /// The committed object with one byte of a section changed.
    fn changed(section: &str) -> (Vec<u8>, Vec<u8>) {
        let path = workspace::root().join("edge-userspace/assets/bpf/edge.bpf.o");
        let committed = fs::read(path).unwrap();
        let file = object::File::parse(&committed[..]).unwrap();
        let (at, _) = file.section_by_name(section).unwrap().file_range().unwrap();
        let mut fresh = committed.clone();
        fresh[usize::try_from(at).unwrap() + 40] ^= 1;
        (fresh, committed)
    }

    #[test]
    fn a_changed_instruction_is_found() {
        let (fresh, committed) = changed("sk_skb/stream_verdict");
        let difference = Difference::between(&fresh, &committed).unwrap();
        assert_eq!(difference, Difference::Sections(vec!["sk_skb/stream_verdict".to_owned()]));
        assert_eq!(Difference::between(&committed, &committed).unwrap(), Difference::None);
    }

    #[test]
    fn types_in_another_order_are_no_difference() {
        let (fresh, committed) = changed(".BTF");
        assert_eq!(Difference::between(&fresh, &committed).unwrap(), Difference::TypeOrder);
        assert!(Difference::between(b"no object", &committed).is_err());
    }
}
