//! Small worlds at random in which as much as possible goes wrong.

use std::time::Duration;

use proptest::prelude::*;

use crate::dice::{Dice, seconds};
use crate::world::{
    Affinity, App, Arrival, Change, Condition, Edit, Happening, Place, Point, Row, State, World, geography::COUNTRIES,
    traffic,
};

const LENGTH: f64 = 120.0;

/// How much there is of everything; what it is follows from the seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Knobs {
    pub(super) seed: u64,
    pub(super) apps: usize,
    pub(super) backends: usize,
    pub(super) arrivals: usize,
    pub(super) failures: usize,
    pub(super) edits: usize,
}

prop_compose! {
    pub(super) fn knobs()(
        seed in any::<u64>(),
        apps in 1..=3usize,
        backends in 0..=12usize,
        arrivals in 1..=300usize,
        failures in 0..=12usize,
        edits in 0..=40usize,
    ) -> Knobs {
        Knobs { seed, apps, backends, arrivals, failures, edits }
    }
}

pub(super) fn random(knobs: Knobs) -> World {
    let mut dice = Dice::new(knobs.seed, 10);
    let mut world = World::quiet("random", knobs.seed, seconds(LENGTH));
    // An operator who has not said where everything is.
    world.regions.push(Place { name: "lab", position: None });
    world.regions.push(Place { name: "isle", position: Some(Point(64.1, -21.9)) });
    world.pops = (0..1 + dice.below(2)).map(|_| dice.below(world.regions.len())).collect();
    let names = ["web", "game", "api"];
    let affinities = [Affinity::No, Affinity::Strict, Affinity::Soft];
    let mut others = Dice::new(knobs.seed, 13);
    let mut app = |name| App { name, affinity: affinities[dice.below(3)], next_by_rtt: others.chance(0.5) };
    world.apps = names[..knobs.apps].iter().map(|name| app(name)).collect();
    world.backends = (0..knobs.backends).map(|number| row(&world, number, &mut dice)).collect();
    world.clients = traffic::clients(&world, 1 + dice.below(30), &mut dice);
    // Clients all over the world; half of them where the backends are few.
    let home = &COUNTRIES[dice.below(COUNTRIES.len())];
    for client in world.clients.iter_mut().step_by(2) {
        client.country = Some(home);
        client.region = Some(world.regions.iter().position(|region| region.name == home.region).unwrap());
    }
    rules(&mut world, &mut dice);
    world.arrivals = arrivals(&world, knobs.arrivals, &mut dice);
    for _ in 0..knobs.failures.min(knobs.backends * 12) {
        let condition = [Condition::Works, Condition::Refuses, Condition::Silent, Condition::Resets][dice.below(4)];
        let (at, backend) = (seconds(dice.unit() * LENGTH), dice.below(world.backends.len()));
        world.happens(at, Happening::Turns(backend, condition));
        // Half of them are soon well again.
        if dice.chance(0.5) {
            let well = at + seconds(dice.between(0.0, 20.0));
            world.happens(well, Happening::Turns(backend, Condition::Works));
        }
    }
    for _ in 0..knobs.failures.min(knobs.backends * 12) / 2 {
        let longer = seconds(dice.between(0.0, 0.2));
        world.happens(seconds(dice.unit() * LENGTH), Happening::Detour(dice.below(world.backends.len()), longer));
    }
    for _ in 0..knobs.edits.min(knobs.backends * 40) {
        let changes = (0..1 + dice.below(3)).map(|_| change(&world, &mut dice)).collect();
        world.happens(seconds(dice.unit() * LENGTH), Happening::Edited(changes));
    }
    drains(&mut world, knobs.edits.div_ceil(8).min(knobs.backends), &mut Dice::new(knobs.seed, 12));
    world
}

/// The operator tells the daemons to drain a backend for a while.
fn drains(world: &mut World, count: usize, dice: &mut Dice) {
    for _ in 0..count {
        let (at, backend) = (seconds(dice.unit() * LENGTH), dice.below(world.backends.len()));
        let change = |drained| Happening::Edited(vec![Change { backend, edit: Edit::Drained(drained) }]);
        world.happens(at, change(true));
        world.happens(at + seconds(dice.between(0.0, 15.0)), change(false));
    }
}

fn limits(dice: &mut Dice) -> (u32, u32) {
    let hard = dice.below(7) as u32;
    (dice.below(if hard == 0 { 6 } else { hard as usize + 1 }) as u32, hard)
}

fn row(world: &World, number: usize, dice: &mut Dice) -> Row {
    let (soft, hard) = limits(dice);
    Row {
        id: format!("b{number}"),
        app: dice.below(world.apps.len()),
        region: dice.below(world.regions.len()),
        weight: [0, 1, 1, 1, 2, 3][dice.below(6)],
        soft,
        hard,
        state: [State::Ready, State::Ready, State::Ready, State::Ready, State::Drain, State::Maint][dice.below(6)],
        healthy: !dice.chance(0.1),
        drained: false,
        present: !dice.chance(0.1),
        deleted: dice.chance(0.05),
        broken: dice.chance(0.05),
        aside: seconds(dice.between(0.0, 0.01)),
    }
}

fn change(world: &World, dice: &mut Dice) -> Change {
    let edit = match dice.below(9) {
        0 => Edit::Weight(dice.below(4) as u32),
        1 | 2 => {
            let (soft, hard) = limits(dice);
            Edit::Limits { soft, hard }
        }
        3 => Edit::State([State::Ready, State::Drain, State::Maint][dice.below(3)]),
        4 => Edit::State(State::Ready),
        5 => Edit::Healthy(dice.chance(0.7)),
        6 => Edit::Present(dice.chance(0.6)),
        7 => Edit::Deleted(dice.chance(0.4)),
        _ => Edit::Broken(dice.chance(0.5)),
    };
    Change { backend: dice.below(world.backends.len()), edit }
}

fn rules(world: &mut World, dice: &mut Dice) {
    let rules = &mut world.rules;
    rules.health.failures = dice.below(4) as u32;
    rules.health.ejection = seconds(dice.between(0.5, 10.0));
    rules.health.longest = seconds(dice.between(3.0, 40.0));
    rules.health.max_percent = [0, 10, 50, 100][dice.below(4)];
    rules.health.slow_start = seconds(dice.between(0.0, 20.0));
    rules.pace.interval = seconds(dice.between(0.5, 5.0));
    rules.pace.timeout = seconds(dice.between(0.1, 2.0));
    rules.pace.rise = 1 + dice.below(3) as u32;
    // With the last, checks take hardly anybody out, but what they say of who was tried counts.
    rules.pace.fall = [1, 2, 3, 30][dice.below(4)];
    rules.connect_attempts = 1 + dice.below(4);
    rules.connect_timeout = seconds(dice.between(0.5, 3.0));
    rules.binding_ttl = seconds(dice.between(2.0, 60.0));
    // Now and then clients come back before the POP knows.
    let short = dice.chance(0.25).then(|| seconds(dice.between(0.1, 2.0)));
    rules.health.untried = short.unwrap_or(rules.connect_timeout + seconds(30.0));
}

fn arrivals(world: &World, count: usize, dice: &mut Dice) -> Vec<Arrival> {
    let mean = dice.between(0.1, 20.0);
    let mut arrivals: Vec<Arrival> = (0..count)
        .map(|_| Arrival {
            at: seconds(dice.unit() * LENGTH),
            client: dice.below(world.clients.len()),
            app: dice.below(world.apps.len()),
            pop: dice.below(world.pops.len()),
            lasts: if dice.chance(0.1) { Duration::ZERO } else { seconds(mean * dice.exponential()) },
            jitter: dice.between(0.5, 2.0),
        })
        .collect();
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

/// One POP and one region without limits, in which nothing goes wrong.
pub(super) fn calm(seed: u64, weights: &[u32], mean: f64) -> World {
    let mut dice = Dice::new(seed, 11);
    let mut world = World::quiet("calm", seed, seconds(LENGTH));
    world.pops = vec![2];
    world.apps = vec![App { name: "web", affinity: Affinity::No, next_by_rtt: false }];
    world.add_backends(0, 2, weights.len(), &Row::default());
    for (row, weight) in world.backends.iter_mut().zip(weights) {
        row.weight = *weight;
    }
    world.clients = traffic::clients(&world, 100, &mut dice);
    world.arrivals = arrivals(&world, 3000, &mut dice);
    for arrival in &mut world.arrivals {
        arrival.lasts = seconds(mean * dice.exponential());
    }
    world
}

/// Two of four backends are ejected for a minute. One of them is taken out otherwise, a third is ejected meanwhile, and it
/// comes back.
pub(super) fn crowded_out(seed: u64, [out, back]: [Happening; 2]) -> World {
    let mut world = calm(seed, &[1; 4], 0.05);
    world.rules.health.ejection = seconds(60.0);
    // Checks see nothing of it.
    let resets = |backend| Happening::Turns(backend, Condition::Resets);
    for (at, what) in [(5.0, resets(0)), (5.0, resets(1)), (10.0, out), (20.0, resets(2)), (30.0, back)] {
        world.happens(seconds(at), what);
    }
    for backend in 1..3 {
        world.happens(seconds(40.0), Happening::Turns(backend, Condition::Works));
    }
    world
}
