//! The tools that turn edge-ebpf into BPF objects, and how each is had when it is missing.
//!
//! Two tool chains will do: a rustup nightly that has its library sources, or Debian's rustc-web with
//! rust-web-src. Both need [bpf-linker] built against the same major version of LLVM as the compiler,
//! because the compiler hands it LLVM bitcode.
//!
//! [bpf-linker]: https://github.com/aya-rs/bpf-linker

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;
use thiserror::Error;

use crate::{process, workspace};

/// The release of bpf-linker that `setup` installs and builds are made with.
pub const BPF_LINKER_VERSION: &str = "0.13.0";
/// The major version of LLVM that bpf-linker is built against.
pub const LLVM_MAJOR: u32 = 22;
/// Where Debian keeps that LLVM.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Which compiler to build the BPF programs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Choice {
    /// A rustup nightly with rust-src if there is one that fits, else Debian's.
    #[default]
    Auto,
    /// Debian's rustc-web, as the committed objects are built with.
    Debian,
    /// The rustup nightly.
    Nightly,
}

/// Why the BPF programs can't be built here, and what to do about it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Missing {
    #[error(
        "no compiler for the BPF programs: install Debian's with `cargo xtask setup --for ebpf` \
         (apt-get install rustc-web rust-web-src cargo-web), or a nightly's library sources with \
         `rustup toolchain install nightly --component rust-src`"
    )]
    Compiler,
    #[error(
        "Debian's compiler for the BPF programs does not fit: {found}; \
         run `cargo xtask setup --for ebpf` (apt-get install rustc-web rust-web-src cargo-web)"
    )]
    Debian { found: String },
    #[error(
        "the rustup nightly can't build the BPF programs: {found}; run \
         `rustup toolchain install nightly --component rust-src`, or use Debian's compiler: `--toolchain debian`"
    )]
    Nightly { found: String },
    #[error(
        "bpf-linker {BPF_LINKER_VERSION} is not at {}; run `cargo xtask setup --for ebpf`, which does \
         `{}`", path.display(), bpf_linker_install_line()
    )]
    BpfLinker { path: PathBuf },
    #[error(
        "bpf-linker at {} does not run: {reason}; run `cargo xtask setup --for ebpf` \
         (apt-get install llvm-22-dev)", path.display()
    )]
    BpfLinkerBroken { path: PathBuf, reason: String },
}

/// The command that installs bpf-linker, as a person would type it.
#[must_use]
pub fn bpf_linker_install_line() -> String {
    format!(
        "PATH={LLVM_PREFIX}/bin:$PATH LLVM_SYS_221_PREFIX={LLVM_PREFIX} cargo install bpf-linker \
         --version {BPF_LINKER_VERSION} --locked --no-default-features --features llvm-{LLVM_MAJOR} \
         --root {}",
        workspace::tools_dir().display()
    )
}

/// A compiler with the sources of its core library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    pub kind: Kind,
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub sysroot: PathBuf,
    pub version: RustcVersion,
}

/// Where a compiler comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Debian,
    Nightly,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "Debian's rustc-web",
            Self::Nightly => "rustup nightly",
        })
    }
}

/// What `rustc -vV` says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RustcVersion {
    /// The first line, without the word `rustc`.
    pub full: String,
    /// LLVM's version, such as `22.1.8`.
    pub llvm: String,
}

impl RustcVersion {
    /// Reads the output of `rustc -vV`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let full = text.lines().next()?.strip_prefix("rustc ")?.to_owned();
        let llvm = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.to_owned();
        Some(Self { full, llvm })
    }

    fn llvm_fits(&self) -> bool {
        let major = self.llvm.split('.').next().and_then(|n| n.parse().ok());
        major == Some(LLVM_MAJOR)
    }
}

/// Finds the compiler of that choice.
///
/// # Errors
/// [`Missing`], which names the command that installs it.
pub fn find_compiler(choice: Choice) -> Result<Compiler, Missing> {
    match choice {
        Choice::Debian => debian().map_err(|found| Missing::Debian { found }),
        Choice::Nightly => nightly().map_err(|found| Missing::Nightly { found }),
        Choice::Auto => nightly().or_else(|_| debian()).map_err(|_| Missing::Compiler),
    }
}

/// Debian's compiler, at fixed paths: a rustup tool chain earlier in `PATH` does not hide it.
fn debian() -> Result<Compiler, String> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let cargo = PathBuf::from("/usr/bin/cargo");
    if !rustc.exists() || !cargo.exists() {
        return Err("/usr/bin/rustc and /usr/bin/cargo are not both there".to_owned());
    }
    inspect(Kind::Debian, rustc, cargo)
}

/// The rustup nightly, if rustup is there and has one.
fn nightly() -> Result<Compiler, String> {
    let which = |tool: &str| {
        let mut rustup = Command::new("rustup");
        rustup.args(["which", "--toolchain", "nightly", tool]);
        // A question must not change the user's tool chain.
        process::ask(rustup.env("RUSTUP_AUTO_INSTALL", "0"))
            .map(PathBuf::from)
            .ok_or_else(|| format!("rustup has no {tool} for `nightly`"))
    };
    inspect(Kind::Nightly, which("rustc")?, which("cargo")?)
}

fn inspect(kind: Kind, rustc: PathBuf, cargo: PathBuf) -> Result<Compiler, String> {
    let said = process::ask(Command::new(&rustc).arg("-vV").env_remove("LD_LIBRARY_PATH"));
    let version = said
        .as_deref()
        .and_then(RustcVersion::parse)
        .ok_or_else(|| format!("{} does not say its version", rustc.display()))?;
    let sysroot = sysroot_of(&rustc).ok_or_else(|| format!("{} has no sysroot", rustc.display()))?;
    if !library_source(&sysroot).join("core/src/lib.rs").exists() {
        return Err(format!("{} has no library sources in {}", rustc.display(), library_source(&sysroot).display()));
    }
    if !version.llvm_fits() {
        return Err(format!(
            "rustc {} uses LLVM {}, but bpf-linker {BPF_LINKER_VERSION} is built against LLVM {LLVM_MAJOR}",
            version.full, version.llvm
        ));
    }
    Ok(Compiler { kind, rustc, cargo, sysroot, version })
}

fn sysroot_of(rustc: &Path) -> Option<PathBuf> {
    let mut ask = Command::new(rustc);
    ask.args(["--print", "sysroot"]).env_remove("LD_LIBRARY_PATH");
    process::ask(&mut ask).map(PathBuf::from)
}

fn library_source(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// bpf-linker as `setup` installed it, and the versions that shape its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfLinker {
    pub dir: PathBuf,
    pub version: String,
    /// The version of the LLVM library it is linked with at run time.
    pub llvm: String,
}

/// Finds bpf-linker in the tools directory.
///
/// # Errors
/// [`Missing`], which names the command that installs it.
pub fn find_bpf_linker() -> Result<BpfLinker, Missing> {
    let dir = workspace::tools_dir().join("bin");
    let path = dir.join("bpf-linker");
    if !path.exists() {
        return Err(Missing::BpfLinker { path });
    }
    let said = process::output(Command::new(&path).arg("--version").env_remove("LD_LIBRARY_PATH"))
        .map_err(|error| Missing::BpfLinkerBroken { path: path.clone(), reason: format!("{error:#}") })?;
    let version = said.rsplit(' ').next().unwrap_or(&said).to_owned();
    if version != BPF_LINKER_VERSION {
        return Err(Missing::BpfLinker { path });
    }
    let llvm = process::ask(Command::new(format!("{LLVM_PREFIX}/bin/llvm-config")).arg("--version"));
    Ok(BpfLinker { dir, version, llvm: llvm.unwrap_or_else(|| format!("{LLVM_MAJOR}")) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_missing_tool_is_named_with_the_command_that_installs_it() {
        let path = PathBuf::from("/repository/target/tools/bin/bpf-linker");
        let found = "no library sources".to_owned();
        let reason = "libLLVM.so.22.1 not found".to_owned();
        let all = [
            (Missing::Compiler, "rustc-web rust-web-src cargo-web"),
            (Missing::Compiler, "rustup toolchain install nightly --component rust-src"),
            (Missing::Debian { found: found.clone() }, "apt-get install rustc-web"),
            (Missing::Debian { found: found.clone() }, "no library sources"),
            (Missing::Nightly { found }, "rustup toolchain install nightly --component rust-src"),
            (Missing::BpfLinker { path: path.clone() }, "cargo install bpf-linker --version 0.13.0"),
            (Missing::BpfLinker { path: path.clone() }, "LLVM_SYS_221_PREFIX=/usr/lib/llvm-22"),
            (Missing::BpfLinkerBroken { path, reason }, "apt-get install llvm-22-dev"),
        ];
        for (missing, command) in all {
            let message = missing.to_string();
            assert!(message.contains(command), "{message}");
            let nightly = matches!(missing, Missing::Nightly { .. });
            assert!(nightly || message.contains("cargo xtask setup --for ebpf"), "{message}");
        }
    }

    #[test]
    fn the_compiler_says_its_versions() {
        let said = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                    release: 1.96.0\nLLVM version: 22.1.8";
        let version = RustcVersion::parse(said).unwrap();
        assert_eq!(version.full, "1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)");
        assert_eq!(version.llvm, "22.1.8");
        assert!(version.llvm_fits());
        assert_eq!(RustcVersion::parse("error: no such command"), None);
    }

    #[test]
    fn another_llvm_does_not_fit() {
        for llvm in ["21.1.0", "23.0.0", "2", "220.1", ""] {
            let version = RustcVersion { full: "1.99.0-nightly".to_owned(), llvm: llvm.to_owned() };
            assert!(!version.llvm_fits(), "{llvm}");
        }
    }
}
