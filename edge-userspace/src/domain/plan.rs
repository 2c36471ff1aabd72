//! The answer to "why?": every backend of an app with its score, or the reason it is out, by the code that routes.

use std::sync::Arc;
use std::time::Duration;

use super::elsewhere::origin;
use super::group::Draw;
use super::maglev::ClientHash;
use super::select::{choose, distrusted, honoured, why_none};
use super::{
    AppIndex, AppName, Backend, BackendAddr, BackendId, BackendState, CountryCode, NextRegion, NoBackend, Phase,
    PickReason, RandomSource, Region, Regions, Request, Selection, Skip, Tried, Weight,
};

/// Load never outranks geography: its part of the score stays below the 100 that part two regions.
const MAX_LOAD_SCORE: f64 = 99.999;

/// How a connection would be routed now.
#[derive(Debug, Clone)]
pub struct Plan {
    pub app: AppName,
    /// How the app's backends are chosen.
    pub selection: Selection,
    /// By what the regions go now that are neither the client's nor this POP's.
    pub next_region: NextRegion,
    pub client_region: Option<Region>,
    pub pop_region: Region,
    /// The binding of the client, and why it yields if it does.
    pub bound: Option<BackendId>,
    pub binding_yielded: Option<Skip>,
    /// The next connection's backend. Near-ties are broken by chance: a later connection may get another one of the
    /// same score class.
    pub winner: Option<BackendId>,
    pub reason: Option<PickReason>,
    /// Set if there is no winner.
    pub refused: Option<NoBackend>,
    /// Who is tried one after the other while connects fail; the winner is the first. Chance breaks near-ties here,
    /// too.
    pub order: Vec<(BackendId, PickReason)>,
    /// Best first; those that are out come last.
    pub entries: Vec<PlanEntry>,
}

/// One backend as one connection sees it.
#[derive(Debug, Clone)]
pub struct PlanEntry {
    pub id: BackendId,
    pub addr: BackendAddr,
    pub region: Region,
    pub country: Option<CountryCode>,
    pub state: BackendState,
    pub healthy: bool,
    pub weight: Weight,
    pub soft_limit: u32,
    pub hard_limit: u32,
    /// Connections now.
    pub active: u32,
    /// 0 the client's region, 1 this POP's, 2 elsewhere.
    pub region_score: u8,
    /// Of its region by measured time, 0 the nearest; 0 for all where times don't count.
    pub region_place: u32,
    /// From the client (or its region, or this POP's) to the backend's region, where both have a position.
    pub distance_km: Option<f64>,
    /// Connections ÷ soft limit.
    pub load_factor: f64,
    /// Region score × 100 + load factor ÷ weight; lower is better.
    pub score: f64,
    /// Measured round-trip time.
    pub rtt: Option<Duration>,
    /// At or above the soft limit: others of the same region score go first.
    pub over_soft: bool,
    /// Why it is out for a new client.
    pub skip: Option<Skip>,
    /// What its connections and its checks say, and the last check in words.
    pub phase: Phase,
    pub last_check: Option<String>,
}

/// Explains what [`pick`](super::pick) would do with the loads of this moment, for up to `attempts` connects.
/// Reserves nothing and changes nothing.
pub fn explain(
    app: &AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    tried: &Tried,
    attempts: usize,
    rng: &mut dyn RandomSource,
) -> Plan {
    let order = order_of_attempts(app, regions, request, tried, attempts, rng);
    let (winner, reason) = order.first().cloned().unzip();
    let places = app.places();
    let place =
        |region: &Region| places.as_ref().and_then(|places| places.get(app.group_at(region)?)).unwrap_or_default();
    let entry = |backend: &Arc<Backend>| PlanEntry {
        region_place: place(&backend.region),
        ..entry(app, backend, regions, request, tried)
    };
    let mut entries: Vec<PlanEntry> = app.backends().iter().map(entry).collect();
    let by_rtt = app.spec().selection == Selection::NearestRtt;
    let rank = |entry: &PlanEntry| if by_rtt { rank_by_rtt(entry) } else { rank(entry) };
    entries.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal).then(a.id.cmp(&b.id)));
    Plan {
        app: app.name().clone(),
        selection: app.spec().selection,
        next_region: if places.is_some() { NextRegion::Rtt } else { NextRegion::Position },
        client_region: request.client_region.cloned(),
        pop_region: request.pop_region.clone(),
        bound: request.bound.cloned(),
        binding_yielded: request.bound.and_then(|id| honoured(app, regions, request, id, tried, rng).err()),
        refused: winner.is_none().then(|| why_none(app, tried)),
        winner,
        reason,
        order,
        entries,
    }
}

/// What `pick` would return if every connect failed.
fn order_of_attempts(
    app: &AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    tried: &Tried,
    attempts: usize,
    rng: &mut dyn RandomSource,
) -> Vec<(BackendId, PickReason)> {
    let mut tried = tried.clone();
    let client = request.client.map(ClientHash::of);
    let mut order = Vec::new();
    while order.len() < attempts {
        let honoured = request.bound.and_then(|id| honoured(app, regions, request, id, &tried, rng).ok());
        let next = match honoured {
            Some(backend) => Some((backend, PickReason::Affinity)),
            None => choose(app, regions, request, &mut Draw { rng: &mut *rng, tried: &tried, client, advance: false })
                .map(|(member, reason)| (&member.backend, reason)),
        };
        let Some((backend, reason)) = next else { break };
        tried.push(backend);
        order.push((backend.id.clone(), reason));
    }
    order
}

/// Sort key: the order in which [`pick`](super::pick) considers backends.
fn rank(entry: &PlanEntry) -> Rank {
    let (place, distance) = match entry.region_score {
        2 => (entry.region_place, entry.distance_km.unwrap_or(f64::INFINITY)),
        _ => (0, 0.0),
    };
    (entry.skip.is_some(), entry.region_score, entry.over_soft, place, distance, entry.score)
}

type Rank = (bool, u8, bool, u32, f64, f64);

/// The same in apps that choose by measured time; those that are not measured come after.
fn rank_by_rtt(entry: &PlanEntry) -> Rank {
    let (skip, _, over_soft, _, _, score) = rank(entry);
    (skip, 0, over_soft, 0, entry.rtt.map_or(f64::INFINITY, |rtt| rtt.as_secs_f64()), score)
}

fn entry(app: &AppIndex, backend: &Arc<Backend>, regions: &Regions, request: &Request<'_>, tried: &Tried) -> PlanEntry {
    let active = backend.load.active();
    let region_score = region_score(&backend.region, request);
    let load_score = backend.relative_load(active).min(MAX_LOAD_SCORE);
    PlanEntry {
        id: backend.id.clone(),
        addr: backend.addr,
        region: backend.region.clone(),
        country: backend.country,
        state: backend.state,
        healthy: backend.healthy,
        weight: backend.weight,
        soft_limit: backend.limits.soft(),
        hard_limit: backend.limits.hard(),
        active,
        region_score,
        region_place: 0,
        distance_km: distance(&backend.region, regions, request),
        load_factor: backend.limits.load_factor(active),
        score: f64::from(region_score) * 100.0 + load_score,
        rtt: backend.load.rtt().last(),
        over_soft: backend.limits.is_over_soft(active),
        skip: skip(app, backend, active, tried),
        phase: backend.load.phase(),
        last_check: backend.load.look(|health| health.checked().last.as_ref().map(|(report, _)| report.words())),
    }
}

fn region_score(region: &Region, request: &Request<'_>) -> u8 {
    if request.client_region == Some(region) {
        0
    } else if request.pop_region == region {
        1
    } else {
        2
    }
}

fn distance(region: &Region, regions: &Regions, request: &Request<'_>) -> Option<f64> {
    regions.distance_at(&origin(regions, request)?, regions.index_of(region)?)
}

fn skip(app: &AppIndex, backend: &Backend, active: u32, tried: &Tried) -> Option<Skip> {
    backend
        .closed_to_new()
        .or_else(|| backend.load.is_draining().then_some(Skip::Drain))
        .or_else(|| tried.contains(backend).then_some(Skip::Tried))
        .or_else(|| distrusted(app, backend))
        .or_else(|| backend.limits.is_full(active).then_some(Skip::AtHardLimit))
}

#[cfg(test)]
mod tests;
