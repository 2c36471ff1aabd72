#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::domain::testing::{World, eject, id, region, row, snapshot, snapshot_of_app, turn};
use crate::domain::{RawApp, RawBackend, Snapshot};

fn weighted(weights: &[i64]) -> Vec<RawBackend> {
    let each = weights.iter().enumerate();
    each.map(|(at, weight)| RawBackend { weight: (*weight).into(), ..row(&format!("b{at}"), "sa") }).collect()
}

/// Picks `count` times with `held` connections open at a time, each for as long as the others.
fn shares(world: &mut World, count: usize, held: usize) -> BTreeMap<String, usize> {
    let mut open = VecDeque::new();
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        let pick = world.route(Some("sa"), "sa").unwrap();
        *shares.entry(pick.backend.id.to_string()).or_default() += 1;
        open.push_back(pick.permit);
        while open.len() > held {
            open.pop_front();
        }
    }
    shares
}

fn assert_shares(got: &BTreeMap<String, usize>, weights: &[i64], tolerance: f64, what: &str) {
    let (count, total) = (got.values().sum::<usize>() as f64, weights.iter().sum::<i64>() as f64);
    for (at, weight) in weights.iter().enumerate() {
        let want = count * *weight as f64 / total;
        let have = got.get(&format!("b{at}")).copied().unwrap_or(0) as f64;
        assert!((have - want).abs() <= want * tolerance, "{what}: b{at} got {have} of {count}, wants {want}: {got:?}");
    }
}

#[test]
fn short_connections_are_shared_by_weight() {
    for weights in [&[1, 1, 1][..], &[1, 2, 4], &[1, 1], &[5, 1], &[10, 1, 1]] {
        for held in [0, 1, 2, 8, 32] {
            for seed in 0..15 {
                let mut world = World::seeded(&weighted(weights), seed);
                let got = shares(&mut world, 3000, held);
                assert_shares(&got, weights, 0.1, &format!("weights {weights:?}, {held} held, seed {seed}"));
            }
        }
    }
}

#[test]
fn connections_of_random_length_are_shared_by_weight() {
    for weights in [&[1, 1, 1][..], &[1, 2, 4]] {
        for seed in 0..15 {
            let mut world = World::seeded(&weighted(weights), seed);
            let mut lengths = fastrand::Rng::with_seed(seed);
            let mut open: Vec<Permit> = Vec::new();
            let mut got = BTreeMap::new();
            for _ in 0..3000 {
                let pick = world.route(Some("sa"), "sa").unwrap();
                *got.entry(pick.backend.id.to_string()).or_default() += 1;
                open.push(pick.permit);
                if open.len() > 8 {
                    drop(open.swap_remove(lengths.usize(..open.len())));
                }
            }
            assert_shares(&got, weights, 0.1, &format!("weights {weights:?}, seed {seed}"));
        }
    }
}

#[test]
fn held_connections_are_shared_by_weight() {
    let mut rows = weighted(&[1, 2, 4]);
    for soft in [1000, 100] {
        rows.iter_mut().for_each(|row| row.soft_limit = soft.into());
        for seed in 0..15 {
            let mut world = World::seeded(&rows, seed);
            let open: Vec<Pick> = (0..700).map(|_| world.route(Some("sa"), "sa").unwrap()).collect();
            let mut got = BTreeMap::new();
            open.iter().for_each(|pick| *got.entry(pick.backend.id.to_string()).or_default() += 1);
            if soft == 1000 {
                assert_shares(&got, &[1, 2, 4], 0.02, &format!("seed {seed}"));
            } else {
                assert!(got.values().all(|count| *count >= 100), "all reach their soft limit first: {got:?}");
            }
        }
    }
}

#[test]
fn an_uneven_load_is_evened_out() {
    let mut world = World::new(&weighted(&[1, 1]));
    let first = std::sync::Arc::clone(&world.app().backends()[0]);
    let _crowd: Vec<_> = (0..50).map(|_| first.load.try_reserve(first.limits).unwrap()).collect();
    let open: Vec<Pick> = (0..50).map(|_| world.route(Some("sa"), "sa").unwrap()).collect();
    let to_second = open.iter().filter(|pick| pick.backend.id == id("b1")).count();
    assert!(to_second >= 45, "{to_second} of 50 to the idle backend");
}

#[test]
fn a_dead_backend_does_not_tilt_the_shares_of_the_living() {
    for seed in 0..20 {
        let mut world = World::seeded(&weighted(&[1, 1, 1]), seed);
        let (sa, mut got) = (region("sa"), BTreeMap::new());
        let request =
            Request { client_region: Some(&sa), client_position: None, pop_region: &sa, client: None, bound: None };
        for _ in 0..3000 {
            let mut tried = Tried::new();
            let mut pick = world.pick(&request, &tried).unwrap();
            if pick.backend.id == id("b0") {
                tried.push(&pick.backend);
                pick = world.pick(&request, &tried).unwrap();
            }
            *got.entry(pick.backend.id.to_string()).or_insert(0u32) += 1;
        }
        assert!(got["b1"].abs_diff(got["b2"]) < 200, "{got:?}");
    }
}

#[test]
fn the_clients_region_comes_first_then_the_pops_then_the_nearest() {
    let rows = [row("sa1", "sa"), row("us1", "us"), row("eu1", "eu"), row("ap1", "ap")];
    let mut world = World::new(&rows);
    let mut route = |client: Option<&str>, pop: &str| {
        let pick = world.route(client, pop).unwrap();
        (pick.backend.id.to_string(), pick.reason)
    };
    assert_eq!(route(Some("eu"), "sa"), ("eu1".into(), PickReason::ClientRegion));
    assert_eq!(route(Some("sa"), "sa"), ("sa1".into(), PickReason::ClientRegion));
    assert_eq!(route(None, "ap"), ("ap1".into(), PickReason::PopRegion), "never a fixed region");

    let mut world = World::new(&rows[..3]);
    let pick = world.route(Some("ap"), "sa").unwrap();
    assert_eq!((pick.backend.id.as_str(), pick.reason), ("sa1", PickReason::PopRegion));
    let mut world = World::new(&rows[1..]);
    let pick = world.route(None, "sa").unwrap();
    assert_eq!((pick.backend.id.as_str(), pick.reason), ("us1", PickReason::NearestRegion));
    let mut world = World::new(&rows[1..3]);
    let pick = world.route(Some("ap"), "sa").unwrap();
    assert_eq!((pick.backend.id.as_str(), pick.reason), ("eu1", PickReason::NearestRegion), "nearest to the client");
}

#[test]
fn a_full_region_overflows_to_the_nearest_and_a_crowded_one_to_uncrowded_ones() {
    let limit = |id, region, soft: i64, hard: i64| RawBackend {
        soft_limit: soft.into(),
        hard_limit: hard.into(),
        ..row(id, region)
    };
    let mut world = World::new(&[limit("sa1", "sa", 1, 2), limit("us1", "us", 1, 2), limit("eu1", "eu", 2, 3)]);
    let picks: Vec<Pick> = std::iter::from_fn(|| world.route(Some("sa"), "sa").ok()).collect();
    let order: Vec<&str> = picks.iter().map(|pick| pick.backend.id.as_str()).collect();
    // sa up to its hard limit; then elsewhere: near and below soft, far and below soft, then over soft by nearness.
    assert_eq!(order, ["sa1", "sa1", "us1", "eu1", "eu1", "us1", "eu1"]);
    assert_eq!(world.route(Some("sa"), "sa").unwrap_err(), NoBackend::AllFull);
}

#[test]
fn regions_without_a_position_share_by_weight() {
    let rows = [row("b0", "lab1"), row("b1", "lab2"), RawBackend { weight: 2.into(), ..row("b2", "lab3") }];
    for pop in ["sa", "lab9"] {
        let mut world = World::new(&rows);
        let mut got = BTreeMap::new();
        for _ in 0..1000 {
            let pick = world.route(None, pop).unwrap();
            assert_eq!(pick.reason, PickReason::Elsewhere);
            *got.entry(pick.backend.id.to_string()).or_default() += 1;
        }
        assert_shares(&got, &[1, 1, 2], 0.02, pop);
    }
}

#[test]
fn bindings_are_honoured_and_yield_with_a_reason() {
    let state = |id, state: &str| RawBackend { state: state.into(), ..row(id, "eu") };
    let mut world = World::new(&[
        row("near", "sa"),
        row("far", "eu"),
        state("draining", "drain"),
        state("broken", "maint"),
        RawBackend { healthy: 0.into(), ..row("ill", "eu") },
        RawBackend { weight: 0.into(), ..row("closed", "eu") },
        RawBackend { hard_limit: 1.into(), ..row("small", "eu") },
    ]);
    for honoured in ["far", "closed"] {
        let pick = world.bound(honoured).unwrap();
        assert_eq!((pick.backend.id.as_str(), pick.reason), (honoured, PickReason::Affinity));
        assert_eq!(pick.binding_yielded, None);
    }
    let yields = [
        ("draining", Skip::Drain),
        ("broken", Skip::Maint),
        ("ill", Skip::Unhealthy),
        ("removed", Skip::Gone),
        ("small", Skip::AtHardLimit),
    ];
    let _full = world.bound("small").unwrap();
    for (bound, why) in yields {
        let pick = world.bound(bound).unwrap();
        assert_eq!((pick.backend.id.as_str(), pick.binding_yielded), ("near", Some(why)), "{bound}");
    }
    let (sa, far) = (region("sa"), id("far"));
    let mut tried = Tried::new();
    tried.push(world.app().backend(&far).unwrap());
    let pick = world
        .pick(
            &Request { client_region: None, client_position: None, pop_region: &sa, client: None, bound: Some(&far) },
            &tried,
        )
        .unwrap();
    assert_eq!(pick.binding_yielded, Some(Skip::Tried));
}

#[test]
fn having_none_says_why() {
    let out = RawBackend { healthy: 0.into(), ..row("b", "sa") };
    assert_eq!(World::new(&[out]).route(None, "sa").unwrap_err(), NoBackend::NoneEligible);
    let mut world = World::new(&[row("b", "sa")]);
    let mut tried = Tried::new();
    tried.push(&world.app().backends()[0]);
    let sa = region("sa");
    let request = Request { client_region: None, client_position: None, pop_region: &sa, client: None, bound: None };
    assert_eq!(world.pick(&request, &tried).unwrap_err(), NoBackend::AllTried);
}

#[test]
fn who_is_drained_is_nobody_to_wait_for() {
    let small = |name| RawBackend { soft_limit: 1.into(), hard_limit: 1.into(), ..row(name, "sa") };
    let mut world = World::new(&[small("a"), small("b")]);
    let [a, b] = ["a", "b"].map(|name| Arc::clone(world.app().backend(&id(name)).unwrap()));
    a.load.set_draining(true);
    let sa = region("sa");
    let mut request =
        Request { client_region: None, client_position: None, pop_region: &sa, client: None, bound: Some(&a.id) };
    let mut tried = Tried::new();
    tried.push(&b);
    assert_eq!(world.pick(&request, &tried).unwrap_err(), NoBackend::AllTried);
    assert_eq!(nothing_to_wait_for(world.app(), &request, &tried), Some(NoBackend::AllTried));
    let held = world.route(None, "sa").unwrap();
    assert_eq!(held.backend.id, b.id);
    assert_eq!(world.route(None, "sa").unwrap_err(), NoBackend::AllFull);
    assert_eq!(nothing_to_wait_for(world.app(), &request, &Tried::new()), None);
    b.load.set_draining(true);
    assert_eq!(world.pick(&request, &tried).unwrap_err(), NoBackend::NoneEligible);
    assert_eq!(world.route(None, "sa").unwrap_err(), NoBackend::NoneEligible);
    // Weight 0 keeps new clients away, not bound ones.
    let mut world = World::new(&[RawBackend { weight: 0.into(), ..row("closed", "sa") }, row("b", "sa")]);
    let [closed, b] = ["closed", "b"].map(|name| Arc::clone(world.app().backend(&id(name)).unwrap()));
    b.load.set_draining(true);
    request.bound = None;
    assert_eq!(nothing_to_wait_for(world.app(), &request, &Tried::new()), Some(NoBackend::NoneEligible));
    request.bound = Some(&closed.id);
    assert_eq!(nothing_to_wait_for(world.app(), &request, &Tried::new()), None);
    assert!(world.pick(&request, &Tried::new()).is_ok());
}

#[test]
fn large_groups_obey_the_same_rules() {
    let mut rows: Vec<RawBackend> = (0..500)
        .map(|at| RawBackend { soft_limit: 1.into(), hard_limit: 2.into(), ..row(&format!("b{at:03}"), "sa") })
        .collect();
    rows[7].weight = 0.into();
    let mut world = World::new(&rows);
    let picks: Vec<Pick> = (0..998).map(|_| world.route(Some("sa"), "sa").unwrap()).collect();
    let below: std::collections::HashSet<_> = picks[..499].iter().map(|pick| pick.backend.id.clone()).collect();
    assert_eq!(below.len(), 499, "all reach their soft limit before any exceeds it");
    assert_eq!(world.route(Some("sa"), "sa").unwrap_err(), NoBackend::AllFull);
    drop(picks);
    assert!(world.app().backends().iter().all(|backend| backend.load.active() == 0));
}

#[test]
fn large_groups_share_by_weight() {
    let rows: Vec<RawBackend> =
        (0..100).map(|at| RawBackend { weight: (1 + at % 3).into(), ..row(&format!("b{at:03}"), "sa") }).collect();
    let mut world = World::new(&rows);
    let mut by_weight = [0usize; 4];
    for _ in 0..6000 {
        by_weight[world.route(Some("sa"), "sa").unwrap().backend.weight.0 as usize] += 1;
    }
    // 34 of weight 1, 33 of weight 2, 33 of weight 3: 34, 66 and 99 of 199.
    for (weight, parts) in [(1, 34.0), (2, 66.0), (3, 99.0)] {
        let want = 6000.0 * parts / 199.0;
        assert!((by_weight[weight] as f64 - want).abs() < want * 0.05, "{by_weight:?}");
    }
}

#[test]
fn apps_are_told_apart() {
    let other = RawBackend { app: "other".into(), ..row("x", "sa") };
    let mut world = World::new(&[row("b", "sa"), other]);
    assert_eq!(world.bound("x").unwrap().binding_yielded, Some(Skip::Gone));
    assert!((0..100).all(|_| world.route(None, "sa").unwrap().backend.id == id("b")));
}

const REGIONS: [&str; 5] = ["sa", "us", "eu", "ap", "lab"];

fn any_row() -> impl Strategy<Value = (RawBackend, u32)> {
    let app = prop_oneof![5 => Just("web"), 1 => Just("other")];
    let state = prop_oneof![6 => Just("ready"), 1 => Just("drain"), 1 => Just("maint")];
    let limits =
        (0i64..4, 0i64..4).prop_map(|(soft, more)| if more == 0 { (soft, 0) } else { (soft, soft + more - 1) });
    let healthy = prop_oneof![5 => Just(1i64), 1 => Just(0)];
    (app, 0..REGIONS.len(), state, limits, healthy, 0i64..4, 0u32..5).prop_map(
        |(app, at, state, (soft, hard), healthy, weight, active)| {
            let row = RawBackend {
                app: app.into(),
                state: state.into(),
                healthy: healthy.into(),
                weight: weight.into(),
                soft_limit: soft.into(),
                hard_limit: hard.into(),
                ..row("", REGIONS[at])
            };
            (row, active)
        },
    )
}

fn named(mut rows: Vec<(RawBackend, u32)>) -> (Snapshot, Vec<Permit>) {
    rows.iter_mut().enumerate().for_each(|(at, (row, _))| row.id = format!("b{at:02}").as_str().into());
    let snapshot = snapshot(&rows.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>());
    let mut held = Vec::new();
    for (row, active) in &rows {
        let backend = snapshot.backend(&row.id().unwrap()).unwrap();
        held.extend((0..*active).filter_map(|_| backend.load.try_reserve(backend.limits)));
    }
    (snapshot, held)
}

proptest! {
    #[test]
    fn a_pick_is_the_best_there_is(
        rows in prop::collection::vec(any_row(), 1..80),
        client in prop::option::of(0..REGIONS.len()),
        pop in 0..REGIONS.len(),
        bound in prop::option::of(0usize..90),
        tried_ids in prop::collection::vec(0usize..80, 0..4),
        ejected_ids in prop::collection::vec(0usize..80, 0..40),
        seed: u64,
    ) {
        let (snapshot, held) = named(rows);
        let Some(app) = snapshot.app(&crate::domain::testing::app_name("web")) else { return Ok(()) };
        let named = |at: &usize| snapshot.backend(&id(&format!("b{at:02}")));
        ejected_ids.iter().filter_map(named).for_each(|backend| crate::domain::testing::eject(backend));
        let (client, pop) = (client.map(|at| region(REGIONS[at])), region(REGIONS[pop]));
        let bound = bound.map(|at| id(&format!("b{at:02}")));
        let mut tried = Tried::new();
        tried_ids.iter().filter_map(|at| snapshot.backend(&id(&format!("b{at:02}")))).for_each(|b| tried.push(b));
        let request = Request { client_region: client.as_ref(), client_position: None, pop_region: &pop, client: None, bound: bound.as_ref() };
        let mut rng = fastrand::Rng::with_seed(seed);

        let plan = crate::domain::explain(app, snapshot.regions(), &request, &tried, 3, &mut rng.clone());
        let before: u32 = snapshot.backends().map(|backend| backend.load.active()).sum();
        prop_assert_eq!(before as usize, held.len());
        let result = pick(app, snapshot.regions(), &request, &tried, &mut rng);
        match &result {
            Ok(pick) => {
                let backend = &pick.backend;
                prop_assert_eq!(backend.app.as_str(), "web");
                prop_assert!(!tried.contains(backend));
                prop_assert!(backend.out_of_service().is_none());
                prop_assert!(backend.limits.hard() == 0 || backend.load.active() <= backend.limits.hard());
                prop_assert_eq!(plan.winner.as_ref(), Some(&backend.id), "explain says what pick does");
                prop_assert_eq!(plan.reason, Some(pick.reason));
                prop_assert_eq!(plan.binding_yielded, pick.binding_yielded);
                if pick.reason == PickReason::Affinity {
                    prop_assert_eq!(Some(&backend.id), bound.as_ref());
                } else {
                    prop_assert!(backend.weight.0 > 0);
                    // The best entry of the plan is of the winner's class.
                    let winner = plan.entries.iter().find(|entry| entry.id == backend.id).unwrap();
                    let best = &plan.entries[0];
                    if pick.reason == PickReason::LastResort {
                        prop_assert_eq!(winner.skip, Some(Skip::Ejected));
                        prop_assert!(plan.entries.iter().all(|entry| entry.skip.is_some()), "no other is left");
                        return Ok(());
                    }
                    prop_assert_eq!(winner.skip, None);
                    prop_assert_eq!((winner.region_score, winner.over_soft), (best.region_score, best.over_soft));
                    if best.region_score == 2 && best.distance_km.is_some() {
                        prop_assert_eq!(&winner.region, &best.region);
                    }
                }
            }
            Err(why) => {
                prop_assert_eq!(plan.refused, Some(*why));
                prop_assert!(plan.entries.iter().all(|entry| entry.skip.is_some()));
            }
        }
        drop(result);
        drop(held);
        prop_assert!(snapshot.backends().all(|backend| backend.load.active() == 0));
    }
}

#[test]
fn threads_with_and_without_bindings_never_exceed_the_hard_limit() {
    let rows: Vec<RawBackend> =
        ["a", "b"].iter().map(|id| RawBackend { hard_limit: 5.into(), ..row(id, "sa") }).collect();
    let snapshot = snapshot(&rows);
    let (app, sa, a) = (crate::domain::testing::app_name("web"), region("sa"), id("a"));
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (snapshot, app, sa, a) = (&snapshot, &app, &sa, &a);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut held = VecDeque::new();
                for round in 0..5000 {
                    let bound = (round % 2 == 0).then_some(a);
                    let request =
                        Request { client_region: Some(sa), client_position: None, pop_region: sa, client: None, bound };
                    let index = snapshot.app(app).unwrap();
                    match pick(index, snapshot.regions(), &request, &Tried::new(), &mut rng) {
                        Ok(pick) => held.push_back(pick),
                        Err(why) => assert_eq!(why, NoBackend::AllFull),
                    }
                    assert!(index.backends().iter().all(|backend| backend.load.active() <= 5));
                    if held.len() > 2 || round % 3 == 0 {
                        held.pop_front();
                    }
                }
            });
        }
    });
    assert!(snapshot.backends().all(|backend| backend.load.active() == 0));
}

#[test]
fn who_fails_its_checks_gets_nobody_while_another_is_trusted() {
    let limited = RawBackend { soft_limit: 1.into(), hard_limit: 1.into(), ..row("b", "sa") };
    let mut world = World::new(&[row("a", "sa"), limited, row("c", "eu")]);
    let backend = |world: &World, name: &str| Arc::clone(world.app().backend(&id(name)).unwrap());
    let [a, b, c] = ["a", "b", "c"].map(|name| backend(&world, name));
    turn(&a, false);
    assert_eq!(world.bound("a").unwrap().binding_yielded, Some(Skip::CheckFailed));
    assert!((0..20).all(|_| world.route(Some("sa"), "sa").unwrap().backend.id.as_str() == "b"));
    // The only ones that are left are full or were tried: who is down is not asked for that.
    turn(&c, false);
    let held = world.route(Some("sa"), "sa").unwrap();
    assert_eq!(world.route(Some("sa"), "sa").unwrap_err(), NoBackend::AllFull);
    drop(held);
    let mut tried = Tried::new();
    tried.push(&b);
    let (sa, request_region) = (region("sa"), region("sa"));
    let request = Request {
        client_region: Some(&request_region),
        client_position: None,
        pop_region: &sa,
        bound: None,
        client: None,
    };
    assert_eq!(world.pick(&request, &tried).unwrap_err(), NoBackend::AllTried);
    assert!(!world.app().fails_open());
}

#[test]
fn where_all_fail_their_checks_they_are_asked_all_the_same_and_bindings_hold() {
    let limited = RawBackend { hard_limit: 1.into(), soft_limit: 1.into(), ..row("b", "sa") };
    let drained = RawBackend { state: "drain".into(), ..row("d", "sa") };
    let mut world = World::new(&[row("a", "eu"), limited, drained]);
    let backends: Vec<_> = ["a", "b"].map(|name| Arc::clone(world.app().backend(&id(name)).unwrap())).into();
    backends.iter().for_each(|backend| turn(backend, false));
    assert!(world.app().fails_open(), "the drained one is not in service");
    let first = world.route(Some("sa"), "sa").unwrap();
    assert_eq!((first.backend.id.as_str(), first.reason), ("b", PickReason::FailOpen));
    assert_eq!(world.route(Some("sa"), "sa").unwrap().backend.id.as_str(), "a", "the hard limit holds");
    let bound = world.bound("a").unwrap();
    assert_eq!((bound.backend.id.as_str(), bound.reason, bound.binding_yielded), ("a", PickReason::Affinity, None));
    // One that was ejected goes first: it may be well.
    turn(&backends[0], true);
    eject(&backends[0]);
    assert!(world.app().fails_open());
    assert_eq!(world.route(Some("sa"), "sa").unwrap().reason, PickReason::LastResort);
    turn(&backends[1], true);
    assert!(!world.app().fails_open());
}

/// Two backends with room for one and two connections below their soft limits, in an app whose bindings are soft.
fn soft_world(affinity: &str) -> World {
    let small = |id, soft: i64| RawBackend { soft_limit: soft.into(), ..row(id, "sa") };
    let app = RawApp { affinity: affinity.into(), ..RawApp::named("web") };
    let snapshot = snapshot_of_app(&[small("a", 1), small("b", 2)], &app, 1);
    World { snapshot, rng: fastrand::Rng::with_seed(7) }
}

#[test]
fn a_soft_binding_yields_at_the_soft_limit_while_another_has_room() {
    let mut world = soft_world("soft");
    let first = world.bound("a").unwrap();
    assert_eq!((first.backend.id.as_str(), first.reason), ("a", PickReason::Affinity));
    let others: Vec<Pick> = (0..2).map(|_| world.bound("a").unwrap()).collect();
    for other in &others {
        assert_eq!((other.backend.id.as_str(), other.binding_yielded), ("b", Some(Skip::AtSoftLimit)));
    }
    let all_over = world.bound("a").unwrap();
    assert_eq!((all_over.backend.id.as_str(), all_over.binding_yielded), ("a", None), "nobody would do better");
    let mut strict = soft_world("strict");
    let crowd: Vec<Pick> = (0..4).map(|_| strict.bound("a").unwrap()).collect();
    assert!(crowd.iter().all(|pick| pick.backend.id == id("a")));
}
