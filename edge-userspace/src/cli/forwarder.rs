//! `edgeproxy forwarder`: which forwarder connections get, and changing it while the daemon runs.

use clap::{Args, Subcommand};
use hyper::{Method, StatusCode};

use super::client::{ask, block_on, refusal};
use super::{AdminArgs, CliError, print};
use crate::application::status::{ForwarderRequest, ForwarderStatus, Status};
use crate::config::ForwarderChoice;

#[derive(Debug, Args)]
pub struct ForwarderArgs {
    #[command(subcommand)]
    command: Option<ForwarderCommand>,
    /// As JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum ForwarderCommand {
    /// Say which forwarder is in force, and why (the default)
    Show,
    /// Change it, for new connections and for those that run; after byte counts disagreed this allows the kernel path
    /// again
    Set {
        /// auto, copy (or off), splice or sockmap
        forwarder: ForwarderChoice,
    },
}

/// Asks the daemon, or has it change its forwarder, and prints what is in force then.
pub fn run(args: &ForwarderArgs) -> Result<(), CliError> {
    let socket = args.admin.socket()?;
    let ask = |method, path, body| {
        let answer = block_on(ask(&socket, method, path, body))?;
        if answer.code == StatusCode::OK { Ok(answer.body) } else { Err(refusal(&answer)) }
    };
    let strange = |why: serde_json::Error| CliError::Failed(format!("the daemon's answer is not understood: {why}"));
    let status = match &args.command {
        None | Some(ForwarderCommand::Show) => {
            let body = ask(Method::GET, "/api/v1/status", String::new())?;
            serde_json::from_str::<Status>(&body).map_err(strange)?.forwarder
        }
        Some(ForwarderCommand::Set { forwarder }) => {
            let request = ForwarderRequest { forwarder: forwarder.as_str().to_owned() };
            let body = serde_json::to_string(&request).map_err(strange)?;
            serde_json::from_str(&ask(Method::POST, "/api/v1/forwarder", body)?).map_err(strange)?
        }
    };
    if args.json {
        return print(&format!("{}\n", serde_json::to_string(&status).map_err(strange)?));
    }
    print(&text(&status))
}

fn text(status: &ForwarderStatus) -> String {
    let why = status.why.as_ref().map(|why| format!("\nthe kernel path is off: {why}")).unwrap_or_default();
    let ForwarderStatus { configured, active, flows_in_kernel, .. } = status;
    format!("{configured}; new connections get {active}; {flows_in_kernel} flows in the kernel{why}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_is_wanted_what_is_given_and_why() {
        let status = ForwarderStatus {
            configured: "auto".to_owned(),
            active: "splice".to_owned(),
            why: Some("no BTF".to_owned()),
            ..ForwarderStatus::default()
        };
        let want = "auto; new connections get splice; 0 flows in the kernel\nthe kernel path is off: no BTF\n";
        assert_eq!(text(&status), want);
    }
}
