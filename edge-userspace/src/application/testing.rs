//! Helpers of the tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::health::Watch;
use super::ports::{GeoSource, Observer};
use super::routing::RoutingTable;
use crate::domain::{AppName, Backend, CheckReport, HealthRules, Outcome, Transition};

/// Does not listen.
pub(crate) struct Deaf;

impl Observer for Deaf {
    fn accepted(&self) {}
    fn located(&self, _: GeoSource) {}
    fn closed(&self, _: &Outcome) {}
    fn health_changed(&self, _: &Backend, _: Transition) {}
    fn checked(&self, _: &CheckReport) {}
    fn fail_open(&self, _: &AppName, _: bool) {}
    fn accept_failed(&self, _: SocketAddr, _: &'static str) {}
}

/// Half of an app's backends may be ejected.
pub(crate) const RULES: HealthRules = HealthRules {
    failures: 2,
    ejection: Duration::from_secs(10),
    longest: Duration::from_secs(60),
    max_percent: 50,
    slow_start: Duration::from_secs(10),
    untried: Duration::ZERO,
};

/// Watches by these rules, and tells nobody.
pub(crate) fn watch(routing: &Arc<RoutingTable>) -> Arc<Watch> {
    Arc::new(Watch::new(RULES, Arc::clone(routing), Arc::new(Deaf)))
}
