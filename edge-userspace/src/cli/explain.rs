//! `edgeproxy explain`: where a client's next connection would go, and why.

use std::fmt::Write as _;
use std::net::IpAddr;

use clap::Args;
use hyper::{Method, StatusCode};

use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, Exit, print};
use crate::adapters::inbound::admin::ExplainQuery;
use crate::application::explain::{Candidate, ClientLimits, Explanation, Places};

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Address of the client; where a PROXY header names one, that
    #[arg(long, value_name = "ADDR")]
    client: IpAddr,
    /// The app it asks for [default: the one the listeners lead to]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["port", "to", "sni"])]
    app: Option<String>,
    /// The port it connects to: explains the app that the listener there leads to
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// The address it connects to, where several listeners have the port
    #[arg(long, value_name = "ADDR", requires = "port")]
    to: Option<IpAddr>,
    /// The TLS server name it asks for
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Prints the answer; the exit code says whether the client would be let in and a backend be found.
pub fn run(args: &ExplainArgs) -> Result<Exit, CliError> {
    let socket = args.admin.socket()?;
    let query = ExplainQuery {
        client: args.client,
        app: args.app.clone(),
        port: args.port,
        to: args.to,
        sni: args.sni.clone(),
    };
    let query = serde_urlencoded::to_string(&query).map_err(|why| CliError::Failed(why.to_string()))?;
    let answer = block_on(ask(&socket, Method::GET, &format!("/api/v1/explain?{query}"), String::new()))?;
    match (answer.code, refusal(&answer)) {
        (StatusCode::OK, _) => {}
        (StatusCode::NOT_FOUND, CliError::Failed(why)) => return Err(CliError::NoBackend(why)),
        (_, why) => return Err(why),
    }
    let explanation = serde_json::from_str::<Explanation>(&answer.body)
        .map_err(|why| CliError::Failed(format!("the daemon's answer is not understood ({why})")))?;
    if args.json {
        print(&format!("{}\n", answer.body.trim_end()))?;
    } else {
        print(&text(&explanation))?;
    }
    Ok(if explanation.succeeds() { Exit::Ok } else { Exit::NoBackend })
}

fn text(explanation: &Explanation) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| _ = writeln!(out, "{name:11} {text}");
    let country = explanation.country.as_deref().unwrap_or("no country");
    let region = explanation.client_region.as_deref().unwrap_or("no region");
    line("client", format!("{} · {country} ({}) · {region}", explanation.client, explanation.geo_source));
    line("pop", format!("{} · routing generation {}", explanation.pop_region, explanation.generation));
    if let Some(place) = &explanation.place {
        let name = explanation.server_name.as_ref().map(|name| format!(" · server name {name}")).unwrap_or_default();
        let listener = explanation.listener.as_deref().unwrap_or("none");
        line("listener", format!("{listener} · at {place}{name}"));
    }
    if let Some(why) = &explanation.closed {
        line("closed", why.clone());
    }
    let selection = explanation.selection.as_ref().map(|selection| format!(" · {selection}")).unwrap_or_default();
    let next_region = explanation.next_region.as_ref().map(|by| format!(" · next region by {by}")).unwrap_or_default();
    line("app", format!("{}{selection}{next_region}", explanation.app.as_deref().unwrap_or("none")));
    line("binding", binding(explanation));
    let (name, text) = next(explanation);
    line(name, text);
    if let Some(rule) = &explanation.denied_by {
        line("by rule", rule.clone());
    }
    if let Some(limits) = &explanation.limits {
        line("limits", places(limits));
    }
    if let Some(queue) = &explanation.queue {
        line("queue", format!("{} of {} waiting", queue.waiting, queue.length));
    }
    let later = explanation.order.iter().skip(1).filter(|_| explanation.winner.is_some());
    let later: Vec<_> = later.map(|step| format!("{} ({})", step.backend, step.why)).collect();
    if !later.is_empty() {
        line("if it fails", later.join(", then "));
    }
    candidates(&explanation.candidates, &mut out);
    out
}

/// What becomes of the connection. Who has to wait is not said to be served.
fn next(explanation: &Explanation) -> (&'static str, String) {
    let winner =
        explanation.winner.iter().zip(&explanation.why).map(|(winner, why)| format!("{winner} ({why})")).next();
    let refused = || explanation.refused.clone().unwrap_or_default();
    let waits = match explanation.waits_behind {
        None => return winner.map_or_else(|| ("refused", refused()), |winner| ("next", winner)),
        Some(0) => "waits, the first in the queue".to_owned(),
        Some(1) => "waits behind 1 other first".to_owned(),
        Some(others) => format!("waits behind {others} others first"),
    };
    let then =
        winner.map_or_else(|| format!(": {}", refused()), |winner| format!("; then {winner}, as things are now"));
    ("next", waits + &then)
}

/// What limits there are, and how many connections count for each.
fn places(limits: &ClientLimits) -> String {
    let of = |whose: &str, places: &Places| {
        let limit = if places.limit == 0 { "no limit".to_owned() } else { format!("of {}", places.limit) };
        let refuses = places.refuses.as_ref().map(|why| format!(", refuses: {why}")).unwrap_or_default();
        format!("{whose} {} {limit}{refuses}", places.held)
    };
    let wait = |ms: Option<f64>, what: &str| {
        ms.filter(|ms| *ms > 0.0).map(|ms| format!(" ({what} {ms:.0} ms)")).unwrap_or_default()
    };
    let mut all = vec![of("daemon", &limits.daemon) + &wait(limits.accept_wait_ms, "accepts the next in")];
    all.extend(limits.source.iter().map(|source| {
        of(&format!("source {}", source.prefix), &source.places) + &wait(source.rate_wait_ms, "too early by")
    }));
    all.push(
        limits
            .listener
            .as_ref()
            .map_or_else(|| "listener not known without --port".to_owned(), |listener| of("listener", listener)),
    );
    all.join(" · ")
}

fn binding(explanation: &Explanation) -> String {
    match (&explanation.bound, &explanation.binding_yielded) {
        (None, _) => "none".to_owned(),
        (Some(bound), None) => format!("to {bound}"),
        (Some(bound), Some(why)) => format!("to {bound}, yields: {why}"),
    }
}

fn candidates(candidates: &[Candidate], out: &mut String) {
    if candidates.is_empty() {
        return;
    }
    let head = [
        "BACKEND", "REGION", "ADDRESS", "STATUS", "SCORE", "NEAR", "LOAD", "KM", "CONNS", "SOFT", "HARD", "WEIGHT",
        "RTT MS",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(candidates.iter().map(row));
    super::table::write(&rows, 4, out);
}

fn row(candidate: &Candidate) -> [String; 13] {
    let status = match &candidate.out {
        Some(why) if why == "check_failed" => {
            format!("out: {why} ({})", candidate.last_check.as_deref().unwrap_or("no check"))
        }
        Some(why) => format!("out: {why}"),
        None if candidate.over_soft => "over soft limit".to_owned(),
        None => "below soft limit".to_owned(),
    };
    let unlimited = |limit: u32| if limit == 0 { "-".to_owned() } else { limit.to_string() };
    [
        candidate.id.clone(),
        candidate.region.clone(),
        candidate.addr.clone(),
        status,
        format!("{:.3}", candidate.score),
        candidate.region_score.to_string(),
        format!("{:.3}", candidate.load_factor),
        candidate.distance_km.map_or_else(|| "-".to_owned(), |km| format!("{km:.0}")),
        candidate.connections.to_string(),
        unlimited(candidate.soft_limit),
        unlimited(candidate.hard_limit),
        candidate.weight.to_string(),
        candidate.rtt_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}")),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::adapters::inbound::admin::tests::sample_explanation;
    use crate::application::explain::SourcePlaces;
    use crate::application::status::QueueStatus;

    #[test]
    fn the_text_says_who_why_and_why_not() {
        let text = text(&sample_explanation());
        for part in [
            "200.160.2.1 · BR (database) · sa",
            "listener    tls · at 0.0.0.0:443 · server name www.example.com",
            "to sa-2, yields: drain",
            "· least_load",
            "next        sa-1 (client_region)",
            "if it fails us-1 (nearest_region)",
            "STATUS              SCORE  NEAR   LOAD    KM  CONNS",
            "sa-1     sa      192.0.2.1:80  below soft limit    0.100     0  0.100     0     10   100     -       1",
            "us-1     us      192.0.2.1:80  below soft limit  200.100     2  0.100  8000",
            "sa-2     sa      192.0.2.1:80  out: drain",
            "1   1.250\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_check_that_keeps_a_backend_out_is_named() {
        let down = Candidate { out: Some("check_failed".to_owned()), ..sample_explanation().candidates[0].clone() };
        let explanation = Explanation { candidates: vec![down], ..sample_explanation() };
        assert!(text(&explanation).contains("out: check_failed (wrong_status: status 503)"));
    }

    #[test]
    fn limits_are_told_and_which_refuses() {
        let places = |held, limit, refuses: Option<&str>| Places { held, limit, refuses: refuses.map(str::to_owned) };
        let source = SourcePlaces {
            prefix: "192.0.2.1/32".to_owned(),
            places: places(1, 0, Some("source_rate")),
            rate_wait_ms: Some(250.0),
        };
        let limits = ClientLimits {
            accept_wait_ms: Some(12.3),
            daemon: places(7, 1000, None),
            source: Some(source),
            listener: Some(places(1, 1, Some("listener_connections"))),
        };
        let refused = Some("source_rate".to_owned());
        let explanation =
            Explanation { winner: None, why: None, refused, limits: Some(limits), ..sample_explanation() };
        let text = text(&explanation);
        for part in [
            "refused     source_rate",
            "limits      daemon 7 of 1000 (accepts the next in 12 ms) · source 192.0.2.1/32 1 no limit, refuses: \
             source_rate (too early by 250 ms) · listener 1 of 1, refuses: listener_connections",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("if it fails") && !text.contains("next        "), "{text}");
        let unknown = Explanation { limits: Some(ClientLimits::default()), ..sample_explanation() };
        assert!(super::text(&unknown).contains("daemon 0 no limit · listener not known without --port"));
    }

    #[test]
    fn who_waits_is_not_said_to_be_served() {
        let told = |waits_behind, winner: bool| {
            let queue = Some(QueueStatus { app: "web".to_owned(), waiting: 5, length: 50 });
            let asked = Explanation { queue, waits_behind, ..sample_explanation() };
            let full =
                || Explanation { winner: None, why: None, refused: Some("all_full".to_owned()), ..asked.clone() };
            text(&if winner { asked.clone() } else { full() })
        };
        for (waits_behind, winner, line) in [
            (Some(3), true, "next        waits behind 3 others first; then sa-1 (client_region), as things are now\n"),
            (Some(1), true, "next        waits behind 1 other first; then sa-1 (client_region), as things are now\n"),
            (
                Some(0),
                true,
                "next        waits, the first in the queue; then sa-1 (client_region), as things are now\n",
            ),
            (Some(3), false, "next        waits behind 3 others first: all_full\n"),
            (Some(0), false, "next        waits, the first in the queue: all_full\n"),
            // What those in the queue can't use.
            (None, true, "next        sa-1 (client_region)\n"),
            (None, false, "refused     all_full\n"),
        ] {
            let text = told(waits_behind, winner);
            assert!(
                text.contains(line) && text.contains("queue       5 of 50 waiting\n"),
                "{line:?} is not in\n{text}"
            );
        }
    }

    #[test]
    fn a_refusal_is_named() {
        let refused = Explanation { refused: Some("all_full".to_owned()), ..Explanation::default() };
        assert!(text(&refused).contains("refused     all_full"));
    }
}
