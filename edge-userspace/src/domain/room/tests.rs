#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;

fn all(_: usize, bits: u64) -> u64 {
    bits
}

fn room(weights: &[u32]) -> Room {
    let room = Room::new(weights.into());
    (0..weights.len()).for_each(|at| room.refresh(at, || (Some(Standing::BelowSoft), true)));
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
        room.refresh(at, || (Some(Standing::OverSoft), true));
    }
    room.refresh(8, || (None, true));
    let shares = shares(&room, 500, &all);
    let drawn: Vec<_> = shares.iter().enumerate().filter(|(_, share)| **share > 0).collect();
    assert_eq!(drawn, [(7, &100), (107, &100), (207, &100), (307, &100), (407, &100)]);
    for n in 0..1000 {
        let at = room.draw(Standing::OverSoft, n * (u64::MAX / 1000), &all).unwrap();
        assert!(at % 100 != 7 && at != 8, "{at}");
    }
    (0..500).for_each(|at| room.refresh(at, || (None, true)));
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
    use crate::domain::testing::{World, row, turn};
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
                    if rng.usize(..20) == 0 {
                        turn(&member.backend, rng.bool());
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
    for standing in
        [Some(Standing::BelowSoft), Some(Standing::OverSoft), Some(Standing::Ejected), Some(Standing::Down), None]
    {
        // `None` stands for "trusted".
        let set = standing.map_or(group.room.trusted(), |standing| group.room.set(standing));
        let mut sums = [0u64; 2];
        for (at, member) in group.members.iter().enumerate() {
            let is = match standing {
                Some(_) => member.load.standing(member.limits) == standing,
                None => member.load.is_trusted(),
            };
            assert_eq!(set.bits[at / 64].load(Ordering::SeqCst) >> (at % 64) & 1 == 1, is, "{at} {standing:?}");
            sums[at / 64] += if is { u64::from(member.weight) } else { 0 };
        }
        assert_eq!(set.words.iter().map(sum_of).collect::<Vec<_>>(), sums);
        assert_eq!(sum_of(&set.blocks[0]), sums[0] + sums[1]);
    }
}
