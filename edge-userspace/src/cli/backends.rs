//! `edgeproxy backends`: the backends of the running daemon, with all that decides whether they get clients, and an
//! operator's word on one of them.

use clap::{Args, Subcommand};
use hyper::{Method, StatusCode};
use serde_json::Value;

use super::backend_drain::{DrainArgs, ReadyArgs, drain, ready};
use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, print, table};
use crate::application::status::{BackendStatus, CheckStatus, Status};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BackendsArgs {
    #[command(subcommand)]
    command: Option<BackendsCommand>,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Without one: `list`.
#[derive(Debug, Subcommand)]
enum BackendsCommand {
    /// List the backends: state, health, last check, connections and limits
    List(ListArgs),
    /// Give a backend no new connections at this POP; those it has end by themselves, or at a deadline
    Drain(DrainArgs),
    /// End that
    Ready(ReadyArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only those of this app
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Asks the daemon and prints its answer.
pub fn run(args: &BackendsArgs) -> Result<(), CliError> {
    match &args.command {
        Some(BackendsCommand::List(list)) => show(list, &args.admin),
        Some(BackendsCommand::Drain(drained)) => drain(drained, &args.admin),
        Some(BackendsCommand::Ready(readied)) => ready(readied, &args.admin),
        None => show(&args.list, &args.admin),
    }
}

fn show(args: &ListArgs, admin: &AdminArgs) -> Result<(), CliError> {
    let socket = admin.socket()?;
    let answer = block_on(ask(&socket, Method::GET, "/api/v1/status", String::new()))?;
    if answer.code != StatusCode::OK {
        return Err(refusal(&answer));
    }
    let not_understood = |why: serde_json::Error| {
        CliError::Failed(format!("the daemon's answer is not understood ({why}): is it of another version?"))
    };
    if args.json {
        let mut status: Value = serde_json::from_str(&answer.body).map_err(not_understood)?;
        let mut backends = status.get_mut("backends").map(Value::take).unwrap_or_default();
        if let (Some(app), Some(list)) = (&args.app, backends.as_array_mut()) {
            list.retain(|backend| backend.get("app").and_then(Value::as_str) == Some(app));
        }
        return print(&format!("{backends}\n"));
    }
    let status: Status = serde_json::from_str(&answer.body).map_err(not_understood)?;
    let of_app = |backend: &&BackendStatus| args.app.as_ref().is_none_or(|app| *app == backend.app);
    print(&text(status.backends.iter().filter(of_app), &status.fail_open))
}

fn text<'a>(backends: impl Iterator<Item = &'a BackendStatus>, fail_open: &[String]) -> String {
    let head = [
        "BACKEND",
        "APP",
        "REGION",
        "ADDRESS",
        "STATE",
        "HEALTHY",
        "HEALTH",
        "CHECK",
        "LAST CHECK",
        "CONNS",
        "SOFT",
        "HARD",
        "WEIGHT",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(backends.map(row));
    let mut out = String::new();
    table::write(&rows, 9, &mut out);
    for app in fail_open {
        out += &format!(
            "\napp {app} fails open: no backend in service is trusted, so those whose checks fail are asked\n"
        );
    }
    out.trim_start_matches('\n').to_owned()
}

fn row(backend: &BackendStatus) -> [String; 13] {
    let health = match &backend.health_why {
        Some(why) => format!("{}: {why}", backend.health),
        None => backend.health.clone(),
    };
    let unlimited = |limit: u32| if limit == 0 { "-".to_owned() } else { limit.to_string() };
    [
        backend.id.clone(),
        backend.app.clone(),
        backend.region.clone(),
        backend.addr.clone(),
        state(backend),
        if backend.healthy { "yes" } else { "no" }.to_owned(),
        health,
        backend.check.as_ref().map_or_else(|| "-".to_owned(), verdict),
        backend.check.as_ref().map_or_else(|| "-".to_owned(), last),
        backend.connections.to_string(),
        unlimited(backend.soft_limit),
        unlimited(backend.hard_limit),
        backend.weight.to_string(),
    ]
}

/// The word of the database, and that of the operator to this daemon.
fn state(backend: &BackendStatus) -> String {
    match (backend.draining, backend.cut_in_secs) {
        (false, _) => backend.state.clone(),
        (true, None) => format!("{}, draining", backend.state),
        (true, Some(secs)) if secs <= 0.0 => format!("{}, draining, all cut", backend.state),
        (true, Some(secs)) => format!("{}, draining, cut in {secs:.0} s", backend.state),
    }
}

/// E.g. `down 12s, 1 against`.
fn verdict(check: &CheckStatus) -> String {
    let since = check.since_secs.map(|secs| format!(" {}", super::status::age(secs as u64))).unwrap_or_default();
    let against = if check.against == 0 { String::new() } else { format!(", {} against", check.against) };
    format!("{}{since}{against}", check.state)
}

/// E.g. `wrong_status: status 503, 3.2 ms, 0.7 s ago`.
fn last(check: &CheckStatus) -> String {
    let Some(result) = &check.result else { return "none yet".to_owned() };
    let detail = check.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let took = check.took_ms.map(|ms| format!(", {ms:.1} ms")).unwrap_or_default();
    let age = check.age_secs.map(|secs| format!(", {secs:.1} s ago")).unwrap_or_default();
    format!("{result}{detail}{took}{age}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::application::status::sample;

    #[test]
    fn the_list_says_what_decides() {
        let status = sample::status();
        let unchecked =
            BackendStatus { check: None, health_why: None, health: "up".to_owned(), ..status.backends[0].clone() };
        let text = text(status.backends.iter().chain([&unchecked]), &status.fail_open);
        for part in [
            "ready  yes      ejected: timed_out  down 12s, 1 against  wrong_status: status 503, 3.2 ms, 0.7 s ago      3    10     -       2",
            "ready  yes      up                  -                    -                                                3    10     -       2",
            "app web fails open",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
