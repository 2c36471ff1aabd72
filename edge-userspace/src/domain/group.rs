//! Choosing within one group of backends, between which geography makes no difference: those below their soft limit
//! first, near-ties broken by weight and load.

use std::sync::atomic::Ordering;

use super::index::{Group, Member};
use super::maglev::{ClientHash, hashed};
use super::room::{Bits, Standing};
use super::{RandomSource, Tried};

/// What breaks near-ties.
pub(super) struct Draw<'a> {
    pub(super) rng: &'a mut dyn RandomSource,
    pub(super) tried: &'a Tried,
    /// `None` where the client is not known: then chance chooses.
    pub(super) client: Option<ClientHash>,
    /// Whether the groups' sequences move on; `explain` only looks at them.
    pub(super) advance: bool,
}

/// The step of the sequence: 2⁶⁴ ÷ golden ratio, which spreads multiples most evenly.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draw<'_> {
    /// A number for the first choice. A retry follows a choice from the same sequence and would not be independent
    /// of it, so it is drawn at random.
    pub(super) fn first(&mut self, group: &Group) -> u64 {
        if !self.tried.is_empty() {
            self.rng.next_u64()
        } else if self.advance {
            group.sequence.fetch_add(STEP, Ordering::Relaxed)
        } else {
            group.sequence.load(Ordering::Relaxed)
        }
    }

    pub(super) fn second(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

impl Member {
    /// Connections for which load factor ÷ weight is 1.
    fn scale(&self) -> f64 {
        self.limits.yardstick() * f64::from(self.weight)
    }

    /// Would, with one connection more, still be less loaded than `other` with one less. The distance between the two
    /// keeps small numbers of connections, which can't be split exactly by weight, from tilting the shares.
    pub(super) fn relieves(&self, other: &Self) -> bool {
        let (own, its) = (f64::from(self.load.active()) + 1.0, f64::from(other.load.active()) - 1.0);
        own * other.scale() < its * self.scale()
    }
}

/// The member of the group that should get the connection, and whether it is below its soft limit.
pub(super) fn best<'a>(group: &'a Group, draw: &mut Draw<'_>) -> Option<(&'a Member, Standing)> {
    let standings = [Standing::BelowSoft, Standing::OverSoft];
    if let (Some(table), Some(client)) = (&group.maglev, draw.client) {
        return standings
            .into_iter()
            .find_map(|standing| Some((hashed(group, table, client, draw, standing)?, standing)));
    }
    let number = draw.first(group);
    standings.into_iter().find_map(|standing| Some((lighter_of_two(group, standing, number, draw)?, standing)))
}

/// A member to ask when no other is left: one that was ejected, or one whose checks fail.
pub(super) fn last_resort<'a>(group: &'a Group, standing: Standing, draw: &mut Draw<'_>) -> Option<&'a Member> {
    // The sequence has moved on for those who are to be trusted: at random.
    let number = draw.second();
    lighter_of_two(group, standing, number, draw)
}

/// A member that is coming back gets only a part of those who would be its own; the others go to the second choice.
fn lighter_of_two<'a>(group: &'a Group, standing: Standing, number: u64, draw: &mut Draw<'_>) -> Option<&'a Member> {
    let (at, first) = group.drawn(standing, number, draw.tried, None)?;
    let Some((_, second)) = group.drawn(standing, draw.second(), draw.tried, Some(at)) else { return Some(first) };
    let passes_on = !first.load.admits(|| draw.second());
    let relieved = second.relieves(first) && second.load.admits(|| draw.second());
    Some(if passes_on || relieved { second } else { first })
}

/// Each draw that is in vain puts a bit right. This many are in vain only where other threads turn bits all the time.
const DRAWS: usize = 64;

impl Group {
    /// A member that stands so, was not tried and is not `other`.
    pub(super) fn drawn(
        &self,
        standing: Standing,
        number: u64,
        tried: &Tried,
        other: Option<usize>,
    ) -> Option<(usize, &Member)> {
        let has_tried = |first: usize, bit: usize| {
            self.members.get(first + bit).is_some_and(|member| tried.contains(&member.backend))
        };
        let admit = |first: usize, mut bits: u64| {
            if let Some(bit) = other.and_then(|other| other.checked_sub(first)).filter(|bit| *bit < 64) {
                bits &= !(1 << bit);
            }
            if !tried.is_empty() {
                bits = Bits(bits).filter(|bit| !has_tried(first, *bit)).fold(0, |bits, bit| bits | 1 << bit);
            }
            bits
        };
        for _ in 0..DRAWS {
            let at = self.room.draw(standing, number, &admit)?;
            let member = self.members.get(at)?;
            let stands = || member.load.standing(member.limits);
            if stands() == Some(standing) {
                return Some((at, member));
            }
            self.room.refresh(at, stands);
        }
        None
    }
}
