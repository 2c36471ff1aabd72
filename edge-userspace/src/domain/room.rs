//! Who has room: the members of a group that are below their soft limit, and those that are only below the hard one,
//! kept up to date by whoever reserves or releases, without a lock.
//!
//! Those that were ejected are a third set, those whose checks fail a fourth; a fifth holds all that are trusted and not
//! draining, full or not, a sixth likewise all that are ejected. Each is a set of bits, one for each member, with the
//! weights of the members in it summed up over 64 and over 4,096 members, so that drawing by weight looks at a few dozen
//! numbers, whatever the size of the group.
//!
//! **Why the bits can be trusted.** A change of a backend's count or of the trust in it is one atomic step, and who makes a change by which
//! the backend comes to stand elsewhere then writes its bits and reads the count again, until what was written is what
//! is read ([`Room::refresh`]). The last to write a bit has read the count after writing. Had the count changed after
//! that reading, its changer would have written later still, or found the bit right already, and then again whoever
//! wrote it after that. So when nobody is between a change and its end, every bit is right. All of these steps are
//! sequentially consistent.
//!
//! While somebody is, a bit may say "room" where there is none: a draw is checked against the count, and a wrong bit
//! is put right by whoever finds it, so that nobody waits for a thread that was interrupted. Or it may say "no room"
//! where one is being given back: that connection has not quite ended yet. The sums follow the bits and may be behind
//! them. They only guide the draw; where they lead nowhere, the bits are searched.
//!
//! Who is trusted and who is ejected changes seldom, and how many may be ejected is exact: those two sets are written by
//! whoever changes the trust in a backend only, one at a time for each backend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::BackendLoad;
use super::Limits;
use super::health::Distrust;

/// Where a backend that can be chosen stands against its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    BelowSoft,
    OverSoft,
    /// Below the hard limit, and has failed clients: for when no other is left.
    Ejected,
    /// Below the hard limit, and fails its checks: for when nobody is trusted.
    Down,
}

impl Standing {
    const ALL: [Self; 4] = [Self::BelowSoft, Self::OverSoft, Self::Ejected, Self::Down];

    /// `None` at the hard limit.
    pub(super) fn of(limits: Limits, active: u32, distrust: Option<Distrust>) -> Option<Self> {
        if limits.is_full(active) {
            None
        } else if let Some(distrust) = distrust {
            Some(match distrust {
                Distrust::Ejected => Self::Ejected,
                Distrust::Down => Self::Down,
            })
        } else if limits.is_over_soft(active) {
            Some(Self::OverSoft)
        } else {
            Some(Self::BelowSoft)
        }
    }
}

/// How far a member is trusted, full or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    Trusted,
    Ejected,
    /// Its checks fail, or it is draining.
    Out,
}

/// The sets of one group.
#[derive(Debug)]
pub(super) struct Room {
    weights: Box<[u32]>,
    /// All sets, side by side in one piece of memory: there may be thousands of groups of a few members each.
    cells: Box<[AtomicU64]>,
}

/// The sets: one for each [`Standing`], and the members that are to be trusted and those that are ejected, full or not.
const SETS: usize = 6;
const TRUSTED: usize = SETS - 2;
const EJECTED: usize = SETS - 1;

impl Room {
    /// For members of these weights; all count as full until they are refreshed.
    pub(super) fn new(weights: Box<[u32]>) -> Self {
        let cells = SETS * Shape::of(&weights).cells();
        Self { cells: (0..cells).map(|_| AtomicU64::new(0)).collect(), weights }
    }

    fn set(&self, standing: Standing) -> WeightedSet<'_> {
        self.set_at(standing as usize)
    }

    fn trusted(&self) -> WeightedSet<'_> {
        self.set_at(TRUSTED)
    }

    fn set_at(&self, at: usize) -> WeightedSet<'_> {
        let shape = Shape::of(&self.weights);
        let (from, to) = (at * shape.cells(), (at + 1) * shape.cells());
        WeightedSet::new(self.cells.get(from..to).unwrap_or_default(), shape)
    }

    /// Draws one of the members that stand so, by weight: `number` is uniform over all numbers. `admit` takes 64 bits
    /// of members, from a member's number on, and returns those that may be drawn.
    pub(super) fn draw(&self, standing: Standing, number: u64, admit: &dyn Fn(usize, u64) -> u64) -> Option<usize> {
        self.set(standing).draw(number, &self.weights, admit)
    }

    /// How many members are to be trusted, and how many are ejected, full or not; those whose checks fail and that are
    /// draining are neither. What has been changed and told is in it, whatever else goes on.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.trusted().len(), self.set_at(EJECTED).len())
    }

    /// Whether there is nobody to be trusted: all have failed their clients or their checks.
    pub(super) fn trusts_nobody(&self) -> bool {
        self.trusted().blocks.iter().all(|sum| sum_of(sum) == 0)
    }

    /// Whether any member can be drawn; where nobody is trusted, one whose checks fail. Those who can wait (`patient`) do
    /// not ask one that was ejected while another is trusted.
    pub(super) fn has_any(&self, patient: bool) -> bool {
        if self.set(Standing::BelowSoft).has_any() || self.set(Standing::OverSoft).has_any() {
            return true;
        }
        let nobody = self.trusts_nobody();
        (self.set(Standing::Ejected).has_any() && (!patient || nobody))
            || (self.set(Standing::Down).has_any() && nobody)
    }

    /// Writes where a member stands, until that is where it stands.
    pub(super) fn refresh(&self, at: usize, standing: impl Fn() -> Option<Standing>) {
        loop {
            let stands = standing();
            for standing in Standing::ALL {
                self.set(standing).put(at, stands == Some(standing), &self.weights);
            }
            if standing() == stands {
                return;
            }
        }
    }

    /// Writes how far a member is trusted. For each member one at a time may, who reads that meanwhile.
    pub(super) fn refresh_trust(&self, at: usize, trust: Trust) {
        self.trusted().put(at, trust == Trust::Trusted, &self.weights);
        self.set_at(EJECTED).put(at, trust == Trust::Ejected, &self.weights);
    }
}

/// A backend's place in a group.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub(super) room: Arc<Room>,
    pub(super) at: usize,
    pub(super) limits: Limits,
}

impl Seat {
    pub(super) fn refresh(&self, load: &BackendLoad) {
        self.room.refresh(self.at, || load.standing(self.limits));
    }
}

/// Members in one word of bits, and words in one block.
const FAN: usize = 64;

/// How many cells the parts of a set have.
#[derive(Debug, Clone, Copy)]
struct Shape {
    words: usize,
    blocks: usize,
}

impl Shape {
    fn of(members: &[u32]) -> Self {
        let words = members.len().div_ceil(FAN);
        Self { words, blocks: words.div_ceil(FAN) }
    }

    fn cells(self) -> usize {
        2 * self.words + self.blocks
    }
}

#[derive(Debug)]
struct WeightedSet<'a> {
    bits: &'a [AtomicU64],
    /// Sum of the weights in each word, and in each 64 words. Wraps below 0 for moments.
    words: &'a [AtomicU64],
    blocks: &'a [AtomicU64],
}

impl<'a> WeightedSet<'a> {
    fn new(cells: &'a [AtomicU64], shape: Shape) -> Self {
        let (bits, sums) = cells.split_at_checked(shape.words).unwrap_or_default();
        let (words, blocks) = sums.split_at_checked(shape.words).unwrap_or_default();
        Self { bits, words, blocks }
    }

    fn put(&self, at: usize, member: bool, weights: &[u32]) {
        let (word, bit) = (at / FAN, 1u64 << (at % FAN));
        let Some(bits) = self.bits.get(word) else { return };
        // Most are right already, and to look is cheaper than to write.
        if (bits.load(Ordering::SeqCst) & bit != 0) == member {
            return;
        }
        let before = if member { bits.fetch_or(bit, Ordering::SeqCst) } else { bits.fetch_and(!bit, Ordering::SeqCst) };
        if (before & bit != 0) == member {
            return;
        }
        // Who turns a bit accounts for it, and a bit is turned on and off in turns: in the end the sums are exact.
        let weight = weights.get(at).copied().map_or(0, u64::from);
        for sum in [self.words.get(word), self.blocks.get(word / FAN)].into_iter().flatten() {
            if member {
                sum.fetch_add(weight, Ordering::Relaxed);
            } else {
                sum.fetch_sub(weight, Ordering::Relaxed);
            }
        }
    }

    fn len(&self) -> usize {
        self.bits.iter().map(|bits| bits.load(Ordering::SeqCst).count_ones() as usize).sum()
    }

    fn has_any(&self) -> bool {
        self.bits.iter().any(|bits| bits.load(Ordering::SeqCst) != 0)
    }

    fn draw(&self, number: u64, weights: &[u32], admit: &dyn Fn(usize, u64) -> u64) -> Option<usize> {
        let found = self.word_at(number);
        let drawn = found.and_then(|(word, place)| {
            let (first, bits) = (word * FAN, self.bits.get(word)?.load(Ordering::SeqCst));
            let admitted = admit(first, bits);
            let weight = |at: usize| weights.get(first + at).copied().map_or(0, u64::from);
            let total = || Bits(admitted).map(weight).sum();
            // Mostly all are admitted: then the place is one among their weights as it is, unless these have shrunk.
            let bit = if admitted == bits {
                bit_at(admitted, place.at, weight).or_else(|| bit_at(admitted, place.beyond(total())?.at, weight))
            } else {
                bit_at(admitted, place.among(total()).at, weight)
            };
            Some(first + bit?)
        });
        drawn.or_else(|| self.search(found.map_or(0, |(word, _)| word), admit))
    }

    /// The word in which `number` falls, and where in it.
    fn word_at(&self, number: u64) -> Option<(usize, Place)> {
        let total: u64 = self.blocks.iter().map(sum_of).sum();
        let (block, place) = descend(self.blocks, Place::of(number, total))?;
        let first = block * FAN;
        let words = self.words.get(first..self.words.len().min(first + FAN))?;
        let (word, place) = descend(words, place)?;
        Some((first + word, place))
    }

    /// Any admitted member, from `start` on: what is left to do where the sums are behind the bits, or where those
    /// that were drawn may not be chosen.
    fn search(&self, start: usize, admit: &dyn Fn(usize, u64) -> u64) -> Option<usize> {
        let (head, tail) = self.bits.split_at_checked(start)?;
        first_admitted(tail, start, admit).or_else(|| first_admitted(head, 0, admit))
    }
}

/// The first admitted member in words of which the first is number `start`.
fn first_admitted(words: &[AtomicU64], start: usize, admit: &dyn Fn(usize, u64) -> u64) -> Option<usize> {
    for (word, bits) in words.iter().enumerate() {
        let bits = bits.load(Ordering::SeqCst);
        if bits == 0 {
            continue;
        }
        let first = (start + word) * FAN;
        let admitted = admit(first, bits);
        if admitted != 0 {
            return Some(first + admitted.trailing_zeros() as usize);
        }
    }
    None
}

fn sum_of(sum: &AtomicU64) -> u64 {
    // Members have 32 bits of weight and there are far fewer than 2³¹ of them.
    let sum = sum.load(Ordering::Relaxed);
    if sum > u64::MAX / 2 { 0 } else { sum }
}

/// A uniform place among weights side by side: `at` of them lie before it, less than `of`, and it is `fraction` · 2⁻⁶⁴ further.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    fraction: u64,
    of: u64,
}

impl Place {
    /// That of a number that is uniform over all numbers.
    fn of(number: u64, total: u64) -> Self {
        let product = u128::from(number) * u128::from(total);
        Self { at: (product >> 64) as u64, fraction: product as u64, of: total }
    }

    /// The same place among another number of weights. Takes a division of 128 bits, which is slow.
    fn among(self, total: u64) -> Self {
        let number = (u128::from(self.at) << 64 | u128::from(self.fraction)) / u128::from(self.of.max(1));
        Self::of(number as u64, total)
    }

    /// A place among weights that have shrunk to `total` since they were summed up: what lies beyond is spread over all of
    /// them. `None` if nothing is left.
    fn beyond(self, total: u64) -> Option<Self> {
        let beyond = self.at.checked_sub(total).map(|at| Self { at, of: self.of.saturating_sub(total), ..self });
        (total > 0).then(|| beyond.map_or(self, |place| place.among(total)))
    }
}

/// The sum in which the place falls, and the place in it.
fn descend(sums: &[AtomicU64], place: Place) -> Option<(usize, Place)> {
    find(sums, place).or_else(|| find(sums, place.beyond(sums.iter().map(sum_of).sum())?))
}

fn find(sums: &[AtomicU64], place: Place) -> Option<(usize, Place)> {
    let mut at = place.at;
    for (index, sum) in sums.iter().map(sum_of).enumerate() {
        // No place is in one of 0.
        match at.checked_sub(sum) {
            Some(rest) => at = rest,
            None => return Some((index, Place { at, of: sum, ..place })),
        }
    }
    None
}

/// The bit at this place, where each takes as much room as its weight; `None` beyond the last one.
fn bit_at(bits: u64, mut at: u64, weight: impl Fn(usize) -> u64) -> Option<usize> {
    for bit in Bits(bits) {
        match at.checked_sub(weight(bit)) {
            Some(rest) => at = rest,
            None => return Some(bit),
        }
    }
    None
}

/// The places of the bits that are set, lowest first.
pub(super) struct Bits(pub(super) u64);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let at = self.0.trailing_zeros();
        // Clears the lowest bit.
        self.0 &= self.0.checked_sub(1)?;
        Some(at as usize)
    }
}

#[cfg(test)]
mod tests;
