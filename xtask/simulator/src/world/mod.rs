//! What a simulation happens in: places, apps, backends, clients, and what goes wrong when. Plain data, made from a
//! seed, and the same for every candidate.

pub mod geography;
pub mod table;
pub mod traffic;

use std::net::Ipv4Addr;
use std::time::Duration;

use edgeproxy::domain::{CheckPace, HealthRules};

pub use geography::{Country, Point};
pub use table::{Change, Edit, Row, State, Table};

/// Everything that doesn't depend on who chooses. Places in its lists name things: backend 3 is `backends[3]`.
#[derive(Debug, Clone)]
pub struct World {
    pub name: &'static str,
    pub seed: u64,
    /// When the last client comes. Connections are played to their ends.
    pub length: Duration,
    pub regions: Vec<Place>,
    /// The region of each POP.
    pub pops: Vec<usize>,
    pub apps: Vec<App>,
    /// All backends there ever are; those that are added later are absent at first.
    pub backends: Vec<Row>,
    pub clients: Vec<Client>,
    /// By time.
    pub arrivals: Vec<Arrival>,
    /// By time.
    pub happenings: Vec<(Duration, Happening)>,
    pub rules: Rules,
    /// From here on it is watched which clients get another backend than before.
    pub mark: Option<Duration>,
}

/// A region.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub name: &'static str,
    /// `None`: the operator has not said where it is.
    pub position: Option<Point>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct App {
    pub name: &'static str,
    pub affinity: Affinity,
    /// Regions that are neither the client's nor the POP's are near or far by measured time.
    pub next_by_rtt: bool,
}

/// Whether clients return to their backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    No,
    /// Unless it is at its hard limit.
    Strict,
    /// Unless it is at its soft limit and the next best is not. Only edgeproxy knows this one.
    Soft,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    pub address: Ipv4Addr,
    pub position: Point,
    /// `None`: the geo database doesn't know the address.
    pub country: Option<&'static Country>,
    /// The region of the country, as the operator has divided the world.
    pub region: Option<usize>,
}

/// One connection of a client, as it would go with a backend that works.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    pub at: Duration,
    pub client: usize,
    pub app: usize,
    pub pop: usize,
    /// From established to the end.
    pub lasts: Duration,
    /// Times the round trip of the path.
    pub jitter: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// A backend gets into this condition.
    Turns(usize, Condition),
    /// The way to a backend takes so much longer from now on, from all POPs.
    Detour(usize, Duration),
    /// The operator edits the routing database, and all POPs read it.
    Edited(Vec<Change>),
}

/// How a backend really is, which nobody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Works,
    /// Its process has died: connections end, new ones are refused.
    Refuses,
    /// Its host has vanished: nothing answers.
    Silent,
    /// Accepts connections and resets them at once.
    Resets,
}

/// The settings of a POP that matter here.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub health: HealthRules,
    /// Of checks, where they are made.
    pub pace: CheckPace,
    pub connect_timeout: Duration,
    pub connect_attempts: usize,
    pub connect_budget: Duration,
    pub binding_ttl: Duration,
}

impl Default for Rules {
    /// The defaults of edgeproxy's settings.
    fn default() -> Self {
        let secs = Duration::from_secs;
        let health = HealthRules {
            failures: 3,
            ejection: secs(10),
            longest: secs(300),
            max_percent: 50,
            slow_start: secs(30),
            // The connect limit, and half a minute.
            untried: secs(33),
        };
        Self {
            health,
            pace: CheckPace { interval: secs(2), timeout: secs(1), rise: 2, fall: 3 },
            connect_timeout: secs(3),
            connect_attempts: 3,
            connect_budget: secs(10),
            binding_ttl: secs(600),
        }
    }
}

impl World {
    /// A world of regions, apps and POPs in which nothing happens yet.
    pub fn quiet(name: &'static str, seed: u64, length: Duration) -> Self {
        Self {
            name,
            seed,
            length,
            regions: geography::regions(),
            pops: Vec::new(),
            apps: Vec::new(),
            backends: Vec::new(),
            clients: Vec::new(),
            arrivals: Vec::new(),
            happenings: Vec::new(),
            rules: Rules::default(),
            mark: None,
        }
    }

    /// The place of that region; the last one if there is none.
    pub fn region(&self, name: &str) -> usize {
        self.regions.iter().position(|region| region.name == name).unwrap_or(self.regions.len().saturating_sub(1))
    }

    /// Adds so many backends of an app to a region, all alike.
    pub fn add_backends(&mut self, app: usize, region: usize, count: usize, like: &Row) {
        for _ in 0..count {
            let number = self.backends.iter().filter(|row| (row.app, row.region) == (app, region)).count() + 1;
            let id = format!("{}-{}-{number}", self.apps[app].name, self.regions[region].name);
            self.backends.push(Row { id, app, region, ..like.clone() });
        }
    }

    pub fn happens(&mut self, at: Duration, what: Happening) {
        self.happenings.push((at, what));
        self.happenings.sort_by_key(|(at, _)| *at);
    }

    /// Round trip between a POP and a backend of a region, without jitter and detours.
    pub fn round_trip(&self, pop: usize, backend: usize) -> Duration {
        let row = &self.backends[backend];
        let between = self.regions[self.pops[pop]].position.zip(self.regions[row.region].position);
        geography::round_trip(between.map_or(2000.0, |(a, b)| a.distance_km(b))) + row.aside
    }
}
