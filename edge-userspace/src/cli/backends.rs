//! `edgeproxy backends`: the backends of the running daemon, and an operator's word on one of them.

use clap::{Args, Subcommand};

use super::backend_drain::{DrainArgs, ReadyArgs, drain, ready};
use super::{AdminArgs, CliError};

#[derive(Debug, Args)]
pub struct BackendsArgs {
    #[command(subcommand)]
    command: BackendsCommand,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum BackendsCommand {
    /// Give a backend no new connections at this POP; those it has end by themselves, or at a deadline
    Drain(DrainArgs),
    /// End that
    Ready(ReadyArgs),
}

/// Has the daemon do it, and prints its answer.
pub fn run(args: &BackendsArgs) -> Result<(), CliError> {
    match &args.command {
        BackendsCommand::Drain(drained) => drain(drained, &args.admin),
        BackendsCommand::Ready(readied) => ready(readied, &args.admin),
    }
}
