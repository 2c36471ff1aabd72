//! `edgeproxy config`: the settings in force and where each came from.

use clap::Args;

use super::{CliError, SettingArgs, print};
use crate::config;

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The reference of all settings in Markdown, whatever their values
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Prints the settings.
pub fn run(args: &ConfigArgs) -> Result<(), CliError> {
    if args.markdown {
        return print(&config::markdown());
    }
    let effective = args.settings.load()?;
    if args.json { print(&format!("{:#}\n", effective.json())) } else { print(&effective.text()) }
}
