//! The line itself: who stands where, and who is to look next.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::task::Waker;

use super::stands::Stands;
use crate::domain::ClientPrefix;

/// How many of those that left a place look again at a time though nobody has announced one: what they would find is rare,
/// and the line may be long.
pub(super) const ASK_AGAIN: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) waiters: BTreeMap<Turn, Waiter>,
    pub(super) stands: Stands,
    /// Of each source that waits.
    pub(super) shares: HashMap<ClientPrefix, Share>,
    /// Of the last who was served.
    pub(super) round: u64,
    arrivals: u64,
    /// How often something was announced, or may have changed, since the start.
    pub(super) calls: u64,
    /// Since the last announcement somebody has left a place that he can't use.
    left_one: bool,
    /// Some may have nothing to wait for any more.
    pub(super) changed: bool,
    /// The last one for which everybody has to look, and the first who may not have yet, where there may be one.
    muster: u64,
    mustering: Option<Bound<Turn>>,
    pub(super) closed: bool,
}

impl Line {
    /// The turn of one of this source that comes now.
    pub(super) fn next_turn(&self, source: &ClientPrefix) -> Turn {
        let after_its_last = self.shares.get(source).map_or(0, |share| share.last + 1);
        Turn { round: after_its_last.max(self.round), arrival: self.arrivals + 1 }
    }

    pub(super) fn enter(&mut self, turn: Turn, source: ClientPrefix) {
        let share = self.shares.entry(source).or_default();
        share.waiting += 1;
        share.last = turn.round;
        // Who is alone has to look by himself: until now nobody was called.
        let called = self.waiters.is_empty() || self.is_left_to(turn);
        self.arrivals = turn.arrival;
        self.stands.enter(turn, called);
        self.waiters.insert(turn, Waiter { source, looked: self.calls, waker: None });
    }

    /// Whether there seems to be a place that nobody before `turn` can use.
    pub(super) fn is_left_to(&self, turn: Turn) -> bool {
        self.left_one && self.stands.all_have_left_before(turn)
    }

    pub(super) fn is_called(&self, turn: Turn) -> bool {
        self.stands.is_called(turn)
    }

    pub(super) fn remove(&mut self, turn: Turn) -> Option<Gone> {
        let waiter = self.waiters.remove(&turn)?;
        if let Some(share) = self.shares.get_mut(&waiter.source) {
            share.waiting -= 1;
            if share.waiting == 0 {
                self.shares.remove(&waiter.source);
            } else if share.last == turn.round {
                // Its rounds are without a gap up to its last, but for those that left out of turn.
                share.last = share.last.saturating_sub(1);
            }
        }
        Some(Gone { called: self.stands.remove(turn), waker: waiter.waker })
    }

    /// There is a place that may be one for everybody.
    pub(super) fn announced(&mut self) {
        self.calls += 1;
        self.left_one = false;
        self.stands.ask_all();
    }

    /// There may be what nobody announced. Has everybody look, if something has changed.
    pub(super) fn reconsider(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.announced();
            (self.muster, self.mustering) = (self.calls, Some(Bound::Unbounded));
        } else {
            // Who is looking now looks once more.
            self.calls += 1;
            self.stands.ask_again(ASK_AGAIN);
        }
    }

    /// It sleeps again. Calls the next who has reason to look, who may have come before it meanwhile.
    pub(super) fn looked_in_vain(&mut self, turn: Turn, others_may: bool) -> Option<Waker> {
        if let Some(waiter) = self.waiters.get_mut(&turn) {
            waiter.looked = self.calls;
            self.stands.rest(turn, others_may);
        }
        self.left_one |= others_may;
        self.call_first(others_may)
    }

    /// Calls the first who has reason to look and was not called yet, and gives its waker, if it sleeps. `room`: there seems to
    /// be a place.
    pub(super) fn call_first(&mut self, room: bool) -> Option<Waker> {
        let for_place = if room { self.stands.first_ready() } else { None };
        let turn = for_place.into_iter().chain(self.next_of_muster()).min()?;
        self.stands.call(turn);
        self.waiters.get_mut(&turn)?.waker.take()
    }

    /// The first who has to look and was not called yet.
    fn next_of_muster(&mut self) -> Option<Turn> {
        let mut left = self.waiters.range((self.mustering?, Bound::Unbounded));
        let has_to = |turn: &Turn, waiter: &Waiter| waiter.looked < self.muster && !self.stands.is_called(*turn);
        let next = left.find(|(turn, waiter)| has_to(turn, waiter)).map(|(turn, _)| *turn);
        // Those before it have looked or are about to, and who comes need not: each is passed once.
        self.mustering = next.map(Bound::Included);
        next
    }
}

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) round: u64,
    arrival: u64,
}

#[derive(Debug)]
pub(super) struct Waiter {
    source: ClientPrefix,
    /// The last call of all when it looked in vain the last time, or came.
    looked: u64,
    pub(super) waker: Option<Waker>,
}

/// One that is not in the line any more.
#[derive(Debug)]
pub(super) struct Gone {
    /// The call was meant for a place that is still free.
    pub(super) called: bool,
    pub(super) waker: Option<Waker>,
}

#[derive(Debug, Default)]
pub(super) struct Share {
    waiting: u32,
    /// The round of its last.
    last: u64,
}
