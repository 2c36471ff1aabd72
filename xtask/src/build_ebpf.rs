//! `cargo xtask build-ebpf`: compiles edge-ebpf and puts the objects where the daemon and the lab embed them.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    manifest::{self, Hashes, Manifest, Tools},
    process,
    toolchain::{self, BpfLinker, Choice, Compiler},
    workspace::{self, OBJECTS},
};

/// The target of the BPF programs: little-endian, as every machine this product runs on.
pub const TARGET: &str = "bpfel-unknown-none";

/// Flags that shape the objects; debug information is what bpf-linker makes BTF from, and v3 of the instruction set
/// has the atomic operations that return a value.
const FLAGS: [&str; 4] = ["-Cdebuginfo=2", "-Clinker=edge-bpf-linker", "-Clink-arg=--btf", "-Ctarget-cpu=v3"];

/// Options of `build-ebpf`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Which compiler to use.
    #[arg(long, value_enum, default_value_t)]
    pub toolchain: Choice,
}

/// Builds, then replaces the committed objects and their manifest.
///
/// # Errors
/// When a tool is missing (the message names the command that installs it) or the build fails.
pub fn run(args: &Args) -> Result<()> {
    let root = workspace::root();
    let built = build(args.toolchain)?;
    for object in OBJECTS {
        let to = root.join(object.committed);
        copy(&built.dir.join(object.bin), &to)?;
        println!("{} ({} bytes)", object.committed, to.metadata()?.len());
    }
    let objects = manifest::hash_objects(&root)?;
    Manifest::new(built.sources, flags(), objects, built.tools).store(&root)?;
    println!("{}", workspace::MANIFEST);
    Ok(())
}

/// What a build made and from what.
#[derive(Debug)]
pub struct Built {
    /// The directory that holds one file per `bin` of [`OBJECTS`].
    pub dir: PathBuf,
    pub sources: Hashes,
    pub tools: Tools,
}

/// The flags that a manifest records.
#[must_use]
pub fn flags() -> Vec<String> {
    FLAGS.map(str::to_owned).to_vec()
}

/// Compiles edge-ebpf into the target directory and touches nothing else.
///
/// # Errors
/// When a tool is missing (the message names the command that installs it) or the build fails.
pub fn build(choice: Choice) -> Result<Built> {
    let root = workspace::root();
    let compiler = toolchain::find_compiler(choice)?;
    let linker = toolchain::find_bpf_linker()?;
    println!("building the BPF programs with {}: rustc {}", compiler.kind, compiler.version.full);

    let sources = manifest::hash_sources(&root)?;
    // Dependencies must be on disk before their places can be taken out of the objects.
    process::run(cargo(&compiler, &linker)?.args(["fetch", "--quiet", "--locked"]))?;
    let mut build = cargo(&compiler, &linker)?;
    build.args(["build", "--release", "--locked", "-Zbuild-std=core", "--bins", "--target", TARGET]);
    build.env("CARGO_ENCODED_RUSTFLAGS", encoded_flags(&root, &compiler)?);
    process::run(&mut build)?;
    if sources != manifest::hash_sources(&root)? {
        bail!("the sources of the BPF programs changed during the build; run it again");
    }
    let tools = tools(&root, &compiler, &linker)?;
    Ok(Built { dir: bpf_target_dir(&linker)?.join(TARGET).join("release"), sources, tools })
}

/// A cargo of that compiler, in edge-ebpf, free of what the user's tool chain put in the environment.
///
/// # Errors
/// When the tools directory can't be put in `PATH`.
pub fn cargo(compiler: &Compiler, linker: &BpfLinker) -> Result<Command> {
    let mut command = Command::new(&compiler.cargo);
    for (name, _) in std::env::vars_os().filter(|(name, _)| belongs_to_another_build(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
        .current_dir(workspace::root().join("edge-ebpf"))
        .env("RUSTC", &compiler.rustc)
        // Building core and the BPF target are unstable; this is how a release compiler allows them.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC_WRAPPER", workspace::root().join(manifest::RUSTC_WRAPPER))
        .env("CARGO_TARGET_DIR", bpf_target_dir(linker)?);
    process::prefer_path(&mut command, &path_dirs(linker))?;
    Ok(command)
}

/// `cargo xtask` runs below a cargo of its own, which sets variables meant for its own compiler.
fn belongs_to_another_build(name: &str) -> bool {
    let kept = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    let foreign = ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTDOC", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"];
    foreign.iter().any(|prefix| name.starts_with(prefix)) && !kept.iter().any(|prefix| name.starts_with(prefix))
}

/// rustc looks for the linker, and our script for bpf-linker, in `PATH`: naming a place in a flag would
/// change the objects.
#[must_use]
pub fn path_dirs(linker: &BpfLinker) -> [PathBuf; 2] {
    [workspace::root().join("xtask/assets/bpf-build"), linker.dir.clone()]
}

/// One directory for each set of linker and wrappers: cargo does not notice when those change.
fn bpf_target_dir(linker: &BpfLinker) -> Result<PathBuf> {
    let root = workspace::root();
    let rustc = manifest::hash_file(&root.join(manifest::RUSTC_WRAPPER))?;
    let wrapper = manifest::hash_file(&root.join(manifest::LINKER_WRAPPER))?;
    let name = format!("{}-llvm{}-{rustc:.6}{wrapper:.6}", linker.version, linker.llvm);
    Ok(workspace::target_dir().join("bpf").join(name))
}

/// All flags, in the form of `CARGO_ENCODED_RUSTFLAGS`.
fn encoded_flags(root: &Path, compiler: &Compiler) -> Result<OsString> {
    let mut all = OsString::from(FLAGS.join("\x1f"));
    for (from, to) in remapped(root, compiler)? {
        all.push("\x1f--remap-path-prefix=");
        all.push(from);
        all.push("=");
        all.push(to);
    }
    Ok(all)
}

/// Places that would end up in debug information, and the names they get instead: a clone elsewhere,
/// another user's registry or another sysroot must give the same bytes.
fn remapped(root: &Path, compiler: &Compiler) -> Result<Vec<(PathBuf, &'static str)>> {
    let mut places = vec![(root.to_path_buf(), "/edgeproxy"), (compiler.sysroot.join("lib/rustlib/src/rust"), "/rust")];
    let registries = workspace::cargo_home()?.join("registry/src");
    let mut found: Vec<PathBuf> = match fs::read_dir(&registries) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(_) => Vec::new(),
    };
    found.sort();
    places.extend(found.into_iter().map(|dir| (dir, "/crates")));
    Ok(places)
}

fn tools(root: &Path, compiler: &Compiler, linker: &BpfLinker) -> Result<Tools> {
    let lock = fs::read_to_string(root.join("edge-ebpf/Cargo.lock"))?;
    Ok(Tools {
        rustc: compiler.version.full.clone(),
        rustc_llvm: compiler.version.llvm.clone(),
        bpf_linker: linker.version.clone(),
        bpf_linker_llvm: linker.llvm.clone(),
        aya_ebpf: locked_version(&lock, "aya-ebpf").context("edge-ebpf/Cargo.lock does not name aya-ebpf")?,
    })
}

/// The version of a package in the text of a lock file.
fn locked_version(lock: &str, package: &str) -> Option<String> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name).skip(1);
    let version = lines.next()?.strip_prefix("version = \"")?;
    Some(version.trim_end_matches('"').to_owned())
}

/// Copies a file, making its directory; a reader never sees half of it.
///
/// # Errors
/// When the copy fails; the message names both files.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("{} can't be copied to {}", from.display(), to.display());
    let dir = to.parent().with_context(what)?;
    fs::create_dir_all(dir).with_context(what)?;
    let bytes = fs::read(from).with_context(what)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir).with_context(what)?;
    std::io::Write::write_all(&mut temporary, &bytes).with_context(what)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    temporary.as_file().set_permissions(readable).with_context(what)?;
    temporary.persist(to).with_context(what)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_package_comes_from_the_lock_file() {
        let lock = "[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\n\n\
                    [[package]]\nname = \"aya-ebpf-bindings\"\nversion = \"0.2.0\"\n";
        assert_eq!(locked_version(lock, "aya-ebpf").as_deref(), Some("0.2.1"));
        assert_eq!(locked_version(lock, "aya-ebpf-bindings").as_deref(), Some("0.2.0"));
        assert_eq!(locked_version(lock, "aya"), None);
    }

    #[test]
    fn the_outer_cargo_does_not_leak_into_the_build() {
        for name in ["CARGO_MANIFEST_DIR", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "RUSTC_WRAPPER", "LD_LIBRARY_PATH"] {
            assert!(belongs_to_another_build(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_HTTP_PROXY", "CARGO_NET_OFFLINE", "HTTPS_PROXY", "PATH", "HOME"] {
            assert!(!belongs_to_another_build(name), "{name}");
        }
    }

    #[test]
    fn flags_name_no_place() {
        assert!(flags().iter().all(|flag| !flag.contains('/')));
    }
}
