//! Choosing within one group of backends, between which geography makes no difference: those below their soft limit
//! first, near-ties broken by weight and load.

use std::sync::atomic::Ordering;

use super::index::{Group, Member};
use super::{RandomSource, Tried};

/// What breaks near-ties.
pub(super) struct Draw<'a> {
    pub(super) rng: &'a mut dyn RandomSource,
    pub(super) tried: &'a Tried,
    /// Whether the groups' sequences move on; `explain` only looks at them.
    pub(super) advance: bool,
}

/// The step of the sequence: 2⁶⁴ ÷ golden ratio, which spreads multiples most evenly.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draw<'_> {
    /// A number for the first choice. A retry follows a choice from the same sequence and would not be independent
    /// of it, so it is drawn at random.
    fn first(&mut self, group: &Group) -> u64 {
        if !self.tried.is_empty() {
            self.rng.next_u64()
        } else if self.advance {
            group.sequence.fetch_add(STEP, Ordering::Relaxed)
        } else {
            group.sequence.load(Ordering::Relaxed)
        }
    }

    fn second(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

/// Maps a uniform number to `0..total`.
fn scale(number: u64, total: u64) -> u64 {
    // The product of two 64-bit numbers shifted by 64 fits 64 bits.
    ((u128::from(number) * u128::from(total)) >> 64) as u64
}

/// Where a member stands against its own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    BelowSoft,
    OverSoft,
}

impl Member {
    /// `None` if it can't be chosen.
    fn standing(&self, tried: &Tried) -> Option<Standing> {
        let active = self.load.active();
        if self.limits.is_full(active) || tried.contains(&self.backend) {
            None
        } else if self.limits.is_over_soft(active) {
            Some(Standing::OverSoft)
        } else {
            Some(Standing::BelowSoft)
        }
    }

    /// Connections for which load factor ÷ weight is 1.
    fn scale(&self) -> f64 {
        self.limits.yardstick() * f64::from(self.weight)
    }

    /// Would, with one connection more, still be less loaded than `other` with one less. The distance between the two
    /// keeps small numbers of connections, which can't be split exactly by weight, from tilting the shares.
    fn relieves(&self, other: &Self) -> bool {
        let (own, its) = (f64::from(self.load.active()) + 1.0, f64::from(other.load.active()) - 1.0);
        own * other.scale() < its * self.scale()
    }
}

/// Up to this many members are all looked at; of more, a sample is.
const SCANNED: usize = 64;

/// How many members of a large group are drawn before it is searched from end to end.
const SAMPLES: usize = 16;

/// The member of the group that should get the connection, and whether it is below its soft limit.
pub(super) fn best<'a>(group: &'a Group, draw: &mut Draw<'_>) -> Option<(&'a Member, Standing)> {
    if group.members.len() <= SCANNED { scan(group, draw) } else { sample(group, draw) }
}

/// Members of a small group that may be chosen, as bits.
#[derive(Clone, Copy, Default)]
struct Candidates {
    bits: u64,
    weight: u64,
}

impl Candidates {
    fn add(&mut self, at: usize, member: &Member) {
        self.bits |= 1 << at;
        self.weight += u64::from(member.weight);
    }

    /// The member at `number`, where each takes as much room as its weight.
    fn at<'a>(&self, group: &'a Group, number: u64) -> Option<(usize, &'a Member)> {
        let mut room = scale(number, self.weight);
        let mut chosen = None;
        for (at, member) in group.members.iter().enumerate().filter(|(at, _)| self.bits & (1 << at) != 0) {
            chosen = Some((at, member));
            match room.checked_sub(u64::from(member.weight)) {
                Some(rest) => room = rest,
                None => break,
            }
        }
        chosen
    }

    fn without(mut self, at: usize, member: &Member) -> Self {
        self.bits &= !(1 << at);
        self.weight -= u64::from(member.weight);
        self
    }
}

fn scan<'a>(group: &'a Group, draw: &mut Draw<'_>) -> Option<(&'a Member, Standing)> {
    let (mut below, mut over) = (Candidates::default(), Candidates::default());
    for (at, member) in group.members.iter().enumerate() {
        match member.standing(draw.tried) {
            Some(Standing::BelowSoft) => below.add(at, member),
            Some(Standing::OverSoft) => over.add(at, member),
            None => {}
        }
    }
    let (class, standing) = if below.bits != 0 { (below, Standing::BelowSoft) } else { (over, Standing::OverSoft) };
    if class.bits == 0 {
        return None;
    }
    let (at, first) = class.at(group, draw.first(group))?;
    let rest = class.without(at, first);
    let second = if rest.bits == 0 { None } else { rest.at(group, draw.second()) };
    match second {
        Some((_, second)) if second.relieves(first) => Some((second, standing)),
        _ => Some((first, standing)),
    }
}

/// Draws members by weight until one is below its soft limit. If a whole sample isn't, searches the group, so that
/// a member below its soft limit is found if there is one.
fn sample<'a>(group: &'a Group, draw: &mut Draw<'_>) -> Option<(&'a Member, Standing)> {
    let mut fallback = None;
    for attempt in 0..SAMPLES {
        let number = if attempt == 0 { draw.first(group) } else { draw.second() };
        let member = drawn(group, number)?;
        match member.standing(draw.tried) {
            Some(Standing::BelowSoft) => return Some((lighter(group, member, draw), Standing::BelowSoft)),
            Some(Standing::OverSoft) => fallback = fallback.or(Some((member, Standing::OverSoft))),
            None => {}
        }
    }
    search(group, draw, fallback)
}

fn drawn(group: &Group, number: u64) -> Option<&Member> {
    let room = scale(number, group.total_weight());
    group.members.get(group.cumulative.partition_point(|sum| *sum <= room))
}

/// The second of two choices, if it is below its soft limit and relieves the first.
fn lighter<'a>(group: &'a Group, first: &'a Member, draw: &mut Draw<'_>) -> &'a Member {
    match drawn(group, draw.second()) {
        Some(second) if second.standing(draw.tried) == Some(Standing::BelowSoft) && second.relieves(first) => second,
        _ => first,
    }
}

fn search<'a>(
    group: &'a Group,
    draw: &mut Draw<'_>,
    mut fallback: Option<(&'a Member, Standing)>,
) -> Option<(&'a Member, Standing)> {
    // Starting anywhere spreads what is found over the group.
    let start = scale(draw.second(), group.members.len() as u64) as usize;
    let (head, tail) = group.members.split_at_checked(start)?;
    for member in tail.iter().chain(head) {
        match member.standing(draw.tried) {
            Some(Standing::BelowSoft) => return Some((member, Standing::BelowSoft)),
            Some(Standing::OverSoft) => fallback = fallback.or(Some((member, Standing::OverSoft))),
            None => {}
        }
    }
    fallback
}
