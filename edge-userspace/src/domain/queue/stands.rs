//! How those who wait stand to what is free, so that the first who is to be called is found without a walk: a line may be
//! long, and all workers need it.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::line::Turn;

/// Each waiter is in one of the sets.
#[derive(Debug, Default)]
pub(super) struct Stands {
    /// To be called for a place.
    ready: BTreeSet<Turn>,
    /// They are about to look for one.
    called: BTreeSet<Turn>,
    /// They looked, and left what is free to others.
    left: BTreeSet<Turn>,
    /// The last of those that were asked again.
    asked: Option<Turn>,
}

impl Stands {
    pub(super) fn enter(&mut self, turn: Turn, called: bool) {
        let stand = if called { &mut self.called } else { &mut self.ready };
        stand.insert(turn);
    }

    /// Whether it was called.
    pub(super) fn remove(&mut self, turn: Turn) -> bool {
        let called = self.called.remove(&turn);
        if !called && !self.ready.remove(&turn) {
            self.left.remove(&turn);
        }
        called
    }

    pub(super) fn call(&mut self, turn: Turn) {
        self.remove(turn);
        self.called.insert(turn);
    }

    /// It looked in vain. `left`: there is a place, which it can't use.
    pub(super) fn rest(&mut self, turn: Turn, left: bool) {
        self.remove(turn);
        let stand = if left { &mut self.left } else { &mut self.ready };
        stand.insert(turn);
    }

    pub(super) fn is_called(&self, turn: Turn) -> bool {
        self.called.contains(&turn)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        [&self.ready, &self.called, &self.left].into_iter().all(BTreeSet::is_empty)
    }

    pub(super) fn first_ready(&self) -> Option<Turn> {
        self.ready.first().copied()
    }

    /// Whether nobody before `turn` wants what is free.
    pub(super) fn all_have_left_before(&self, turn: Turn) -> bool {
        [self.ready.first(), self.called.first()].into_iter().flatten().all(|first| *first > turn)
    }

    /// There may be a place for everybody. Moves the fewer to the more: what that costs was paid by those that looked.
    pub(super) fn ask_all(&mut self) {
        if self.left.len() > self.ready.len() {
            std::mem::swap(&mut self.left, &mut self.ready);
        }
        self.ready.extend(std::mem::take(&mut self.left));
    }

    /// Has so many of those that left what is free look again, the next ones each time.
    pub(super) fn ask_again(&mut self, most: usize) {
        let after = self.asked.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.left.range((after, Bound::Unbounded)).chain(&self.left);
        let asked: Vec<Turn> = next.take(most.min(self.left.len())).copied().collect();
        self.asked = asked.last().copied();
        asked.into_iter().for_each(|turn| self.rest(turn, false));
    }
}
