//! `edgeproxy backends drain` and `… ready`: an operator's word to the running daemon.

use std::time::Duration;

use clap::Args;
use hyper::{Method, StatusCode};

use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, print};
use crate::application::backend_drain::{DrainAnswer, DrainRequest, LONGEST_DEADLINE};

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Id of the backend
    id: String,
    /// When the connections that are left are cut, such as 30s or 5m, at most 30d; without it they end by themselves
    #[arg(long, value_name = "TIME", value_parser = parse_deadline)]
    deadline: Option<Duration>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReadyArgs {
    /// Id of the backend
    id: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn parse_deadline(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|why| why.to_string())?;
    if time > LONGEST_DEADLINE { Err("that is more than 30 days".to_owned()) } else { Ok(time) }
}

pub(super) fn drain(args: &DrainArgs, admin: &AdminArgs) -> Result<(), CliError> {
    let deadline_secs = args.deadline.map(|deadline| deadline.as_secs_f64());
    let request = DrainRequest { backend: args.id.clone(), deadline_secs };
    say("/api/v1/backends/drain", &request, args.json, admin)
}

pub(super) fn ready(args: &ReadyArgs, admin: &AdminArgs) -> Result<(), CliError> {
    let request = DrainRequest { backend: args.id.clone(), deadline_secs: None };
    say("/api/v1/backends/ready", &request, args.json, admin)
}

fn say(path: &str, request: &DrainRequest, json: bool, admin: &AdminArgs) -> Result<(), CliError> {
    let strange = |why: serde_json::Error| CliError::Failed(format!("the daemon's answer is not understood: {why}"));
    let body = serde_json::to_string(request).map_err(strange)?;
    let answer = block_on(ask(&admin.socket()?, Method::POST, path, body))?;
    if answer.code != StatusCode::OK {
        return Err(refusal(&answer));
    }
    if json {
        return print(&format!("{}\n", answer.body));
    }
    print(&text(&serde_json::from_str(&answer.body).map_err(strange)?))
}

fn text(answer: &DrainAnswer) -> String {
    let DrainAnswer { backend, connections, .. } = answer;
    if !answer.draining {
        return format!("{backend} gets new connections again, as far as the routing database lets it\n");
    }
    let end = match answer.deadline_secs {
        Some(secs) => format!("what is left is cut in {secs} s"),
        None => "they end by themselves".to_owned(),
    };
    let lasting = if answer.known {
        format!(
            "until `edgeproxy backends ready {backend}` or the daemon's end; `edgeproxy db drain {backend}` outlasts it"
        )
    } else {
        "the routing table has no such backend any more".to_owned()
    };
    format!("{backend} gets no new connections; it has {connections}: {end}\n{lasting}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_times_of_at_most_thirty_days() {
        assert_eq!(parse_deadline("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_deadline("30d"), Ok(LONGEST_DEADLINE));
        assert!(parse_deadline("31d").unwrap_err().contains("30 days"));
        assert!(parse_deadline("soon").is_err());
    }

    #[test]
    fn the_text_says_what_happens_to_connections_and_how_long_the_word_holds() {
        let answer = DrainAnswer {
            backend: "b1".to_owned(),
            draining: true,
            deadline_secs: Some(30.0),
            connections: 7,
            known: true,
        };
        let drained = text(&answer);
        assert!(drained.contains("it has 7: what is left is cut in 30 s"), "{drained}");
        assert!(drained.contains("edgeproxy db drain b1"), "{drained}");
        let removed = text(&DrainAnswer { deadline_secs: None, known: false, ..answer.clone() });
        assert!(removed.contains("they end by themselves") && removed.contains("no such backend"), "{removed}");
        assert!(text(&DrainAnswer { draining: false, ..answer }).contains("new connections again"));
    }
}
