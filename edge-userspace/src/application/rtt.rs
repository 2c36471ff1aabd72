//! The use case that turns measured round-trip times into the order in which backends are chosen, off the data path.

use std::time::{Duration, Instant};

use super::routing::RoutingTable;

/// How often apps are ranked: what a choice knows is no older.
const EVERY: Duration = Duration::from_secs(1);

/// Ranks the apps that choose by time.
#[derive(Debug, Default)]
pub struct RttRanking {
    ranked: Option<Instant>,
}

impl RttRanking {
    /// To be called several times a second.
    pub fn tick(&mut self, routing: &RoutingTable, now: Instant) {
        if self.ranked.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            return;
        }
        self.ranked = Some(now);
        routing.snapshot().apps().for_each(|app| app.rank(now));
    }
}
