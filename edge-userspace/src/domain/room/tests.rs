#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use crate::domain::index::Member;

fn all(_: usize, bits: u64) -> u64 {
    bits
}

fn room(weights: &[u32]) -> Room {
    let room = Room::new(weights.into());
    for at in 0..weights.len() {
        room.refresh(at, || Some(Standing::BelowSoft));
        room.refresh_trust(at, Trust::Trusted);
    }
    room
}

/// Draws with evenly spaced numbers: the counts are the shares.
fn shares(room: &Room, draws: u64, admit: &dyn Fn(usize, u64) -> u64) -> Vec<u64> {
    let mut counts = vec![0; room.weights.len()];
    for n in 0..draws {
        let number = n.wrapping_mul(u64::MAX / draws);
        counts[room.draw(Standing::BelowSoft, number + u64::MAX / draws / 2, admit).unwrap()] += 1;
    }
    counts
}

#[test]
fn members_are_drawn_by_weight_however_many_there_are() {
    for count in [1, 3, 63, 64, 65, 200, 5000] {
        let weights: Vec<u32> = (0..count).map(|at| 1 + at % 3).collect();
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let shares = shares(&room(&weights), total * 10, &all);
        for (share, weight) in shares.iter().zip(&weights) {
            assert!(share.abs_diff(u64::from(*weight) * 10) <= 1, "{share} for weight {weight} of {count}");
        }
    }
}

#[test]
fn only_those_that_stand_so_are_drawn() {
    let room = room(&[1; 500]);
    for at in (0..500).filter(|at| at % 100 != 7) {
        room.refresh(at, || Some(Standing::OverSoft));
    }
    room.refresh(8, || None);
    let shares = shares(&room, 500, &all);
    let drawn: Vec<_> = shares.iter().enumerate().filter(|(_, share)| **share > 0).collect();
    assert_eq!(drawn, [(7, &100), (107, &100), (207, &100), (307, &100), (407, &100)]);
    for n in 0..1000 {
        let at = room.draw(Standing::OverSoft, n * (u64::MAX / 1000), &all).unwrap();
        assert!(at % 100 != 7 && at != 8, "{at}");
    }
    (0..500).for_each(|at| room.refresh(at, || None));
    for standing in [Standing::BelowSoft, Standing::OverSoft] {
        assert_eq!(room.draw(standing, 1 << 60, &all), None);
    }
}

#[test]
fn those_that_are_not_admitted_leave_their_shares_to_the_others() {
    let without_first = |first: usize, bits: u64| if first == 0 { bits & !1 } else { bits };
    assert_eq!(shares(&room(&[1000, 1, 3]), 400, &without_first), [0, 100, 300]);
    let nobody = |_: usize, _: u64| 0;
    assert_eq!(room(&[1; 200]).draw(Standing::BelowSoft, 7, &nobody), None);
    // Nobody in the word that is drawn: another one is found.
    let only_last = |first: usize, bits: u64| if first == 192 { bits & (1 << 7) } else { 0 };
    assert_eq!(room(&[1; 200]).draw(Standing::BelowSoft, 7, &only_last), Some(199));
}

/// A heavy member was turned off, and the sums don't know yet: its share is that of all others, not of the last one.
#[test]
fn sums_that_are_behind_the_bits_tilt_no_shares() {
    let mut weights = vec![1; 128];
    weights[3] = 1_000;
    let room = room(&weights);
    room.set(Standing::BelowSoft).bits[0].fetch_and(!(1 << 3), Ordering::SeqCst);
    let drawn = shares(&room, 112_700, &all);
    let fair = |at: usize, share: u64, all: u64| share.abs_diff(if at == 3 { 0 } else { all }) < 20;
    // 1,063 of 1,127 parts are the first word's.
    assert!(drawn[..64].iter().enumerate().all(|(at, share)| fair(at, *share, 106_300 / 63)), "{drawn:?}");
    // A word whose sum has shrunk since the block's was read.
    let set = room.set(Standing::BelowSoft);
    set.words[0].store(63, Ordering::Relaxed);
    let drawn = shares(&room, 112_700, &all);
    assert!(drawn.iter().enumerate().all(|(at, share)| fair(at, *share, 112_700 / 127)), "{drawn:?}");
}

#[test]
fn the_greatest_weights_are_drawn_fairly() {
    let drawn = shares(&room(&[u32::MAX; 200]), 200_000, &all);
    assert!(drawn.iter().all(|share| share.abs_diff(1_000) <= 1), "{drawn:?}");
    let some = |first: usize, bits: u64| if first == 64 { bits } else { bits & 0b101 };
    let drawn = shares(&room(&[u32::MAX; 200]), 200_000, &some);
    assert!(drawn[64..128].iter().all(|share| share.abs_diff(1_000) <= 1), "{drawn:?}");
    assert!([0, 2].iter().all(|at| drawn[*at].abs_diff(32_000) <= 1), "{drawn:?}");
}

#[test]
fn sums_that_are_behind_the_bits_hide_nobody() {
    let room = room(&[1; 70]);
    let set = room.set(Standing::BelowSoft);
    for sum in set.blocks.iter().chain(set.words) {
        sum.store(u64::MAX, Ordering::Relaxed);
    }
    assert!(room.draw(Standing::BelowSoft, u64::MAX, &all).is_some());
}

#[test]
fn threads_that_change_counts_leave_exact_bits_and_sums() {
    use crate::domain::RawBackend;
    use crate::domain::testing::{World, eject, row, turn};
    let rows: Vec<_> = (0..70)
        .map(|at| {
            let (id, weight) = (format!("b{at}"), 1 + at % 3);
            RawBackend { weight: weight.into(), soft_limit: 1.into(), hard_limit: 2.into(), ..row(&id, "sa") }
        })
        .collect();
    let world = World::new(&rows);
    let group = world.app().group(&crate::domain::testing::region("sa")).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..6 {
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut held = Vec::new();
                for _ in 0..20_000 {
                    // Few members: threads meet.
                    let member = &group.members[rng.usize(..3)];
                    match rng.usize(..80) {
                        0..3 => turn(&member.backend, rng.bool()),
                        3 => eject(&member.backend),
                        4 => member.load.forget_health(|| {}),
                        5 => member.load.set_draining(rng.bool()),
                        _ => {}
                    }
                    held.extend(member.load.try_reserve(member.limits));
                    if rng.bool() && !held.is_empty() {
                        drop(held.swap_remove(rng.usize(..held.len())));
                    }
                }
                std::mem::forget(held.pop());
            });
        }
    });
    let is_in = |member: &Member, set: usize| match set {
        TRUSTED => member.load.is_trusted(),
        EJECTED => member.load.is_ejected() && !member.load.is_draining(),
        standing => member.load.standing(member.limits).is_some_and(|stands| stands as usize == standing),
    };
    for at in 0..SETS {
        let set = group.room.set_at(at);
        let (mut sums, mut count) = ([0u64; 2], 0);
        for (place, member) in group.members.iter().enumerate() {
            let is = is_in(member, at);
            assert_eq!(set.bits[place / 64].load(Ordering::SeqCst) >> (place % 64) & 1 == 1, is, "{place} in {at}");
            sums[place / 64] += if is { u64::from(member.weight) } else { 0 };
            count += usize::from(is);
        }
        assert_eq!(set.words.iter().map(sum_of).collect::<Vec<_>>(), sums);
        assert_eq!(sum_of(&set.blocks[0]), sums[0] + sums[1]);
        assert_eq!(set.len(), count);
    }
}

/// Others that are between two looks at the same backend meanwhile must not put an older word in the place of a newer.
#[test]
fn an_ejection_is_counted_as_soon_as_it_is_told() {
    use std::sync::atomic::AtomicBool;

    use crate::domain::RawBackend;
    use crate::domain::testing::{World, eject, row};
    let world = World::new(&[RawBackend { soft_limit: 1.into(), hard_limit: 9.into(), ..row("a", "sa") }]);
    let (backend, over) = (&world.app().backends()[0], AtomicBool::new(false));
    let count = || world.app().everywhere().unwrap().room.count();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    drop(backend.load.try_reserve(backend.limits));
                }
            });
        }
        let wrong = (0..20_000).find_map(|_| {
            eject(backend);
            let ejected = count();
            backend.load.forget_health(|| {});
            Some((ejected, count())).filter(|counts| *counts != ((0, 1), (1, 0)))
        });
        over.store(true, Ordering::Relaxed);
        assert_eq!(wrong, None);
    });
}

/// Who is full, down, draining or out by the operator's word is where it should be, in both numbers.
#[test]
fn ejections_are_counted_among_those_that_serve() {
    use crate::domain::RawBackend;
    use crate::domain::testing::{World, eject, id, row, turn};
    let maint = RawBackend { state: "maint".into(), ..row("out", "us") };
    let full = RawBackend { hard_limit: 1.into(), ..row("full", "eu") };
    let world = World::new(&[row("a", "sa"), row("b", "us"), full, row("down", "sa"), row("drain", "sa"), maint]);
    let backend = |name: &str| world.app().backend(&id(name)).unwrap();
    let beside = |name: &str| {
        let ejections = world.app().ejections_beside(backend(name));
        (ejections.others, ejections.serving)
    };
    let counts = |name: &str| world.app().ejections_beside(backend(name)).own;
    let _held = backend("full").load.try_reserve(backend("full").limits).unwrap();
    assert_eq!(beside("a"), (0, 5));
    ["full", "b", "down", "drain", "out"].into_iter().for_each(|name| eject(backend(name)));
    turn(backend("down"), false);
    backend("drain").load.set_draining(true);
    assert_eq!(["a", "b", "full", "down", "drain", "out"].map(beside), [2, 1, 1, 2, 2, 2].map(|others| (others, 3)));
    assert_eq!(["a", "b", "full", "down", "drain", "out"].map(counts), [false, true, true, false, false, false]);
    backend("b").load.forget_health(|| {});
    turn(backend("down"), true);
    assert_eq!(["a", "b", "down"].map(beside), [2, 2, 1].map(|others| (others, 4)), "it is still ejected");
}
