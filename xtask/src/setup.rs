//! `cargo xtask setup`: installs what is missing, after saying what that is.
//!
//! System packages come through apt; bpf-linker and cargo-deny go to `target/tools`. Nothing of the
//! user's own Rust tool chain is changed: Debian's compiler for the BPF programs lives beside it in
//! `/usr/bin`, and apt is told to remove no package.

use std::{ffi::OsStr, fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    process,
    toolchain::{self, Choice, LLVM_PREFIX},
    workspace,
};

/// The release of cargo-deny that CI checks dependencies with.
pub const CARGO_DENY_VERSION: &str = "0.20.2";

/// Options of `setup`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Install only what this command needs.
    #[arg(long = "for", value_enum, default_value_t)]
    pub need: Need,
}

/// What the tools are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Need {
    /// The demo: a C compiler for SQLite, `ip` and `tc` for network namespaces.
    #[value(name = "demo")]
    Lab,
    /// The proxies that the benchmark measures edgeproxy against.
    Bench,
    /// The tests: as the demo, and HAProxy and nginx as neighbours.
    #[value(name = "test")]
    Tests,
    /// Compiling the BPF programs.
    Ebpf,
    /// Everything that `.ci/run` uses.
    #[default]
    #[value(name = "ci", alias = "all")]
    Everything,
}

/// Packages that come together, and how to tell that they are not needed.
struct Packages {
    names: &'static [&'static str],
    reason: &'static str,
    present: fn() -> bool,
}

const COMPILER: Packages = Packages {
    names: &["gcc", "libc6-dev"],
    reason: "a C compiler for the bundled SQLite",
    present: || process::find("cc").is_some() && Path::new("/usr/include/stdio.h").exists(),
};
const IPROUTE: Packages = Packages {
    names: &["iproute2"],
    reason: "ip and tc, for the lab's network namespaces",
    present: || has_system_tool("ip") && has_system_tool("tc"),
};
const NEIGHBOURS: Packages = Packages {
    names: &["haproxy", "nginx", "libnginx-mod-stream"],
    reason: "HAProxy and nginx, neighbours in the tests; their services are not started",
    present: || {
        let tools = has_system_tool("haproxy") && has_system_tool("nginx");
        tools && Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists()
    },
};
const OPENSSL: Packages = Packages {
    names: &["openssl"],
    reason: "openssl, TLS clients and servers of the tests",
    present: || has_system_tool("openssl"),
};
const BPF_COMPILER: Packages = Packages {
    names: &["rustc-web", "cargo-web", "rust-web-src"],
    reason: "a compiler for the BPF programs",
    present: || toolchain::find_compiler(Choice::Auto).is_ok(),
};
const DEBIAN_COMPILER: Packages = Packages {
    names: &["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"],
    reason: "the compiler that the committed BPF objects are built with, and its linter",
    present: || {
        toolchain::find_compiler(Choice::Debian)
            .is_ok_and(|compiler| compiler.cargo.with_file_name("clippy-driver").exists())
    },
};
const PROXIES: Packages = Packages {
    names: &["haproxy", "nginx", "libnginx-mod-stream"],
    reason: "proxies to compare with; their services are not started",
    present: || has_system_tool("haproxy") && has_system_tool("nginx"),
};
const LLVM: Packages = Packages {
    names: &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "libxml2-dev"],
    reason: "the LLVM library of bpf-linker",
    present: || Path::new(LLVM_PREFIX).join("bin/llvm-config").exists(),
};

/// A program that cargo builds into `target/tools`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    BpfLinker,
    CargoDeny,
}

impl Need {
    fn packages(self) -> Vec<Packages> {
        match self {
            Self::Lab => vec![COMPILER, IPROUTE],
            Self::Tests => vec![COMPILER, IPROUTE, NEIGHBOURS, OPENSSL],
            Self::Bench => vec![COMPILER, IPROUTE, PROXIES],
            Self::Ebpf => vec![COMPILER, BPF_COMPILER, LLVM],
            Self::Everything => vec![COMPILER, IPROUTE, NEIGHBOURS, OPENSSL, DEBIAN_COMPILER, LLVM],
        }
    }

    /// Whether packages come with services that nobody asked for.
    fn starts_nothing(self) -> bool {
        matches!(self, Self::Tests | Self::Bench | Self::Everything)
    }

    fn tools(self) -> &'static [Tool] {
        match self {
            Self::Lab | Self::Tests | Self::Bench => &[],
            Self::Ebpf => &[Tool::BpfLinker],
            Self::Everything => &[Tool::BpfLinker, Tool::CargoDeny],
        }
    }
}

/// The command: installs what is missing and says so when nothing is.
///
/// # Errors
/// As [`ensure`].
pub fn run(args: &Args) -> Result<()> {
    if !ensure(args.need)? {
        println!("nothing to install: everything is there");
    }
    Ok(())
}

/// Installs what is missing for that need; says first what it will install. Returns whether it did.
///
/// # Errors
/// When something is missing and can't be installed: without root, without apt, or because apt or
/// cargo fails. The message holds the command for the user to run.
pub fn ensure(need: Need) -> Result<bool> {
    let packages: Vec<Packages> = need.packages().into_iter().filter(|group| !(group.present)()).collect();
    let tools: Vec<Tool> = need.tools().iter().copied().filter(|tool| !tool.present()).collect();
    for group in &packages {
        println!("will install through apt: {} ({})", group.names.join(" "), group.reason);
    }
    for tool in &tools {
        println!("will build into {}: {}", workspace::tools_dir().display(), tool.title());
    }
    if !packages.is_empty() {
        let _no_services = need.starts_nothing().then(NoServices::here).transpose()?;
        apt_install(&packages.iter().flat_map(|group| group.names).copied().collect::<Vec<_>>())?;
    }
    for tool in &tools {
        tool.install()?;
    }
    if !matches!(need, Need::Lab | Need::Tests)
        && let Some(warning) = shadow_warning()
    {
        eprintln!("warning: {warning}");
    }
    Ok(!packages.is_empty() || !tools.is_empty())
}

/// Runs apt as root; without root says what to run.
fn apt_install(names: &[&str]) -> Result<()> {
    if process::find("apt-get").is_none() {
        bail!("this machine has no apt-get; install what these Debian packages hold: {}", names.join(" "));
    }
    if !is_root() {
        bail!("installing packages needs root; run `{}` and try again", sudo_line(names));
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        process::run(&mut command)
    };
    apt(&["update", "--quiet"])?;
    // rustc-web conflicts with Debian's rustc and rustup packages: never remove what the user has.
    let mut install = vec!["install", "--yes", "--quiet", "--no-remove", "--no-install-recommends"];
    install.extend(names);
    apt(&install).with_context(|| {
        "apt could not install the packages; if it says that packages would be removed, this machine's \
         Rust comes from Debian's rustc or rustup package: remove it or use another machine for this step"
    })
}

/// While it lives, installing a package starts no service: what Debian provides for that, unless the machine has it.
struct NoServices {
    written: bool,
}

impl NoServices {
    const PATH: &str = "/usr/sbin/policy-rc.d";

    fn here() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if !is_root() || Path::new(Self::PATH).exists() {
            return Ok(Self { written: false });
        }
        fs::write(Self::PATH, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {}", Self::PATH))?;
        let policy = Self { written: true };
        fs::set_permissions(Self::PATH, fs::Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.written {
            // Nothing to be done about it, and apt has said what it did.
            let _ = fs::remove_file(Self::PATH);
        }
    }
}

fn sudo_line(names: &[&str]) -> String {
    format!("sudo apt-get install --no-remove --no-install-recommends {}", names.join(" "))
}

/// Whether this process may install packages.
#[must_use]
pub fn is_root() -> bool {
    // The owner of /proc/self is the effective user.
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// `ip` and `tc` are in /sbin on Debian, which is not in every user's `PATH`.
fn has_system_tool(name: &str) -> bool {
    process::find_system(name).is_some()
}

impl Tool {
    fn title(self) -> String {
        match self {
            Self::BpfLinker => format!("bpf-linker {}", toolchain::BPF_LINKER_VERSION),
            Self::CargoDeny => format!("cargo-deny {CARGO_DENY_VERSION}"),
        }
    }

    fn present(self) -> bool {
        match self {
            Self::BpfLinker => toolchain::find_bpf_linker().is_ok(),
            Self::CargoDeny => {
                let path = workspace::tools_dir().join("bin/cargo-deny");
                let said = process::ask(Command::new(path).arg("--version"));
                said.is_some_and(|said| said == format!("cargo-deny {CARGO_DENY_VERSION}"))
            }
        }
    }

    fn install(self) -> Result<()> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["install", "--locked", "--force", "--root"])
            .arg(workspace::tools_dir())
            // Its own temporary directory: the build leaves nothing but the program.
            .env_remove("CARGO_TARGET_DIR");
        match self {
            Self::BpfLinker => {
                cargo.args(["bpf-linker", "--version", toolchain::BPF_LINKER_VERSION]);
                cargo.args(["--no-default-features", "--features", "llvm-22"]);
                cargo.env("LLVM_SYS_221_PREFIX", LLVM_PREFIX);
                process::prefer_path(&mut cargo, &[Path::new(LLVM_PREFIX).join("bin")])?;
            }
            Self::CargoDeny => {
                cargo.args(["cargo-deny", "--version", CARGO_DENY_VERSION]);
            }
        }
        process::run(&mut cargo).with_context(|| format!("{} could not be built", self.title()))
    }
}

/// Says so when plain `cargo` in the user's shell is Debian's although rustup's is installed.
#[must_use]
pub fn shadow_warning() -> Option<String> {
    let cargo_home = workspace::cargo_home().ok()?;
    let path = user_path(&cargo_home.join("bin"))?;
    shadow_warning_for(&path, &cargo_home.join("bin"))
}

fn shadow_warning_for(path: &OsStr, rustup_bin: &Path) -> Option<String> {
    let first = process::find_in(path, "cargo").next()?;
    let debian = first.starts_with("/usr/bin") || first.starts_with("/bin");
    (debian && rustup_bin.join("cargo").exists()).then(|| {
        format!(
            "plain `cargo` is now Debian's ({}), because PATH has it before {}; put {} first in PATH to use \
             your rustup tool chain",
            first.display(),
            rustup_bin.display(),
            rustup_bin.display()
        )
    })
}

/// The `PATH` of the shell that started cargo: rustup's proxy puts its own directory first in the one
/// we were given, which would hide the very problem.
fn user_path(rustup_bin: &Path) -> Option<std::ffi::OsString> {
    let mut pid = std::process::id();
    while let Some(parent) = parent_of(pid).filter(|parent| *parent > 1) {
        pid = parent;
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let name = exe.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if !["cargo", "rustup", "xtask"].contains(&name) {
            break;
        }
    }
    let theirs = path_of(pid).filter(|path| std::env::split_paths(path).any(|dir| dir == rustup_bin));
    theirs.or_else(|| std::env::var_os("PATH"))
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn path_of(pid: u32) -> Option<std::ffi::OsString> {
    use std::os::unix::ffi::OsStringExt as _;
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let path = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"PATH="))?;
    Some(std::ffi::OsString::from_vec(path.to_vec()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_sudo_line_installs_but_never_removes() {
        assert_eq!(
            sudo_line(&["iproute2", "gcc"]),
            "sudo apt-get install --no-remove --no-install-recommends iproute2 gcc"
        );
    }

    #[test]
    fn the_lab_needs_neither_llvm_nor_another_compiler() {
        let names: Vec<&str> = Need::Lab.packages().iter().flat_map(|group| group.names).copied().collect();
        assert_eq!(names, ["gcc", "libc6-dev", "iproute2"]);
        assert!(Need::Lab.tools().is_empty());
    }

    #[test]
    fn ci_has_all_that_the_others_have() {
        let names =
            |need: Need| -> Vec<&str> { need.packages().iter().flat_map(|group| group.names).copied().collect() };
        let everything = names(Need::Everything);
        for need in [Need::Lab, Need::Tests, Need::Ebpf] {
            assert!(names(need).iter().all(|name| everything.contains(name)));
            assert!(need.tools().iter().all(|tool| Need::Everything.tools().contains(tool)));
        }
    }

    #[test]
    fn a_shadowed_rustup_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let rustup_bin = dir.path().join("bin");
        fs::create_dir(&rustup_bin).unwrap();
        let cargo = rustup_bin.join("cargo");
        fs::write(&cargo, "").unwrap();
        fs::set_permissions(&cargo, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

        let first = std::env::join_paths([rustup_bin.as_path(), Path::new("/usr/bin")]).unwrap();
        assert_eq!(shadow_warning_for(&first, &rustup_bin), None);

        let behind = std::env::join_paths([Path::new("/usr/bin"), rustup_bin.as_path()]).unwrap();
        let warning = shadow_warning_for(&behind, &rustup_bin);
        if Path::new("/usr/bin/cargo").exists() {
            let warning = warning.unwrap();
            assert!(warning.contains("/usr/bin/cargo"), "{warning}");
            assert!(warning.contains(rustup_bin.to_str().unwrap()), "{warning}");
        } else {
            assert_eq!(warning, None);
        }
    }
}
