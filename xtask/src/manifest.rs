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
pub const RUSTC_WRAPPER: &str = "xtask/assets/stable-crate-names.sh";

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
    #[error(
        "the BPF objects were built with other compiler flags ({built}) than xtask uses now ({now})"
    )]
    Flags { built: String, now: String },
    #[error(
        "{path} is not the file that the manifest describes: its SHA-256 is {found}, expected {expected}"
    )]
    Object {
        path: String,
        found: String,
        expected: String,
    },
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
        Self {
            combined: combine(&sources, &flags),
            objects,
            flags,
            sources,
            tools,
        }
    }

    /// Reads the committed manifest.
    ///
    /// # Errors
    /// When it is missing or not a manifest.
    pub fn load(root: &Path) -> Result<Self> {
        let path = root.join(MANIFEST);
        let text = fs::read_to_string(&path).with_context(|| {
            format!("{MANIFEST} can't be read; build it with `cargo xtask build-ebpf`")
        })?;
        serde_json::from_str(&text).with_context(|| {
            format!("{MANIFEST} is damaged; build it anew with `cargo xtask build-ebpf`")
        })
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
    pub fn verify(
        &self,
        sources: &Hashes,
        flags: &[String],
        objects: &Hashes,
    ) -> Result<(), Stale> {
        let changes = differences(&self.sources, sources);
        if !changes.is_empty() {
            return Err(Stale::Sources { changes });
        }
        if self.flags != flags {
            return Err(Stale::Flags {
                built: self.flags.join(" "),
                now: flags.join(" "),
            });
        }
        if self.combined != combine(sources, flags) {
            return Err(Stale::Edited);
        }
        for object in OBJECTS {
            let described = |hashes: &Hashes| {
                hashes
                    .get(object.committed)
                    .cloned()
                    .unwrap_or_else(|| "missing".to_owned())
            };
            let (found, expected) = (described(objects), described(&self.objects));
            if found != expected {
                return Err(Stale::Object {
                    path: object.committed.to_owned(),
                    found,
                    expected,
                });
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
    let single = [
        "edge-common/Cargo.toml",
        "edge-ebpf/Cargo.toml",
        "edge-ebpf/Cargo.lock",
        RUSTC_WRAPPER,
    ];
    let mut files: Vec<PathBuf> = single.map(PathBuf::from).to_vec();
    for dir in ["edge-common/src", "edge-ebpf/src"] {
        collect(root, Path::new(dir), &mut files)?;
    }
    files
        .iter()
        .map(|file| {
            Ok((
                file.to_string_lossy().into_owned(),
                hash_file(&root.join(file))?,
            ))
        })
        .collect()
}

/// Hashes the committed objects that are there.
///
/// # Errors
/// When one is there but can't be read.
pub fn hash_objects(root: &Path) -> Result<Hashes> {
    OBJECTS
        .iter()
        .filter(|object| root.join(object.committed).exists())
        .map(|object| {
            Ok((
                object.committed.to_owned(),
                hash_file(&root.join(object.committed))?,
            ))
        })
        .collect()
}

/// Adds every file below `dir` that the compiler could read; an editor's left-overs don't count.
fn collect(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let absolute = root.join(dir);
    let entries = fs::read_dir(&absolute)
        .with_context(|| format!("{} can't be listed", absolute.display()))?;
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
