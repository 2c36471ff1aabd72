//! The worlds that are simulated.

use std::time::Duration;

use crate::dice::{Dice, seconds};
use crate::world::traffic::{self, Burst, Flow, Lasts};
use crate::world::{Affinity, App, Change, Condition, Edit, Happening, Row, State, World};

/// How large a world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// An hour.
    Full,
    /// Three minutes: for tests.
    Small,
}

impl Size {
    fn seconds(self) -> f64 {
        match self {
            Self::Full => 3600.0,
            Self::Small => 180.0,
        }
    }
}

/// Four POPs, five regions, four apps; evenings that go round the world, a crowd in one country, backends that fail and
/// an operator at work.
pub fn busy(size: Size, seed: u64) -> World {
    let length = size.seconds();
    let mut world = World::quiet("busy", seed, seconds(length));
    world.pops = ["sa", "us", "eu", "ap"].map(|name| world.region(name)).to_vec();
    world.apps = vec![
        App { name: "web", affinity: Affinity::No, next_by_rtt: false },
        App { name: "game", affinity: Affinity::Strict, next_by_rtt: false },
        App { name: "api", affinity: Affinity::No, next_by_rtt: false },
        App { name: "chat", affinity: Affinity::Soft, next_by_rtt: false },
    ];
    stock(&mut world);
    let mut dice = Dice::new(seed, 1);
    world.clients = traffic::clients(&world, if size == Size::Full { 6000 } else { 600 }, &mut dice);
    let burst = Burst { country: "BR", from: 0.55 * length, until: 0.65 * length, times: 4.0 };
    let flow = |app, rate, lasts, bursts| Flow { app, rate, lasts, swing: 0.5, bursts };
    let flows = [
        flow(0, 50.0, Lasts::LogNormal { median: 1.5, sigma: 1.2, longest: 300.0 }, vec![burst]),
        flow(1, 6.0, Lasts::Pareto { alpha: 1.3, shortest: 20.0, longest: 1800.0 }, vec![burst]),
        flow(2, 20.0, Lasts::Exponential { mean: 0.3 }, Vec::new()),
        flow(3, 2.0, Lasts::LogNormal { median: 20.0, sigma: 1.0, longest: 900.0 }, vec![burst]),
    ];
    world.arrivals = traffic::arrivals(&world, &flows, &mut dice);
    failures(&mut world, length, &mut Dice::new(seed, 2));
    operator(&mut world, length);
    world
}

/// Limits are those of one POP. Backends of one region are not equally far from it.
fn stock(world: &mut World) {
    let row = |soft, hard| Row { soft, hard, ..Row::default() };
    for (app, region, count, like) in [
        (0, "sa", 4, row(10, 16)),
        (0, "us", 4, row(14, 20)),
        (0, "eu", 5, row(14, 20)),
        (0, "ap", 4, row(14, 20)),
        (0, "af", 2, row(6, 8)),
        (1, "sa", 3, row(40, 55)),
        (1, "us", 3, row(60, 80)),
        (1, "eu", 4, row(60, 80)),
        (1, "ap", 3, row(60, 80)),
        (2, "us", 3, row(0, 0)),
        (2, "eu", 3, row(0, 0)),
        // Too few when the crowd comes.
        (3, "sa", 2, row(10, 12)),
        (3, "eu", 2, row(10, 12)),
    ] {
        let region = world.region(region);
        world.add_backends(app, region, count, &like);
    }
    let (us, eu) = (world.region("us"), world.region("eu"));
    for (at, row) in world.backends.iter_mut().enumerate() {
        row.aside = Duration::from_millis([0, 2, 5][at % 3]);
        // One of each of these is twice as strong.
        let strong = (row.app == 0 && row.region == us || row.app == 2 && row.region == eu) && row.id.ends_with("-1");
        row.weight = if strong { 2 } else { 1 };
    }
}

/// Six backends fail, each in its way, for a while.
fn failures(world: &mut World, length: f64, dice: &mut Dice) {
    let kinds = [Condition::Refuses, Condition::Silent, Condition::Resets];
    for number in 0..6 {
        let backend = dice.below(world.backends.len());
        let from = dice.between(0.05, 0.85) * length;
        let until = from + dice.between(0.02, 0.08) * length;
        fails(world, backend, kinds[number % 3], from, until);
    }
    let flapping = dice.below(world.backends.len());
    flaps(world, flapping, 0.7 * length, 0.8 * length, 10.0);
}

fn fails(world: &mut World, backend: usize, how: Condition, from: f64, until: f64) {
    world.happens(seconds(from), Happening::Turns(backend, how));
    world.happens(seconds(until), Happening::Turns(backend, Condition::Works));
}

/// Dies and comes back, each for so many seconds.
fn flaps(world: &mut World, backend: usize, from: f64, until: f64, each: f64) {
    let mut at = from;
    while at < until {
        fails(world, backend, Condition::Refuses, at, at + each);
        at += 2.0 * each;
    }
}

/// What an operator does in a day, here in an hour.
fn operator(world: &mut World, length: f64) {
    let place = |id: &str| world.backends.iter().position(|row| row.id == id).unwrap_or(0);
    let edits = [
        (0.10, "web-eu-1", Edit::State(State::Drain)),
        (0.16, "web-eu-1", Edit::State(State::Ready)),
        (0.20, "game-us-1", Edit::State(State::Maint)),
        (0.26, "game-us-1", Edit::State(State::Ready)),
        (0.30, "web-ap-1", Edit::Healthy(false)),
        (0.34, "web-ap-1", Edit::Healthy(true)),
        (0.38, "game-eu-2", Edit::Limits { soft: 20, hard: 30 }),
        (0.50, "game-eu-2", Edit::Limits { soft: 60, hard: 80 }),
        (0.42, "web-eu-2", Edit::Deleted(true)),
        (0.46, "web-eu-2", Edit::Deleted(false)),
        (0.52, "game-ap-2", Edit::Weight(0)),
        (0.58, "game-ap-2", Edit::Weight(1)),
        (0.60, "web-us-2", Edit::Broken(true)),
        (0.64, "web-us-2", Edit::Broken(false)),
        (0.68, "game-sa-3", Edit::Present(false)),
        (0.74, "game-sa-3", Edit::Present(true)),
    ];
    let edits = edits.map(|(at, id, edit)| (seconds(at * length), Change { backend: place(id), edit }));
    for (at, change) in edits {
        world.happens(at, Happening::Edited(vec![change]));
    }
}

/// When the backend fails, and for how long.
pub const FAILS_AT: f64 = 60.0;
pub const FAILS_FOR: f64 = 120.0;

/// How one backend of five fails in an otherwise calm world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ailment {
    Refuses,
    Silent,
    Resets,
    Flaps,
}

impl Ailment {
    pub const ALL: [Self; 4] = [Self::Refuses, Self::Silent, Self::Resets, Self::Flaps];

    pub const fn words(self) -> &'static str {
        match self {
            Self::Refuses => "dies and refuses connections",
            Self::Silent => "vanishes: no answer",
            Self::Resets => "accepts and resets at once",
            Self::Flaps => "dies and comes back every 5 s",
        }
    }
}

/// One POP, five backends beside it and three far away, for five minutes.
fn beside(name: &'static str, seed: u64) -> World {
    let mut world = World::quiet(name, seed, Duration::from_secs(300));
    let (eu, us) = (world.region("eu"), world.region("us"));
    world.pops = vec![eu];
    world.apps = vec![App { name: "web", affinity: Affinity::No, next_by_rtt: false }];
    let like = Row { soft: 200, hard: 300, ..Row::default() };
    world.add_backends(0, eu, 5, &like);
    world.add_backends(0, us, 3, &like);
    let mut dice = Dice::new(seed, 3);
    world.clients = traffic::clients(&world, 2000, &mut dice);
    let lasts = Lasts::Exponential { mean: 2.0 };
    world.arrivals =
        traffic::arrivals(&world, &[Flow { app: 0, rate: 50.0, lasts, swing: 0.0, bursts: Vec::new() }], &mut dice);
    world
}

/// One of the five is ill for two minutes.
pub fn illness(ailment: Ailment, seed: u64) -> World {
    let mut world = beside("illness", seed);
    let end = FAILS_AT + FAILS_FOR;
    match ailment {
        Ailment::Refuses => fails(&mut world, 0, Condition::Refuses, FAILS_AT, end),
        Ailment::Silent => fails(&mut world, 0, Condition::Silent, FAILS_AT, end),
        Ailment::Resets => fails(&mut world, 0, Condition::Resets, FAILS_AT, end),
        Ailment::Flaps => flaps(&mut world, 0, FAILS_AT, end, 5.0),
    }
    world
}

/// When the way becomes longer, and for how long: not a multiple of the minute after which who was left is measured
/// again.
pub const DETOUR_AT: f64 = 60.0;
pub const DETOUR_FOR: f64 = 150.0;

/// The way to one of the five becomes longer for a while.
pub fn detour(seed: u64) -> World {
    let mut world = beside("detour", seed);
    for (at, longer) in [(DETOUR_AT, 30), (DETOUR_AT + DETOUR_FOR, 0)] {
        world.happens(seconds(at), Happening::Detour(0, Duration::from_millis(longer)));
    }
    world
}

/// One POP, ten backends, clients that come again and again without bindings; a backend leaves, or comes.
pub fn change(leaves: bool, seed: u64) -> World {
    let mut world = World::quiet("change", seed, Duration::from_secs(600));
    let eu = world.region("eu");
    world.pops = vec![eu];
    world.apps = vec![App { name: "cache", affinity: Affinity::No, next_by_rtt: false }];
    world.add_backends(0, eu, 10, &Row { soft: 100, hard: 150, ..Row::default() });
    world.backends[4].present = leaves;
    let mut dice = Dice::new(seed, 4);
    world.clients = traffic::clients(&world, 1500, &mut dice);
    let lasts = Lasts::Exponential { mean: 1.0 };
    world.arrivals =
        traffic::arrivals(&world, &[Flow { app: 0, rate: 40.0, lasts, swing: 0.0, bursts: Vec::new() }], &mut dice);
    let middle = Duration::from_secs(300);
    world.happens(middle, Happening::Edited(vec![Change { backend: 4, edit: Edit::Present(!leaves) }]));
    world.mark = Some(middle);
    world
}
