//! Admission: a slot of a backend is reserved *before* connecting and given back by dropping the permit.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::health::{Distrust, Vitals};
use super::room::{Seat, Standing, Trust};
use super::rtt::Rtt;
use super::{AppQueue, BackendAddr, Health, HealthRules, Limits, Phase};

/// Hands out the indices of the kernel's count map, each to one backend at a time.
#[derive(Debug)]
pub struct SlotPool {
    capacity: u32,
    state: Mutex<FreeSlots>,
}

#[derive(Debug, Default)]
struct FreeSlots {
    /// Indices from here up were never used.
    fresh: u32,
    returned: Vec<u32>,
}

impl SlotPool {
    /// A pool of the indices `0..capacity`.
    pub fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default() })
    }

    /// A free index, or `None` when `capacity` backends hold one.
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match state.returned.pop() {
            Some(index) => index,
            None if state.fresh < self.capacity => {
                state.fresh += 1;
                state.fresh - 1
            }
            None => return None,
        };
        Some(Slot { index, pool: Arc::clone(self) })
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// One index of the kernel's count map; free again when dropped.
#[derive(Debug)]
pub struct Slot {
    index: u32,
    pool: Arc<SlotPool>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.state.lock().unwrap_or_else(PoisonError::into_inner).returned.push(self.index);
    }
}

/// How many connections a backend carries. It outlives the snapshot that named the backend: permits hold it, so the
/// count is right across reloads and a slot isn't reused while a connection of its former owner lives.
#[derive(Debug)]
pub struct BackendLoad {
    slot: Slot,
    active: AtomicU32,
    /// The counts at which the backend comes to stand elsewhere, soft and hard limit in one number: most changes of
    /// the count make no difference to the groups and need not look for its seats.
    edges: AtomicU64,
    /// Those of the seats before: while a new snapshot is made, the old one still routes.
    former_edges: AtomicU64,
    seats: ArcSwap<Seats>,
    vitals: Vitals,
    rtt: Rtt,
    /// The address that the row in force says, hashed; 0 before there is one.
    address: AtomicU64,
    /// An operator has told this daemon to give it no new connections.
    draining: AtomicBool,
    /// Held by who tells the groups how far the backend is trusted.
    telling: Mutex<()>,
}

/// The places of a backend in the groups of the current snapshot, and of the one before: while a new snapshot is made,
/// the old one still routes.
#[derive(Debug, Default)]
struct Seats {
    now: Vec<Seat>,
    former: Vec<Seat>,
    /// Who waits for a place on this backend, among others of its app.
    queue: Option<Arc<AppQueue>>,
}

impl BackendLoad {
    pub fn new(slot: Slot) -> Arc<Self> {
        Arc::new(Self {
            slot,
            active: AtomicU32::new(0),
            edges: AtomicU64::new(0),
            former_edges: AtomicU64::new(0),
            seats: ArcSwap::default(),
            vitals: Vitals::default(),
            rtt: Rtt::default(),
            address: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            telling: Mutex::default(),
        })
    }

    /// Index of this backend in the kernel's count map.
    pub fn slot(&self) -> u32 {
        self.slot.index
    }

    /// Connections admitted now, those still connecting included.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::SeqCst)
    }

    /// Where the backend stands against `limits`; `None` if it can't be chosen.
    pub(super) fn standing(&self, limits: Limits) -> Option<Standing> {
        if self.is_draining() {
            return None;
        }
        Standing::of(limits, self.active(), self.distrust())
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Says whether the backend gets new connections, whatever the routing database says, and has the groups know.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
        self.turned(true);
    }

    /// Gives the backend its places in a new snapshot, all with the same limits, and the line of its app. Used by one
    /// reload at a time.
    pub(super) fn seat(&self, now: Vec<Seat>, queue: &Arc<AppQueue>) {
        let limits = now.first().map(|seat| seat.limits);
        let former = self.seats.load().now.clone();
        let seats = Arc::new(Seats { now, former, queue: Some(Arc::clone(queue)) });
        self.seats.store(Arc::clone(&seats));
        // Either a change of the count is seen by the refresh below, or its changer sees the new edges and seats. Who
        // sees the new edges sees those before as former ones, too.
        self.former_edges.store(self.edges.load(Ordering::SeqCst), Ordering::SeqCst);
        self.edges.store(limits.map_or(0, pack), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        seats.now.iter().for_each(|seat| seat.refresh(self));
        self.tell_trust();
    }

    /// Has the groups know how far the backend is trusted. What it reads is no older than what another has told.
    fn tell_trust(&self) {
        let _one_at_a_time = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let (seats, trust) = (self.seats.load(), self.trust());
        seats.now.iter().chain(&seats.former).for_each(|seat| seat.room.refresh_trust(seat.at, trust));
    }

    /// Tells the groups, where the change makes a difference to them.
    fn changed(&self, before: u32, after: u32) {
        // In this order: see `seat`.
        let (soft, hard) = unpack(self.edges.load(Ordering::SeqCst));
        let (former_soft, former_hard) = unpack(self.former_edges.load(Ordering::SeqCst));
        let crosses = |edge: u32| (before < edge) != (after < edge);
        if [soft, hard, former_soft, former_hard].into_iter().any(crosses) {
            self.refresh_seats();
        }
        // Only a backend that was full had nobody to take the place: else nobody would wait.
        if after < before && (crosses(hard) || crosses(former_hard)) {
            self.seats.load().queue.iter().for_each(|queue| queue.freed());
        }
    }

    fn refresh_seats(&self) {
        let seats = self.seats.load();
        seats.now.iter().chain(&seats.former).for_each(|seat| seat.refresh(self));
    }

    pub(super) fn distrust(&self) -> Option<Distrust> {
        self.vitals.distrust()
    }

    /// Not to be trusted with clients while another is left: it failed some.
    pub fn is_ejected(&self) -> bool {
        self.distrust() == Some(Distrust::Ejected)
    }

    /// Serves clients as it should: nothing is held against it, and it isn't draining.
    pub(super) fn is_trusted(&self) -> bool {
        self.trust() == Trust::Trusted
    }

    /// How far it is trusted, full or not.
    pub(super) fn trust(&self) -> Trust {
        match self.distrust() {
            _ if self.is_draining() => Trust::Out,
            None => Trust::Trusted,
            Some(Distrust::Ejected) => Trust::Ejected,
            Some(Distrust::Down) => Trust::Out,
        }
    }

    /// Its checks fail.
    pub fn is_down(&self) -> bool {
        self.distrust() == Some(Distrust::Down)
    }

    /// A row of this address has it, if none had it before.
    pub(super) fn begin_at(&self, address: BackendAddr) {
        let _ = self.address.compare_exchange(0, hash_of(address), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The row in force says this address. What was known of another one is forgotten by whoever says so.
    pub fn move_to(&self, address: BackendAddr) {
        self.address.store(hash_of(address), Ordering::SeqCst);
    }

    /// Whether it is this address that the row in force says.
    pub(super) fn is_at(&self, address: BackendAddr) -> bool {
        self.address.load(Ordering::SeqCst) == hash_of(address)
    }

    /// The backend has accepted a connection. One atomic step.
    pub fn accepted(&self, now: Instant) {
        self.vitals.accepted(now);
    }

    /// Whether it has accepted one later than `began`.
    pub fn has_accepted_since(&self, began: Instant) -> bool {
        self.vitals.has_accepted_since(began)
    }

    /// Whether nothing was ever said against the backend, or all is forgotten.
    pub fn is_spotless(&self) -> bool {
        self.vitals.is_spotless()
    }

    /// Looks at or changes the backend's health, and has the groups know. Says whether time has work to do, too.
    pub fn with_health<T>(
        &self,
        now: Instant,
        rules: &HealthRules,
        change: impl FnOnce(&mut Health) -> T,
    ) -> (T, bool) {
        let visit = self.vitals.with(now, rules, change);
        self.turned(visit.turned);
        (visit.result, visit.more)
    }

    /// Forgets what was known of the backend's health: it has become another one. `mattered` is called if something was
    /// known that did, while the health is held.
    pub fn forget_health(&self, mattered: impl FnOnce()) {
        let visit = self.vitals.forget(mattered);
        self.turned(visit.turned);
    }

    /// Has the groups and those who wait know that the trust in the backend has changed.
    fn turned(&self, turned: bool) {
        if turned {
            // Either a new seat is refreshed after this change, or it is found here.
            fence(Ordering::SeqCst);
            self.refresh_seats();
            self.tell_trust();
            // Who waits has a place more, or may have nothing to wait for.
            self.seats.load().queue.iter().for_each(|queue| queue.changed());
        }
    }

    /// What the backend's health has come to.
    pub fn phase(&self) -> Phase {
        self.vitals.look(Health::phase)
    }

    /// Looks at the backend's health without changing it.
    pub fn look<T>(&self, look: impl FnOnce(&Health) -> T) -> T {
        self.vitals.look(look)
    }

    /// Whether the backend, if it is coming back, gets this client.
    pub(super) fn admits(&self, random: impl FnOnce() -> u64) -> bool {
        self.vitals.admits(random)
    }

    /// How far it is.
    pub fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// Counts one more connection unless the hard limit is reached. Check and count are one atomic step, so no
    /// interleaving exceeds the limit.
    pub fn try_reserve(self: &Arc<Self>, limits: Limits) -> Option<Permit> {
        let admit = |active: u32| if limits.is_full(active) { None } else { active.checked_add(1) };
        let before = self.active.fetch_update(Ordering::SeqCst, Ordering::SeqCst, admit).ok()?;
        self.changed(before, before + 1);
        Some(Permit { load: Arc::clone(self) })
    }
}

fn pack(limits: Limits) -> u64 {
    u64::from(limits.soft()) << 32 | u64::from(limits.hard())
}

/// Soft and hard limit. 0 is no edge: no count is below it.
fn unpack(edges: u64) -> (u32, u32) {
    ((edges >> 32) as u32, edges as u32)
}

/// A reserved connection of one backend; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping the permit gives the place back"]
pub struct Permit {
    load: Arc<BackendLoad>,
}

impl Permit {
    pub fn load(&self) -> &Arc<BackendLoad> {
        &self.load
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.load.active.fetch_sub(1, Ordering::SeqCst);
        self.load.changed(before, before.saturating_sub(1));
    }
}

/// Never 0. Two addresses of one backend have the same by chance once in 2⁶³.
fn hash_of(address: BackendAddr) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(address) | 1
}

#[cfg(test)]
mod tests;
