//! The flags of the settings, made from the table of settings.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use super::CliError;
use crate::config::{Effective, KEYS, Key, Sources};

/// `--config FILE` and one flag for each setting.
#[derive(Debug, Clone, Default)]
pub struct SettingArgs {
    config: Option<PathBuf>,
    /// Keys and values as given; judged together with the other sources.
    flags: Vec<(String, String)>,
}

impl SettingArgs {
    /// No flag but `--config`.
    pub(super) fn of_file(config: Option<PathBuf>) -> Self {
        Self { config, flags: Vec::new() }
    }

    /// The settings in force for this process: defaults < file < environment < these flags.
    pub fn load(&self) -> Result<Effective, CliError> {
        let sources = Sources::of_process(self.config.as_deref(), self.flags.clone());
        let sources = sources.map_err(|error| CliError::Configuration(vec![error]))?;
        Effective::load(&sources).map_err(CliError::Configuration)
    }
}

impl Args for SettingArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new("config").long("config").value_name("FILE").value_parser(clap::value_parser!(PathBuf));
        let command = command.arg(config.help("Configuration file (TOML) [env: EDGEPROXY_CONFIG]"));
        KEYS.iter().fold(command, |command, key| command.arg(arg(key)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>("config").cloned();
        self.flags = KEYS.iter().filter_map(|key| Some((key.name.to_owned(), given(matches, key)?))).collect();
        Ok(())
    }
}

fn arg(key: &'static Key) -> Arg {
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    let help = format!("{} ({}){default} [env: {}]", key.help, crate::config::values(key), key.env());
    let action = if key.list { ArgAction::Append } else { ArgAction::Set };
    let name = if key.list { "VALUE,..." } else { "VALUE" };
    Arg::new(key.name).long(key.flag()).value_name(name).action(action).allow_hyphen_values(true).help(help)
}

/// A list may be given by several flags.
fn given(matches: &ArgMatches, key: &Key) -> Option<String> {
    Some(matches.get_many::<String>(key.name)?.map(String::as_str).collect::<Vec<_>>().join(","))
}

/// Which daemon to talk to.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The daemon's admin socket [default: as configured]
    #[arg(long, value_name = "PATH", global = true)]
    admin_socket: Option<PathBuf>,
    /// Configuration file (TOML) [env: EDGEPROXY_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl AdminArgs {
    pub(super) fn socket(&self) -> Result<PathBuf, CliError> {
        if let Some(path) = &self.admin_socket {
            return Ok(path.clone());
        }
        SettingArgs::of_file(self.config.clone()).load().map(|effective| effective.settings.admin_socket)
    }
}
