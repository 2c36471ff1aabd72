//! What `cargo xtask simulate` runs.

// A command-line tool talks to its user on standard output.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use simulator::report::{self, Results, SEED};

/// Plays simulated worlds with edgeproxy's selection and with others, and judges every decision.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    check: bool,
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.quick {
        println!("{}", report::small_table(&report::small()));
        return Ok(());
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let results = Results::new(args.seed);
    if args.check {
        report::compare(&results, args.report.as_deref().unwrap_or(&docs))?;
        println!("the page is what the simulation gives");
    } else {
        println!("{}", report::tables(&results));
        let default = || (args.seed == SEED).then_some(docs);
        if let Some(directory) = args.report.clone().or_else(default) {
            report::publish(&results, &directory)?;
            println!("wrote {}", directory.join("simulation.md").display());
        }
    }
    let (_, words) = results.judged();
    if words.is_empty() { Ok(()) } else { bail!("the oracle found faults: {}", words.join("; ")) }
}
