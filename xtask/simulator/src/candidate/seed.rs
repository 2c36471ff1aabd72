//! The formula of the project edgeproxy descends from, taken literally: always the lowest score, ties by id; the limit
//! is looked at before the connect and counted after it; a bound client's backend isn't looked at at all; one attempt,
//! and no memory of failures.

use std::collections::HashMap;
use std::time::Duration;

use ::edgeproxy::domain::{ConnectFailure, NoBackend};

use super::affinity::Affinity;
use super::{Ask, Candidate, Choice, End};
use crate::world::{Row, Table, World};

pub(super) struct Seed<'a> {
    world: &'a World,
    pop: usize,
    table: Table,
    /// Connections that were accepted by their backend.
    counts: Vec<u32>,
    affinity: Affinity<'a>,
    open: HashMap<usize, usize>,
}

impl<'a> Seed<'a> {
    pub(super) fn new(world: &'a World, pop: usize) -> Self {
        Self {
            pop,
            table: Table::new(&[]),
            counts: vec![0; world.backends.len()],
            affinity: Affinity::new(world),
            open: HashMap::new(),
            world,
        }
    }

    fn score(&self, client: usize, (at, row): (usize, &Row)) -> f64 {
        let region_score = if self.world.clients[client].region == Some(row.region) {
            0.0
        } else if self.world.pops[self.pop] == row.region {
            1.0
        } else {
            2.0
        };
        region_score * 100.0 + row.load_factor(self.counts[at]) / f64::from(row.weight)
    }

    fn bound(&mut self, ask: &Ask<'_>) -> Option<usize> {
        let bound = self.affinity.bound(ask.connection, ask.now)?;
        self.table.get(bound).filter(|row| row.app == ask.app && row.is_in_service())?;
        Some(bound)
    }

    fn best(&self, ask: &Ask<'_>) -> Option<usize> {
        let open = self.table.of_app(ask.app).filter(|(at, row)| row.is_open() && !row.is_full(self.counts[*at]));
        let scored = open.map(|(at, row)| (self.score(ask.client, (at, row)), &row.id, at));
        scored.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1))).map(|(_, _, at)| at)
    }
}

impl Candidate for Seed<'_> {
    fn reload(&mut self, table: &Table, _now: Duration) {
        self.table = table.clone();
    }

    fn choose(&mut self, ask: &Ask<'_>) -> Result<Choice, NoBackend> {
        let backend = self.bound(ask).or_else(|| self.best(ask)).ok_or(NoBackend::AllFull)?;
        self.open.insert(ask.connection, backend);
        Ok(Choice { backend, reason: None, yielded: None })
    }

    fn connected(&mut self, connection: usize, now: Duration) {
        if let Some(backend) = self.open.get(&connection) {
            self.counts[*backend] += 1;
            self.affinity.connected(connection, *backend, now);
        }
    }

    fn failed(&mut self, connection: usize, _failure: ConnectFailure, _now: Duration) {
        self.open.remove(&connection);
    }

    fn ended(&mut self, connection: usize, _end: End, now: Duration) {
        if let Some(backend) = self.open.remove(&connection) {
            self.counts[backend] -= 1;
            self.affinity.ended(connection, backend, now);
        }
    }

    fn forget(&mut self, connection: usize) {
        self.affinity.forget(connection);
    }

    fn active(&self, backend: usize) -> u32 {
        self.counts[backend]
    }
}
