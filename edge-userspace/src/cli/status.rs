//! `edgeproxy status`: how the running daemon is.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use hyper::{Method, StatusCode};

use super::client::{Answer, ask, block_on, refusal};
use super::{AdminArgs, CliError, print};
use crate::application::status::{BackendStatus, PopState, Status};

const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Wait until the daemon is ready, for so many seconds at most
    #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "30")]
    wait: Option<u32>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Asks the daemon and prints its answer.
pub fn run(args: &StatusArgs) -> Result<(), CliError> {
    let socket = args.admin.socket()?;
    let answer = block_on(async {
        match args.wait {
            Some(seconds) => wait(&socket, Duration::from_secs(seconds.into())).await,
            None => fetch(&socket).await,
        }
    })?;
    if args.json {
        return print(&format!("{}\n", answer.body.trim_end()));
    }
    print(&table(&read(&answer)?))
}

async fn fetch(socket: &Path) -> Result<Answer, CliError> {
    let answer = ask(socket, Method::GET, "/api/v1/status", String::new()).await?;
    if answer.code == StatusCode::OK { Ok(answer) } else { Err(refusal(&answer)) }
}

/// Asks until the daemon is ready. A daemon that is not there yet may still come.
async fn wait(socket: &Path, limit: Duration) -> Result<Answer, CliError> {
    let deadline = Instant::now() + limit;
    loop {
        let failure = match fetch(socket).await {
            Ok(answer) => match state(&answer)? {
                PopState::Ready => return Ok(answer),
                other => CliError::Failed(format!("the daemon is {other}, not ready, after {} s", limit.as_secs())),
            },
            Err(error) => error,
        };
        if Instant::now() + POLL > deadline {
            return Err(failure);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn state(answer: &Answer) -> Result<PopState, CliError> {
    read(answer).map(|status| status.state)
}

fn read(answer: &Answer) -> Result<Status, CliError> {
    serde_json::from_str(&answer.body).map_err(|why| {
        let own = env!("CARGO_PKG_VERSION");
        CliError::Failed(format!("the daemon's answer is not that of version {own} ({why}): try --json"))
    })
}

/// A status for people.
fn table(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| _ = writeln!(out, "{name:12} {text}");
    let up = Duration::from_secs_f64(status.uptime_secs.clamp(0.0, 1e9)).as_secs();
    line("edgeproxy", format!("{} · pid {} · up {}", status.version, status.pid, age(up)));
    line("state", format!("{} · region {} · {} workers", status.state, status.region, status.workers));
    let capabilities = &status.capabilities;
    line("privileges", if capabilities.is_empty() { "none".to_owned() } else { capabilities.join(", ") });
    listeners(status, &mut line);
    let connections = &status.connections;
    let rejected: u64 = connections.rejected.values().sum();
    let mut text = format!("{} active · {} accepted · {rejected} rejected", connections.active, connections.accepted);
    if !connections.rejected.is_empty() {
        let reasons = connections.rejected.iter().map(|(reason, count)| format!("{reason} {count}"));
        let _ = write!(text, " ({})", reasons.collect::<Vec<_>>().join(", "));
    }
    line("connections", text);
    limits(status, &mut line);
    line("bindings", status.bindings.to_string());
    forwarder(status, &mut line);
    routing(status, &mut line);
    line("geo", status.geo.to_string());
    for app in &status.fail_open {
        let why = "no backend in service is trusted: those whose checks fail are asked all the same";
        line("fail open", format!("app {app}: {why}"));
    }
    backends(&status.backends, &mut out);
    out
}

fn listeners(status: &Status, line: &mut impl FnMut(&str, String)) {
    for listener in &status.listeners {
        let mut text = format!("{} → {}", listener.place, listener.app.as_deref().unwrap_or("no app"));
        if !listener.server_names.is_empty() {
            let _ = write!(text, " for {}", listener.server_names.join(", "));
        }
        match &listener.how {
            Some(how) => _ = write!(text, " · {how}"),
            None => text.push_str(" · closed"),
        }
        if listener.id != listener.place {
            let _ = write!(text, " · {}", listener.id);
        }
        line("listener", text);
        if let Some(why) = &listener.why {
            line("", why.clone());
        }
    }
    let steering = &status.steering;
    let count = |verdict| steering.verdicts.get(verdict).copied().unwrap_or(0);
    match &steering.why {
        Some(why) => line("sk_lookup", format!("off: {why}")),
        None if steering.prefixes == 0 => {}
        None => line(
            "sk_lookup",
            format!(
                "{} prefixes · {} lookups steered, {} left to bound sockets",
                steering.prefixes,
                count("steered"),
                count("left")
            ),
        ),
    }
}

fn limits(status: &Status, line: &mut impl FnMut(&str, String)) {
    let limits = &status.limits;
    for load in limits.listeners.iter().filter(|load| load.max_connections > 0) {
        line(
            "limits",
            format!("listener {}: {} of {} connections", load.listener, load.connections, load.max_connections),
        );
    }
    for queue in &limits.queues {
        line("queue", format!("{}: {} of {} waiting", queue.app, queue.waiting, queue.length));
    }
    if limits.sources_connected + limits.sources_remembered > 0 {
        let text = format!("{} connected · {} remembered", limits.sources_connected, limits.sources_remembered);
        line("sources", format!("{text} (of {})", limits.sources_capacity));
    }
    if limits.accept_pauses > 0 {
        line("accept", format!("paused {} times: max_connection_rate", limits.accept_pauses));
    }
    if limits.refusals_not_logged > 0 {
        line("access log", format!("{} refusals left out: refusal_log_rate", limits.refusals_not_logged));
    }
}

fn forwarder(status: &Status, line: &mut impl FnMut(&str, String)) {
    let forwarder = &status.forwarder;
    let mut text = format!("{} (configured: {})", forwarder.active, forwarder.configured);
    if let Some(self_test) = &forwarder.self_test {
        let _ = write!(text, " · self-test {self_test}");
    }
    let _ = write!(text, " · {} flows, {} bytes in the kernel", forwarder.flows_in_kernel, forwarder.kernel_bytes);
    line("forwarder", text);
    if let Some(why) = &forwarder.why {
        line("", format!("kernel path off: {why}"));
    }
    let same_host = &forwarder.same_host;
    let text = match &same_host.why {
        Some(why) if same_host.marked > 0 => {
            format!("the mark of {} backends has no effect: {why}", same_host.marked)
        }
        Some(why) => format!("off: {why}"),
        None => format!("{} flows now, {} bytes handed over by ended ones", same_host.flows, same_host.bytes),
    };
    line("same host", text);
    for (backend, why) in &same_host.withdrawn {
        line("", format!("{backend} lost the mark same_host: {why}"));
    }
    // Where none takes part that is why there is no path, and told.
    for (_, why) in same_host.missing_cgroups.iter().filter(|_| same_host.why.is_none()) {
        line("", format!("applications that don't take part: {why}"));
    }
}

fn routing(status: &Status, line: &mut impl FnMut(&str, String)) {
    let routing = &status.routing;
    let mut text = format!("generation {} · {} apps · {} backends", routing.generation, routing.apps, routing.backends);
    if let Some(secs) = routing.last_reload.age_secs {
        let how = if routing.last_reload.ok { "ok" } else { "rejected" };
        let _ =
            write!(text, " · last reload {how}, {} ago", age(Duration::from_secs_f64(secs.clamp(0.0, 1e9)).as_secs()));
    }
    line("routing", text);
    if let Some(error) = &routing.last_reload.error {
        line("", format!("last reload: {error}"));
    }
    for row in &routing.rejected_rows {
        line("", format!("rejected {}: {}", row.row, row.why));
    }
}

fn backends(backends: &[BackendStatus], out: &mut String) {
    if backends.is_empty() {
        return;
    }
    let mut rows = vec![
        ["BACKEND", "APP", "REGION", "ADDRESS", "STATE", "WEIGHT", "CONNS", "SOFT", "HARD", "KERNEL"]
            .map(str::to_owned),
    ];
    rows.extend(backends.iter().map(|backend| {
        let state = condition(backend);
        let hard = if backend.hard_limit == 0 { "-".to_owned() } else { backend.hard_limit.to_string() };
        let kernel = backend.kernel_connections.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let [weight, connections, soft] =
            [backend.weight, backend.connections, backend.soft_limit].map(|n| n.to_string());
        let [id, app, region, addr] = [&backend.id, &backend.app, &backend.region, &backend.addr].map(String::clone);
        [id, app, region, addr, state, weight, connections, soft, hard, kernel]
    }));
    super::table::write(&rows, 5, out);
}

/// The operator's word, and what connections say where it isn't well.
fn condition(backend: &BackendStatus) -> String {
    let mut state = backend.state.clone();
    if !backend.healthy {
        state += ", unhealthy";
    }
    match (&*backend.health, &backend.health_why) {
        ("up", _) => {}
        (health, Some(why)) => _ = write!(state, ", {health}: {why}"),
        (health, None) => _ = write!(state, ", {health}"),
    }
    state
}

/// E.g. `1h 02m`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::application::status::sample;

    #[test]
    fn the_table_says_what_matters() {
        let text = table(&sample::status());
        for part in [
            "0.1.0 · pid 42 · up 1h 02m",
            "ready · region sa · 2 workers",
            "privileges   CAP_NET_BIND_SERVICE",
            "listener     0.0.0.0:8080 → web · bind\n",
            "listener     192.0.2.1:443 → no app for www.example.com, *.example.org · closed · tls\n",
            "             address 192.0.2.1:443 is in use",
            "sk_lookup    3 prefixes · 12 lookups steered, 0 left to bound sockets",
            "3 active · 10 accepted · 2 rejected (no_app 2)",
            "copy (configured: auto)",
            "limits       listener web: 3 of 100 connections",
            "queue        web: 4 of 50 waiting",
            "sources      2 connected · 6 remembered (of 1000)",
            "kernel path off: needs CAP_BPF",
            "last reload rejected, 3s ago",
            "last reload: file is locked",
            "rejected backend b9: port 0",
            "embedded · 2026-01-01 · PDDL",
            "fail open    app web: no backend in service is trusted",
            "sa-\"1\"   web  sa      10.0.0.1:80  ready, ejected: timed_out       2      3    10     -       3",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_daemon_of_another_version_is_named_as_such() {
        let answer = Answer { code: StatusCode::OK, body: "{}".to_owned() };
        assert!(read(&answer).unwrap_err().to_string().contains("try --json"));
    }
}
