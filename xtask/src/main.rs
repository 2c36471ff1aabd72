//! `cargo xtask`: the repository's own commands.

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{build_ebpf, check_ebpf, demo, lint_ebpf, setup, test};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Commands of the edgeproxy repository"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compile the BPF programs and replace the committed objects.
    BuildEbpf(build_ebpf::Args),
    /// Check that the committed BPF objects belong to their sources.
    CheckEbpf(check_ebpf::Args),
    /// Run clippy over the BPF programs.
    LintEbpf(lint_ebpf::Args),
    /// Run a POP between clients of five countries and backends in three regions, and account for every byte.
    Demo(demo::Args),
    /// Install what is missing; says first what that is.
    Setup(setup::Args),
    /// Run every test, from unit to kernel, and list what was skipped.
    Test(test::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::CheckEbpf(args) => check_ebpf::run(&args),
        Command::LintEbpf(args) => lint_ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Test(args) => test::run(&args),
    }
}
