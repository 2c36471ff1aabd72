//! Active checks: what is asked of a backend, and what its answers make of it.

mod parse;
mod spec;
mod verdict;

pub use parse::CheckError;
pub use spec::{CheckDefaults, CheckPace, CheckSpec, HealthCheck, HttpCheck, Probe, StatusRanges, Tls, Verify};
pub(super) use verdict::Checked;
pub use verdict::{CheckChange, CheckReport, CheckResult, CheckVerdict};
