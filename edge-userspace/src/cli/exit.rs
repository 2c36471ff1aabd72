//! Exit codes: one module, shown by `--help`.

use std::process::ExitCode;

use crate::config::SettingError;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// The command was understood and failed.
    Failure,
    /// `explain`: the client would be refused, or no backend has a place for it now.
    NoBackend,
    /// Bad command line, configuration or descriptors (EX_USAGE).
    Usage,
    /// No daemon answers on the admin socket (EX_UNAVAILABLE).
    Unavailable,
    /// A defect of edgeproxy itself (EX_SOFTWARE).
    Internal,
}

/// The same for people.
pub(super) const HELP: &str = "\
Exit codes:
    0  done
    1  failed while running
    2  explain: the client would be refused, or no backend has a place for it now
   64  bad command line, configuration or LISTEN_FDS
   69  no daemon answers on the admin socket
   70  internal error
  130, 143  ended at once by a second SIGINT or SIGTERM";

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::NoBackend => 2,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{}", listed(.0))]
    Configuration(Vec<SettingError>),
    #[error("what was handed over by LISTEN_FDS can't be used:{}", lines(.0))]
    HandedOver(Vec<String>),
    #[error(
        "no edgeproxy answers on admin socket {path}: {why}; start one with `edgeproxy run`, or set --admin-socket"
    )]
    Unreachable { path: String, why: String },
    #[error("{0}")]
    Failed(String),
    /// A client would not even find a listener.
    #[error("{0}")]
    NoBackend(String),
}

impl CliError {
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Configuration(_) | Self::HandedOver(_) => Exit::Usage,
            Self::Unreachable { .. } => Exit::Unavailable,
            Self::Failed(_) => Exit::Failure,
            Self::NoBackend(_) => Exit::NoBackend,
        }
    }
}

fn listed(errors: &[SettingError]) -> String {
    let plural = if errors.len() == 1 { "" } else { "s" };
    format!("the configuration has {} error{plural}:{}", errors.len(), lines(errors))
}

fn lines(items: &[impl std::fmt::Display]) -> String {
    items.iter().map(|item| format!("\n  {item}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_code() {
        for exit in [Exit::Ok, Exit::Failure, Exit::NoBackend, Exit::Usage, Exit::Unavailable, Exit::Internal] {
            assert!(HELP.lines().any(|line| line.trim_start().starts_with(&format!("{}  ", exit.code()))), "{exit:?}");
        }
    }
}
