//! Puts the BPF object where the daemon embeds it: `OUT_DIR/edge.bpf.o`.
//!
//! The committed object is the rule, so that stable Rust alone builds a working daemon.
//! `EDGEPROXY_BPF_OBJECT` names another one, such as a fresh build of `cargo xtask check-ebpf --rebuild`.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

const OBJECT_ENV: &str = "EDGEPROXY_BPF_OBJECT";
const COMMITTED: &str = "assets/bpf/edge.bpf.o";
const MANIFEST: &str = "assets/bpf/manifest.json";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed={OBJECT_ENV}");
    let package = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let object = match env::var_os(OBJECT_ENV) {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => package.join(COMMITTED),
    };
    println!("cargo:rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var("OUT_DIR")?).join("edge.bpf.o");
    let bytes = fs::read(&object).map_err(|error| {
        format!("the BPF object {} can't be read: {error}; build it with `cargo xtask build-ebpf`", object.display())
    })?;
    fs::write(embedded, bytes)?;
    name_sources(&package)
}

/// Lets `edgeproxy --version --verbose` say which sources the programs were built from.
fn name_sources(package: &Path) -> Result<(), Box<dyn Error>> {
    let manifest = package.join(MANIFEST);
    println!("cargo:rerun-if-changed={}", manifest.display());
    let text = fs::read_to_string(&manifest)?;
    let hash = text.lines().find_map(|line| line.trim().strip_prefix("\"combined\": \"")?.split('"').next());
    let hash = hash.ok_or("the manifest of the BPF object names no sources; run `cargo xtask build-ebpf`")?;
    println!("cargo:rustc-env=BPF_SOURCES_HASH={hash}");
    Ok(())
}
