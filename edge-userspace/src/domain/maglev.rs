//! Consistent hashing of clients onto the backends of one group, by the table of Maglev (Eisenbud et al., NSDI 2016,
//! section 3.4) with weights.
//!
//! The table depends on the backends' ids and weights alone, and the hash has no secret: every POP, every restart and
//! every version of this program gives a client the same backend.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use twox_hash::XxHash3_64;

use super::ClientPrefix;
use super::group::Draw;
use super::index::{Group, Member};
use super::random::spread;
use super::room::Standing;

/// XXH3 with these seeds: changing one moves nearly every client of every cache.
const OFFSET_SEED: u64 = 1;
const SKIP_SEED: u64 = 2;
const CLIENT_SEED: u64 = 3;

/// Entries for each backend, at least, below the largest size: so many keep shares within a few percent.
const ENTRIES_EACH: usize = 64;

/// Primes. Another size moves nearly every client, so there are few: most groups never come from one to the next.
const SIZES: [usize; 4] = [4_099, 32_771, 262_147, LARGEST];
/// The paper's large table; it bounds the memory and the time to build it.
const LARGEST: usize = 655_373;

/// Places of a client's own order that are looked at before the rest is left to a draw among those with room.
const PROBES: u64 = 16;

/// Where a client belongs, the same for all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientHash(u64);

impl ClientHash {
    pub(super) fn of(client: &ClientPrefix) -> Self {
        Self(XxHash3_64::oneshot_with_seed(CLIENT_SEED, &client.octets()))
    }

    /// A number for each place of the client's own order.
    fn nth(self, n: u64) -> u64 {
        spread(self.0.wrapping_add(spread(n)))
    }
}

/// The table of one group. Backends that are out of service for now have their entries, too: when one leaves or comes
/// back that way, only its own clients move.
#[derive(Debug)]
pub(super) struct Maglev {
    table: Table,
}

/// Member of the group by entry. Most groups are small, and their tables are most of what their apps take.
#[derive(Debug)]
enum Table {
    Narrow(Box<[u16]>),
    Wide(Box<[u32]>),
}

/// The entry of a backend that takes no new clients.
const CLOSED: u32 = u32::MAX;
/// Likewise, in a narrow table.
const NARROW_CLOSED: u16 = u16::MAX;
/// An entry that nobody has taken yet.
const FREE: u32 = u32::MAX - 1;

/// One backend as the table sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entrant<'a> {
    pub(super) id: &'a str,
    pub(super) weight: u32,
    /// Its place among the group's members, if it takes new clients.
    pub(super) member: Option<usize>,
}

impl Maglev {
    /// The order of `entrants` makes no difference.
    pub(super) fn new(entrants: Vec<Entrant<'_>>) -> Self {
        let narrow = entrants.len() < usize::from(NARROW_CLOSED);
        let (entries, _) = filled(entrants);
        let narrowed = |entry: &u32| u16::try_from(*entry).unwrap_or(NARROW_CLOSED);
        let table = match narrow {
            true => Table::Narrow(entries.iter().map(narrowed).collect()),
            false => Table::Wide(entries),
        };
        Self { table }
    }

    fn at(&self, number: u64) -> Option<usize> {
        // The upper half of a product is a number below the size, evenly spread.
        let at = |size: usize| ((u128::from(number) * size as u128) >> 64) as usize;
        match &self.table {
            Table::Narrow(table) => {
                table.get(at(table.len())).filter(|member| **member != NARROW_CLOSED).map(|member| usize::from(*member))
            }
            Table::Wide(table) => {
                table.get(at(table.len())).filter(|member| **member != CLOSED).map(|member| *member as usize)
            }
        }
    }

    /// Entries of the table.
    #[cfg(test)]
    pub(super) fn entries(&self) -> Vec<u32> {
        match &self.table {
            Table::Narrow(table) => {
                let wide = |entry: &u16| if *entry == NARROW_CLOSED { CLOSED } else { u32::from(*entry) };
                table.iter().map(wide).collect()
            }
            Table::Wide(table) => table.to_vec(),
        }
    }
}

/// The entries of a table, and how many steps it took to fill it.
fn filled(mut entrants: Vec<Entrant<'_>>) -> (Box<[u32]>, u64) {
    entrants.sort_unstable_by_key(|entrant| entrant.id);
    let size = size_for(entrants.len());
    let mut walks: Vec<Walk> = entrants.iter().map(|entrant| Walk::new(entrant, size)).collect();
    let mut table = vec![FREE; size].into_boxed_slice();
    let mut steps = 0;
    for at in Turns::new(entrants.iter().map(|entrant| entrant.weight)).take(size) {
        steps += walks.get_mut(at).map_or(0, |walk| walk.take(&mut table));
    }
    // Without entrants, or if none has a share.
    table.iter_mut().filter(|entry| **entry == FREE).for_each(|entry| *entry = CLOSED);
    (table, steps)
}

/// Whose turn it is: the heaviest have one in each round, others in so many as their weight is of theirs, and within a
/// round it goes by place. Only those are visited whose turn it is: one heavy backend among thousands has a round nearly for
/// itself for each of its entries.
#[derive(Debug)]
struct Turns {
    heaviest: u64,
    heavy: Vec<usize>,
    /// Rounds that are over, and heavy ones that have had their turn in the one under way.
    round: u64,
    had: usize,
    light: BinaryHeap<Reverse<Turn>>,
}

/// The next turn of one that is not among the heaviest, the earliest first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    round: u64,
    at: usize,
    /// Turns up to this one.
    count: u64,
    weight: u64,
}

impl Turn {
    /// In `n` rounds there are `n × weight ÷ heaviest` turns, rounded down.
    fn nth(count: u64, at: usize, weight: u64, heaviest: u64) -> Self {
        Self { round: (count * heaviest).div_ceil(weight) - 1, at, count, weight }
    }
}

impl Turns {
    /// By the weight of each; those of weight 0 have none.
    fn new(weights: impl Iterator<Item = u32> + Clone) -> Self {
        let heaviest = u64::from(weights.clone().max().unwrap_or(0));
        let shares = weights.map(u64::from).enumerate().filter(|(_, weight)| *weight > 0);
        let (heavy, light): (Vec<_>, Vec<_>) = shares.partition(|(_, weight)| *weight == heaviest);
        let first = |(at, weight)| Reverse(Turn::nth(1, at, weight, heaviest));
        let heavy = heavy.into_iter().map(|(at, _)| at).collect();
        Self { heaviest, heavy, round: 0, had: 0, light: light.into_iter().map(first).collect() }
    }
}

impl Iterator for Turns {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let heavy = *self.heavy.get(self.had)?;
        if let Some(mut first) = self.light.peek_mut() {
            let Reverse(Turn { round, at, count, weight }) = &*first;
            if (*round, *at) < (self.round, heavy) {
                let (next, at) = (Turn::nth(count + 1, *at, *weight, self.heaviest), *at);
                *first = Reverse(next);
                return Some(at);
            }
        }
        self.had += 1;
        if self.had == self.heavy.len() {
            (self.had, self.round) = (0, self.round + 1);
        }
        Some(heavy)
    }
}

/// A backend's way through the table: its own permutation of the entries, and how far it has come.
struct Walk {
    next: usize,
    skip: usize,
    member: u32,
}

impl Walk {
    fn new(entrant: &Entrant<'_>, size: usize) -> Self {
        let hash = |seed| XxHash3_64::oneshot_with_seed(seed, entrant.id.as_bytes());
        let next = (hash(OFFSET_SEED) % size as u64) as usize;
        let skip = (hash(SKIP_SEED) % (size as u64 - 1) + 1) as usize;
        let member = entrant.member.and_then(|at| u32::try_from(at).ok()).unwrap_or(CLOSED);
        Self { next, skip, member }
    }

    /// Takes the next free entry of its permutation; the size is prime, so it comes to every one. Returns how many it
    /// looked at.
    fn take(&mut self, table: &mut [u32]) -> u64 {
        for steps in 1..=table.len() {
            let at = self.next;
            // A division would take most of the time.
            self.next = at + self.skip;
            if self.next >= table.len() {
                self.next -= table.len();
            }
            if let Some(entry) = table.get_mut(at).filter(|entry| **entry == FREE) {
                *entry = self.member;
                return steps as u64;
            }
        }
        table.len() as u64
    }
}

fn size_for(entrants: usize) -> usize {
    let least = entrants.saturating_mul(ENTRIES_EACH);
    SIZES.into_iter().find(|size| *size >= least).unwrap_or(LARGEST)
}

/// The first of the client's own order that stands so. A member that is coming back gets a part of its clients, always
/// the same ones.
pub(super) fn hashed<'a>(
    group: &'a Group,
    table: &Maglev,
    client: ClientHash,
    draw: &Draw<'_>,
    standing: Standing,
) -> Option<&'a Member> {
    let fits = |member: &&Member| {
        member.load.standing(member.limits) == Some(standing)
            && !draw.tried.contains(&member.backend)
            && member.load.admits(|| client.nth(PROBES))
    };
    let order = (0..PROBES).filter_map(|n| table.at(client.nth(n)).and_then(|at| group.members.get(at)));
    // Few are left if none of so many fits; which of them depends on the client alone again.
    order
        .into_iter()
        .find(fits)
        .or_else(|| group.drawn(standing, client.nth(0), draw.tried, None).map(|(_, member)| member))
}

#[cfg(test)]
mod tests;
