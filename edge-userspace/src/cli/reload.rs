//! `edgeproxy reload`: the running daemon reads the routing database now.

use std::fmt::Write as _;

use clap::Args;
use hyper::{Method, StatusCode};

use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, print};
use crate::application::status::{ReloadAnswer, ReloadRequest};

#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Accept empty or missing tables where there were full ones: without rows in `backends` the POP serves nobody,
    /// without rows in `acl` everybody may connect
    #[arg(long)]
    allow_empty: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Has the daemon reload and prints how it went. A reload with bad rows succeeds, and names them.
pub fn run(args: &ReloadArgs) -> Result<(), CliError> {
    let socket = args.admin.socket()?;
    let request = ReloadRequest { allow_empty: args.allow_empty };
    let body = serde_json::to_string(&request).map_err(|why| CliError::Failed(why.to_string()))?;
    let answer = block_on(ask(&socket, Method::POST, "/api/v1/reload", body))?;
    if answer.code != StatusCode::OK {
        return Err(refusal(&answer));
    }
    if args.json {
        return print(&format!("{}\n", answer.body.trim_end()));
    }
    let answer = serde_json::from_str::<ReloadAnswer>(&answer.body)
        .map_err(|why| CliError::Failed(format!("the daemon's answer is not understood ({why}): try --json")))?;
    print(&text(&answer))
}

fn text(answer: &ReloadAnswer) -> String {
    let mut out = format!(
        "generation {}: {} backends of {} apps, {} rows rejected\n",
        answer.generation,
        answer.accepted,
        answer.apps,
        answer.rejected_rows.len()
    );
    for row in &answer.rejected_rows {
        let _ = writeln!(out, "  rejected {}: {}", row.row, row.why);
    }
    out
}
