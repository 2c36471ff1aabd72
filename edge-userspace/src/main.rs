//! The `edgeproxy` binary: the only place that knows all parts.

mod daemon;

use std::io::Write as _;
use std::process::ExitCode;

use edgeproxy::adapters::outbound::forward::kernel;
use edgeproxy::adapters::outbound::geo::Geo;
use edgeproxy::application::status::GeoStatus;
use edgeproxy::cli::{self, CliError, Command, Exit, VersionFacts};

fn main() -> ExitCode {
    let command = match cli::parse() {
        Ok(command) => command,
        Err(exit) => return exit.into(),
    };
    let done = match command {
        Command::Run(args) => return report(daemon::run(&args)),
        Command::Explain(args) => return report(cli::explain(&args).map(Exit::code)),
        Command::Check(args) => cli::check(&args),
        Command::Config(args) => cli::config(&args),
        Command::Status(args) => cli::status(&args),
        Command::Reload(args) => cli::reload(&args),
        Command::Flows(args) => cli::flows(&args),
        Command::Bindings(args) => cli::bindings(&args),
        Command::Events(args) => cli::events(&args),
        Command::Backends(args) => cli::backends(&args),
        Command::Forwarder(args) => cli::forwarder(&args),
        Command::Bench(args) => cli::bench(&args),
        Command::Db(args) => cli::db(args),
        Command::Version { verbose } => cli::version(verbose, version_facts),
    };
    report(done.map(|()| Exit::Ok.code()))
}

fn version_facts() -> VersionFacts {
    let geo = Geo::open(None).map(|geo| GeoStatus::from(geo.info())).unwrap_or_default();
    VersionFacts { bpf_sources: kernel::SOURCES.to_owned(), geo }
}

fn report(result: Result<u8, CliError>) -> ExitCode {
    match result {
        Ok(code) => code.into(),
        Err(error) => {
            // Where this cannot be printed, no one is left to be told.
            let _ = writeln!(std::io::stderr(), "edgeproxy: {error}");
            error.exit().into()
        }
    }
}
