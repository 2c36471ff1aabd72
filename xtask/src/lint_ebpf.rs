//! `cargo xtask lint-ebpf`: clippy over the BPF programs, for their own target, with warnings denied.

use anyhow::{Context as _, Result};

use crate::{
    build_ebpf::{self, TARGET},
    process,
    toolchain::{self, Choice},
};

/// Options of `lint-ebpf`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Which compiler's clippy to use.
    #[arg(long, value_enum, default_value_t)]
    pub toolchain: Choice,
}

/// Runs the clippy that belongs to the compiler of the BPF programs.
///
/// # Errors
/// When a tool is missing or clippy has something to say.
pub fn run(args: &Args) -> Result<()> {
    let compiler = toolchain::find_compiler(args.toolchain)?;
    let linker = toolchain::find_bpf_linker()?;
    let mut clippy = build_ebpf::cargo(&compiler, &linker)?;
    clippy.args(["clippy", "--release", "--locked", "-Zbuild-std=core", "--bins", "--target", TARGET]);
    clippy.args(["--", "--deny", "warnings"]);
    // cargo finds its subcommand, and that finds clippy-driver, through PATH.
    let beside = compiler.cargo.parent().context("the compiler is not in a directory")?;
    let [scripts, linker] = build_ebpf::path_dirs(&linker);
    process::prefer_path(&mut clippy, &[scripts, linker, beside.to_path_buf()])?;
    process::run(&mut clippy).context(
        "clippy failed for the BPF programs; if it is missing: `cargo xtask setup` (apt-get install rust-web-clippy)",
    )
}
