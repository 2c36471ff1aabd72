//! The use case behind "why?": how a connection from a client would be routed now, found by the parts that route.
//! Reserves nothing and leaves the client's binding as it is.

mod limits;
mod target;

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::admission::Admission;
use super::drain::Connections;
use super::listening::Listening;
use super::locate::Location;
use super::ports::{Bindings, GeoResolver};
use super::queue::{NoPlace, waits_behind};
use super::routing::RoutingTable;
use super::serve::Rules;
use super::status::QueueStatus;
use crate::domain::{
    AppName, ClientAddr, ListenerSpec, NoBackend, Plan, PlanEntry, Position, RandomSource, RejectReason, Request,
    Snapshot, Spot, Tried, explain,
};

pub use self::limits::{ClientLimits, Places, SourcePlaces};
pub use self::target::{Target, TargetError};

/// Everything an answer is made of.
#[allow(missing_debug_implementations, reason = "ports need not be printable")]
pub struct Oracle<'a> {
    pub routing: &'a RoutingTable,
    pub geo: &'a dyn GeoResolver,
    pub bindings: &'a dyn Bindings,
    pub rules: &'a Rules,
    pub listening: &'a Listening,
    pub connections: &'a Connections,
    pub admission: &'a Admission,
}

/// The shape of `GET /api/v1/explain` and of `edgeproxy explain --json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub client: String,
    pub country: Option<String>,
    /// Where this came from: `override`, `database`, `private`, `reserved`, `unknown`.
    pub geo_source: String,
    pub client_region: Option<String>,
    /// Latitude and longitude in degrees, where the geo data has them: from there distances are measured.
    #[serde(default)]
    pub client_position: Option<(f64, f64)>,
    pub pop_region: String,
    /// Where it would arrive and the listener that leads to the app; `None` where the question names the app itself.
    pub place: Option<String>,
    /// Why nobody can connect there: the listener is not open.
    #[serde(default)]
    pub closed: Option<String>,
    pub listener: Option<String>,
    pub server_name: Option<String>,
    /// `None` where the listeners lead to no app.
    pub app: Option<String>,
    /// How the app's backends are chosen: `least_load`, `maglev`, `nearest_rtt`.
    #[serde(default)]
    pub selection: Option<String>,
    /// By what the regions go now that are neither the client's nor this POP's: `position` or `rtt`.
    #[serde(default)]
    pub next_region: Option<String>,
    /// Generation of the routing snapshot that was asked.
    pub generation: u64,
    /// The backend the client is bound to, and why the binding yields if it does.
    pub bound: Option<String>,
    pub binding_yielded: Option<String>,
    /// The backend of the next connection, and why this one. Near-ties are broken by chance.
    pub winner: Option<String>,
    pub why: Option<String>,
    /// The reject reason, if there is no winner: the first that the connection would meet. `all_full` also of one that waits.
    pub refused: Option<String>,
    /// What the limits say to it.
    #[serde(default)]
    pub limits: Option<ClientLimits>,
    /// The rule of the table `acl` that keeps the client away; rules of single listeners are left out.
    pub denied_by: Option<String>,
    /// The app's queue, if it has one.
    pub queue: Option<QueueStatus>,
    /// How many of those who wait in it have their turn before the next connection, which waits, too; `None`: it does not.
    /// The winner is then the backend that has a place now.
    #[serde(default)]
    pub waits_behind: Option<u64>,
    /// Who would be tried one after the other while connects fail; the winner is the first. Of a client that a limit
    /// refuses: if it were not for that.
    pub order: Vec<Step>,
    /// Every backend of the app, best first; those that are out come last.
    pub candidates: Vec<Candidate>,
}

/// One connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub backend: String,
    pub why: String,
}

/// One backend as the client's connection sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub id: String,
    pub addr: String,
    pub region: String,
    pub country: Option<String>,
    /// `ready`, `drain` or `maint`.
    pub state: String,
    pub healthy: bool,
    pub weight: u32,
    pub soft_limit: u32,
    /// 0 = unlimited.
    pub hard_limit: u32,
    pub connections: u32,
    /// 0 the client's region, 1 this POP's, 2 elsewhere.
    pub region_score: u8,
    /// From the client (or its region, or this POP's), where both have a position.
    pub distance_km: Option<f64>,
    /// Connections ÷ soft limit.
    pub load_factor: f64,
    /// Region score × 100 + load factor ÷ weight; lower is better.
    pub score: f64,
    /// Measured round-trip time to it; `None`: nobody has measured it lately.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// At or above the soft limit: others of the same region score go first.
    pub over_soft: bool,
    /// Why it is out.
    pub out: Option<String>,
    /// What its connections and checks say (`up`, `ejected`, `slow_start`, `down`), and the last check in words.
    pub health: String,
    pub last_check: Option<String>,
}

impl Oracle<'_> {
    /// How a connection of `client` to `target` would be routed.
    pub fn explain(
        &self,
        client: ClientAddr,
        target: &Target,
        rng: &mut dyn RandomSource,
    ) -> Result<Explanation, TargetError> {
        let snapshot = self.routing.snapshot();
        let asked = target.find(client, self.rules, &snapshot)?;
        let found = self.rules.locator(self.geo, &snapshot).locate(client);
        let mut explanation = Explanation {
            client: client.to_string(),
            country: found.country.map(|country| country.as_str().to_owned()),
            geo_source: found.source.as_str().to_owned(),
            client_region: found.region.as_ref().map(ToString::to_string),
            client_position: found.position.map(Position::degrees),
            pop_region: self.rules.pop_region.to_string(),
            generation: snapshot.generation(),
            place: asked.endpoint.as_ref().map(|endpoint| endpoint.spot.to_string()),
            closed: asked.endpoint.as_ref().and_then(|endpoint| self.closed(&endpoint.spot)),
            listener: asked.listener.as_ref().map(|listener| listener.id.to_string()),
            server_name: target.server_name.as_ref().map(ToString::to_string),
            app: asked.app.as_ref().map(ToString::to_string),
            ..Explanation::default()
        };
        match &asked.app {
            Some(app) => self.route((client, &found, asked.listener.as_deref()), app, &snapshot, rng, &mut explanation),
            None => explanation.refused = Some(asked.refused.unwrap_or(RejectReason::NoApp).as_str().to_owned()),
        }
        explanation.obey(ClientLimits::of(self, client, asked.listener.as_deref(), Instant::now()));
        Ok(explanation)
    }

    /// Why nobody is at the spot.
    fn closed(&self, spot: &Spot) -> Option<String> {
        let closed = self.listening.of(spot).filter(|state| !state.open)?;
        Some(closed.why.unwrap_or_else(|| "it is not open".to_owned()))
    }

    /// From the app on: may the client enter, and which backend would it get?
    fn route(
        &self,
        (client, found, listener): (ClientAddr, &Location, Option<&ListenerSpec>),
        app: &AppName,
        snapshot: &Snapshot,
        rng: &mut dyn RandomSource,
        explanation: &mut Explanation,
    ) {
        if let Some(rule) = snapshot.access().denies(client, listener.map(|listener| &listener.id), app) {
            explanation.denied_by = Some(rule.to_string());
            explanation.refused = Some(RejectReason::Denied.as_str().to_owned());
            return;
        }
        let Some(index) = snapshot.app(app) else {
            explanation.refused = Some(NoBackend::NoSuchApp.as_str().to_owned());
            return;
        };
        explanation.queue = QueueStatus::of(index);
        let key = self.rules.affinity.key(app, client);
        let bound = index.spec().affinity.binds().then(|| self.bindings.peek(&key)).flatten();
        let request = Request {
            client_region: found.region.as_ref(),
            client_position: found.position,
            pop_region: &self.rules.pop_region,
            client: Some(&key.client),
            bound: bound.as_ref(),
        };
        let attempts = self.rules.connect_attempts;
        let plan = explain(index, snapshot.regions(), &request, &Tried::new(), attempts, rng);
        let found = plan.refused.map_or(Ok(()), Err);
        explanation.take_over(plan);
        match waits_behind(index, &self.admission.prefix(client), &request, found) {
            Ok(waits_behind) => explanation.waits_behind = waits_behind.map(|others| others as u64),
            Err(NoPlace::QueueFull) => explanation.refuse(RejectReason::QueueFull.as_str().to_owned()),
            // Known from the plan, or the daemon is ending.
            Err(_) => {}
        }
    }
}

impl Explanation {
    /// Whether the client would be let in and a backend be found.
    pub fn succeeds(&self) -> bool {
        self.winner.is_some() && self.closed.is_none()
    }

    /// Has the limits refuse the connection, where one does before anything else does.
    fn obey(&mut self, limits: ClientLimits) {
        let comes_to_listener = self.app.is_some() && self.denied_by.is_none();
        let last = || limits.refuse_last().filter(|_| comes_to_listener);
        if let Some(why) = limits.refuse_first().or_else(last) {
            self.refuse(why.clone());
        }
        self.limits = Some(limits);
    }

    /// Before it would have a backend, or wait for one.
    fn refuse(&mut self, why: String) {
        (self.winner, self.why, self.waits_behind, self.refused) = (None, None, None, Some(why));
    }

    fn take_over(&mut self, plan: Plan) {
        self.selection = Some(plan.selection.to_string());
        self.next_region = Some(plan.next_region.to_string());
        self.bound = plan.bound.map(|id| id.to_string());
        self.binding_yielded = plan.binding_yielded.map(|skip| skip.to_string());
        self.winner = plan.winner.map(|id| id.to_string());
        self.why = plan.reason.map(|reason| reason.to_string());
        self.refused = plan.refused.map(|why| why.as_str().to_owned());
        self.order =
            plan.order.iter().map(|(id, why)| Step { backend: id.to_string(), why: why.to_string() }).collect();
        self.candidates = plan.entries.iter().map(Candidate::from).collect();
    }
}

impl From<&PlanEntry> for Candidate {
    fn from(entry: &PlanEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            addr: entry.addr.to_string(),
            region: entry.region.to_string(),
            country: entry.country.map(|country| country.as_str().to_owned()),
            state: entry.state.to_string(),
            healthy: entry.healthy,
            weight: entry.weight.0,
            soft_limit: entry.soft_limit,
            hard_limit: entry.hard_limit,
            connections: entry.active,
            region_score: entry.region_score,
            distance_km: entry.distance_km,
            load_factor: entry.load_factor,
            score: entry.score,
            rtt_ms: entry.rtt.map(super::status::millis),
            over_soft: entry.over_soft,
            out: entry.skip.map(|skip| skip.to_string()),
            health: entry.phase.as_str().to_owned(),
            last_check: entry.last_check.clone(),
        }
    }
}
