//! edgeproxy itself: the routing table, the choice, the reservation, the bindings and the health watch of the daemon,
//! called in the order in which `application::serve` calls them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ::edgeproxy::application::health::{FailedConnect, Watch};
use ::edgeproxy::application::ports::{GeoSource, Observer};
use ::edgeproxy::application::routing::RoutingTable;
use ::edgeproxy::application::rtt::RttRanking;
use ::edgeproxy::domain::{
    AppName, Backend, BackendId, BackendLoad, CheckReport, CheckResult, Complaint, ConnectFailure, CountryCode,
    NoBackend, Outcome, Permit, Pick, RawApp, RawBackend, RawRegion, RawRouting, RawValue, Region, Request, Selection,
    Skip, Termination, Transition, Tried, pick,
};

use super::affinity;
use super::probes::Probes;
use super::{Ask, Candidate, Choice, End, News};
use crate::world::geography::COUNTRIES;
use crate::world::{Affinity, App, Place, Row, State, Table, World};

pub(super) struct Edgeproxy<'a> {
    world: &'a World,
    selection: Selection,
    pop_region: Option<Region>,
    routing: Arc<RoutingTable>,
    health: Watch,
    ranking: RttRanking,
    turned: Arc<Turned>,
    news: Vec<News>,
    probes: Option<Probes<'a>>,
    affinity: affinity::Affinity<'a>,
    rng: fastrand::Rng,
    open: HashMap<usize, Open>,
    /// Backends that the POP tries itself.
    trials: HashMap<usize, Arc<Backend>>,
    /// To look at the counts. Weak: only connections and the table may keep a count alive.
    loads: Vec<Weak<BackendLoad>>,
    /// Which of these were last told that they are drained.
    drained: Vec<bool>,
}

/// What the daemon holds for a connection.
#[derive(Default)]
struct Open {
    tried: Tried,
    target: Option<(Arc<Backend>, Permit)>,
    /// The binding has yielded for a crowd, and stays.
    crowded: bool,
    /// Chosen for a reason that binds nobody.
    makeshift: bool,
    /// When the last choice was made, at which the connect begins.
    chosen: Duration,
}

impl<'a> Edgeproxy<'a> {
    pub(super) fn new(world: &'a World, pop: usize) -> Self {
        let (routing, turned) = (Arc::new(RoutingTable::new()), Arc::new(Turned::default()));
        let health = Watch::new(world.rules.health, Arc::clone(&routing), Arc::clone(&turned) as Arc<dyn Observer>);
        Self {
            selection: Selection::LeastLoad,
            pop_region: Region::parse(world.regions[world.pops[pop]].name).ok(),
            affinity: affinity::Affinity::new(world),
            rng: fastrand::Rng::with_seed(world.seed ^ (pop as u64 + 1)),
            open: HashMap::new(),
            trials: HashMap::new(),
            loads: world.backends.iter().map(|_| Weak::new()).collect(),
            drained: vec![false; world.backends.len()],
            world,
            routing,
            health,
            ranking: RttRanking::default(),
            turned,
            news: Vec::new(),
            probes: None,
        }
    }

    /// With another way to choose in all apps.
    pub(super) fn with(self, selection: Selection) -> Self {
        Self { selection, ..self }
    }

    /// With active checks of all apps.
    pub(super) fn checked(self) -> Self {
        Self { probes: Some(Probes::new(self.world)), ..self }
    }

    /// Takes over what the daemon has said of its backends' health.
    fn note(&mut self) {
        let turned = std::mem::take(&mut *self.turned.0.lock().unwrap_or_else(PoisonError::into_inner));
        let news = turned
            .into_iter()
            .filter_map(|(id, transition)| Some(News::Turned { backend: self.affinity.backend(&id)?, transition }));
        self.news.extend(news);
    }

    fn take(&mut self, connection: usize) -> Option<(Arc<Backend>, Permit)> {
        self.open.get_mut(&connection)?.target.take()
    }
}

impl Candidate for Edgeproxy<'_> {
    fn reload(&mut self, table: &Table, now: Duration) {
        let raw = RawRouting {
            backends: table.rows.iter().filter(|row| row.present).map(|row| raw_backend(self.world, row)).collect(),
            regions: self.world.regions.iter().map(raw_region).collect(),
            apps: self.world.apps.iter().map(|app| raw_app(app, self.selection, self.probes.is_some())).collect(),
            ..RawRouting::default()
        };
        // A world may well be emptied on purpose.
        if let Ok(report) = self.routing.apply(&raw, true) {
            self.health.reloaded(&report, self.affinity.clock.at(now));
        }
        let snapshot = self.routing.snapshot();
        let place = |backend: &Backend| self.affinity.backend(&backend.id);
        self.probes.iter_mut().for_each(|probes| probes.reload(&snapshot, &place, now));
        let mut ready = Vec::new();
        for backend in snapshot.backends() {
            if let Some(at) = self.affinity.backend(&backend.id) {
                // The daemon remembers whom it drains, also of those that are away for a while. It says so once: that
                // reloads keep the word is theirs to do.
                let known = std::ptr::eq(self.loads[at].as_ptr(), Arc::as_ptr(&backend.load));
                let (was, is) = (known && self.drained[at], table.rows[at].drained);
                self.loads[at] = Arc::downgrade(&backend.load);
                self.drained[at] = is;
                if was != is {
                    backend.load.set_draining(is);
                }
                ready.extend((was && !is).then(|| backend.id.clone()));
            }
        }
        self.health.put_back(&ready, self.affinity.clock.at(now));
    }

    fn choose(&mut self, ask: &Ask<'_>) -> Result<Choice, NoBackend> {
        let bound = self.affinity.bound(ask.connection, ask.now);
        let snapshot = self.routing.load();
        let country = self.world.clients[ask.client].country.and_then(|its| CountryCode::parse(its.code).ok());
        let pop_region = self.pop_region.as_ref().ok_or(NoBackend::NoneEligible)?;
        let prefix = self.affinity.prefix(ask.client);
        let request = Request {
            // As with a geo database of countries.
            client_position: None,
            client: Some(&prefix),
            client_region: country.and_then(|country| snapshot.regions().region_of(country)),
            pop_region,
            bound: bound.map(|backend| self.affinity.id(backend)),
        };
        let app = snapshot.app(self.affinity.app(ask.app)).ok_or(NoBackend::NoSuchApp)?;
        let open = self.open.entry(ask.connection).or_default();
        let Pick { backend, reason, permit, binding_yielded: yielded } =
            pick(app, snapshot.regions(), &request, &open.tried, &mut self.rng)?;
        open.tried.push(&backend);
        let at = self.affinity.backend(&backend.id).ok_or(NoBackend::NoneEligible)?;
        open.target = Some((backend, permit));
        open.crowded = yielded == Some(Skip::AtSoftLimit);
        open.makeshift = !reason.binds();
        open.chosen = ask.now;
        Ok(Choice { backend: at, reason: Some(reason), yielded })
    }

    fn connected(&mut self, connection: usize, now: Duration) {
        let Some(open) = self.open.get(&connection) else { return };
        let Some((backend, _)) = &open.target else { return };
        // Flows measure, too, in the daemon. Here they would say the same: no way has a queue that they could fill.
        backend.load.rtt().sample(now.saturating_sub(open.chosen), self.affinity.clock.at(now));
        self.health.connected(backend, self.affinity.clock.at(now));
        if let Some(at) = self.affinity.backend(&backend.id).filter(|_| !open.crowded && !open.makeshift) {
            self.affinity.connected(connection, at, now);
        }
    }

    fn failed(&mut self, connection: usize, failure: ConnectFailure, now: Duration) {
        let chosen = self.open.get(&connection).map_or(now, |open| open.chosen);
        if let Some((backend, permit)) = self.take(connection) {
            let rules = &self.world.rules;
            let shortened = now.saturating_sub(chosen) < rules.connect_timeout.min(rules.connect_budget);
            let failed = FailedConnect { failure, began: self.affinity.clock.at(chosen), shortened };
            self.health.connect_failed(&backend, failed, self.affinity.clock.at(now));
            drop(permit);
        }
    }

    fn ended(&mut self, connection: usize, end: End, now: Duration) {
        let makeshift = self.open.get(&connection).is_some_and(|open| open.makeshift);
        let Some((backend, permit)) = self.take(connection) else { return };
        let termination = if end.reset { Termination::BackendReset } else { Termination::Normal };
        let bytes = if end.answered { 1000 } else { 0 };
        self.health.ended(&backend, termination, bytes, end.age, self.affinity.clock.at(now));
        if let Some(at) = self.affinity.backend(&backend.id).filter(|_| !makeshift) {
            self.affinity.ended(connection, at, now);
        }
        drop(permit);
    }

    fn forget(&mut self, connection: usize) {
        self.open.remove(&connection);
        self.affinity.forget(connection);
    }

    fn tick(&mut self, now: Duration) {
        let instant = self.affinity.clock.at(now);
        self.health.tick(instant);
        self.ranking.tick(&self.routing, instant);
        let answers = self.probes.as_mut().map(|probes| probes.tick(now)).unwrap_or_default();
        for answer in answers {
            self.note();
            let (passed, began) = (answer.report.result == CheckResult::Passed, now - answer.report.took);
            let backend = self.affinity.backend(&answer.backend.id);
            self.news.extend(backend.map(|backend| News::Checked { backend, passed, began }));
            self.health.checked(&answer.backend, &answer.spec, answer.report, instant, &self.world.rules.pace);
        }
    }

    fn to_try(&mut self, now: Duration) -> Vec<usize> {
        let due = self.health.to_try(self.affinity.clock.at(now));
        let mut places: Vec<usize> = due.iter().filter_map(|backend| self.affinity.backend(&backend.id)).collect();
        self.trials.extend(due.into_iter().filter_map(|backend| Some((self.affinity.backend(&backend.id)?, backend))));
        // The watch names them in no order.
        places.sort_unstable();
        places
    }

    fn tried(&mut self, backend: usize, result: CheckResult, now: Duration) {
        if let Some(backend) = self.trials.remove(&backend) {
            self.health.tried(&backend, Complaint::of_trial(result), self.affinity.clock.at(now));
        }
    }

    fn news(&mut self) -> Vec<News> {
        self.note();
        std::mem::take(&mut self.news)
    }

    fn active(&self, backend: usize) -> u32 {
        self.loads[backend].upgrade().map_or(0, |load| load.active())
    }
}

/// What the daemon would have logged about health.
#[derive(Default)]
struct Turned(Mutex<Vec<(BackendId, Transition)>>);

impl Observer for Turned {
    fn accepted(&self) {}
    fn located(&self, _: GeoSource) {}
    fn closed(&self, _: &Outcome) {}
    fn accept_failed(&self, _: SocketAddr, _: &'static str) {}
    fn checked(&self, _: &CheckReport) {}
    fn fail_open(&self, _: &AppName, _: bool) {}

    fn health_changed(&self, backend: &Backend, transition: Transition) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((backend.id.clone(), transition));
    }
}

fn raw_backend(world: &World, row: &Row) -> RawBackend {
    let flag = |flag: bool| RawValue::Integer(flag.into());
    let number = |number: u32| RawValue::Integer(number.into());
    RawBackend {
        id: row.id.as_str().into(),
        app: world.apps[row.app].name.into(),
        region: world.regions[row.region].name.into(),
        wg_ip: if row.broken { "not an address".into() } else { "192.0.2.1".into() },
        port: 80.into(),
        healthy: flag(row.healthy),
        weight: number(row.weight),
        soft_limit: number(row.soft),
        hard_limit: number(row.hard),
        deleted: flag(row.deleted),
        state: match row.state {
            State::Ready => "ready".into(),
            State::Drain => "drain".into(),
            State::Maint => "maint".into(),
        },
        ..RawBackend::default()
    }
}

fn raw_app(app: &App, selection: Selection, checked: bool) -> RawApp {
    RawApp {
        name: app.name.into(),
        selection: selection.as_str().into(),
        next_region: if app.next_by_rtt { "rtt".into() } else { RawValue::Null },
        health_check: if checked { "tcp".into() } else { RawValue::Null },
        affinity: match app.affinity {
            Affinity::No => "none".into(),
            Affinity::Strict => "strict".into(),
            Affinity::Soft => "soft".into(),
        },
        ..RawApp::default()
    }
}

/// Of the regions that edgeproxy knows by itself the row says nothing: their countries and positions are part of what
/// is tested.
fn raw_region(place: &Place) -> RawRegion {
    let is_default = ["sa", "us", "eu", "ap"].contains(&place.name);
    let position = place.position.filter(|_| !is_default);
    let degrees = |degrees: Option<f64>| degrees.map_or(RawValue::Null, RawValue::Real);
    let its = COUNTRIES.iter().filter(|country| country.region == place.name && !is_default);
    let codes: Vec<&str> = its.map(|country| country.code).collect();
    RawRegion {
        name: place.name.into(),
        latitude: degrees(position.map(|position| position.0)),
        longitude: degrees(position.map(|position| position.1)),
        countries: codes.join(",").as_str().into(),
        ..RawRegion::default()
    }
}
