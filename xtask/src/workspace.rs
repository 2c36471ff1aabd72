//! Where things are in the repository, and the one list of BPF objects.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// One compiled BPF program file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfObject {
    /// The `[[bin]]` of edge-ebpf it is built from.
    pub bin: &'static str,
    /// Where the committed copy lives, relative to the repository.
    pub committed: &'static str,
    /// Its file name in `target/bpf-fresh/`.
    pub fresh: &'static str,
}

/// The programs that the daemon embeds.
pub const DAEMON_OBJECT: BpfObject =
    BpfObject { bin: "edge-ebpf", committed: "edge-userspace/assets/bpf/edge.bpf.o", fresh: "edge.bpf.o" };

/// The program that steers connections to prefixes and ranges of ports, which the daemon embeds, too.
pub const STEER_OBJECT: BpfObject =
    BpfObject { bin: "edge-steer", committed: "edge-userspace/assets/bpf/steer.bpf.o", fresh: "steer.bpf.o" };

/// The programs that only the lab loads.
pub const TESTKIT_OBJECT: BpfObject =
    BpfObject { bin: "edge-testkit", committed: "xtask/assets/bpf/testkit.bpf.o", fresh: "testkit.bpf.o" };

/// Everything that `build-ebpf` makes.
pub const OBJECTS: [BpfObject; 3] = [DAEMON_OBJECT, TESTKIT_OBJECT, STEER_OBJECT];

/// Build-time setting: the object that `edge-userspace/build.rs` embeds instead of the committed one.
pub const DAEMON_OBJECT_ENV: &str = "EDGEPROXY_BPF_OBJECT";

/// The same for [`STEER_OBJECT`].
pub const STEER_OBJECT_ENV: &str = "EDGEPROXY_STEER_OBJECT";

/// Run-time setting of the lab: the testkit object to load instead of the committed one.
pub const TESTKIT_OBJECT_ENV: &str = "EDGEPROXY_TESTKIT_OBJECT";

/// The manifest of the committed objects, relative to the repository.
pub const MANIFEST: &str = "edge-userspace/assets/bpf/manifest.json";

/// The repository this binary was compiled in.
#[must_use]
pub fn root() -> PathBuf {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir).to_path_buf()
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, else `target/` of the repository.
#[must_use]
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        _ => root().join("target"),
    }
}

/// Where cargo keeps its registry and rustup its proxies: `CARGO_HOME`, else `~/.cargo`.
///
/// # Errors
/// When neither `CARGO_HOME` nor the home directory is known.
pub fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    let home = std::env::home_dir().context("the home directory is not known; set CARGO_HOME")?;
    Ok(home.join(".cargo"))
}

/// Where `setup` puts bpf-linker and cargo-deny, away from the user's own tools.
#[must_use]
pub fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// Where a rebuild that must not touch the committed objects puts its own.
#[must_use]
pub fn fresh_dir() -> PathBuf {
    target_dir().join("bpf-fresh")
}

/// The testkit object to load: `EDGEPROXY_TESTKIT_OBJECT` if set, else the committed one.
#[must_use]
pub fn testkit_object() -> PathBuf {
    match std::env::var_os(TESTKIT_OBJECT_ENV) {
        Some(path) if !path.is_empty() => path.into(),
        _ => root().join(TESTKIT_OBJECT.committed),
    }
}
