//! Round-robin and least connections, as load balancers have them: by weight, below the hard limit, with a reservation
//! and another backend where a connect fails, but without geography or with little of it, and with health checks at
//! best.

use std::collections::HashMap;
use std::time::Duration;

use ::edgeproxy::domain::{ConnectFailure, NoBackend};

use super::affinity::Affinity;
use super::checks::Checks;
use super::{Ask, Candidate, Choice, End};
use crate::world::{Row, Table, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    RoundRobin,
    Least,
    /// Least connections in the client's region, else in the POP's, else anywhere.
    LeastInRegion,
}

pub(super) struct Plain<'a> {
    world: &'a World,
    pop: usize,
    rule: Rule,
    table: Table,
    counts: Vec<u32>,
    /// Smooth weighted round-robin: what each backend is owed.
    owed: Vec<i64>,
    /// When each backend was chosen last, so that ties go round.
    chosen: Vec<u64>,
    turn: u64,
    affinity: Affinity<'a>,
    checks: Option<Checks<'a>>,
    open: HashMap<usize, usize>,
}

impl<'a> Plain<'a> {
    pub(super) fn new(world: &'a World, pop: usize, rule: Rule) -> Self {
        let backends = world.backends.len();
        Self {
            pop,
            rule,
            table: Table::new(&[]),
            counts: vec![0; backends],
            owed: vec![0; backends],
            chosen: vec![0; backends],
            turn: 0,
            affinity: Affinity::new(world),
            checks: None,
            open: HashMap::new(),
            world,
        }
    }

    pub(super) fn checked(self) -> Self {
        Self { checks: Some(Checks::new(self.world)), ..self }
    }

    fn has_room(&self, (at, row): (usize, &Row), tried: &[usize]) -> bool {
        let down = self.checks.as_ref().is_some_and(|checks| checks.is_down(at));
        !down && !row.is_full(self.counts[at]) && !tried.contains(&at)
    }

    fn bound(&mut self, ask: &Ask<'_>) -> Option<usize> {
        let bound = self.affinity.bound(ask.connection, ask.now)?;
        let row = self.table.get(bound).filter(|row| row.app == ask.app && row.is_in_service())?;
        self.has_room((bound, row), ask.tried).then_some(bound)
    }

    fn candidates(&self, ask: &Ask<'_>) -> Vec<(usize, u32)> {
        let open = self.table.of_app(ask.app).filter(|(_, row)| row.is_open());
        let all: Vec<(usize, &Row)> = open.filter(|candidate| self.has_room(*candidate, ask.tried)).collect();
        let near = [self.world.clients[ask.client].region, Some(self.world.pops[self.pop])];
        let within = |region: Option<usize>| -> Vec<(usize, u32)> {
            let its = all.iter().filter(|(_, row)| region.is_none_or(|region| row.region == region));
            its.map(|(at, row)| (*at, row.weight)).collect()
        };
        let preferred = near.into_iter().flatten().filter(|_| self.rule == Rule::LeastInRegion);
        preferred.map(|region| within(Some(region))).find(|its| !its.is_empty()).unwrap_or_else(|| within(None))
    }

    fn by_rule(&mut self, candidates: &[(usize, u32)]) -> Option<usize> {
        if self.rule == Rule::RoundRobin {
            let total: i64 = candidates.iter().map(|(_, weight)| i64::from(*weight)).sum();
            candidates.iter().for_each(|(at, weight)| self.owed[*at] += i64::from(*weight));
            let (at, _) = candidates.iter().max_by_key(|(at, _)| (self.owed[*at], std::cmp::Reverse(*at)))?;
            self.owed[*at] -= total;
            return Some(*at);
        }
        // Connections ÷ weight, compared without fractions.
        let key = |(at, weight): &(usize, u32)| (u64::from(self.counts[*at]) << 32) / u64::from((*weight).max(1));
        candidates.iter().min_by_key(|candidate| (key(candidate), self.chosen[candidate.0])).map(|(at, _)| *at)
    }

    fn free(&mut self, connection: usize) -> Option<usize> {
        let backend = self.open.remove(&connection)?;
        self.counts[backend] -= 1;
        Some(backend)
    }
}

impl Candidate for Plain<'_> {
    fn reload(&mut self, table: &Table, _now: Duration) {
        self.table = table.clone();
    }

    fn choose(&mut self, ask: &Ask<'_>) -> Result<Choice, NoBackend> {
        let backend = match self.bound(ask) {
            Some(bound) => bound,
            None => {
                let candidates = self.candidates(ask);
                self.by_rule(&candidates).ok_or(NoBackend::AllFull)?
            }
        };
        self.turn += 1;
        self.chosen[backend] = self.turn;
        self.counts[backend] += 1;
        self.open.insert(ask.connection, backend);
        Ok(Choice { backend, reason: None, yielded: None })
    }

    fn connected(&mut self, connection: usize, now: Duration) {
        if let Some(backend) = self.open.get(&connection) {
            self.affinity.connected(connection, *backend, now);
        }
    }

    fn failed(&mut self, connection: usize, _failure: ConnectFailure, _now: Duration) {
        self.free(connection);
    }

    fn ended(&mut self, connection: usize, _end: End, now: Duration) {
        if let Some(backend) = self.free(connection) {
            self.affinity.ended(connection, backend, now);
        }
    }

    fn forget(&mut self, connection: usize) {
        self.affinity.forget(connection);
    }

    fn tick(&mut self, now: Duration) {
        self.checks.iter_mut().for_each(|checks| checks.tick(now));
    }

    fn active(&self, backend: usize) -> u32 {
        self.counts[backend]
    }
}
