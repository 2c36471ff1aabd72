//! `edgeproxy flows`: the flows that run now.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use hyper::{Method, StatusCode};

use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, print};
use crate::application::flows::FlowStatus;

/// Clears a terminal and goes to its top left corner (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// As JSON; with --watch one line a time
    #[arg(long)]
    json: bool,
    /// Show them again and again, every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    watch: Option<u32>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Asks the daemon and prints its answer.
pub fn run(args: &FlowsArgs) -> Result<(), CliError> {
    let socket = args.admin.socket()?;
    loop {
        let answer = block_on(ask(&socket, Method::GET, "/api/v1/flows", String::new()))?;
        if answer.code != StatusCode::OK {
            return Err(refusal(&answer));
        }
        if args.json {
            print(&format!("{}\n", answer.body.trim_end()))?;
        } else {
            let flows = serde_json::from_str::<Vec<FlowStatus>>(&answer.body).map_err(|why| {
                CliError::Failed(format!("the daemon's answer is not understood ({why}): try --json"))
            })?;
            let clear = args.watch.is_some() && std::io::stdout().is_terminal();
            print(&format!("{}{}", if clear { CLEAR } else { "" }, table(&flows)))?;
        }
        let Some(seconds) = args.watch else { return Ok(()) };
        std::thread::sleep(Duration::from_secs(seconds.into()));
    }
}

fn table(flows: &[FlowStatus]) -> String {
    let mut out = format!(
        "{:>8} {:<40} {:<16} {:<16} {:>9} {:<8} {:<14} {:>9} {:>10} {:>10}  in kernel\n",
        "id", "client", "app", "backend", "age", "by", "why", "from", "up", "down"
    );
    for flow in flows {
        let all = flow.bytes_up + flow.bytes_down;
        let share = (flow.kernel_up + flow.kernel_down) * 100 / all.max(1);
        let _ = writeln!(
            out,
            "{:>8} {:<40} {:<16} {:<16} {:>8.1}s {:<8} {:<14} {:>8.1}s {:>10} {:>10}  {share:>3} %",
            flow.id,
            flow.client.to_string(),
            flow.app,
            flow.backend,
            flow.age_secs,
            flow.forwarder,
            flow.why,
            flow.since_secs,
            size(flow.bytes_up),
            size(flow.bytes_down),
        );
    }
    let _ = writeln!(out, "{} flows", flows.len());
    out
}

/// Bytes in the largest unit of which there is at least one.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_flow_is_one_line() {
        let flow = serde_json::json!({
            "id": 3, "client": "192.0.2.1:5", "app": "web", "backend": "b1", "age_secs": 2.5, "forwarder": "sockmap",
            "why": "lively", "since_secs": 0.5, "changes": 1, "bytes_up": 1024, "bytes_down": 3072, "kernel_up": 0,
            "kernel_down": 1024,
        });
        let text = table(&[serde_json::from_value(flow).unwrap()]);
        assert_eq!(text.lines().count(), 3);
        for word in ["192.0.2.1:5", "2.5s", "sockmap", "lively", "0.5s", "1.0 KiB", "3.0 KiB", "25 %", "1 flows"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!((size(0).as_str(), size(1023).as_str(), size(1536).as_str()), ("0 B", "1023 B", "1.5 KiB"));
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
    }
}
