//! The command line.

mod backend_drain;
mod backends;
mod bench;
mod bindings;
mod check;
mod client;
mod config_cmd;
pub mod db;
mod db_cmd;
mod events;
mod exit;
mod explain;
mod flags;
mod flows;
mod forwarder;
mod reload;
mod status;
mod table;
mod version;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

pub use backends::BackendsArgs;
pub use bench::BenchArgs;
pub use bindings::BindingsArgs;
pub use config_cmd::ConfigArgs;
pub use db_cmd::DbCommandArgs;
pub use events::EventsArgs;
pub use exit::{CliError, Exit};
pub use explain::ExplainArgs;
pub use flags::{AdminArgs, SettingArgs};
pub use flows::FlowsArgs;
pub use forwarder::ForwarderArgs;
pub use reload::ReloadArgs;
pub use status::StatusArgs;

pub use backends::run as backends;
pub use bench::run as bench;
pub use bindings::run as bindings;
pub use check::run as check;
pub use config_cmd::run as config;
pub use db_cmd::run as db;
pub use events::run as events;
pub use explain::run as explain;
pub use flows::run as flows;
pub use forwarder::run as forwarder;
pub use reload::run as reload;
pub use status::run as status;
pub use version::{VersionFacts, run as version};

/// edgeproxy: a TCP proxy for edge points of presence that forwards in the kernel
#[derive(Debug, Parser)]
#[command(name = "edgeproxy", disable_version_flag = true, after_help = exit::HELP, arg_required_else_help = true)]
struct Cli {
    /// Print the version
    #[arg(short = 'V', long)]
    version: bool,
    /// With --version: what the binary is made of, too
    #[arg(short, long, requires = "version")]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What the user asks for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    #[command(after_help = exit::HELP)]
    Run(SettingArgs),
    /// Validate configuration, routing database and geo data without starting
    #[command(after_help = exit::HELP)]
    Check(SettingArgs),
    /// Print the settings in force and where each came from
    #[command(after_help = exit::HELP)]
    Config(ConfigArgs),
    /// Ask the running daemon how it is
    #[command(after_help = exit::HELP)]
    Status(StatusArgs),
    /// Where would this client's next connection go, and why?
    #[command(after_help = exit::HELP)]
    Explain(ExplainArgs),
    /// Have the running daemon read the routing database now
    #[command(after_help = exit::HELP)]
    Reload(ReloadArgs),
    /// List the flows that run now
    #[command(after_help = exit::HELP)]
    Flows(FlowsArgs),
    /// List or end the bindings of clients to their backends
    #[command(after_help = exit::HELP)]
    Bindings(BindingsArgs),
    /// What has happened to the running daemon: health of backends, reloads, drains
    #[command(after_help = exit::HELP)]
    Events(EventsArgs),
    /// The backends of the running daemon: state, health, last check, connections, limits; drain one
    #[command(after_help = exit::HELP)]
    Backends(BackendsArgs),
    /// Show or change the forwarder of the running daemon
    #[command(after_help = exit::HELP)]
    Forwarder(ForwarderArgs),
    /// Measure which forwarder suits this host, in a minute, on loopback, with daemons of its own
    #[command(after_help = exit::HELP)]
    Bench(BenchArgs),
    /// Make and edit the routing database
    #[command(after_help = exit::HELP)]
    Db(DbCommandArgs),
    /// Print the version (`--version`)
    #[command(skip)]
    Version { verbose: bool },
}

/// Reads the command line of this process. Help and mistakes are printed; what is left is to exit so.
pub fn parse() -> Result<Command, Exit> {
    parse_from(std::env::args_os()).map_err(|error| {
        // Where help cannot be printed, no one is left to be told.
        let _ = error.print();
        if error.use_stderr() { Exit::Usage } else { Exit::Ok }
    })
}

fn parse_from(args: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let cli = Cli::try_parse_from(args)?;
    match cli.command {
        _ if cli.version => Ok(Command::Version { verbose: cli.verbose }),
        Some(command) => Ok(command),
        None => Err(Cli::command().error(ErrorKind::MissingSubcommand, "say what to do: `edgeproxy --help` lists it")),
    }
}

/// Prints to standard output; a reader that has gone (`| head`) is no error.
fn print(text: &str) -> Result<(), CliError> {
    use std::io::{ErrorKind, Write as _};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("standard output could not be written: {why}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
