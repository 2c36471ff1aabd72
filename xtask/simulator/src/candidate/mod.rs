//! Who chooses: edgeproxy, and what it is compared with. To add one, implement [`Candidate`] and give it a [`Kind`].

mod affinity;
mod checks;
mod edgeproxy;
mod plain;
mod probes;
mod seed;

use std::time::Duration;

use ::edgeproxy::domain::{CheckResult, ConnectFailure, NoBackend, PickReason, Selection, Skip, Transition};

use crate::world::{Table, World};

/// One way to choose backends, at one POP.
pub trait Candidate {
    /// The routing database has changed, or is read for the first time.
    fn reload(&mut self, table: &Table, now: Duration);
    /// Chooses for a connection. What limits are kept, and when a connection begins to count, is the candidate's business.
    fn choose(&mut self, ask: &Ask<'_>) -> Result<Choice, NoBackend>;
    /// The backend that was chosen last has accepted the connection.
    fn connected(&mut self, connection: usize, now: Duration);
    /// It has not.
    fn failed(&mut self, connection: usize, failure: ConnectFailure, now: Duration);
    /// A connection that was accepted is over.
    fn ended(&mut self, connection: usize, end: End, now: Duration);
    /// Nothing more will be said about the connection.
    fn forget(&mut self, connection: usize);
    /// Time has passed.
    fn tick(&mut self, _now: Duration) {}
    /// Backends that the POP connects to itself from now on, to see whether clients may come back.
    fn to_try(&mut self, _now: Duration) -> Vec<usize> {
        Vec::new()
    }
    /// What came of that.
    fn tried(&mut self, _backend: usize, _result: CheckResult, _now: Duration) {}
    /// What has become known of backends since the last call, in order.
    fn news(&mut self) -> Vec<News> {
        Vec::new()
    }
    /// How many connections the candidate believes a backend to have.
    fn active(&self, backend: usize) -> u32;
}

/// What has become known of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A check that began then has passed, or not.
    Checked { backend: usize, passed: bool, began: Duration },
    /// The candidate thinks otherwise of it now.
    Turned { backend: usize, transition: Transition },
}

/// A connection that wants a backend.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub connection: usize,
    pub app: usize,
    pub client: usize,
    /// The backends that have failed this connection.
    pub tried: &'a [usize],
    pub now: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub backend: usize,
    /// Why, where the candidate knows.
    pub reason: Option<PickReason>,
    /// Why the client's binding did not count, likewise.
    pub yielded: Option<Skip>,
}

/// How an accepted connection ended.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// The backend reset it.
    pub reset: bool,
    /// The client has got an answer.
    pub answered: bool,
    pub age: Duration,
}

/// All candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Edgeproxy,
    CheckedEdgeproxy,
    Maglev,
    NearestRtt,
    CheckedInRegion,
    LeastInRegion,
    LeastConnections,
    RoundRobin,
    Seed,
}

/// What a candidate undertakes, so that breaking it is a fault.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// The order of preference that edgeproxy documents, who is ejected and when, and honest refusals.
    pub order: bool,
    /// Of this order the one by measured times.
    pub by_rtt: bool,
    /// Its count of connections is right at any time, those included that are still connecting.
    pub exact_counts: bool,
}

/// How many backends a candidate tries for a connection, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub attempts: usize,
    pub connect_timeout: Duration,
    pub budget: Duration,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Edgeproxy,
        Self::CheckedEdgeproxy,
        Self::Maglev,
        Self::NearestRtt,
        Self::CheckedInRegion,
        Self::LeastInRegion,
        Self::LeastConnections,
        Self::RoundRobin,
        Self::Seed,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Edgeproxy => "edgeproxy",
            Self::CheckedEdgeproxy => "edgeproxy, checked",
            Self::Maglev => "edgeproxy, maglev",
            Self::NearestRtt => "edgeproxy, nearest_rtt",
            Self::CheckedInRegion => "least connections by region, checked",
            Self::LeastInRegion => "least connections by region",
            Self::LeastConnections => "least connections",
            Self::RoundRobin => "round-robin",
            Self::Seed => "seed formula",
        }
    }

    pub fn make(self, world: &World, pop: usize) -> Box<dyn Candidate + '_> {
        match self {
            Self::Edgeproxy => Box::new(edgeproxy::Edgeproxy::new(world, pop)),
            Self::CheckedEdgeproxy => Box::new(edgeproxy::Edgeproxy::new(world, pop).checked()),
            Self::Maglev => Box::new(edgeproxy::Edgeproxy::new(world, pop).with(Selection::Maglev)),
            Self::NearestRtt => Box::new(edgeproxy::Edgeproxy::new(world, pop).with(Selection::NearestRtt)),
            Self::CheckedInRegion => Box::new(plain::Plain::new(world, pop, plain::Rule::LeastInRegion).checked()),
            Self::LeastInRegion => Box::new(plain::Plain::new(world, pop, plain::Rule::LeastInRegion)),
            Self::LeastConnections => Box::new(plain::Plain::new(world, pop, plain::Rule::Least)),
            Self::RoundRobin => Box::new(plain::Plain::new(world, pop, plain::Rule::RoundRobin)),
            Self::Seed => Box::new(seed::Seed::new(world, pop)),
        }
    }

    pub fn promises(self) -> Promises {
        let order = matches!(self, Self::Edgeproxy | Self::CheckedEdgeproxy | Self::Maglev | Self::NearestRtt);
        Promises { order, by_rtt: self == Self::NearestRtt, exact_counts: self != Self::Seed }
    }

    pub fn patience(self, world: &World) -> Patience {
        let rules = world.rules;
        match self {
            // One attempt, for as long as Linux tries by itself.
            Self::Seed => {
                let long = Duration::from_secs(130);
                Patience { attempts: 1, connect_timeout: long, budget: long }
            }
            _ => Patience {
                attempts: rules.connect_attempts,
                connect_timeout: rules.connect_timeout,
                budget: rules.connect_budget,
            },
        }
    }
}
