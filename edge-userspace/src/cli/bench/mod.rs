//! `edgeproxy bench`: which forwarder suits this host? Measured on loopback, with daemons of its own.

mod advice;
mod child;
mod load;
mod machine;
mod report;

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use self::advice::{Setting, TUNED};
use self::child::Child;
use self::load::{Backend, Load, WORKLOADS, Workload};
use self::machine::Usage;
use self::report::{Cells, Figure, Report, Unavailable};
use super::client::block_on;
use super::{CliError, print};
use crate::adapters::inbound::signals::Signals;

/// How often everything is measured, in turns.
const ROUNDS: usize = 3;
/// Before a measurement, so that connections are where they will be.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long the machine is looked at before there is any load.
const BACKGROUND: Duration = Duration::from_millis(300);
/// How long connections may take to be set up, and a measurement beyond its time to see anything.
const SETUP: Duration = Duration::from_secs(10);

/// What is compared; `None` is no proxy.
const CANDIDATES: [Option<&str>; 5] = [None, Some("copy"), Some("splice"), Some("sockmap"), Some("auto")];

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// How long each of the 60 measurements takes; with the default the whole takes a minute
    #[arg(long, default_value = "0.65", value_parser = seconds)]
    seconds: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| format!("{text} is no number"))?;
    let seconds = Duration::try_from_secs_f64(number).map_err(|why| why.to_string())?;
    let range = Duration::from_millis(50)..=Duration::from_secs(60);
    if range.contains(&seconds) { Ok(seconds) } else { Err("must be 0.05 to 60".to_owned()) }
}

/// Measures, prints and recommends. A signal ends it early, with all that it started.
pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    let report = block_on(async {
        let mut signals = Signals::install().map_err(|why| CliError::Failed(why.to_string()))?;
        tokio::select! {
            report = measure(args) => report,
            _ = signals.next() => Err(CliError::Failed("interrupted before there was a result".to_owned())),
        }
    })?;
    if args.json {
        let text = serde_json::to_string(&report).map_err(|why| CliError::Failed(why.to_string()))?;
        return print(&format!("{text}\n"));
    }
    print(&report.text())
}

async fn measure(args: &BenchArgs) -> Result<Report, CliError> {
    let before = Usage::now()?;
    sleep(BACKGROUND).await;
    let background = Usage::now()?.busy_share_since(&before);
    let backend = Backend::start()?;
    let (mut cells, mut unavailable) = (Cells::new(), Vec::<Unavailable>::new());
    for round in 0..ROUNDS {
        for turn in 0..CANDIDATES.len() {
            let Some(candidate) = CANDIDATES.get((turn + round) % CANDIDATES.len()).copied() else { continue };
            if unavailable.iter().any(|known| Some(known.forwarder) == candidate) {
                continue;
            }
            let child = match candidate.map(|forwarder| (forwarder, Child::start(forwarder, &[], backend.addr()))) {
                None => None,
                Some((forwarder, starting)) => match starting.await {
                    Ok(child) => Some(child),
                    Err(why) => {
                        unavailable.push(Unavailable { forwarder, why });
                        continue;
                    }
                },
            };
            let name = candidate.unwrap_or("direct");
            for workload in &WORKLOADS {
                let figure = cell(workload, name, child.as_ref(), &backend, args.seconds).await?;
                cells.entry((workload.name, name)).or_default().push(figure);
            }
        }
    }
    let tried = advice::proposals(&report::rows(&cells));
    if !tried.is_empty() {
        attempt(&tried, &mut cells, &backend, args.seconds).await?;
    }
    Ok(Report::new(args.seconds, ROUNDS, background, &cells, unavailable, tried))
}

/// Nothing is recommended that was not measured: `auto` with these settings, on the workloads that speak for them.
async fn attempt(tried: &[Setting], cells: &mut Cells, backend: &Backend, window: Duration) -> Result<(), CliError> {
    let child = Child::start("auto", tried, backend.addr()).await.map_err(CliError::Failed)?;
    let concerned = |workload: &&Workload| tried.iter().any(|setting| setting.workload == workload.name);
    for _ in 0..ROUNDS {
        for workload in WORKLOADS.iter().filter(concerned) {
            let figure = cell(workload, TUNED, Some(&child), backend, window).await?;
            cells.entry((workload.name, TUNED)).or_default().push(figure);
        }
    }
    Ok(())
}

/// One workload against one candidate.
async fn cell(
    workload: &Workload,
    name: &str,
    child: Option<&Child>,
    backend: &Backend,
    window: Duration,
) -> Result<Figure, CliError> {
    let failed = |what: String| CliError::Failed(format!("{name}, {}: {what}", workload.title));
    let addr = child.map_or(backend.addr(), Child::addr);
    let load = Load::start(workload, addr)?;
    let deadline = Instant::now() + SETUP;
    while load.connected() < workload.connections && load.fault().is_none() && Instant::now() < deadline {
        sleep(Duration::from_millis(2)).await;
    }
    sleep(WARM_UP.min(window)).await;
    let daemon = || child.map(Child::cpu).unwrap_or_default();
    let (usage, daemon_before, done, began) = (Usage::now()?, daemon(), load.done(), Instant::now());
    sleep(window).await;
    // Where other programs have the processors a short window may see nothing at all.
    while load.done() == done && load.fault().is_none() && began.elapsed() < window + SETUP {
        sleep(Duration::from_millis(2)).await;
    }
    let (units, took) = (load.done() - done, began.elapsed());
    let busy = Usage::now()?.busy_since(&usage);
    let daemon_time = daemon().saturating_sub(daemon_before);
    if let Some(fault) = load.fault() {
        return Err(failed(fault));
    }
    if units == 0 {
        return Err(failed(format!("nothing was done within {:?}", window + SETUP)));
    }
    let each = |time: Duration| time.as_secs_f64() / units as f64;
    Ok(Figure { rate: units as f64 / took.as_secs_f64(), cpu: each(busy), daemon_cpu: each(daemon_time) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_within_reason() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "1e9", "NaN", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
