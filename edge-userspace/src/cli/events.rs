//! `edgeproxy events`: what has happened to the running daemon.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use hyper::{Method, StatusCode};

use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, print};
use crate::application::events::{Event, Events, EventsAnswer, EventsQuery};

/// Pause where the daemon answers at once that there is nothing new: too many wait for news already.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// As JSON, one line for each event
    #[arg(long)]
    json: bool,
    /// Go on with those that come, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only the last N of those that are kept [default: all]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Asks the daemon and prints its answer; with --follow again and again.
pub fn run(args: &EventsArgs) -> Result<(), CliError> {
    let socket = args.admin.socket()?;
    let answer = fetch(&socket, EventsQuery::default())?;
    let skipped = args.lines.map_or(0, |lines| answer.events.len().saturating_sub(lines));
    print(&text(answer.events.iter().skip(skipped), args.json)?)?;
    if args.follow { follow(&socket, args.json, answer) } else { Ok(()) }
}

/// Prints what comes after `answer`, until the daemon is gone.
fn follow(socket: &Path, as_json: bool, answer: EventsAnswer) -> Result<(), CliError> {
    let (mut since, mut after) = (answer.since, answer.last);
    loop {
        let asked = Instant::now();
        let wait_ms = u32::try_from(Events::LONGEST_WAIT.as_millis()).unwrap_or(u32::MAX);
        let answer = fetch(socket, EventsQuery { after, wait_ms })?;
        if answer.since != since {
            // Another daemon: its numbers begin anew.
            (since, after) = (answer.since, 0);
            continue;
        }
        if answer.lost > 0 && !as_json {
            // A reader of JSON sees it by the numbers.
            print(&format!("{} events were lost: they came faster than they were read\n", answer.lost))?;
        }
        print(&text(answer.events.iter(), as_json)?)?;
        after = answer.last;
        if answer.events.is_empty() && asked.elapsed() < PAUSE {
            std::thread::sleep(PAUSE);
        }
    }
}

fn fetch(socket: &Path, query: EventsQuery) -> Result<EventsAnswer, CliError> {
    let query = serde_urlencoded::to_string(query).map_err(|why| CliError::Failed(why.to_string()))?;
    let answer = block_on(ask(socket, Method::GET, &format!("/api/v1/events?{query}"), String::new()))?;
    if answer.code != StatusCode::OK {
        return Err(refusal(&answer));
    }
    serde_json::from_str(&answer.body)
        .map_err(|why| CliError::Failed(format!("the daemon's answer is not understood ({why})")))
}

fn text<'a>(events: impl Iterator<Item = &'a Event>, as_json: bool) -> Result<String, CliError> {
    let mut out = String::new();
    for event in events {
        if as_json {
            let line = serde_json::to_string(event).map_err(|why| CliError::Failed(why.to_string()))?;
            let _ = writeln!(out, "{line}");
        } else {
            let subject = format!("{} {}", event.subject, event.name);
            let app = event.app.as_ref().filter(|app| **app != event.name);
            let app = app.map(|app| format!(" (app {app})")).unwrap_or_default();
            let Event { at, level, kind, reason, .. } = event;
            let _ = writeln!(out, "{at}  {level:5}  {kind:21}  {}{app}: {reason}", subject.trim_end());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            seq: 7,
            at: "2026-11-24T12:00:00.000Z".to_owned(),
            kind: "backend_ejected".into(),
            level: "warn".into(),
            subject: "backend".into(),
            name: "b1".to_owned(),
            app: Some("web".to_owned()),
            reason: "refused, for 10 s".to_owned(),
        };
        let line = text([&event].into_iter(), false).unwrap();
        let expected =
            "2026-11-24T12:00:00.000Z  warn   backend_ejected        backend b1 (app web): refused, for 10 s\n";
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<Event>(&text([&event].into_iter(), true).unwrap()).unwrap(), event);
    }
}
