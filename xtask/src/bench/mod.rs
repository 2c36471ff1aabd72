//! `cargo xtask bench`: edgeproxy, others and no proxy at all, on the same work, in turns.

mod candidate;
mod carried;
mod cell;
mod generate;
mod interrupt;
mod peers;
mod place;
pub(crate) mod procfs;
pub mod proxy;
mod report;
mod run;
mod sample;
mod stats;
mod workload;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub use self::candidate::Candidate;
use self::cell::Times;
use self::run::Plan;
use self::workload::{WORKLOADS, Workload};
use crate::lab::Cgroups;
use crate::lab::requirements::Need;
use crate::{process, setup, workspace};

/// Rounds of a full run.
const ROUNDS: u32 = 5;

/// Options of `bench`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Args {
    /// Under four minutes: fewer workloads, 2 rounds (of memory 1), shorter cells.
    #[arg(long)]
    pub quick: bool,
    /// Only these workloads: names, or what their names begin with (rr64, paced, local).
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD,…")]
    pub only: Vec<String>,
    /// Only these candidates.
    #[arg(long, value_delimiter = ',', value_name = "CANDIDATE,…")]
    pub candidates: Vec<Candidate>,
    /// How often everything is measured.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// How long each cell is measured.
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// Write everything that was measured, each round by itself, as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// Write the page's tables, plots and JSON into this directory [default: docs/benchmarks, for a full run only]
    #[arg(long, value_name = "DIRECTORY")]
    pub report: Option<PathBuf>,
    /// TCP congestion control in the networks of the benchmark, one of `net.ipv4.tcp_allowed_congestion_control`
    /// [default: cubic]
    #[arg(long, value_name = "NAME")]
    pub congestion_control: Option<String>,
    /// Use builds without optimisation: to try the benchmark itself.
    #[arg(long)]
    pub debug_build: bool,
}

impl Args {
    /// Everything, as long and as often as it should be.
    fn is_full(&self) -> bool {
        let chosen = !self.only.is_empty() || !self.candidates.is_empty() || self.seconds.is_some();
        !self.quick && !self.debug_build && !chosen && self.rounds.is_none_or(|rounds| rounds >= ROUNDS)
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| format!("{text} is no number"))?;
    let seconds = Duration::try_from_secs_f64(number).map_err(|error| error.to_string())?;
    let range = Duration::from_millis(10)..=Duration::from_secs(600);
    if range.contains(&seconds) { Ok(seconds) } else { Err("must be 0.01 to 600".to_owned()) }
}

/// Builds, measures and reports.
///
/// # Errors
/// Where something can't be built or started, or a candidate has made mistakes.
pub fn run(args: &Args) -> Result<()> {
    for need in [Need::Root, Need::Namespaces] {
        if let Some(reason) = need.missing() {
            bail!("the benchmark can't run: {reason}");
        }
    }
    let plan = plan(args)?;
    let others = plan.candidates.iter().any(|candidate| candidate.is_installed());
    let need = if others { setup::Need::Bench } else { setup::Need::Lab };
    if let Err(error) = setup::ensure(need) {
        eprintln!("warning: {error:#}; what is missing is not measured");
    }
    let binary = build(args.debug_build)?;
    if !args.debug_build && !is_optimised() {
        return again_optimised();
    }
    generate::raise_open_files()?;
    interrupt::install()?;
    let _out_again = Cgroups::leave_at_the_end();
    let results = run::run(&plan, &binary)?;
    report::print(&results);
    if let Some(path) = &args.json {
        report::write_json(&results, path)?;
    }
    // The page has the figures of one congestion control.
    let is_full = args.is_full() && plan.congestion_control == place::CONGESTION_CONTROL;
    let default = || is_full.then(|| workspace::root().join("docs/benchmarks"));
    if let Some(directory) = args.report.clone().or_else(default) {
        report::publish(&results, &directory)?;
        println!("wrote {}", directory.display());
    }
    results.verdict()
}

fn plan(args: &Args) -> Result<Plan> {
    let (rounds, window, warm_up) = if args.quick { (2, 400, 150) } else { (ROUNDS, 900, 250) };
    let window = args.seconds.unwrap_or(Duration::from_millis(window));
    // 1,000 messages at 200/s; a quick run has to do with 200.
    let fixed_rate = window.max(Duration::from_secs(if args.quick { 1 } else { 5 }));
    let times = Times { warm_up: Duration::from_millis(warm_up).min(window), window, fixed_rate };
    let candidates = if args.candidates.is_empty() { candidate::CANDIDATES.to_vec() } else { args.candidates.clone() };
    let memory_rounds = if args.quick { 1 } else { u32::MAX };
    let rounds = args.rounds.unwrap_or(rounds);
    let workloads = workloads(args)?;
    let congestion_control = congestion_control(args.congestion_control.as_deref())?;
    Ok(Plan { workloads, candidates, rounds, memory_rounds, times, congestion_control })
}

/// What is there and not allowed can't be set in a network namespace.
fn congestion_control(wanted: Option<&str>) -> Result<String> {
    let allowed = procfs::line("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
    let is_allowed = |name: &str| allowed.split_whitespace().any(|one| one == name);
    match wanted {
        Some(name) if !is_allowed(name) => {
            bail!("congestion control {name} is not in net.ipv4.tcp_allowed_congestion_control: {allowed}")
        }
        None if !is_allowed(place::CONGESTION_CONTROL) => {
            let host = procfs::line("/proc/sys/net/ipv4/tcp_congestion_control");
            eprintln!("warning: {} is not allowed here: measured with {host}", place::CONGESTION_CONTROL);
            Ok(host)
        }
        wanted => Ok(wanted.unwrap_or(place::CONGESTION_CONTROL).to_owned()),
    }
}

fn workloads(args: &Args) -> Result<Vec<&'static Workload>> {
    if args.only.is_empty() {
        return Ok(WORKLOADS.iter().filter(|workload| workload.quick || !args.quick).collect());
    }
    let mut chosen = Vec::new();
    for name in &args.only {
        let found = workload::select(name);
        if found.is_empty() {
            let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
            bail!("no workload is called {name}; there are {}", names.join(", "));
        }
        chosen.extend(found);
    }
    Ok(chosen)
}

/// Compiles the daemon as operators do, and this program, which is the load and one of the proxies.
fn build(debug: bool) -> Result<PathBuf> {
    let profile = if debug { "debug" } else { "release" };
    for (package, program) in [("edge-userspace", "edgeproxy"), ("xtask", "xtask")] {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(workspace::root()).args(["build", "--quiet", "--package", package, "--bin", program]);
        if !debug {
            process::run(command.arg("--release"))?;
        } else if program == "edgeproxy" {
            process::run(&mut command)?;
        }
    }
    let binary = workspace::target_dir().join(profile).join("edgeproxy");
    binary.canonicalize().with_context(|| format!("{} was not built", binary.display()))
}

/// Whether this program is an optimised one that was not replaced by a newer one just now.
fn is_optimised() -> bool {
    !cfg!(debug_assertions) && std::env::current_exe().is_ok_and(|program| program.exists())
}

/// Goes on as the optimised build of this program.
fn again_optimised() -> Result<()> {
    let program = workspace::target_dir().join("release/xtask");
    let error = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("could not start {}", program.display()))
}
