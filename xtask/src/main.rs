//! `cargo xtask`: the repository's own commands.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{bench, build_ebpf, check_ebpf, demo, lint_ebpf, setup, simulate, test};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Commands of the edgeproxy repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure edgeproxy, others and no proxy at all on the same work, in turns.
    Bench(bench::Args),
    /// A proxy of a few lines, one of those that `bench` measures.
    #[command(hide = true)]
    BenchProxy(bench::proxy::Args),
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
    /// Play simulated worlds with edgeproxy's selection and with others, and judge every decision.
    Simulate(simulate::Args),
    /// Run every test, from unit to kernel, and list what was skipped.
    Test(test::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Every cause in one line; a backtrace would hide the remedy.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Bench(args) => bench::run(&args),
        Command::BenchProxy(args) => bench::proxy::run(args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::CheckEbpf(args) => check_ebpf::run(&args),
        Command::LintEbpf(args) => lint_ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Test(args) => test::run(&args),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::CommandFactory as _;
    use xtask::{setup::Need, toolchain::Choice};

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_filter_follows_two_dashes() {
        let Command::Test(args) = parse("xtask test --require-kernel -- half_close").unwrap() else {
            panic!("not the test command");
        };
        assert!(args.require_kernel);
        assert_eq!(args.filter, ["half_close"]);
    }

    #[test]
    fn setup_installs_everything_unless_told_what_for() {
        for (line, need) in [
            ("xtask setup", Need::Everything),
            ("xtask setup --for ci", Need::Everything),
            ("xtask setup --for demo", Need::Lab),
            ("xtask setup --for test", Need::Tests),
            ("xtask setup --for ebpf", Need::Ebpf),
            ("xtask setup --for bench", Need::Bench),
        ] {
            let Command::Setup(args) = parse(line).unwrap() else { panic!("not the setup command") };
            assert_eq!(args.need, need, "{line}");
        }
        assert!(parse("xtask setup --for fun").is_err());
    }

    #[test]
    fn workloads_and_candidates_of_the_benchmark_are_lists() {
        let line = "xtask bench --only rr64-8,down --candidates direct,copy --rounds 1 --seconds 0.3";
        let Command::Bench(args) = parse(line).unwrap() else { panic!("not the bench command") };
        assert_eq!((args.only.len(), args.candidates.len(), args.rounds), (2, 2, Some(1)));
        for bad in ["--candidates envoy", "--rounds 0", "--seconds 0", "--seconds never"] {
            assert!(parse(&format!("xtask bench {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tool_chain_is_chosen_only_where_something_is_built() {
        let Command::CheckEbpf(args) = parse("xtask check-ebpf --rebuild --toolchain debian").unwrap() else {
            panic!("not the check command");
        };
        assert_eq!((args.rebuild, args.toolchain), (true, Choice::Debian));
        assert!(parse("xtask check-ebpf --toolchain debian").is_err());
        let Command::BuildEbpf(args) = parse("xtask build-ebpf").unwrap() else {
            panic!("not the build command");
        };
        assert_eq!(args.toolchain, Choice::Auto);
    }
}
