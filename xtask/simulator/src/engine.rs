//! Plays a world with one candidate, event by event, in simulated time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use ::edgeproxy::application::checks::LOOK;
use ::edgeproxy::domain::{CheckResult, ConnectFailure};

use crate::candidate::{Ask, Candidate, End, Kind, Patience, Promises};
use crate::measure::{Figures, Measure, Unserved};
use crate::oracle::Oracle;
use crate::world::{Condition, Happening, Table, World};

/// How often a POP lets time do its work.
const TICK: Duration = Duration::from_millis(250);
const SAMPLE: Duration = Duration::from_secs(1);
/// Events that come again and again: ticks, samples and looks for backends to try.
const REGULAR: usize = 3;
/// A backend that resets does so after this.
const RESET_AFTER: Duration = Duration::from_millis(20);

/// What came of a simulation.
#[derive(Debug, Clone)]
pub struct Run {
    pub figures: Figures,
    pub verdict: Verdict,
}

/// The oracle's judgement, of all POPs together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub decisions: u64,
    pub admitted: u64,
    pub released: u64,
    /// How often what was decided and heard.
    pub seen: BTreeMap<&'static str, u64>,
    pub faults: BTreeMap<crate::oracle::Fault, u64>,
    pub words: Vec<String>,
}

/// Plays `world` to the end of its last connection.
pub fn run(world: &World, kind: Kind) -> Run {
    play(world, kind.patience(world), kind.promises(), (0..world.pops.len()).map(|pop| kind.make(world, pop)).collect())
}

/// The same with any candidates, one for each POP.
pub fn play(world: &World, patience: Patience, promises: Promises, candidates: Vec<Box<dyn Candidate + '_>>) -> Run {
    let mut stage = Stage::new(world, patience, promises, candidates);
    stage.reload(Duration::ZERO);
    stage.schedule(TICK, Event::Tick);
    stage.schedule(SAMPLE, Event::Sample);
    stage.schedule(LOOK, Event::Look);
    for (number, (at, _)) in world.happenings.iter().enumerate() {
        stage.schedule(*at, Event::Happens(number));
    }
    let mut next = 0;
    while let Some(arrival) = world.arrivals.get(next) {
        match stage.pop_until(arrival.at) {
            Some((at, event)) => stage.play(at, event),
            None => {
                stage.attempt(next, arrival.at);
                next += 1;
            }
        }
    }
    stage.last_arrival = true;
    while let Some(Reverse(timed)) = stage.events.pop() {
        stage.play(timed.at, timed.event);
    }
    stage.close()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick,
    Sample,
    /// POPs look whom they have to try.
    Look,
    /// One has tried.
    Tried(Trial, Option<Failure>),
    Happens(usize),
    /// The connect of a connection has come to an end.
    Answer(usize, Option<Failure>),
    /// The connection ends as it was to, or by a reset.
    Ends(usize, bool),
}

/// A POP connects to a backend itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Trial {
    pop: usize,
    backend: usize,
    /// What the backend had gone through when the connect began.
    crashes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    Refused,
    TimedOut,
}

/// Of two events at one time the one that was scheduled first comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Timed {
    at: Duration,
    number: u64,
    event: Event,
}

#[derive(Debug, Clone, Default)]
struct Connection {
    tried: Vec<usize>,
    backend: Option<usize>,
    /// When the backend accepted.
    since: Option<Duration>,
    /// What its backend had gone through when the connect began.
    crashes: u32,
}

struct Stage<'a> {
    world: &'a World,
    patience: Patience,
    candidates: Vec<Box<dyn Candidate + 'a>>,
    oracles: Vec<Oracle<'a>>,
    measure: Measure<'a>,
    table: Table,
    conditions: Vec<Condition>,
    crashes: Vec<u32>,
    /// What the way to each backend takes longer than usual.
    detours: Vec<Duration>,
    connections: Vec<Connection>,
    /// Accepted connections, so that ticks go on as long as there are some.
    live: usize,
    last_arrival: bool,
    /// That are under way.
    trials: usize,
    events: BinaryHeap<Reverse<Timed>>,
    scheduled: u64,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World, patience: Patience, promises: Promises, candidates: Vec<Box<dyn Candidate + 'a>>) -> Self {
        Self {
            patience,
            oracles: (0..candidates.len()).map(|pop| Oracle::new(world, pop, promises)).collect(),
            candidates,
            measure: Measure::new(world),
            table: Table::new(&world.backends),
            conditions: vec![Condition::Works; world.backends.len()],
            crashes: vec![0; world.backends.len()],
            detours: vec![Duration::ZERO; world.backends.len()],
            connections: vec![Connection::default(); world.arrivals.len()],
            live: 0,
            last_arrival: false,
            trials: 0,
            events: BinaryHeap::new(),
            scheduled: 0,
            world,
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse(Timed { at, number: self.scheduled, event }));
    }

    fn pop_until(&mut self, until: Duration) -> Option<(Duration, Event)> {
        self.events.peek().filter(|Reverse(timed)| timed.at <= until)?;
        let Reverse(timed) = self.events.pop()?;
        Some((timed.at, timed.event))
    }

    fn play(&mut self, now: Duration, event: Event) {
        match event {
            Event::Tick => {
                self.candidates.iter_mut().for_each(|candidate| candidate.tick(now));
                self.oracles.iter_mut().for_each(|oracle| oracle.tick(now));
                self.hear_all(now);
                self.oracles.iter_mut().for_each(|oracle| oracle.ticked(now));
                self.again(now + TICK, Event::Tick);
            }
            Event::Sample => {
                self.sample();
                self.again(now + SAMPLE, Event::Sample);
            }
            Event::Look => {
                (0..self.candidates.len()).for_each(|pop| self.look(pop, now));
                self.again(now + LOOK, Event::Look);
            }
            Event::Tried(trial, failure) => self.tried(trial, failure, now),
            Event::Happens(number) => self.happens(number, now),
            Event::Answer(connection, failure) => self.answered(connection, failure, now),
            Event::Ends(connection, reset) => self.ends(connection, reset, now),
        }
    }

    /// What is regular goes on while there is something else. Trials, that come of it, are nothing else.
    fn again(&mut self, at: Duration, event: Event) {
        if !self.last_arrival || self.live > 0 || self.events.len() - self.trials >= REGULAR {
            self.schedule(at, event);
        }
    }

    fn reload(&mut self, now: Duration) {
        for (candidate, oracle) in self.candidates.iter_mut().zip(&mut self.oracles) {
            candidate.reload(&self.table, now);
            oracle.reload(&self.table);
        }
        self.hear_all(now);
        self.compare();
    }

    fn hear_all(&mut self, now: Duration) {
        (0..self.candidates.len()).for_each(|pop| self.hear(pop, now));
    }

    fn hear(&mut self, pop: usize, now: Duration) {
        let news = self.candidates[pop].news();
        self.oracles[pop].heard(&news, now);
    }

    fn compare(&mut self) {
        for (candidate, oracle) in self.candidates.iter().zip(&mut self.oracles) {
            oracle.compare(|backend| candidate.active(backend));
        }
    }

    fn sample(&mut self) {
        self.compare();
        let condition = |backend: usize| self.conditions[backend];
        for (pop, oracle) in self.oracles.iter().enumerate() {
            self.measure.sample(pop, oracle, &condition);
        }
    }

    fn happens(&mut self, number: usize, now: Duration) {
        match &self.world.happenings[number].1 {
            Happening::Turns(backend, condition) => self.turns(*backend, *condition, now),
            Happening::Detour(backend, longer) => self.detours[*backend] = *longer,
            Happening::Edited(changes) => {
                self.table.edit(changes);
                self.reload(now);
            }
        }
    }

    fn turns(&mut self, backend: usize, condition: Condition, now: Duration) {
        let was = std::mem::replace(&mut self.conditions[backend], condition);
        if condition == Condition::Refuses && was != Condition::Refuses {
            // Its process has died with all its connections.
            self.crashes[backend] += 1;
            let its =
                |(at, one): (usize, &Connection)| (one.backend == Some(backend) && one.since.is_some()).then_some(at);
            let cut: Vec<usize> = self.connections.iter().enumerate().filter_map(its).collect();
            cut.into_iter().for_each(|connection| self.ends(connection, true, now));
        }
    }

    /// Has a backend chosen for a connection and begins to connect, or gives the connection up.
    fn attempt(&mut self, number: usize, now: Duration) {
        let arrival = &self.world.arrivals[number];
        let left = (arrival.at + self.patience.budget).saturating_sub(now);
        let spent = self.connections[number].tried.len() >= self.patience.attempts || left.is_zero();
        if spent {
            return self.give_up(number, Unserved::Failed, now);
        }
        let tried = std::mem::take(&mut self.connections[number].tried);
        let ask = Ask { connection: number, app: arrival.app, client: arrival.client, tried: &tried, now };
        let decision = self.candidates[arrival.pop].choose(&ask);
        self.measure.decided(&self.oracles[arrival.pop], &ask, &decision);
        self.oracles[arrival.pop].decided(&ask, &decision);
        self.connections[number].tried = tried;
        match decision {
            Ok(choice) => self.connect(number, choice.backend, left, now),
            Err(_) if self.connections[number].tried.is_empty() => self.give_up(number, Unserved::Refused, now),
            Err(_) => self.give_up(number, Unserved::Failed, now),
        }
    }

    fn connect(&mut self, number: usize, backend: usize, left: Duration, now: Duration) {
        let arrival = &self.world.arrivals[number];
        let connection = &mut self.connections[number];
        connection.tried.push(backend);
        connection.backend = Some(backend);
        connection.crashes = self.crashes[backend];
        let way = self.way(arrival.pop, backend);
        let limit = self.patience.connect_timeout.min(left);
        self.measure.connects(backend, self.conditions[backend], way, now);
        let (after, failure) = self.answer(backend, way.mul_f64(arrival.jitter), limit);
        self.schedule(now + after, Event::Answer(number, failure));
    }

    fn way(&self, pop: usize, backend: usize) -> Duration {
        self.world.round_trip(pop, backend) + self.detours[backend]
    }

    /// What comes of a connect that begins now, and after how long.
    fn answer(&self, backend: usize, round_trip: Duration, limit: Duration) -> (Duration, Option<Failure>) {
        let (after, failure) = match self.conditions[backend] {
            Condition::Silent => (limit, Some(Failure::TimedOut)),
            _ if round_trip > limit => (limit, Some(Failure::TimedOut)),
            Condition::Refuses => (round_trip, Some(Failure::Refused)),
            Condition::Works | Condition::Resets => (round_trip, None),
        };
        // Whole microseconds, as everything.
        (Duration::from_micros(after.as_micros() as u64), failure)
    }

    /// Its process may have died since the connect began.
    fn outlived(&self, failure: Option<Failure>, backend: usize, crashes: u32) -> Option<Failure> {
        failure.or((crashes != self.crashes[backend]).then_some(Failure::Refused))
    }

    fn look(&mut self, pop: usize, now: Duration) {
        let backends = self.candidates[pop].to_try(now);
        self.oracles[pop].tries(&backends, now);
        for backend in backends {
            let trial = Trial { pop, backend, crashes: self.crashes[backend] };
            let (after, failure) = self.answer(backend, self.way(pop, backend), self.patience.connect_timeout);
            self.schedule(now + after, Event::Tried(trial, failure));
            self.trials += 1;
        }
    }

    fn tried(&mut self, Trial { pop, backend, crashes }: Trial, failure: Option<Failure>, now: Duration) {
        self.trials -= 1;
        let result = match self.outlived(failure, backend, crashes) {
            None => CheckResult::Passed,
            Some(Failure::Refused) => CheckResult::Refused,
            Some(Failure::TimedOut) => CheckResult::TimedOut,
        };
        self.candidates[pop].tried(backend, result, now);
        self.oracles[pop].tried(backend, result == CheckResult::Passed, now);
        self.hear(pop, now);
    }

    fn answered(&mut self, number: usize, failure: Option<Failure>, now: Duration) {
        let pop = self.world.arrivals[number].pop;
        let Some(backend) = self.connections[number].backend else { return };
        let failure = self.outlived(failure, backend, self.connections[number].crashes);
        let Some(failure) = failure else { return self.accepted(number, backend, now) };
        let failure = match failure {
            Failure::Refused => ConnectFailure::Refused,
            Failure::TimedOut => ConnectFailure::TimedOut,
        };
        self.connections[number].backend = None;
        self.candidates[pop].failed(number, failure, now);
        self.oracles[pop].failed(number, failure, now);
        self.hear(pop, now);
        self.attempt(number, now);
    }

    fn accepted(&mut self, number: usize, backend: usize, now: Duration) {
        let arrival = &self.world.arrivals[number];
        self.connections[number].since = Some(now);
        self.live += 1;
        self.candidates[arrival.pop].connected(number, now);
        self.oracles[arrival.pop].connected(number, now);
        self.hear(arrival.pop, now);
        let resets = self.conditions[backend] == Condition::Resets;
        self.measure.accepted(number, backend, resets, &self.oracles[arrival.pop], now);
        if resets {
            self.schedule(now + RESET_AFTER, Event::Ends(number, true));
        } else {
            self.schedule(now + arrival.lasts, Event::Ends(number, false));
        }
    }

    fn ends(&mut self, number: usize, reset: bool, now: Duration) {
        // Its backend may have died before, and the connection with it.
        let Some(since) = self.connections[number].since.take() else { return };
        let backend = self.connections[number].backend.take();
        let pop = self.world.arrivals[number].pop;
        self.live -= 1;
        let at_once = reset && backend.is_some_and(|backend| self.conditions[backend] == Condition::Resets);
        let end = End { reset, answered: !at_once, age: now - since };
        self.candidates[pop].ended(number, end, now);
        self.oracles[pop].ended(number, end, now);
        self.hear(pop, now);
        if let Some(backend) = backend {
            self.measure.ended(number, backend, reset && !at_once);
        }
        self.forget(number);
    }

    fn give_up(&mut self, number: usize, how: Unserved, now: Duration) {
        self.measure.gave_up(number, how, now);
        self.forget(number);
    }

    fn forget(&mut self, number: usize) {
        let pop = self.world.arrivals[number].pop;
        self.candidates[pop].forget(number);
        self.oracles[pop].forget(number);
        self.connections[number].tried = Vec::new();
    }

    fn close(mut self) -> Run {
        let mut verdict = Verdict::default();
        for (candidate, oracle) in self.candidates.iter().zip(&mut self.oracles) {
            oracle.close(|backend| candidate.active(backend));
            verdict.decisions += oracle.decisions;
            verdict.admitted += oracle.admitted;
            verdict.released += oracle.released;
            oracle.seen.iter().for_each(|(what, times)| *verdict.seen.entry(what).or_default() += times);
            oracle.faults.iter().for_each(|(fault, times)| *verdict.faults.entry(*fault).or_default() += times);
            verdict.words.append(&mut oracle.words);
        }
        Run { figures: self.measure.close(), verdict }
    }
}
