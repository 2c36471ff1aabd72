//! Health checks as HAProxy makes them unless told otherwise: a TCP connect every 2 s, three failures in a row take a
//! backend out, two successes bring it back. A backend that accepts and resets passes.

use std::time::Duration;

use crate::world::{Condition, Happening, World};

const EVERY: Duration = Duration::from_secs(2);
const FALL: u32 = 3;
const RISE: u32 = 2;

pub(super) struct Checks<'a> {
    next: Duration,
    truth: Truth<'a>,
    backends: Vec<Checked>,
}

/// How backends really are at the moment: what a check finds out.
pub(super) struct Truth<'a> {
    world: &'a World,
    /// How far into the world's happenings it has come.
    seen: usize,
    conditions: Vec<Condition>,
}

impl<'a> Truth<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        Self { seen: 0, conditions: vec![Condition::Works; world.backends.len()], world }
    }

    pub(super) fn condition(&self, backend: usize) -> Condition {
        self.conditions[backend]
    }

    pub(super) fn advance(&mut self, now: Duration) {
        while let Some((_, what)) = self.world.happenings.get(self.seen).filter(|(at, _)| *at <= now) {
            self.seen += 1;
            if let Happening::Turns(backend, condition) = what {
                self.conditions[*backend] = *condition;
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Checked {
    down: bool,
    /// Results in a row that speak against what is believed.
    against: u32,
}

impl<'a> Checks<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        Self { next: EVERY, truth: Truth::new(world), backends: vec![Checked::default(); world.backends.len()] }
    }

    pub(super) fn is_down(&self, backend: usize) -> bool {
        self.backends[backend].down
    }

    pub(super) fn tick(&mut self, now: Duration) {
        self.truth.advance(now);
        if now >= self.next {
            self.next = now + EVERY;
            let conditions = &self.truth.conditions;
            self.backends.iter_mut().zip(conditions).for_each(|(backend, condition)| backend.check(*condition));
        }
    }
}

impl Checked {
    fn check(&mut self, condition: Condition) {
        let passed = matches!(condition, Condition::Works | Condition::Resets);
        self.against = if passed == self.down { self.against + 1 } else { 0 };
        if self.against >= if self.down { RISE } else { FALL } {
            *self = Self { down: !self.down, against: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_take_out_and_two_successes_bring_back() {
        let mut checked = Checked::default();
        let mut down = |conditions: &[Condition]| {
            conditions
                .iter()
                .map(|condition| {
                    checked.check(*condition);
                    checked.down
                })
                .collect::<Vec<_>>()
        };
        let (good, bad) = (Condition::Works, Condition::Silent);
        assert_eq!(down(&[bad, bad, good, bad, bad, bad]), [false, false, false, false, false, true]);
        assert_eq!(down(&[good, bad, good, Condition::Resets]), [true, true, true, false]);
    }
}
