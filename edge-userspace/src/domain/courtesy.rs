//! Long work that gives way to short work.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long work goes on before it gives way: well below the 1 ms that nobody should wait for it, and long enough that
/// giving way, a system call, costs less than a hundredth.
const TURN: Duration = Duration::from_micros(100);

/// Lets others have the processor now and then, in work that goes through many things and can wait.
///
/// A low priority is not enough. Linux's scheduler (EEVDF, since 6.6) gives a processor only to threads that had no more
/// than their share so far. A worker that has just run has had more than its share by a hair; when it is woken again, the
/// thread of low priority that runs meanwhile goes on to the end of its slice, which it is asked for at the next tick of the
/// clock: 1 to 4 ms (measured: `docs/reload.md`). Who gives way forfeits the rest of its slice, and whoever waits
/// is next; if nobody does it goes on at once.
///
/// Only threads that have said so give way ([`Courtesy::begin`]): while the first table is loaded nobody is served yet.
#[derive(Debug)]
pub struct Courtesy {
    since: Instant,
    left: u32,
    every: u32,
}

thread_local! {
    static GIVES_WAY: Cell<bool> = const { Cell::new(false) };
}

impl Courtesy {
    /// From now on this thread gives way.
    pub fn begin() {
        GIVES_WAY.set(true);
    }

    /// What a thread does for this one: it gives way if this one does.
    pub fn inherited<R>(work: impl FnOnce() -> R) -> impl FnOnce() -> R {
        let gives_way = GIVES_WAY.get();
        move || {
            GIVES_WAY.set(gives_way);
            work()
        }
    }

    /// For work that takes less than some 5 µs a thing: the clock is read once for 16 of them.
    pub fn among_many() -> Self {
        Self::reading(16)
    }

    /// For work that takes longer than that.
    pub fn among_few() -> Self {
        Self::reading(1)
    }

    fn reading(every: u32) -> Self {
        let every = if GIVES_WAY.get() { every } else { u32::MAX };
        Self { since: Instant::now(), left: every, every }
    }

    /// To be called between one thing and the next. Not while holding what a worker may wait for.
    pub fn pass(&mut self) {
        self.pass_at(Instant::now, std::thread::yield_now);
    }

    fn pass_at(&mut self, now: impl Fn() -> Instant, give_way: impl FnOnce()) {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return;
        }
        self.left = self.every;
        if now().saturating_duration_since(self.since) >= TURN {
            give_way();
            self.since = now();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// At which things it gives way, where each of `count` takes `each`.
    fn given_way(mut courtesy: Courtesy, count: u32, each: Duration) -> (Vec<u32>, u32) {
        let (clock, readings) = (Cell::new(courtesy.since), Cell::new(0));
        let now = || {
            readings.set(readings.get() + 1);
            clock.get()
        };
        let mut given = Vec::new();
        for thing in 1..=count {
            clock.set(clock.get() + each);
            courtesy.pass_at(now, || given.push(thing));
        }
        let readings = readings.get() - given.len() as u32;
        (given, readings)
    }

    #[test]
    fn long_things_give_way_each_time_and_short_ones_after_a_turn() {
        Courtesy::begin();
        assert_eq!(given_way(Courtesy::among_few(), 3, TURN).0, [1, 2, 3]);
        assert_eq!(given_way(Courtesy::among_few(), 10, TURN / 4).0, [4, 8]);
        assert!(given_way(Courtesy::among_few(), 3, TURN / 4).0.is_empty());
    }

    #[test]
    fn among_many_things_the_clock_is_read_seldom() {
        Courtesy::begin();
        let (given, readings) = given_way(Courtesy::among_many(), 64, TURN / 32);
        assert_eq!((given, readings), (vec![32, 64], 4));
    }

    #[test]
    fn time_that_others_had_is_not_its_own() {
        Courtesy::begin();
        let mut courtesy = Courtesy::among_few();
        let clock = Cell::new(courtesy.since + TURN);
        courtesy.pass_at(|| clock.get(), || clock.set(clock.get() + 10 * TURN));
        courtesy.pass_at(|| clock.get(), || panic!("its turn has just begun"));
    }

    #[test]
    fn who_has_not_said_so_does_not_give_way_and_neither_do_its_threads() {
        let given = || given_way(Courtesy::among_few(), 3, TURN).0.len();
        let of_child = || std::thread::scope(|scope| scope.spawn(Courtesy::inherited(given)).join().unwrap());
        let both = || (given(), of_child());
        let before_and_after = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let before = both();
                Courtesy::begin();
                (before, both())
            });
            thread.join().unwrap()
        });
        assert_eq!(before_and_after, ((0, 0), (3, 3)));
    }
}
