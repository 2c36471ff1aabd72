//! Puts the BPF objects where the daemon embeds them: `OUT_DIR/edge.bpf.o` and `OUT_DIR/steer.bpf.o`.
//!
//! The committed objects are the rule, so that stable Rust alone builds a working daemon.
//! `EDGEPROXY_BPF_OBJECT` and `EDGEPROXY_STEER_OBJECT` name others, such as a fresh build of
//! `cargo xtask check-ebpf --rebuild`.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

/// Variable that names another object, and the object's file name.
const OBJECTS: [(&str, &str); 2] = [("EDGEPROXY_BPF_OBJECT", "edge.bpf.o"), ("EDGEPROXY_STEER_OBJECT", "steer.bpf.o")];
const COMMITTED: &str = "assets/bpf";
const MANIFEST: &str = "assets/bpf/manifest.json";

fn main() -> Result<(), Box<dyn Error>> {
    let package = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    OBJECTS.into_iter().try_for_each(|(variable, file)| embed(&package, variable, file))?;
    name_sources(&package)
}

fn embed(package: &Path, variable: &str, file: &str) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed={variable}");
    let object = match env::var_os(variable) {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => package.join(COMMITTED).join(file),
    };
    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = fs::read(&object).map_err(|error| {
        format!("the BPF object {} can't be read: {error}; build it with `cargo xtask build-ebpf`", object.display())
    })?;
    Ok(fs::write(PathBuf::from(env::var("OUT_DIR")?).join(file), bytes)?)
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
