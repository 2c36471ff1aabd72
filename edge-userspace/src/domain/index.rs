//! The routing table as the data path sees it: immutable, indexed by app and region when it is loaded.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::elsewhere::RegionTimes;
use super::maglev::{Entrant, Maglev};
use super::nearest::Nearest;
use super::random::spread;
use super::room::{Room, Seat, Trust};
use super::{
    AccessList, AppName, AppQueue, AppSpec, Backend, BackendId, BackendLoad, CheckSpec, Courtesy, Endpoints, Limits,
    Lobby, NextRegion, Overrides, Region, Regions, Selection,
};

/// One immutable, validated, indexed view of the routing database.
#[derive(Debug)]
pub struct Snapshot {
    generation: u64,
    apps: BTreeMap<AppName, Arc<AppIndex>>,
    world: World,
}

/// What the routing database says besides the backends.
#[derive(Debug, Default)]
pub struct World {
    pub regions: Arc<Regions>,
    /// How apps are to be served; those without a word here are served as by default.
    pub apps: HashMap<AppName, AppSpec>,
    pub endpoints: Endpoints,
    /// Where the operator says that prefixes are.
    pub overrides: Overrides,
    /// Who may connect.
    pub access: AccessList,
    /// Who waits for a place; the same for all snapshots of a routing table.
    pub lobby: Arc<Lobby>,
}

impl From<Regions> for World {
    fn from(regions: Regions) -> Self {
        Self { regions: Arc::new(regions), ..Self::default() }
    }
}

impl Snapshot {
    /// Indexes `backends`, whose ids are distinct. `generation` grows with every snapshot; it also seeds the
    /// sequences by which near-ties are broken, so that frequent reloads don't start the same sequence again.
    pub fn new(generation: u64, backends: Vec<Arc<Backend>>, world: impl Into<World>) -> Self {
        Self::made(generation, backends, world.into(), None)
    }

    /// The snapshot after `last`. Apps in which nothing has changed keep their index.
    pub fn following(last: &Self, backends: Vec<Arc<Backend>>, world: World) -> Self {
        Self::made(last.generation + 1, backends, world, Some(last))
    }

    fn made(generation: u64, backends: Vec<Arc<Backend>>, world: World, last: Option<&Self>) -> Self {
        let many = backends.len() >= SHARED_WORK;
        let mut by_app: HashMap<AppName, Vec<Arc<Backend>>, foldhash::fast::RandomState> = HashMap::default();
        let mut courtesy = Courtesy::among_many();
        for backend in backends {
            courtesy.pass();
            match by_app.get_mut(&backend.app) {
                Some(backends) => backends.push(backend),
                None => _ = by_app.insert(backend.app.clone(), vec![backend]),
            }
        }
        // An index knows the regions by their place in a table.
        let last = last.filter(|last| Arc::ptr_eq(&last.world.regions, &world.regions));
        let index = |(name, backends): (AppName, Vec<_>)| {
            let spec = world.apps.get(&name).cloned().unwrap_or_else(|| AppSpec::new(name.clone()));
            let known = last.and_then(|last| last.apps.get(&name)).filter(|app| app.is_of(&spec, &backends));
            let app = known.cloned().unwrap_or_else(|| Arc::new(AppIndex::new(spec, backends, &world, generation)));
            (name, app)
        };
        let apps = made_by_two(by_app.into_iter(), index, many);
        Self { generation, apps, world }
    }

    /// A table without backends, as before the first load.
    pub fn empty() -> Self {
        Self::new(0, Vec::new(), Regions::default())
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn app(&self, name: &AppName) -> Option<&AppIndex> {
        self.apps.get(name).map(|app| &**app)
    }

    /// The app, if there is exactly one: where a listener that names none leads to.
    pub fn sole_app(&self) -> Option<&AppName> {
        match self.apps.len() {
            1 => self.apps.keys().next(),
            _ => None,
        }
    }

    pub fn apps(&self) -> impl ExactSizeIterator<Item = &AppIndex> {
        self.apps.values().map(|app| &**app)
    }

    /// How many backends there are.
    pub fn len(&self) -> usize {
        self.apps.values().map(|app| app.backends.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.apps.is_empty()
    }

    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.apps.values().flat_map(|app| &app.backends)
    }

    /// The regions of the backends that take new clients, app by app: one of the backends in each, and how many they are.
    pub fn stock(&self) -> impl Iterator<Item = (&Region, &Arc<Backend>, usize)> {
        self.apps
            .values()
            .flat_map(|app| app.groups())
            .filter_map(|group| Some((group.region.as_ref()?, &group.members.first()?.backend, group.members.len())))
    }

    /// Backends with the mark `same_host`. Costs nothing where none is.
    pub fn same_host(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let apps = self.apps.values().filter(|app| app.same_host);
        apps.flat_map(|app| &app.backends).filter(|backend| backend.same_host)
    }

    pub fn backend(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.apps.values().find_map(|app| app.backend(id))
    }

    pub fn regions(&self) -> &Regions {
        &self.world.regions
    }

    /// Where the routing database says that prefixes are.
    pub fn overrides(&self) -> &Overrides {
        &self.world.overrides
    }

    /// Who may connect.
    pub fn access(&self) -> &AccessList {
        &self.world.access
    }

    /// Where the routing database expects clients.
    pub fn endpoints(&self) -> &Endpoints {
        &self.world.endpoints
    }
}

impl Drop for Snapshot {
    /// The thread that does it frees what may be 100,000 backends.
    fn drop(&mut self) {
        let mut courtesy = Courtesy::among_few();
        std::mem::take(&mut self.apps).into_values().for_each(|_| courtesy.pass());
    }
}

impl Drop for AppIndex {
    fn drop(&mut self) {
        let mut courtesy = Courtesy::among_many();
        let groups = self.groups.iter_mut().chain(&mut self.unplaced).chain(&mut self.everywhere);
        groups.flat_map(|group| std::mem::take(&mut group.members)).for_each(|_| courtesy.pass());
        std::mem::take(&mut self.backends).into_iter().for_each(|_| courtesy.pass());
        std::mem::take(&mut self.by_id).into_values().for_each(|_| courtesy.pass());
    }
}

/// From so many backends on, two threads make the indexes of a snapshot.
const SHARED_WORK: usize = 2_000;

/// Makes something of each item, on this thread and, where it is worth it and can be had, on another one.
fn made_by_two<T: Send, K: Ord + Send, V: Send>(
    items: impl Iterator<Item = T> + Send,
    make: impl Fn(T) -> (K, V) + Sync,
    worth_it: bool,
) -> BTreeMap<K, V> {
    let queue = Mutex::new(items);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut courtesy = Courtesy::among_few();
        std::iter::from_fn(next).inspect(|_| courtesy.pass()).map(&make).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let start = || {
            std::thread::Builder::new().name("edge-index".into()).spawn_scoped(scope, Courtesy::inherited(work)).ok()
        };
        let other = worth_it.then(start).flatten();
        let own = work();
        let others = other.map(|thread| thread.join().unwrap_or_else(|why| std::panic::resume_unwind(why)));
        own.into_iter().chain(others.into_iter().flatten()).collect()
    })
}

/// The backends of one app, by id and by region.
#[derive(Debug)]
pub struct AppIndex {
    spec: AppSpec,
    queue: Arc<AppQueue>,
    backends: Vec<Arc<Backend>>,
    /// The operator chooses the ids: nobody can choose them to collide.
    by_id: HashMap<BackendId, Arc<Backend>, foldhash::fast::RandomState>,
    /// Backends that take new clients, by region; sorted by the region's name. Regions without any are left out.
    groups: Vec<Group>,
    /// The members of groups whose region has no position, as one group: nothing tells them apart.
    unplaced: Option<Group>,
    /// The members of all groups, for requests from regions without a position.
    everywhere: Option<Group>,
    /// Who of `everywhere` is near, in apps that choose by measured times.
    nearest: Option<Nearest>,
    /// How near the regions are, in apps in which the next one goes by measured times.
    region_times: Option<RegionTimes>,
    /// Whether any of the backends is checked.
    checks: bool,
    /// Whether any of them is on this host.
    same_host: bool,
}

impl AppIndex {
    fn new(spec: AppSpec, backends: Vec<Arc<Backend>>, world: &World, generation: u64) -> Self {
        let (regions, queue) = (&world.regions, world.lobby.queue(&spec.name));
        let mut courtesy = Courtesy::among_many();
        let each = backends.iter().inspect(|_| courtesy.pass());
        let by_id = each.map(|backend| (backend.id.clone(), Arc::clone(backend))).collect();
        let mut by_region: BTreeMap<&Region, Vec<usize>> = BTreeMap::new();
        for (at, backend) in backends.iter().enumerate().filter(|(_, backend)| backend.closed_to_new().is_none()) {
            courtesy.pass();
            by_region.entry(&backend.region).or_default().push(at);
        }
        let mut seed = generation;
        let mut seats: Vec<Vec<Seat>> = vec![Vec::new(); backends.len()];
        let mut group = |region: Option<&Region>, members: &[usize]| {
            seed = spread(seed);
            Group::new(region, members, &backends, &mut seats, (regions, seed))
        };
        let is_placed = |region: &Region| regions.index_of(region).is_some_and(|at| regions.has_position(at));
        let unplaced: Vec<usize> =
            by_region.iter().filter(|(region, _)| !is_placed(region)).flat_map(|(_, of)| of).copied().collect();
        let everywhere: Vec<usize> = by_region.values().flatten().copied().collect();
        let unplaced = (!unplaced.is_empty()).then(|| group(None, &unplaced));
        let everywhere = (!everywhere.is_empty()).then(|| group(None, &everywhere));
        let mut groups: Vec<Group> = by_region.iter().map(|(region, members)| group(Some(region), members)).collect();
        let (mut unplaced, mut everywhere) = (unplaced, everywhere);
        if spec.selection == Selection::Maglev {
            let mut tables = Tables { backends: &backends, made: Vec::new() };
            unplaced.iter_mut().for_each(|group| tables.give(group, |backend| !is_placed(&backend.region)));
            everywhere.iter_mut().for_each(|group| tables.give(group, |_| true));
            for group in &mut groups {
                let region = group.region.clone();
                tables.give(group, |backend| region.as_ref() == Some(&backend.region));
            }
        }
        let by_rtt = everywhere.as_ref().filter(|_| spec.selection == Selection::NearestRtt);
        let nearest = by_rtt.map(Nearest::of);
        let region_times = (spec.next_region == NextRegion::Rtt).then(|| RegionTimes::of(&groups));
        // Those without a seat, too: they lose the ones they had.
        let each = backends.iter().zip(seats).inspect(|_| courtesy.pass());
        each.for_each(|(backend, seats)| backend.load.seat(seats, &queue));
        let same_host = backends.iter().inspect(|_| courtesy.pass()).any(|backend| backend.same_host);
        let mut index = Self {
            spec,
            queue,
            backends,
            by_id,
            groups,
            unplaced,
            everywhere,
            nearest,
            region_times,
            checks: false,
            same_host,
        };
        let mut each = index.backends.iter().inspect(|_| courtesy.pass());
        index.checks = each.any(|backend| index.check_of(backend).is_some());
        index
    }

    /// Whether an index of these would be the same. Backends that haven't changed are the same ones in memory.
    fn is_of(&self, spec: &AppSpec, backends: &[Arc<Backend>]) -> bool {
        let same = || self.backends.iter().zip(backends).all(|(one, other)| Arc::ptr_eq(one, other));
        self.spec == *spec && self.backends.len() == backends.len() && same()
    }

    pub fn name(&self) -> &AppName {
        &self.spec.name
    }

    /// How the app is to be served.
    pub fn spec(&self) -> &AppSpec {
        &self.spec
    }

    /// Who waits for a place on a backend of the app.
    pub fn queue(&self) -> &Arc<AppQueue> {
        &self.queue
    }

    /// Whether a backend that takes new clients is below its hard limit.
    pub fn has_room(&self) -> bool {
        self.everywhere.as_ref().is_some_and(|group| group.room.has_any(self.spec.queue.length > 0))
    }

    pub(super) fn nearest(&self) -> Option<&Nearest> {
        self.nearest.as_ref()
    }

    pub(super) fn region_times(&self) -> Option<&RegionTimes> {
        self.region_times.as_ref()
    }

    /// Ranks backends and regions by the round-trip times known at `now`, where the app wants it. To be called about once a
    /// second, off the data path.
    pub fn rank(&self, now: Instant) {
        if self.spec.selection != Selection::NearestRtt && self.region_times.is_none() {
            return;
        }
        // Of those that take no clients at the moment, too: they may be back before the next ranking.
        self.backends.iter().for_each(|backend| backend.load.rtt().expire(now));
        if let (Some(nearest), Some(group)) = (&self.nearest, &self.everywhere) {
            nearest.rank(group, now);
        }
        self.region_times.iter().for_each(|times| times.rank(&self.groups));
    }

    /// All backends of the app, whatever their state.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    pub fn backend(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.by_id.get(id)
    }

    /// How one of the app's backends is checked: as it says itself, else as the app says; `None`: not.
    pub fn check_of<'a>(&'a self, backend: &'a Backend) -> Option<&'a Arc<CheckSpec>> {
        backend.health_check.as_ref().or(self.spec.health_check.as_ref())?.spec()
    }

    /// The backends that are checked, and how. Costs nothing where none is.
    pub fn checked(&self) -> impl Iterator<Item = (&Arc<Backend>, &Arc<CheckSpec>)> {
        let backends = if self.checks { self.backends.as_slice() } else { &[] };
        backends.iter().filter_map(|backend| Some((backend, self.check_of(backend)?)))
    }

    /// How many backends are ejected beside `one`, and of how many. Costs a look at two words for each 64 backends.
    pub fn ejections_beside(&self, one: &Backend) -> Ejections {
        let (trusted, ejected) = self.everywhere.as_ref().map_or((0, 0), |group| group.room.count());
        let own = one.closed_to_new().is_none() && one.load.trust() == Trust::Ejected;
        Ejections { serving: trusted + ejected, others: ejected.saturating_sub(usize::from(own)), own }
    }

    /// Whether all that the operator has in service are out by their checks or by what clients say: then those whose
    /// checks fail are asked, too. A check that is wrong must not take an app off the air.
    pub fn fails_open(&self) -> bool {
        let asked = |member: &Member| member.load.distrust().is_some() && !member.load.is_draining();
        // The members are looked at only where there is trouble, and then the first one will mostly do.
        self.everywhere.as_ref().is_some_and(|group| group.room.trusts_nobody() && group.members.iter().any(asked))
    }

    pub(super) fn group(&self, region: &Region) -> Option<&Group> {
        self.groups.get(self.group_at(region)?)
    }

    /// The place of a region's group.
    pub(super) fn group_at(&self, region: &Region) -> Option<usize> {
        self.groups.binary_search_by(|group| group.region.as_ref().cmp(&Some(region))).ok()
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn unplaced(&self) -> Option<&Group> {
        self.unplaced.as_ref()
    }

    pub(super) fn everywhere(&self) -> Option<&Group> {
        self.everywhere.as_ref()
    }
}

/// Of those that the operator has in service and whose checks don't fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejections {
    /// All of them.
    pub serving: usize,
    /// Those that are ejected, but for the one that is asked about.
    pub others: usize,
    /// Whether that one is ejected, too.
    pub own: bool,
}

/// Backends that take new clients and between which geography makes no difference.
#[derive(Debug)]
pub(super) struct Group {
    /// `None` for groups of several regions.
    pub(super) region: Option<Region>,
    /// The region's place in [`Regions`], if it has a position.
    pub(super) place: Option<usize>,
    pub(super) members: Vec<Member>,
    /// Which members can be chosen now.
    pub(super) room: Arc<Room>,
    /// Where clients belong, in apps that hash them.
    pub(super) maglev: Option<Arc<Maglev>>,
    /// State of the low-discrepancy sequence that spreads first choices over the members.
    pub(super) sequence: AtomicU64,
}

impl Group {
    /// Makes a group of some of `backends`, and notes the seat of each.
    fn new(
        region: Option<&Region>,
        members: &[usize],
        backends: &[Arc<Backend>],
        seats: &mut [Vec<Seat>],
        (regions, seed): (&Regions, u64),
    ) -> Self {
        let mut courtesy = Courtesy::among_many();
        let backends = members.iter().inspect(|_| courtesy.pass()).filter_map(|at| backends.get(*at));
        let chosen: Vec<Member> = backends.map(Member::new).collect();
        let room = Arc::new(Room::new(chosen.iter().map(|member| member.weight).collect()));
        for (at, (member, of)) in chosen.iter().zip(members).enumerate() {
            courtesy.pass();
            let seat = Seat { room: Arc::clone(&room), at, limits: member.limits };
            seats.get_mut(*of).into_iter().for_each(|seats| seats.push(seat.clone()));
        }
        Self {
            region: region.cloned(),
            place: region.and_then(|region| regions.index_of(region)).filter(|at| regions.has_position(*at)),
            members: chosen,
            room,
            maglev: None,
            sequence: AtomicU64::new(seed),
        }
    }
}

/// The tables of an app that hashes clients. Groups of the same backends share one: most apps have one region.
struct Tables<'a> {
    backends: &'a [Arc<Backend>],
    made: Vec<(Vec<Entrant<'a>>, Arc<Maglev>)>,
}

impl<'a> Tables<'a> {
    /// The group's table is of those of the app's backends that belong to it, be they in service or not. Weight 0 has no
    /// share.
    fn give(&mut self, group: &mut Group, belongs: impl Fn(&Backend) -> bool) {
        let places: HashMap<&BackendId, usize> =
            group.members.iter().enumerate().map(|(at, member)| (&member.backend.id, at)).collect();
        let shares = self.backends.iter().filter(|backend| backend.weight.0 > 0 && belongs(backend));
        let entrant = |backend: &'a Arc<Backend>| Entrant {
            id: backend.id.as_str(),
            weight: backend.weight.0,
            member: places.get(&backend.id).copied(),
        };
        let entrants: Vec<_> = shares.map(entrant).collect();
        let known = self.made.iter().find(|(of, _)| *of == entrants).map(|(_, table)| Arc::clone(table));
        let table = known.unwrap_or_else(|| {
            let table = Arc::new(Maglev::new(entrants.clone()));
            self.made.push((entrants, Arc::clone(&table)));
            table
        });
        group.maglev = Some(table);
    }
}

/// What choosing needs of a backend, side by side in memory.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) backend: Arc<Backend>,
    pub(super) load: Arc<BackendLoad>,
    pub(super) limits: Limits,
    /// At least 1.
    pub(super) weight: u32,
}

impl Member {
    fn new(backend: &Arc<Backend>) -> Self {
        Self {
            backend: Arc::clone(backend),
            load: Arc::clone(&backend.load),
            limits: backend.limits,
            weight: backend.weight.0.max(1),
        }
    }
}

#[cfg(test)]
mod tests;
