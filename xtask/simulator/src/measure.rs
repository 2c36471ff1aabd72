//! What came of the decisions: balance, overload, locality, failures met.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use ::edgeproxy::domain::NoBackend;

use crate::candidate::{Ask, Choice};
use crate::oracle::Oracle;
use crate::world::{Affinity, Condition, Edit, Happening, Row, World};

/// Why a client was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unserved {
    /// No backend was found for it.
    Refused,
    /// None of those that were tried accepted.
    Failed,
}

/// Counts as it goes.
#[derive(Debug)]
pub struct Measure<'a> {
    world: &'a World,
    figures: Figures,
    /// Backends by app and region.
    pools: BTreeMap<(usize, usize), Vec<usize>>,
    /// First choices by POP and backend.
    shares: BTreeMap<(usize, usize), u64>,
    /// The backend that accepted the last connection of a client at a POP, and when.
    last: HashMap<(usize, usize, usize), (usize, Duration)>,
    marked: HashSet<(usize, usize, usize)>,
    /// Hard limits that held when a backend was chosen.
    limits: HashMap<usize, u32>,
    /// Connections that were accepted, by POP and backend.
    established: HashMap<(usize, usize), u32>,
}

/// The figures of one run.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub arrivals: u64,
    pub served: u64,
    /// No backend was found, with none free.
    pub refused: u64,
    /// The same, although there was a free one.
    pub refused_needlessly: u64,
    /// No backend accepted.
    pub failed: u64,
    /// A backend accepted and reset at once.
    pub reset: u64,
    /// Live connections that ended because their backend died.
    pub cut: u64,
    /// Of those served whose country is known: in the client's region.
    pub at_home: Mean,
    /// From client to backend.
    pub km: Mean,
    /// From POP to backend, in milliseconds.
    pub round_trip: Mean,
    /// From accept to an accepted connect, in milliseconds.
    pub waits: Vec<f64>,
    /// Peak ÷ mean load within pools that have something to do, sample by sample.
    pub peak_to_mean: Mean,
    /// Worst deviation of a backend's share from its weight, where no limit bears on it.
    pub share_error: Option<f64>,
    /// Samples of backends in service that are above their soft limit.
    pub over_soft: Mean,
    /// Connections above the soft limits in each sample.
    pub excess: Vec<u64>,
    /// Decisions for a backend at its soft limit with one below in the same region.
    pub over_soft_needlessly: u64,
    /// Most established connections above a hard limit, those not counted that were there when it was lowered.
    pub over_hard: u32,
    /// Connections established above a hard limit.
    pub admitted_over_hard: u64,
    /// Clients that came again in time, where they are meant to: to the same backend.
    pub returned: Mean,
    /// Clients after the mark: with another backend, though their former one could have had them.
    pub moved: Mean,
    /// First choices by backend.
    pub chosen: Vec<u64>,
    /// The longest that a client was held before it was given up, in milliseconds.
    pub held_in_vain: f64,
    /// Connects by second, those to a backend that didn't work, and those to the first backend.
    pub connects: Vec<u64>,
    pub met: Vec<u64>,
    pub to_first: Vec<u64>,
    /// From POP to the backends that connects went to, in milliseconds, by second.
    pub ways: Vec<Mean>,
}

/// A sum and how much there is in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean {
    pub sum: f64,
    pub count: u64,
}

impl Mean {
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn says(&mut self, yes: bool) {
        self.add(if yes { 1.0 } else { 0.0 });
    }

    /// `None` of nothing.
    pub fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

impl Figures {
    /// Clients that got nothing though it was in nobody's hands but the proxy's and one backend's.
    pub fn lost(&self) -> u64 {
        self.refused_needlessly + self.failed + self.reset
    }

    /// The wait that so many of the served stay below.
    pub fn wait(&self, quantile: f64) -> f64 {
        let at = (self.waits.len() as f64 * quantile) as usize;
        self.waits.get(at.min(self.waits.len().saturating_sub(1))).copied().unwrap_or(0.0)
    }
}

impl<'a> Measure<'a> {
    pub fn new(world: &'a World) -> Self {
        let mut pools: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (at, row) in world.backends.iter().enumerate() {
            pools.entry((row.app, row.region)).or_default().push(at);
        }
        let chosen = vec![0; world.backends.len()];
        let figures = Figures { arrivals: world.arrivals.len() as u64, chosen, ..Figures::default() };
        Self {
            figures,
            pools,
            shares: BTreeMap::new(),
            last: HashMap::new(),
            marked: HashSet::new(),
            limits: HashMap::new(),
            established: HashMap::new(),
            world,
        }
    }

    /// A decision, with the books as they were before it.
    pub fn decided(&mut self, oracle: &Oracle<'_>, ask: &Ask<'_>, decision: &Result<Choice, NoBackend>) {
        let table = oracle.table();
        match decision {
            Ok(choice) => {
                let Some(row) = table.get(choice.backend) else { return };
                let count = oracle.count(choice.backend);
                let better = |(at, other): (usize, &Row)| {
                    let same = other.region == row.region && other.is_open() && !ask.tried.contains(&at);
                    same && !other.is_over_soft(oracle.count(at)) && !oracle.is_distrusted(at)
                };
                let needless = row.is_over_soft(count) && table.of_app(ask.app).any(better);
                self.figures.over_soft_needlessly += u64::from(needless);
                self.limits.insert(ask.connection, row.hard);
                if ask.tried.is_empty() {
                    self.figures.chosen[choice.backend] += 1;
                    let pop = self.world.arrivals[ask.connection].pop;
                    *self.shares.entry((pop, choice.backend)).or_default() += 1;
                }
            }
            Err(_) if ask.tried.is_empty() => {
                let free = |(at, row): (usize, &Row)| row.is_open() && !row.is_full(oracle.count(at));
                let needless = table.of_app(ask.app).any(free);
                self.figures.refused_needlessly += u64::from(needless);
                self.figures.refused += u64::from(!needless);
            }
            Err(_) => {}
        }
    }

    /// A connect begins.
    pub fn connects(&mut self, backend: usize, condition: Condition, way: Duration, now: Duration) {
        let figures = &mut self.figures;
        let second = now.as_secs() as usize;
        for list in [&mut figures.connects, &mut figures.met, &mut figures.to_first] {
            list.resize(list.len().max(second + 1), 0);
        }
        figures.ways.resize(figures.connects.len(), Mean::default());
        figures.ways[second].add(way.as_secs_f64() * 1e3);
        figures.connects[second] += 1;
        figures.met[second] += u64::from(condition != Condition::Works);
        figures.to_first[second] += u64::from(backend == 0);
    }

    pub fn accepted(&mut self, connection: usize, backend: usize, resets: bool, oracle: &Oracle<'_>, now: Duration) {
        let arrival = &self.world.arrivals[connection];
        self.over_hard(connection, (arrival.pop, backend), oracle);
        if resets {
            self.figures.reset += 1;
            return;
        }
        let (client, row) = (&self.world.clients[arrival.client], &self.world.backends[backend]);
        self.figures.served += 1;
        self.figures.waits.push((now - arrival.at).as_secs_f64() * 1e3);
        self.figures.round_trip.add(self.world.round_trip(arrival.pop, backend).as_secs_f64() * 1e3);
        if let Some(region) = client.region {
            self.figures.at_home.says(region == row.region);
        }
        if let Some(position) = self.world.regions[row.region].position {
            self.figures.km.add(position.distance_km(client.position));
        }
        self.came_again((arrival.pop, arrival.app, arrival.client), backend, oracle, now);
    }

    /// A limit that was lowered since the choice counts as it was then.
    fn over_hard(&mut self, connection: usize, place: (usize, usize), oracle: &Oracle<'_>) {
        let now = oracle.table().get(place.1).map_or(0, |row| row.hard);
        let then = self.limits.get(&connection).copied().unwrap_or(0);
        let established = self.established.entry(place).or_default();
        *established += 1;
        if now > 0 && then > 0 && *established > now.max(then) {
            self.figures.admitted_over_hard += 1;
            self.figures.over_hard = self.figures.over_hard.max(*established - now.max(then));
        }
    }

    fn came_again(&mut self, who: (usize, usize, usize), backend: usize, oracle: &Oracle<'_>, now: Duration) {
        let before = self.last.insert(who, (backend, now));
        let Some((former, when)) = before else { return };
        if self.world.apps[who.1].affinity != Affinity::No && now - when < self.world.rules.binding_ttl {
            self.figures.returned.says(former == backend);
        }
        let after = self.world.mark.is_some_and(|mark| mark <= now && when < mark);
        if after && self.marked.insert(who) {
            let row = oracle.table().get(former).filter(|row| row.is_open());
            let possible = row.is_some_and(|row| !row.is_full(oracle.count(former)) && !oracle.is_distrusted(former));
            self.figures.moved.says(possible && former != backend);
        }
    }

    pub fn ended(&mut self, connection: usize, backend: usize, cut: bool) {
        self.figures.cut += u64::from(cut);
        if let Some(established) = self.established.get_mut(&(self.world.arrivals[connection].pop, backend)) {
            *established -= 1;
        }
    }

    pub fn gave_up(&mut self, connection: usize, how: Unserved, now: Duration) {
        // Refusals are counted when they are decided.
        self.figures.failed += u64::from(how == Unserved::Failed);
        let held = (now - self.world.arrivals[connection].at).as_secs_f64() * 1e3;
        self.figures.held_in_vain = self.figures.held_in_vain.max(held);
    }

    /// The load of one POP at one moment.
    pub fn sample(&mut self, pop: usize, oracle: &Oracle<'_>, condition: &dyn Fn(usize) -> Condition) {
        let mut excess = 0;
        for pool in self.pools.values() {
            let works = |at: &&usize| condition(**at) == Condition::Works;
            let rows = pool.iter().filter(works).filter_map(|at| Some((oracle.count(*at), oracle.table().get(*at)?)));
            let open: Vec<_> = rows.filter(|(_, row)| row.is_open()).collect();
            for (count, row) in &open {
                let above = if row.soft > 0 { count.saturating_sub(row.soft) } else { 0 };
                self.figures.over_soft.says(above > 0);
                excess += u64::from(above);
            }
            let (sum, weights) = open.iter().fold((0, 0), |sums, (count, row)| (sums.0 + count, sums.1 + row.weight));
            if open.len() > 1 && sum as usize >= 2 * open.len() {
                let relative = open.iter().map(|(count, row)| f64::from(*count) / f64::from(row.weight));
                let peak = relative.fold(0.0, f64::max);
                self.figures.peak_to_mean.add(peak * f64::from(weights) / f64::from(sum));
            }
        }
        if pop == 0 {
            self.figures.excess.push(0);
        }
        if let Some(last) = self.figures.excess.last_mut() {
            *last += excess;
        }
    }

    pub fn close(mut self) -> Figures {
        self.figures.waits.sort_unstable_by(f64::total_cmp);
        self.figures.share_error = self.share_error();
        self.figures
    }

    /// Backends that failed or were edited have no share that they should have.
    fn share_error(&self) -> Option<f64> {
        let mut disturbed = vec![false; self.world.backends.len()];
        for (_, happening) in &self.world.happenings {
            match happening {
                Happening::Turns(backend, _) => disturbed[*backend] = true,
                // Shares go by the operator's word, whatever the way.
                Happening::Detour(..) => {}
                Happening::Edited(changes) => {
                    let others = changes.iter().filter(|change| !matches!(change.edit, Edit::Broken(_)));
                    others.for_each(|change| disturbed[change.backend] = true);
                }
            }
        }
        let mut error: Option<f64> = None;
        for pool in self
            .pools
            .iter()
            .filter(|((app, _), _)| self.world.apps[*app].affinity == Affinity::No)
            .map(|(_, pool)| pool)
        {
            let is_free = |row: &Row| row.is_open() && row.soft == 0 && row.hard == 0;
            let undisturbed = || pool.iter().filter(|at| !disturbed[**at] && is_free(&self.world.backends[**at]));
            for pop in 0..self.world.pops.len() {
                let count = |at: &usize| self.shares.get(&(pop, *at)).copied().unwrap_or(0) as f64;
                let counts = undisturbed().map(|at| (count(at), f64::from(self.world.backends[*at].weight)));
                let its = worst(&counts.collect::<Vec<_>>());
                error = error.into_iter().chain(its).reduce(f64::max);
            }
        }
        error
    }
}

/// Of a pool of counts and weights, if there are enough to say something.
fn worst(pool: &[(f64, f64)]) -> Option<f64> {
    let (count, weight) = pool.iter().fold((0.0, 0.0), |sums, one| (sums.0 + one.0, sums.1 + one.1));
    let enough = pool.iter().all(|one| count * one.1 / weight >= 100.0);
    let error = |one: &(f64, f64)| (one.0 * weight / (count * one.1) - 1.0).abs();
    if enough { pool.iter().map(error).reduce(f64::max) } else { None }
}
