//! Keeps books of its own and judges every decision by them, in the most obvious way: it goes through all backends each
//! time, and knows nothing of the code that it judges.

mod bindings;
mod by_rtt;
mod health;
mod order;
mod times;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ::edgeproxy::domain::{ConnectFailure, NoBackend, PickReason, Return, Skip, Transition};

use self::bindings::{Bindings, Bound};
use self::health::HealthBook;
use self::times::Times;
use crate::candidate::{Ask, Choice, End, News, Promises};
use crate::world::{Affinity, Row, Table, World};

/// What a candidate did that it must not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// One more than the hard limit.
    OverHard,
    /// A backend that is not there, out of service, closed to new clients, or was tried already.
    Ineligible,
    OtherApp,
    /// Another backend should have been preferred.
    Order,
    /// The client's backend had room, or the client got a backend as if it were bound to it.
    Binding,
    /// Refused, with a backend free; or the reason given is not the true one.
    Refusal,
    /// Ejected without cause, too many at once, or not ejected with cause; likewise turned by checks.
    Ejection,
    /// The POP tries a backend that is not to be tried, or does not try one that is.
    Trial,
    /// The candidate counts other connections than there are.
    Count,
}

/// The books of one POP.
#[derive(Debug)]
pub struct Oracle<'a> {
    world: &'a World,
    pop: usize,
    promises: Promises,
    table: Table,
    /// Connections by backend, those that are connecting included.
    counts: Vec<u32>,
    /// By connection: its backend, and since when.
    held: HashMap<usize, (usize, Duration)>,
    bindings: Bindings,
    health: HealthBook,
    times: Times,
    pub admitted: u64,
    pub released: u64,
    pub decisions: u64,
    /// How often what was decided and heard.
    pub seen: BTreeMap<&'static str, u64>,
    pub faults: BTreeMap<Fault, u64>,
    /// The first few, in words.
    pub words: Vec<String>,
}

impl<'a> Oracle<'a> {
    pub fn new(world: &'a World, pop: usize, promises: Promises) -> Self {
        let backends = world.backends.len();
        Self {
            pop,
            promises,
            table: Table::new(&[]),
            counts: vec![0; backends],
            held: HashMap::new(),
            bindings: Bindings::new(world.rules.binding_ttl),
            health: HealthBook::new(world.rules.health, world.rules.pace, backends),
            times: Times::new(world.apps.len(), backends),
            admitted: 0,
            released: 0,
            decisions: 0,
            seen: BTreeMap::new(),
            faults: BTreeMap::new(),
            words: Vec::new(),
            world,
        }
    }

    pub fn count(&self, backend: usize) -> u32 {
        self.counts[backend]
    }

    pub fn is_distrusted(&self, backend: usize) -> bool {
        self.health.is_ejected(backend) || self.health.is_down(backend)
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    pub fn reload(&mut self, table: &Table) {
        self.health.reload(&self.table, table);
        self.times.reload(&self.table, table, |at| is_out(&self.health, table, at));
        self.table = table.clone();
    }

    /// Time has passed, and the candidate has let it do its work.
    pub fn tick(&mut self, now: Duration) {
        self.times.tick(&self.table, now, |at| is_out(&self.health, &self.table, at));
    }

    /// The candidate has said what the time that has passed did.
    pub fn ticked(&mut self, now: Duration) {
        if let Some(backend) = self.health.lingering(&self.table, now).filter(|_| self.promises.order) {
            let words = format!("{} should have come back by {now:?}", self.name(backend));
            self.fault(Fault::Ejection, || words);
        }
    }

    fn fault(&mut self, fault: Fault, words: impl FnOnce() -> String) {
        *self.faults.entry(fault).or_default() += 1;
        if self.words.len() < 10 {
            self.words.push(format!("{fault:?}: {}", words()));
        }
    }

    fn name(&self, backend: usize) -> &str {
        &self.world.backends[backend].id
    }

    /// Judges a decision and notes it.
    pub fn decided(&mut self, ask: &Ask<'_>, decision: &Result<Choice, NoBackend>) {
        self.decisions += 1;
        let what = match decision {
            Ok(choice) => choice.reason.map_or("chosen", PickReason::as_str),
            Err(why) => why.as_str(),
        };
        let yielded = decision.as_ref().ok().and_then(|choice| choice.yielded).map(Skip::as_str);
        for what in std::iter::once(what).chain(yielded) {
            *self.seen.entry(what).or_default() += 1;
        }
        if ask.tried.is_empty() {
            let key = (ask.app, ask.client);
            let found = if self.world.apps[ask.app].affinity != Affinity::No {
                self.bindings.find(key, ask.now)
            } else {
                Bound::No
            };
            self.bindings.note(ask.connection, found);
        }
        match decision {
            Ok(choice) => {
                self.judge_safety(ask, choice.backend, choice.reason);
                if self.promises.order {
                    self.judge_choice(ask, *choice);
                }
                self.bindings.stays(ask.connection, choice.yielded == Some(Skip::AtSoftLimit));
                self.bindings.is_makeshift(ask.connection, choice.reason.is_some_and(is_makeshift));
                self.counts[choice.backend] += 1;
                self.held.insert(ask.connection, (choice.backend, ask.now));
                self.admitted += 1;
            }
            Err(why) if self.promises.order => self.judge_refusal(ask, *why),
            Err(_) => {}
        }
    }

    /// What holds for whoever chooses.
    fn judge_safety(&mut self, ask: &Ask<'_>, backend: usize, reason: Option<PickReason>) {
        let count = self.counts[backend];
        let (full, why) = match self.table.get(backend) {
            None => (false, Some("is not in the table")),
            Some(row) if row.app != ask.app => {
                let words = format!("{} for app {}", self.name(backend), self.world.apps[ask.app].name);
                self.fault(Fault::OtherApp, || words);
                return;
            }
            Some(row) => (row.is_full(count), self.unfit(row, ask, backend, reason)),
        };
        if full {
            let words = format!("{} gets one more than its {count} at {:?}", self.name(backend), ask.now);
            self.fault(Fault::OverHard, || words);
        }
        if let Some(why) = why {
            let words = format!("{} {why} at {:?}", self.name(backend), ask.now);
            self.fault(Fault::Ineligible, || words);
        }
    }

    fn unfit(&self, row: &Row, ask: &Ask<'_>, backend: usize, reason: Option<PickReason>) -> Option<&'static str> {
        // Candidates that don't say why are given the benefit of the doubt.
        let may_be_bound = self.bindings.of(ask.connection).may_be(backend) && reason.is_none_or(is_affinity);
        if ask.tried.contains(&backend) {
            Some("was tried already")
        } else if !row.is_in_service() {
            Some("is out of service")
        } else if row.weight == 0 && !may_be_bound {
            Some("has weight 0")
        } else {
            None
        }
    }

    pub fn connected(&mut self, connection: usize, now: Duration) {
        let (Some((backend, since)), key) = (self.held.get(&connection).copied(), self.key(connection)) else { return };
        if let Some(key) = key.filter(|_| self.bindings.is_bound_by(connection)) {
            self.bindings.bind(key, backend, now);
        }
        self.times.measured(backend, now.saturating_sub(since), now);
        self.health.connected(backend, &self.table, now);
    }

    pub fn failed(&mut self, connection: usize, failure: ConnectFailure, now: Duration) {
        let began = self.held.get(&connection).map_or(now, |(_, began)| *began);
        if let Some(backend) = self.release(connection) {
            let whole = self.world.rules.connect_timeout.min(self.world.rules.connect_budget);
            // Time that was short says nothing, neither does a time-out beside a connect that succeeded.
            let silent = failure == ConnectFailure::TimedOut;
            if !silent || (now - began >= whole && !self.health.has_accepted_since(backend, began)) {
                self.health.failed(backend, failure);
            }
        }
    }

    pub fn ended(&mut self, connection: usize, end: End, now: Duration) {
        let Some(backend) = self.release(connection) else { return };
        self.health.ended(backend, end);
        if let Some(key) = self.key(connection).filter(|_| !self.bindings.of_makeshift(connection)) {
            self.bindings.renew(key, backend, now);
        }
    }

    /// Judges whom the POP tries itself from now on.
    pub fn tries(&mut self, backends: &[usize], now: Duration) {
        if !self.promises.order {
            return;
        }
        for (backend, what) in self.health.tries(backends, &self.table, now) {
            let words = format!("{} {what} at {now:?}", self.name(backend));
            self.fault(Fault::Trial, || words);
        }
    }

    /// It has, and the backend accepted the connection, or not.
    pub fn tried(&mut self, backend: usize, accepted: bool, now: Duration) {
        let what = self.health.tried(backend, accepted, &self.table, now);
        *self.seen.entry(what).or_default() += 1;
    }

    pub fn forget(&mut self, connection: usize) {
        self.bindings.forget(connection);
    }

    fn key(&self, connection: usize) -> Option<(usize, usize)> {
        let arrival = &self.world.arrivals[connection];
        (self.world.apps[arrival.app].affinity != Affinity::No).then_some((arrival.app, arrival.client))
    }

    fn release(&mut self, connection: usize) -> Option<usize> {
        let (backend, _) = self.held.remove(&connection)?;
        match self.counts[backend].checked_sub(1) {
            Some(rest) => self.counts[backend] = rest,
            None => self.fault(Fault::Count, || "more connections ended than began".to_owned()),
        }
        self.released += 1;
        Some(backend)
    }

    /// Judges what the candidate says about health, after it was told of something.
    pub fn heard(&mut self, news: &[News], now: Duration) {
        if !self.promises.order {
            return;
        }
        for news in news {
            let (backend, what, verdict) = match *news {
                News::Checked { backend, passed, began } => {
                    self.settle(now);
                    (backend, "checked", self.health.checked(backend, passed, began, &self.table))
                }
                News::Turned { backend, transition } => {
                    (backend, name_of(transition), self.health.heard(backend, transition, &self.table, now))
                }
            };
            *self.seen.entry(what).or_default() += 1;
            if let Err(why) = verdict {
                let words = format!("{} {why} at {now:?}", self.name(backend));
                self.fault(Fault::Ejection, || words);
            }
        }
        self.settle(now);
        if let Some(backend) = self.health.overdue(&self.table) {
            let words = format!("{} should have been ejected at {now:?}", self.name(backend));
            self.fault(Fault::Ejection, || words);
        }
    }

    /// What was heard last must have led to something by now.
    fn settle(&mut self, now: Duration) {
        for (backend, what) in self.health.owes(&self.table) {
            let words = format!("{} {what} at {now:?}", self.name(backend));
            self.fault(Fault::Ejection, || words);
        }
    }

    /// Compares the candidate's counts with the books.
    pub fn compare(&mut self, active: impl Fn(usize) -> u32) {
        if !self.promises.exact_counts {
            return;
        }
        for backend in 0..self.counts.len() {
            let (is, should) = (active(backend), self.counts[backend]);
            if is != should {
                let words = format!("{} is said to have {is} connections and has {should}", self.name(backend));
                self.fault(Fault::Count, || words);
            }
        }
    }

    /// When all is over: nothing may be left, and everything that began has ended.
    pub fn close(&mut self, active: impl Fn(usize) -> u32) {
        let left: u32 = (0..self.counts.len()).map(&active).chain(self.counts.iter().copied()).sum();
        if left != 0 || !self.held.is_empty() || self.admitted != self.released {
            let words = format!("{left} connections are left, {} of {} ended", self.released, self.admitted);
            self.fault(Fault::Count, || words);
        }
        if let (true, Err(words)) = (self.promises.by_rtt, self.times.judge_share()) {
            self.fault(Fault::Order, || words);
        }
    }
}

fn name_of(transition: Transition) -> &'static str {
    match transition {
        Transition::Ejected { why, .. } => why.as_str(),
        Transition::Back { why } => match why {
            Return::Connected => "back: connected",
            Return::Tried => "back: tried",
            Return::Checked => "back: checked",
            Return::Spared => "back: spared",
            Return::Surplus => "back: surplus",
            Return::Over => "back: over",
            Return::Untried => "back: untried",
        },
        Transition::Recovered => "recovered",
        Transition::Down { .. } => "down",
        Transition::Up { .. } => "up",
        Transition::Anew => "anew",
    }
}

/// Is not to be trusted, or the operator drains it.
fn is_out(health: &HealthBook, table: &Table, backend: usize) -> bool {
    let drained = table.get(backend).is_some_and(|row| row.drained);
    drained || health.is_down(backend) || health.is_ejected(backend)
}

/// What is better than nothing binds nobody.
fn is_makeshift(reason: PickReason) -> bool {
    matches!(reason, PickReason::RttProbe | PickReason::LastResort | PickReason::FailOpen)
}

fn is_affinity(reason: PickReason) -> bool {
    reason == PickReason::Affinity
}
