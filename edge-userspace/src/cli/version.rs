//! `edgeproxy --version`, and with `--verbose` what the binary is made of.

use std::fmt::Write as _;

use super::{CliError, print};
use crate::application::status::GeoStatus;

/// What only other parts know.
#[derive(Debug, Clone, Default)]
pub struct VersionFacts {
    /// Hash of the sources of the BPF object in this binary.
    pub bpf_sources: String,
    /// The geo database in this binary.
    pub geo: GeoStatus,
}

/// Prints the version; `facts` is asked only if it is wanted.
pub fn run(verbose: bool, facts: impl FnOnce() -> VersionFacts) -> Result<(), CliError> {
    print(&text(verbose, facts))
}

fn text(verbose: bool, facts: impl FnOnce() -> VersionFacts) -> String {
    let mut out = format!("edgeproxy {}\n", env!("CARGO_PKG_VERSION"));
    if verbose {
        let facts = facts();
        let _ = writeln!(out, "bpf object    built from {}", facts.bpf_sources);
        let _ = writeln!(out, "geo database  {}", facts.geo);
        let _ = writeln!(out, "licence       {}", env!("CARGO_PKG_LICENSE"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_for_the_verbose() {
        let geo = GeoStatus { source: "iptoasn".to_owned(), ..GeoStatus::default() };
        let facts = || VersionFacts { bpf_sources: "abc123".to_owned(), geo };
        assert_eq!(text(false, || unreachable!()).lines().count(), 1);
        let text = text(true, facts);
        assert!(text.contains("abc123") && text.contains("iptoasn") && text.contains("MIT"));
    }
}
