//! What the committed BPF objects were built from: the file that lets a plain `cargo build` trust them.
//!
//! Nothing in it depends on time, place or user, so that the same sources and tools give the same file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::workspace::{MANIFEST, OBJECTS};

/// The script between cargo and rustc that keeps the clone's place out of symbols.
pub const RUSTC_WRAPPER: &str = "xtask/assets/bpf-build/edge-rustc";
/// The script between rustc and bpf-linker that keeps it out of the order of BTF types.
pub const LINKER_WRAPPER: &str = "xtask/assets/bpf-build/edge-bpf-linker";

/// Hexadecimal SHA-256 by path relative to the repository, in the order of the paths.
pub type Hashes = BTreeMap<String, String>;

/// The manifest, field for field as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// One hash over `flags` and `sources`.
    pub combined: String,
    /// The committed objects.
    pub objects: Hashes,
    /// The compiler's flags, without those that name a place.
    pub flags: Vec<String>,
    /// Every file that shapes the objects.
    pub sources: Hashes,
    pub tools: Tools,
}

/// Versions that shape the objects' bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tools {
    pub rustc: String,
    pub rustc_llvm: String,
    pub bpf_linker: String,
    pub bpf_linker_llvm: String,
    pub aya_ebpf: String,
}

/// How the objects and the sources disagree.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Stale {
    #[error("the BPF objects were not built from these sources; {}", list(changes))]
    Sources { changes: Vec<String> },
    #[error("the BPF objects were built with other compiler flags ({built}) than xtask uses now ({now})")]
    Flags { built: String, now: String },
    #[error("{path} is not the file that the manifest describes: its SHA-256 is {found}, expected {expected}")]
    Object { path: String, found: String, expected: String },
    #[error("{MANIFEST} was edited: its combined hash does not follow from its parts")]
    Edited,
}

fn list(changes: &[String]) -> String {
    changes.join(", ")
}

impl Manifest {
    /// Describes objects that have just been built: `objects` maps each committed path to its bytes.
    #[must_use]
    pub fn new(sources: Hashes, flags: Vec<String>, objects: Hashes, tools: Tools) -> Self {
        Self { combined: combine(&sources, &flags), objects, flags, sources, tools }
    }

    /// Reads the committed manifest.
    ///
    /// # Errors
    /// When it is missing or not a manifest.
    pub fn load(root: &Path) -> Result<Self> {
        let path = root.join(MANIFEST);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{MANIFEST} can't be read; build it with `cargo xtask build-ebpf`"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{MANIFEST} is damaged; build it anew with `cargo xtask build-ebpf`"))
    }

    /// Writes the manifest next to the object it describes.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn store(&self, root: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(root.join(MANIFEST), text).with_context(|| format!("{MANIFEST} can't be written"))
    }

    /// Compares with the sources, flags and objects that are here now.
    ///
    /// # Errors
    /// The first kind of disagreement, with every file it concerns.
    pub fn verify(&self, sources: &Hashes, flags: &[String], objects: &Hashes) -> Result<(), Stale> {
        let changes = differences(&self.sources, sources);
        if !changes.is_empty() {
            return Err(Stale::Sources { changes });
        }
        if self.flags != flags {
            return Err(Stale::Flags { built: self.flags.join(" "), now: flags.join(" ") });
        }
        if self.combined != combine(sources, flags) {
            return Err(Stale::Edited);
        }
        for object in OBJECTS {
            let described =
                |hashes: &Hashes| hashes.get(object.committed).cloned().unwrap_or_else(|| "missing".to_owned());
            let (found, expected) = (described(objects), described(&self.objects));
            if found != expected {
                return Err(Stale::Object { path: object.committed.to_owned(), found, expected });
            }
        }
        Ok(())
    }
}

/// One line per file that is not the same in both.
fn differences(built: &Hashes, now: &Hashes) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, hash) in now {
        match built.get(path) {
            None => lines.push(format!("added: {path}")),
            Some(old) if old != hash => lines.push(format!("changed: {path}")),
            Some(_) => {}
        }
    }
    let removed = built.keys().filter(|path| !now.contains_key(*path));
    lines.extend(removed.map(|path| format!("removed: {path}")));
    lines
}

fn combine(sources: &Hashes, flags: &[String]) -> String {
    let mut hasher = Sha256::new();
    for flag in flags {
        hasher.update(format!("flag {flag}\n"));
    }
    for (path, hash) in sources {
        hasher.update(format!("{hash} {path}\n"));
    }
    hex(&hasher.finalize())
}

/// Hashes every file that shapes the objects.
///
/// # Errors
/// When a file can't be read.
pub fn hash_sources(root: &Path) -> Result<Hashes> {
    let single =
        ["edge-common/Cargo.toml", "edge-ebpf/Cargo.toml", "edge-ebpf/Cargo.lock", RUSTC_WRAPPER, LINKER_WRAPPER];
    let mut files: Vec<PathBuf> = single.map(PathBuf::from).to_vec();
    for dir in ["edge-common/src", "edge-ebpf/src"] {
        collect(root, Path::new(dir), &mut files)?;
    }
    files.iter().map(|file| Ok((file.to_string_lossy().into_owned(), hash_file(&root.join(file))?))).collect()
}

/// Hashes the committed objects that are there.
///
/// # Errors
/// When one is there but can't be read.
pub fn hash_objects(root: &Path) -> Result<Hashes> {
    OBJECTS
        .iter()
        .filter(|object| root.join(object.committed).exists())
        .map(|object| Ok((object.committed.to_owned(), hash_file(&root.join(object.committed))?)))
        .collect()
}

/// Adds every file below `dir` that the compiler could read; an editor's left-overs don't count.
fn collect(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let absolute = root.join(dir);
    let entries = fs::read_dir(&absolute).with_context(|| format!("{} can't be listed", absolute.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The hexadecimal SHA-256 of a file.
///
/// # Errors
/// When the file can't be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    Ok(hex(&Sha256::digest(&bytes)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    /// A repository in small: sources, two objects and the manifest that describes them.
    fn repository() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("edge-common/Cargo.toml", "common"),
            ("edge-common/src/lib.rs", "pub mod flow;"),
            ("edge-common/src/flow.rs", "pub struct Flow;"),
            ("edge-ebpf/Cargo.toml", "ebpf"),
            ("edge-ebpf/Cargo.lock", "lock"),
            ("edge-ebpf/src/main.rs", "fn verdict() {}"),
            (RUSTC_WRAPPER, "exec"),
            (LINKER_WRAPPER, "exec"),
            (OBJECTS[0].committed, "daemon object"),
            (OBJECTS[1].committed, "testkit object"),
            (OBJECTS[2].committed, "steer object"),
        ];
        for (path, text) in files {
            put(dir.path(), path, text);
        }
        let sources = hash_sources(dir.path()).unwrap();
        let objects = hash_objects(dir.path()).unwrap();
        Manifest::new(sources, flags(), objects, tools()).store(dir.path()).unwrap();
        dir
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn flags() -> Vec<String> {
        vec!["-Cdebuginfo=2".to_owned()]
    }

    fn tools() -> Tools {
        Tools {
            rustc: "1.96.0".to_owned(),
            rustc_llvm: "22.1.8".to_owned(),
            bpf_linker: "0.13.0".to_owned(),
            bpf_linker_llvm: "22.1.8".to_owned(),
            aya_ebpf: "0.2.1".to_owned(),
        }
    }

    fn verify(root: &Path) -> Result<(), Stale> {
        let manifest = Manifest::load(root).unwrap();
        manifest.verify(&hash_sources(root).unwrap(), &flags(), &hash_objects(root).unwrap())
    }

    #[test]
    fn an_untouched_repository_is_in_order() {
        assert_eq!(verify(repository().path()), Ok(()));
    }

    #[test]
    fn a_changed_byte_is_found_and_its_file_named() {
        let dir = repository();
        put(dir.path(), "edge-common/src/flow.rs", "pub struct Flaw;");
        let error = verify(dir.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the BPF objects were not built from these sources; changed: edge-common/src/flow.rs"
        );
    }

    #[test]
    fn every_kind_of_source_counts() {
        let counted = [
            "edge-common/Cargo.toml",
            "edge-ebpf/Cargo.toml",
            "edge-ebpf/Cargo.lock",
            "edge-ebpf/src/main.rs",
            RUSTC_WRAPPER,
            LINKER_WRAPPER,
        ];
        for path in counted {
            let dir = repository();
            put(dir.path(), path, "other");
            let changes = vec![format!("changed: {path}")];
            assert_eq!(verify(dir.path()), Err(Stale::Sources { changes }));
        }
    }

    #[test]
    fn added_and_removed_files_are_found_wherever_they_are() {
        let dir = repository();
        put(dir.path(), "edge-ebpf/src/maps/flows.rs", "");
        fs::remove_file(dir.path().join("edge-common/src/flow.rs")).unwrap();
        let changes =
            vec!["added: edge-ebpf/src/maps/flows.rs".to_owned(), "removed: edge-common/src/flow.rs".to_owned()];
        assert_eq!(verify(dir.path()), Err(Stale::Sources { changes }));
    }

    #[test]
    fn files_that_the_compiler_does_not_read_do_not_count() {
        let dir = repository();
        put(dir.path(), "edge-ebpf/src/main.rs~", "an editor's copy");
        assert_eq!(verify(dir.path()), Ok(()));
    }

    #[test]
    fn swapped_objects_are_found() {
        let dir = repository();
        put(dir.path(), OBJECTS[0].committed, "testkit object");
        put(dir.path(), OBJECTS[1].committed, "daemon object");
        let error = verify(dir.path()).unwrap_err();
        assert!(matches!(&error, Stale::Object { path, .. } if path == OBJECTS[0].committed), "{error}");
    }

    #[test]
    fn a_missing_object_is_found() {
        let dir = repository();
        fs::remove_file(dir.path().join(OBJECTS[1].committed)).unwrap();
        let error = verify(dir.path()).unwrap_err();
        assert!(error.to_string().contains("testkit.bpf.o"), "{error}");
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn other_flags_and_an_edited_manifest_are_found() {
        let dir = repository();
        let mut manifest = Manifest::load(dir.path()).unwrap();
        let (sources, objects) = (hash_sources(dir.path()).unwrap(), hash_objects(dir.path()).unwrap());
        let flags_now = ["-Cdebuginfo=0".to_owned()];
        let found = manifest.verify(&sources, &flags_now, &objects);
        assert!(matches!(found, Err(Stale::Flags { .. })));
        manifest.combined = "0".repeat(64);
        assert_eq!(manifest.verify(&sources, &flags(), &objects), Err(Stale::Edited));
    }

    #[test]
    fn the_manifest_is_the_same_bytes_each_time() {
        let (one, two) = (repository(), repository());
        let read = |dir: &tempfile::TempDir| fs::read(dir.path().join(MANIFEST)).unwrap();
        assert_eq!(read(&one), read(&two));
    }

    #[test]
    fn a_missing_or_damaged_manifest_names_the_remedy() {
        let dir = repository();
        put(dir.path(), MANIFEST, "{");
        let damaged = Manifest::load(dir.path()).unwrap_err();
        fs::remove_file(dir.path().join(MANIFEST)).unwrap();
        let missing = Manifest::load(dir.path()).unwrap_err();
        for error in [damaged, missing] {
            assert!(error.to_string().contains("cargo xtask build-ebpf"), "{error}");
        }
    }
}
