//! How many messages a worker moves each time it wakes.
//!
//! A worker that finds many sockets ready at once spreads the cost of waking over all of them; the kernel path wakes a
//! kernel worker for each. So what pays for a few lively connections does not pay for many (`docs/benchmarks/`).

use std::cell::Cell;

/// The average is taken over about so many wake-ups.
const MEMORY: u32 = 64;

thread_local! {
    static MESSAGES: Cell<u32> = const { Cell::new(0) };
    static WAKES: Cell<u32> = const { Cell::new(0) };
}

/// The worker moved a message.
pub(super) fn moved() {
    MESSAGES.set(MESSAGES.get().saturating_add(1));
}

/// The worker has nothing to do for now. To be called by its runtime each time before it sleeps.
pub fn pause() {
    WAKES.set(WAKES.get() + 1);
    if WAKES.get() >= MEMORY * 2 {
        // Half of what is older than that still counts.
        WAKES.set(WAKES.get() / 2);
        MESSAGES.set(MESSAGES.get() / 2);
    }
}

/// Messages moved for each time this worker woke, lately.
pub(super) fn messages_per_wake() -> u32 {
    MESSAGES.get() / WAKES.get().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_what_happens() {
        for _ in 0..1_000 {
            (0..20).for_each(|_| moved());
            pause();
        }
        assert_eq!(messages_per_wake(), 20);
        for _ in 0..1_000 {
            moved();
            pause();
        }
        assert!(messages_per_wake() <= 2, "{}", messages_per_wake());
    }
}
