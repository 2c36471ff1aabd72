//! The line itself: who stands where, and who is to look next.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::task::Waker;

use crate::domain::ClientPrefix;

#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) waiters: BTreeMap<Turn, Waiter>,
    /// Of each source that waits.
    pub(super) shares: HashMap<ClientPrefix, Share>,
    /// Of the last who was served.
    pub(super) round: u64,
    arrivals: u64,
    /// Announcements since the start.
    pub(super) calls: u64,
    /// Since this one somebody has left a place that he can't use.
    left: Option<u64>,
    /// Some may have nothing to wait for any more.
    pub(super) changed: bool,
    /// The last one for which everybody has to look, and whether there may be some who have not yet.
    muster: u64,
    mustering: bool,
    pub(super) closed: bool,
}

impl Line {
    pub(super) fn next_turn(&mut self, source: &ClientPrefix) -> Turn {
        let after_its_last = self.shares.get(source).map_or(0, |share| share.last + 1);
        self.arrivals += 1;
        Turn { round: after_its_last.max(self.round), arrival: self.arrivals }
    }

    pub(super) fn enter(&mut self, turn: Turn, source: ClientPrefix) {
        let share = self.shares.entry(source).or_default();
        share.waiting += 1;
        share.last = turn.round;
        // Who is alone has to look by himself: until now nobody was called.
        let called = self.waiters.is_empty() || self.is_left_to(turn);
        self.waiters.insert(turn, Waiter { source, called, looked: self.calls, left_one: false, waker: None });
    }

    /// Whether there seems to be a place that nobody before `turn` can use.
    fn is_left_to(&self, turn: Turn) -> bool {
        self.left == Some(self.calls) && self.waiters.range(..turn).all(|(_, waiter)| waiter.has_left(self.calls))
    }

    pub(super) fn remove(&mut self, turn: Turn) -> Option<Waiter> {
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
        Some(waiter)
    }

    /// Has everybody look for the last announcement, if something has changed.
    pub(super) fn muster(&mut self) {
        if std::mem::take(&mut self.changed) {
            (self.muster, self.mustering) = (self.calls, true);
        }
    }

    /// It sleeps again. Calls one behind it, where one has reason to look.
    pub(super) fn looked_in_vain(&mut self, turn: Turn, others_may: bool) -> Option<Waker> {
        if let Some(waiter) = self.waiters.get_mut(&turn) {
            (waiter.called, waiter.looked, waiter.left_one) = (false, self.calls, others_may);
        }
        if others_may {
            self.left = Some(self.calls);
        }
        self.call_from(Bound::Excluded(turn), others_may).flatten()
    }

    /// Calls the first who has reason to look and was not called yet. `room`: there seems to be a place.
    pub(super) fn call_first(&mut self, room: bool) -> Option<Waker> {
        let called = self.call_from(Bound::Unbounded, room);
        // One that is called goes on from where it stands.
        self.mustering &= called.is_some();
        called.flatten()
    }

    /// The waker of who is called, if it sleeps.
    fn call_from(&mut self, from: Bound<Turn>, room: bool) -> Option<Option<Waker>> {
        // Most have no reason, and the line may be long.
        if !room && !self.mustering {
            return None;
        }
        let (calls, muster) = (self.calls, self.muster);
        let has_reason =
            |waiter: &&mut Waiter| !waiter.called && (waiter.looked < muster || (room && !waiter.has_left(calls)));
        let waiter = self.waiters.range_mut((from, Bound::Unbounded)).map(|(_, waiter)| waiter).find(has_reason)?;
        waiter.called = true;
        Some(waiter.waker.take())
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
    pub(super) called: bool,
    /// The last announcement when it looked in vain the last time, or came.
    looked: u64,
    /// There was a place then, which it can't use.
    left_one: bool,
    pub(super) waker: Option<Waker>,
}

impl Waiter {
    /// What is free now it has left to others.
    fn has_left(&self, calls: u64) -> bool {
        self.left_one && self.looked == calls
    }
}

#[derive(Debug, Default)]
pub(super) struct Share {
    waiting: u32,
    /// The round of its last.
    last: u64,
}
