//! Consistent hashing of clients onto the backends of one group, by the table of Maglev (Eisenbud et al., NSDI 2016,
//! section 3.4) with weights.
//!
//! The table depends on the backends' ids and weights alone, and the hash has no secret: every POP, every restart and
//! every version of this program gives a client the same backend.

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
    /// Member of the group by entry; [`CLOSED`] where the backend takes no new clients.
    table: Box<[u32]>,
}

const CLOSED: u32 = u32::MAX;

/// One backend as the table sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entrant<'a> {
    pub(super) id: &'a str,
    pub(super) weight: u32,
    /// Its place among the group's members, if it takes new clients.
    pub(super) member: Option<usize>,
}

impl Maglev {
    /// The order of `entrants` makes no difference.
    pub(super) fn new(mut entrants: Vec<Entrant<'_>>) -> Self {
        entrants.sort_unstable_by_key(|entrant| entrant.id);
        let size = size_for(entrants.len());
        let mut turns: Vec<Turns> = entrants.iter().map(|entrant| Turns::new(entrant, size)).collect();
        let heaviest = entrants.iter().map(|entrant| entrant.weight).max().unwrap_or(1).max(1);
        let mut table = vec![None; size].into_boxed_slice();
        let mut left = if turns.is_empty() { 0 } else { size };
        while left > 0 {
            for (turn, entrant) in turns.iter_mut().zip(&entrants) {
                if left > 0 && turn.is_due(entrant.weight, heaviest) && turn.take(&mut table, entrant.member) {
                    left -= 1;
                }
            }
        }
        let place = |entry: Option<u32>| entry.unwrap_or(CLOSED);
        Self { table: table.iter().copied().map(place).collect() }
    }

    fn at(&self, number: u64) -> Option<usize> {
        // The upper half of a product is a number below the size, evenly spread.
        let at = (u128::from(number) * self.table.len() as u128) >> 64;
        self.table.get(at as usize).filter(|member| **member != CLOSED).map(|member| *member as usize)
    }

    /// Entries of the table.
    #[cfg(test)]
    pub(super) fn entries(&self) -> &[u32] {
        &self.table
    }
}

/// A backend's way through the table: its own permutation of the entries, and how far it has come.
struct Turns {
    next: usize,
    skip: usize,
    credit: u64,
}

impl Turns {
    fn new(entrant: &Entrant<'_>, size: usize) -> Self {
        let hash = |seed| XxHash3_64::oneshot_with_seed(seed, entrant.id.as_bytes());
        let next = (hash(OFFSET_SEED) % size as u64) as usize;
        let skip = (hash(SKIP_SEED) % (size as u64 - 1) + 1) as usize;
        Self { next, skip, credit: 0 }
    }

    /// The heaviest has a turn in each round, others in so many as their weight is of its.
    fn is_due(&mut self, weight: u32, heaviest: u32) -> bool {
        self.credit += u64::from(weight);
        let due = self.credit >= u64::from(heaviest);
        if due {
            self.credit -= u64::from(heaviest);
        }
        due
    }

    /// Takes the next free entry of its permutation; the size is prime, so it comes to every one.
    fn take(&mut self, table: &mut [Option<u32>], member: Option<usize>) -> bool {
        let member = member.and_then(|at| u32::try_from(at).ok()).unwrap_or(CLOSED);
        for _ in 0..table.len() {
            let at = self.next;
            self.next = (at + self.skip) % table.len();
            if let Some(entry @ None) = table.get_mut(at) {
                *entry = Some(member);
                return true;
            }
        }
        false
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
