//! `edgeproxy bindings`: which backend each client comes back to.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use hyper::{Method, StatusCode};

use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, print};
use crate::application::bindings::{
    BindingFilter, BindingPage, BindingStatus, BindingsQuery, ClearAnswer, ClearRequest,
};

/// Bindings asked for at a time.
const PAGE: u32 = 10_000;

#[derive(Debug, Args)]
pub struct BindingsArgs {
    #[command(subcommand)]
    command: BindingsCommand,
}

#[derive(Debug, Subcommand)]
enum BindingsCommand {
    /// List the bindings, in no order
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// How many at most; 0 for all
        #[arg(long, default_value_t = 1000)]
        limit: u64,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// End bindings: the clients' next connections are balanced afresh
    Clear {
        #[command(flatten)]
        filter: FilterArgs,
        /// Those of all apps, backends and clients
        #[arg(long, conflicts_with_all = ["app", "backend", "client"])]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

#[derive(Debug, Args)]
struct FilterArgs {
    /// Those of this app
    #[arg(long)]
    app: Option<String>,
    /// Those to this backend
    #[arg(long)]
    backend: Option<String>,
    /// Those of this client, an address or a prefix
    #[arg(long)]
    client: Option<String>,
}

impl FilterArgs {
    fn filter(&self) -> BindingFilter {
        BindingFilter { app: self.app.clone(), backend: self.backend.clone(), client: self.client.clone() }
    }
}

/// Asks the daemon and prints its answer.
pub fn run(args: &BindingsArgs) -> Result<(), CliError> {
    match &args.command {
        BindingsCommand::List { filter, limit, json, admin } => list(&filter.filter(), *limit, *json, admin),
        BindingsCommand::Clear { filter, all, json, admin } => clear(filter.filter(), *all, *json, admin),
    }
}

/// Page by page: there may be millions.
fn list(filter: &BindingFilter, limit: u64, json: bool, admin: &AdminArgs) -> Result<(), CliError> {
    let socket = admin.socket()?;
    let most = if limit == 0 { u64::MAX } else { limit };
    let (mut shown, mut from) = (0, Some(0));
    while let Some(at) = from {
        let left = most - shown;
        let query = BindingsQuery {
            app: filter.app.clone(),
            backend: filter.backend.clone(),
            client: filter.client.clone(),
            limit: Some(u32::try_from(left).unwrap_or(PAGE).min(PAGE)),
            from: at,
        };
        let query = serde_urlencoded::to_string(&query).map_err(|why| CliError::Failed(why.to_string()))?;
        let answer = block_on(ask(&socket, Method::GET, &format!("/api/v1/bindings?{query}"), String::new()))?;
        if answer.code != StatusCode::OK {
            return Err(refusal(&answer));
        }
        let page: BindingPage = understood(&answer.body)?;
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(page.bindings.len());
        let bindings = page.bindings.get(..take).unwrap_or_default();
        print(&if json { lines(bindings)? } else { table(bindings, shown == 0) })?;
        shown += take as u64;
        from = page.next.filter(|_| shown < most);
        if !json && page.next.is_some() && from.is_none() {
            print(&format!("{shown} bindings shown; --limit shows more\n"))?;
        }
    }
    Ok(())
}

fn clear(filter: BindingFilter, all: bool, json: bool, admin: &AdminArgs) -> Result<(), CliError> {
    let request = ClearRequest { filter, all };
    let body = serde_json::to_string(&request).map_err(|why| CliError::Failed(why.to_string()))?;
    let answer = block_on(ask(&admin.socket()?, Method::POST, "/api/v1/bindings/clear", body))?;
    if answer.code != StatusCode::OK {
        return Err(refusal(&answer));
    }
    if json {
        return print(&format!("{}\n", answer.body.trim_end()));
    }
    let answer: ClearAnswer = understood(&answer.body)?;
    print(&format!("{} bindings cleared\n", answer.cleared))
}

fn understood<T: serde::de::DeserializeOwned>(body: &str) -> Result<T, CliError> {
    let unclear =
        |why| CliError::Failed(format!("the daemon's answer is not understood ({why}): is it of this version?"));
    serde_json::from_str(body).map_err(unclear)
}

fn lines(bindings: &[BindingStatus]) -> Result<String, CliError> {
    let mut out = String::new();
    for binding in bindings {
        out += &serde_json::to_string(binding).map_err(|why| CliError::Failed(why.to_string()))?;
        out.push('\n');
    }
    Ok(out)
}

fn table(bindings: &[BindingStatus], with_head: bool) -> String {
    let mut out = String::new();
    if with_head {
        let _ = writeln!(out, "{:<16} {:<44} {:<24} {:>10} {:>10}", "APP", "CLIENT", "BACKEND", "IDLE", "ENDS IN");
    }
    for BindingStatus { app, client, backend, idle_secs, left_secs } in bindings {
        let _ = writeln!(out, "{app:<16} {client:<44} {backend:<24} {idle_secs:>9.1}s {left_secs:>9.1}s");
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_binding_is_one_line() {
        let binding = BindingStatus {
            app: "web".into(),
            client: "192.0.2.1/32".into(),
            backend: "b1".into(),
            idle_secs: 1.26,
            left_secs: 598.74,
        };
        let text = table(std::slice::from_ref(&binding), true);
        assert_eq!(text.lines().count(), 2);
        for word in ["192.0.2.1/32", "b1", "1.3s", "598.7s"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert_eq!(lines(&[binding.clone(), binding]).unwrap().lines().count(), 2);
    }
}
