//! How many connections each source has, and how many of them came lately. A source is a prefix of client addresses.
//!
//! Memory is bounded whoever comes. A source with connections has an entry, and there are no more of those than the
//! daemon holds connections. What is remembered of others, because they came so often that it still matters, is kept for
//! `capacity` sources; beyond that the one that was heard of least lately is forgotten. So a flood of sources may give
//! one its burst back, and can't make it have more connections than it may.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashlink::LinkedHashMap;

use crate::domain::{AffinityPrefix, ClientAddr, ClientPrefix, Rate, RejectReason};

/// Entries one shard is meant for, and the most shards there are: they bound how long a lock is held and waited for.
const SHARE: usize = 1024;
const MOST_SHARDS: usize = 256;

/// What one source may.
#[derive(Debug, Clone, Copy)]
pub struct SourceRules {
    /// What makes a source.
    pub prefix: AffinityPrefix,
    /// Connections at once; 0 is no limit.
    pub max_connections: u32,
    /// `None` is no limit.
    pub rate: Option<Rate>,
    /// Sources without connections that are remembered.
    pub capacity: usize,
}

/// The sources of all connections.
#[derive(Debug)]
pub struct Sources {
    rules: SourceRules,
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    started: Instant,
}

/// What a source has, and what it would be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceLook {
    pub source: ClientPrefix,
    pub connections: u32,
    /// 0 is no limit.
    pub max_connections: u32,
    /// How long until its next connection is within the rate; `None` where there is none.
    pub wait: Option<Duration>,
    pub refused: Option<RejectReason>,
}

#[derive(Debug, Default)]
struct Shard {
    live: HashMap<ClientPrefix, Live>,
    /// When the next connection of a source is due, heard of least lately first. Those that could come in full again are
    /// as good as forgotten.
    idle: LinkedHashMap<ClientPrefix, u64>,
    capacity: usize,
}

#[derive(Debug)]
struct Live {
    connections: u32,
    due: u64,
}

impl Sources {
    pub fn new(rules: SourceRules) -> Self {
        let shards = (rules.capacity / SHARE).clamp(1, MOST_SHARDS);
        let shard = || Mutex::new(Shard { capacity: rules.capacity / shards, ..Shard::default() });
        Self {
            rules,
            shards: (0..shards).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            started: Instant::now(),
        }
    }

    /// Takes a place for a connection of `client`. `None`: there are no limits, so nothing is counted.
    pub fn admit(self: &Arc<Self>, client: ClientAddr, now: Instant) -> Result<Option<SourceHeld>, RejectReason> {
        if self.rules.max_connections == 0 && self.rules.rate.is_none() {
            return Ok(None);
        }
        let source = self.prefix(client);
        self.shard(&source).admit(source, &self.rules, self.nanos(now))?;
        Ok(Some(SourceHeld { source, of: Arc::clone(self) }))
    }

    /// What [`Sources::admit`] would say. Counts nothing, and nobody is remembered for it. `None`: there are no limits.
    pub fn look(&self, client: ClientAddr, now: Instant) -> Option<SourceLook> {
        if self.rules.max_connections == 0 && self.rules.rate.is_none() {
            return None;
        }
        let source = self.prefix(client);
        Some(self.shard(&source).look(source, &self.rules, self.nanos(now)))
    }

    /// The source of a client.
    pub fn prefix(&self, client: ClientAddr) -> ClientPrefix {
        self.rules.prefix.prefix(client)
    }

    /// Forgets sources that could come in full again. To be called now and then.
    pub fn sweep(&self, now: Instant) {
        let now = self.nanos(now);
        for shard in &self.shards {
            lock(shard).idle.retain(|_, due| *due > now);
        }
    }

    /// Sources with connections, and those remembered without any.
    pub fn len(&self) -> (usize, usize) {
        self.shards
            .iter()
            .map(lock)
            .fold((0, 0), |(live, idle), shard| (live + shard.live.len(), idle + shard.idle.len()))
    }

    fn left(&self, source: &ClientPrefix, now: Instant) {
        let now = self.nanos(now);
        self.shard(source).left(source, now);
    }

    fn shard(&self, source: &ClientPrefix) -> MutexGuard<'_, Shard> {
        // Keyed at random: nobody can choose sources that meet in one shard.
        let hash = self.hasher.hash_one(source) % self.shards.len() as u64;
        let at = usize::try_from(hash).unwrap_or(0);
        // There is always one.
        #[allow(clippy::indexing_slicing, reason = "the remainder is below the length")]
        lock(&self.shards[at])
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Shard {
    fn admit(&mut self, source: ClientPrefix, rules: &SourceRules, now: u64) -> Result<(), RejectReason> {
        if let Some(live) = self.live.get_mut(&source) {
            if rules.max_connections != 0 && live.connections >= rules.max_connections {
                return Err(RejectReason::SourceConnections);
            }
            live.due = within(rules.rate, live.due, now).ok_or(RejectReason::SourceRate)?;
            live.connections += 1;
            return Ok(());
        }
        // Heard of now, admitted or not.
        let known = self.idle.to_back(&source).map_or(0, |due| *due);
        let due = within(rules.rate, known, now).ok_or(RejectReason::SourceRate)?;
        self.idle.remove(&source);
        self.live.insert(source, Live { connections: 1, due });
        Ok(())
    }

    fn look(&self, source: ClientPrefix, rules: &SourceRules, now: u64) -> SourceLook {
        let live = self.live.get(&source);
        let connections = live.map_or(0, |live| live.connections);
        let due = live.map(|live| live.due).or_else(|| self.idle.get(&source).copied()).unwrap_or(0);
        let wait = rules.rate.map(|rate| rate.wait(due, now));
        let refused = if rules.max_connections != 0 && connections >= rules.max_connections {
            Some(RejectReason::SourceConnections)
        } else {
            wait.filter(|wait| !wait.is_zero()).map(|_| RejectReason::SourceRate)
        };
        SourceLook { source, connections, max_connections: rules.max_connections, wait, refused }
    }

    /// A connection has ended.
    fn left(&mut self, source: &ClientPrefix, now: u64) {
        let Some(live) = self.live.get_mut(source) else { return };
        live.connections -= 1;
        if live.connections > 0 {
            return;
        }
        let due = live.due;
        self.live.remove(source);
        if due > now {
            self.idle.insert(*source, due);
        }
        if self.idle.len() > self.capacity {
            self.idle.pop_front();
        }
    }
}

/// When the next is due after one that comes now; `None` if it comes too early.
fn within(rate: Option<Rate>, due: u64, now: u64) -> Option<u64> {
    rate.map_or(Some(0), |rate| rate.arrive(due, now))
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection's place among those of its source; gives it back when dropped.
#[derive(Debug)]
pub struct SourceHeld {
    source: ClientPrefix,
    of: Arc<Sources>,
}

impl Drop for SourceHeld {
    fn drop(&mut self) {
        self.of.left(&self.source, Instant::now());
    }
}

#[cfg(test)]
mod tests;
