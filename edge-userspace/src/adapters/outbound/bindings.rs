//! Which backend a client was given: a capped table whose entries end by time.

mod file;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::application::bindings::{Bound, Wanted};
use crate::application::ports::Bindings;
use crate::domain::{BackendId, BindingKey};

pub use self::file::{BindingFile, BindingFileError, Saved};

/// Entries one queue is meant for: it bounds how long [`BindingTable::gc`] holds a lock.
const QUEUE_SHARE: usize = 1024;
const MAX_QUEUES: usize = 1024;

/// Bindings looked at to find one to give up.
const MAX_LOOKS: usize = 64;

/// Monotonic time, passed in so that tests need no sleeping.
pub trait Clock: Send + Sync {
    fn now(&self) -> Instant;
}

/// The system's monotonic clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Client → backend, with a sliding time to live that is enforced at lookup.
///
/// At most `capacity` bindings are kept; a new one then takes the place of one that wasn't used lately (second-chance
/// queue, an approximation of least recently used). Looking up, which renews, takes no exclusive lock; binding does.
#[derive(Debug)]
pub struct BindingTable<C = SystemClock> {
    map: DashMap<BindingKey, Binding>,
    /// Keys in the order in which they came or were found in use, spread over several queues by their hash.
    queues: Vec<Mutex<VecDeque<Place>>>,
    hasher: RandomState,
    len: AtomicUsize,
    tickets: AtomicU64,
    clears: AtomicU64,
    capacity: usize,
    ttl: Duration,
    started: Instant,
    clock: C,
}

#[derive(Debug)]
struct Binding {
    backend: BackendId,
    /// See [`BindingTable::now`].
    used: AtomicU64,
    /// Tells this binding from an earlier one of the same key.
    ticket: u64,
}

/// The place of a binding in a queue.
#[derive(Debug)]
struct Place {
    key: BindingKey,
    ticket: u64,
    /// When the binding was last known to be used; it was used since if its own time is later.
    used: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Removed,
    Kept,
    /// The binding is gone, or a later one of the same key has a place of its own.
    Stale,
}

impl BindingTable<SystemClock> {
    pub fn new(ttl: Duration, capacity: usize) -> Self {
        Self::with_clock(ttl, capacity, SystemClock)
    }
}

impl<C: Clock> BindingTable<C> {
    pub fn with_clock(ttl: Duration, capacity: usize, clock: C) -> Self {
        let queues = (capacity / QUEUE_SHARE).clamp(1, MAX_QUEUES);
        let shards = (capacity / QUEUE_SHARE).clamp(16, MAX_QUEUES).next_power_of_two();
        Self {
            map: DashMap::with_shard_amount(shards),
            queues: (0..queues).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            len: AtomicUsize::new(0),
            tickets: AtomicU64::new(0),
            clears: AtomicU64::new(0),
            capacity: capacity.max(1),
            ttl,
            started: clock.now(),
            clock,
        }
    }

    /// Forgets bindings whose time is over and returns how many. To be called now and then: lookups don't remove.
    pub fn gc(&self) -> usize {
        let now = self.now();
        let forgotten = self.remove_if(|_, binding| self.is_over(binding, now));
        // Removal leaves the map's room in place for the next clients; what a flood took is given back.
        if forgotten > 4 * self.len() {
            self.map.shrink_to_fit();
        }
        forgotten
    }

    /// How many pages there are, see [`BindingTable::page`].
    pub fn pages(&self) -> usize {
        self.queues.len()
    }

    /// A part of the live bindings: a thousand or so, unless the capacity is huge. Each binding is on one page for
    /// its whole life. Holds up others no longer than it takes to copy the keys of one page.
    pub fn page(&self, at: usize) -> Vec<Bound> {
        let keys: Vec<(BindingKey, u64)> = match self.queues.get(at) {
            Some(queue) => lock(queue).iter().map(|place| (place.key.clone(), place.ticket)).collect(),
            None => return Vec::new(),
        };
        let now = self.now();
        keys.into_iter().filter_map(|(key, ticket)| self.bound(key, ticket, now)).collect()
    }

    fn bound(&self, key: BindingKey, ticket: u64, now: u64) -> Option<Bound> {
        let binding = self.map.get(&key).filter(|binding| binding.ticket == ticket && !self.is_over(binding, now))?;
        let idle = now.saturating_sub(binding.used.load(Ordering::Relaxed));
        let backend = binding.backend.clone();
        drop(binding);
        Some(Bound { key, backend, idle: Duration::from_millis(idle) })
    }

    /// Ends the bindings that are meant and says how many they were.
    pub fn clear(&self, wanted: &Wanted) -> usize {
        // First, so that a connection that is bound by what goes now finds out.
        self.clears.fetch_add(1, Ordering::SeqCst);
        self.remove_if(|key, binding| wanted.has(key, &binding.backend))
    }

    /// Takes in a binding of an earlier life, unless its time is over, its client has a new one, or there is no room.
    fn restore(&self, bound: Bound) -> bool {
        let used = self.now().saturating_sub(bound.idle.as_millis().try_into().unwrap_or(u64::MAX));
        let unwelcome = self.len() >= self.capacity || bound.idle >= self.ttl || self.map.contains_key(&bound.key);
        !unwelcome && self.insert(bound.key, &bound.backend, used).is_some()
    }

    /// Milliseconds. They begin with the time to live, so that bindings of an earlier life have a time, too.
    fn now(&self) -> u64 {
        (self.clock.now().saturating_duration_since(self.started) + self.ttl).as_millis() as u64
    }

    fn is_over(&self, binding: &Binding, now: u64) -> bool {
        let idle = now.saturating_sub(binding.used.load(Ordering::Relaxed));
        u128::from(idle) >= self.ttl.as_millis()
    }

    fn remove_if(&self, doomed: impl Fn(&BindingKey, &Binding) -> bool) -> usize {
        let mut removed = 0;
        for queue in &self.queues {
            let mut queue = lock(queue);
            queue.retain(|place| match self.judge(place, |binding| doomed(&place.key, binding)) {
                Verdict::Kept => true,
                Verdict::Stale => false,
                Verdict::Removed => {
                    removed += 1;
                    false
                }
            });
            let room = queue.len() * 2;
            queue.shrink_to(room);
        }
        removed
    }

    fn admit(&self, key: BindingKey, backend: &BackendId, now: u64) {
        if let Some(home) = self.insert(key, backend, now)
            && self.len() > self.capacity
        {
            self.make_room(home);
        }
    }

    /// The queue of the new binding; `None` if there is one already, which is renewed if `used` is later.
    fn insert(&self, key: BindingKey, backend: &BackendId, used: u64) -> Option<usize> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        match self.map.entry(key.clone()) {
            Entry::Occupied(entry) => {
                let mut binding = entry.into_ref();
                if *binding.used.get_mut() <= used {
                    binding.renew(backend, used);
                }
                return None;
            }
            Entry::Vacant(entry) => {
                entry.insert(Binding { backend: backend.clone(), used: AtomicU64::new(used), ticket })
            }
        };
        let home = self.hasher.hash_one(&key) as usize % self.queues.len().max(1);
        if let Some(queue) = self.queues.get(home) {
            lock(queue).push_back(Place { key, ticket, used });
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        Some(home)
    }

    /// Gives up one binding, from the new one's own queue if possible: hashing makes all queues alike.
    fn make_room(&self, home: usize) {
        let (before, after) = self.queues.split_at_checked(home).unwrap_or((&self.queues, &[]));
        for queue in after.iter().chain(before) {
            if self.evict(&mut lock(queue)) {
                return;
            }
        }
    }

    /// Gives up the first binding that wasn't used since it was put into the queue; those that were go to its end.
    /// After enough looks, or where all were used, the next one goes in any case.
    fn evict(&self, queue: &mut VecDeque<Place>) -> bool {
        // The last place may be that of the binding which needs the room.
        let others = queue.len().saturating_sub(1);
        for look in 1..=others {
            let Some(mut place) = queue.pop_front() else { return false };
            let mut used = place.used;
            let verdict = self.judge(&place, |binding| {
                used = binding.used.load(Ordering::Relaxed);
                used <= place.used || look > MAX_LOOKS || look == others
            });
            match verdict {
                Verdict::Removed => return true,
                Verdict::Stale => {}
                Verdict::Kept => {
                    place.used = used;
                    queue.push_back(place);
                }
            }
        }
        false
    }

    /// Removes the binding that `place` stands for if `doomed` says so.
    fn judge(&self, place: &Place, doomed: impl FnOnce(&Binding) -> bool) -> Verdict {
        let mut verdict = Verdict::Stale;
        self.map.remove_if(&place.key, |_, binding| {
            if binding.ticket == place.ticket {
                verdict = if doomed(binding) { Verdict::Removed } else { Verdict::Kept };
            }
            verdict == Verdict::Removed
        });
        if verdict == Verdict::Removed {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        verdict
    }
}

impl<C: Clock> Bindings for BindingTable<C> {
    fn get(&self, key: &BindingKey) -> Option<BackendId> {
        let now = self.now();
        let binding = self.map.get(key)?;
        if self.is_over(&binding, now) {
            return None;
        }
        binding.used.fetch_max(now, Ordering::Relaxed);
        Some(binding.backend.clone())
    }

    fn peek(&self, key: &BindingKey) -> Option<BackendId> {
        let binding = self.map.get(key)?;
        (!self.is_over(&binding, self.now())).then(|| binding.backend.clone())
    }

    fn bind(&self, key: BindingKey, backend: &BackendId) {
        let now = self.now();
        match self.map.get_mut(&key) {
            Some(mut binding) => binding.renew(backend, now),
            None => self.admit(key, backend, now),
        }
    }

    fn clears(&self) -> u64 {
        self.clears.load(Ordering::SeqCst)
    }

    /// Bindings kept, those included whose time is over and that wait for [`BindingTable::gc`].
    fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }
}

impl Binding {
    fn renew(&mut self, backend: &BackendId, now: u64) {
        if self.backend != *backend {
            self.backend = backend.clone();
        }
        *self.used.get_mut() = now;
    }
}

fn lock(queue: &Mutex<VecDeque<Place>>) -> MutexGuard<'_, VecDeque<Place>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
