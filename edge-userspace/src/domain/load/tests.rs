#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

fn load() -> Arc<BackendLoad> {
    BackendLoad::new(SlotPool::new(1).take().unwrap())
}

#[test]
fn slots_are_distinct_and_come_back() {
    let pool = SlotPool::new(2);
    let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
    assert_eq!((a.index, b.index), (0, 1));
    assert!(pool.take().is_none());
    drop(a);
    assert_eq!(pool.take().unwrap().index, 0);
}

#[test]
fn a_permit_keeps_the_slot_of_a_removed_backend() {
    let pool = SlotPool::new(1);
    let load = BackendLoad::new(pool.take().unwrap());
    let permit = load.try_reserve(Limits::new(0, 0).unwrap()).unwrap();
    drop(load);
    assert!(pool.take().is_none());
    assert_eq!(permit.load().active(), 1);
    drop(permit);
    assert!(pool.take().is_some());
}

#[test]
fn threads_never_exceed_the_hard_limit() {
    let (load, limits) = (load(), Limits::new(1, 5).unwrap());
    let (exceeded, reached) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let permit = load.try_reserve(limits);
                    let active = load.active();
                    exceeded.fetch_or(active > 5, Ordering::Relaxed);
                    reached.fetch_or(active == 5, Ordering::Relaxed);
                    std::hint::black_box(permit);
                }
            });
        }
        // Fills the limit at least once whatever the scheduler does.
        let permits: Vec<_> =
            std::iter::repeat_with(|| load.try_reserve(limits)).take(50_000).take_while(Option::is_some).collect();
        std::hint::black_box(permits);
    });
    let all: Vec<_> = std::iter::from_fn(|| load.try_reserve(limits)).collect();
    assert_eq!(all.len(), 5);
    drop(all);
    assert!(!exceeded.into_inner());
    assert_eq!(load.active(), 0);
}

proptest! {
    #[test]
    fn the_count_is_the_number_of_permits(hard in 0u32..6, steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..200)) {
        let (load, limits) = (load(), Limits::new(0, hard).unwrap());
        let mut permits = Vec::new();
        for (reserve, which) in steps {
            if reserve {
                let full = hard != 0 && permits.len() == hard as usize;
                match load.try_reserve(limits) {
                    Some(permit) => { prop_assert!(!full); permits.push(permit); }
                    None => prop_assert!(full),
                }
            } else if !permits.is_empty() {
                let at = which.index(permits.len());
                drop(permits.swap_remove(at));
            }
            prop_assert_eq!(load.active() as usize, permits.len());
        }
        drop(permits);
        prop_assert_eq!(load.active(), 0);
    }
}
