//! `cargo xtask simulate`: edgeproxy's selection over simulated worlds, beside other ways to choose.
//!
//! The simulator is a package of its own, started from here: it uses the daemon's code, and xtask must neither wait for
//! that to be compiled nor need the BPF object that the daemon embeds.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{process, workspace};

/// Options of `simulate`.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub struct Args {
    /// Make other worlds; what comes of them goes to the terminal only [default: that of the committed page].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only the small world that a test plays, to the terminal.
    #[arg(long)]
    pub quick: bool,
    /// Write nothing; fail where the committed page isn't what the simulation gives.
    #[arg(long, conflicts_with_all = ["quick", "seed"])]
    pub check: bool,
    /// Write the page and its pictures into this directory [default: docs, for the default seed only].
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "quick")]
    pub report: Option<PathBuf>,
    /// Build without optimisation: sooner built, and the results are the same.
    #[arg(long)]
    pub debug_build: bool,
}

/// Builds the simulator and runs it.
///
/// # Errors
/// Where it can't be built, the oracle has found a fault, or `--check` a difference.
pub fn run(args: &Args) -> Result<()> {
    process::run(&mut command(args))
}

fn command(args: &Args) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root()).args(["run", "--quiet", "--package", "simulator"]);
    if !args.debug_build {
        command.arg("--release");
    }
    command.arg("--");
    for (given, flag) in [(args.quick, "--quick"), (args.check, "--check")] {
        if given {
            command.arg(flag);
        }
    }
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(directory) = &args.report {
        // The simulator runs elsewhere than the user's shell.
        command.arg("--report").arg(std::path::absolute(directory).unwrap_or_else(|_| directory.clone()));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_reaches_the_simulator() {
        let args = Args { seed: Some(7), report: Some("/tmp/x".into()), debug_build: true, ..Args::default() };
        let line = process::describe(&command(&args));
        assert!(line.ends_with("run --quiet --package simulator -- --seed 7 --report /tmp/x"), "{line}");
        let line = process::describe(&command(&Args { check: true, ..Args::default() }));
        assert!(line.ends_with("--release -- --check"), "{line}");
    }
}
