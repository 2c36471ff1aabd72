//! Where `edgeproxy db …` finds the database it works on.

use std::path::PathBuf;

use clap::Args;

use super::db::{self, DbArgs};
use super::{CliError, SettingArgs};

#[derive(Debug, Args)]
pub struct DbCommandArgs {
    /// The routing database [default: as configured]
    #[arg(long, value_name = "PATH", global = true)]
    db_path: Option<PathBuf>,
    /// Configuration file (TOML) [env: EDGEPROXY_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    args: DbArgs,
}

/// Runs the command on the database of the flags or of the settings.
pub fn run(args: DbCommandArgs) -> Result<(), CliError> {
    let path = match args.db_path {
        Some(path) => path,
        None => SettingArgs::of_file(args.config).load()?.settings.db_path,
    };
    db::run(args.args, &path).map_err(|error| CliError::Failed(format!("{error:#}")))
}
