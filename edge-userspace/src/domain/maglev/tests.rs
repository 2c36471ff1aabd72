#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::*;
use crate::domain::testing::{app_name, backends, eject, id, region, row};
use crate::domain::*;

const CLIENTS: u32 = 4_000;

fn entrants(names: &[String], weight: impl Fn(usize) -> u32) -> Vec<Entrant<'_>> {
    let each = names.iter().enumerate();
    each.map(|(at, name)| Entrant { id: name, weight: weight(at), member: Some(at) }).collect()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("cache-{at}")).collect()
}

fn hashing(affinity: Affinity, rows: &[RawBackend]) -> Snapshot {
    hashing_backends(affinity, backends(rows))
}

fn hashing_backends(affinity: Affinity, backends: Vec<std::sync::Arc<Backend>>) -> Snapshot {
    let app = AppSpec { selection: Selection::Maglev, affinity, ..AppSpec::new(app_name("web")) };
    let apps = HashMap::from([(app.name.clone(), app)]);
    Snapshot::new(1, backends, crate::domain::World { apps, ..crate::domain::World::default() })
}

fn client(n: u32) -> ClientPrefix {
    AffinityPrefix::default().key(&app_name("web"), ClientAddr::new(Ipv4Addr::from_bits(n).into())).client
}

/// Where client `n` goes, with a random source that differs from call to call.
fn choice(snapshot: &Snapshot, n: u32, tried: &Tried) -> Pick {
    let (sa, client) = (region("sa"), client(n));
    let request =
        Request { client_region: None, client_position: None, pop_region: &sa, client: Some(&client), bound: None };
    let app = snapshot.app(&app_name("web")).unwrap();
    pick(app, snapshot.regions(), &request, tried, &mut fastrand::Rng::new()).unwrap()
}

fn chosen(snapshot: &Snapshot, n: u32) -> BackendId {
    choice(snapshot, n, &Tried::new()).backend.id.clone()
}

fn map(snapshot: &Snapshot) -> Vec<BackendId> {
    (0..CLIENTS).map(|n| chosen(snapshot, n)).collect()
}

fn rows(count: usize) -> Vec<RawBackend> {
    names(count).iter().map(|name| row(name, "sa")).collect()
}

#[test]
fn the_hash_of_a_client_is_that_of_every_version() {
    let hash = ClientHash::of(&client(0xc000_0201));
    assert_eq!(hash, ClientHash(11_720_550_288_207_527_202), "every cache would lose its clients");
}

#[test]
fn a_table_is_full_and_its_shares_are_those_of_the_weights() {
    for count in [1, 2, 3, 10, 100, 1_000] {
        let (names, weight) = (names(count), |at: usize| 1 + at as u32 % 3);
        let table = Maglev::new(entrants(&names, weight));
        let total: u32 = (0..count).map(weight).sum();
        let mut got = vec![0usize; count];
        table.entries().into_iter().for_each(|member| got[member as usize] += 1);
        for (at, got) in got.into_iter().enumerate() {
            let want = table.entries().len() as f64 * f64::from(weight(at)) / f64::from(total);
            assert!((got as f64 - want).abs() <= want * 0.05 + 2.0, "{count}: {at} has {got}, wants {want}");
        }
    }
}

/// The paper's way, with a credit for each backend: everybody is looked at in every round.
fn plain(mut entrants: Vec<Entrant<'_>>) -> Vec<u32> {
    entrants.sort_unstable_by_key(|entrant| entrant.id);
    let size = size_for(entrants.len());
    let heaviest = entrants.iter().map(|entrant| entrant.weight).max().unwrap();
    let hash = |seed, id: &str| twox_hash::XxHash3_64::oneshot_with_seed(seed, id.as_bytes());
    let way = |entrant: &Entrant<'_>| {
        let start = hash(OFFSET_SEED, entrant.id) % size as u64;
        (start as usize, (hash(SKIP_SEED, entrant.id) % (size as u64 - 1) + 1) as usize, 0)
    };
    let mut ways: Vec<(usize, usize, u64)> = entrants.iter().map(way).collect();
    let (mut table, mut left) = (vec![None; size], size);
    while left > 0 {
        for ((next, skip, credit), entrant) in ways.iter_mut().zip(&entrants) {
            *credit += u64::from(entrant.weight);
            if left == 0 || *credit < u64::from(heaviest) {
                continue;
            }
            *credit -= u64::from(heaviest);
            while table[*next].is_some() {
                *next = (*next + *skip) % size;
            }
            table[*next] = Some(entrant.member.map_or(CLOSED, |at| at as u32));
            left -= 1;
        }
    }
    table.into_iter().map(Option::unwrap).collect()
}

/// A version that fills a table in another way would move the clients of every cache.
#[test]
fn tables_are_those_of_the_plain_algorithm() {
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..24 {
        let names = names(rng.usize(1..200));
        let most = [1, 2, 3, 10, 1_000, u32::MAX][round % 6];
        let weights: Vec<u32> = names.iter().map(|_| rng.u32(1..=most)).collect();
        let entrant = |(at, name)| Entrant { id: name, weight: weights[at], member: (at % 7 != 3).then_some(at) };
        let entrants: Vec<_> = names.iter().map(String::as_str).enumerate().map(entrant).collect();
        assert!(Maglev::new(entrants.clone()).entries() == plain(entrants), "{weights:?}");
    }
}

#[test]
fn a_large_table_is_that_of_the_plain_algorithm() {
    let names = names(66_000);
    let entrants = entrants(&names, |at| 1 + at as u32 % 3);
    assert!(Maglev::new(entrants.clone()).entries() == plain(entrants));
}

/// However far the weights are apart. All were looked at in each of as many rounds as the heaviest has entries.
#[test]
fn the_steps_that_fill_a_table_are_bounded_whatever_the_weights() {
    let names = names(600);
    let weights: [fn(usize) -> u32; 2] = [|at| if at == 77 { u32::MAX } else { 1 }, |at| 1 << (at % 32)];
    for weight in weights {
        let (table, steps) = filled(entrants(&names, weight));
        // A walk finds the last free entries after many steps: on average as many as the size has natural logarithms.
        let most = table.len() as u64 * 20;
        assert!(steps < most, "{steps} steps for {} entries", table.len());
    }
}

#[test]
fn a_table_without_shares_leads_nowhere() {
    let names = names(2);
    for table in [Maglev::new(Vec::new()), Maglev::new(entrants(&names, |_| 0))] {
        assert_eq!((table.at(0), table.at(u64::MAX)), (None, None));
    }
}

#[test]
fn sizes_are_prime_and_bounded() {
    assert_eq!([0, 64, 65, 10_000_000].map(size_for), [4_099, 4_099, 32_771, LARGEST]);
    let is_prime = |number: usize| (2..).take_while(|by| by * by <= number).all(|by| !number.is_multiple_of(by));
    assert!(SIZES.into_iter().all(is_prime));
}

#[test]
fn the_order_of_the_rows_makes_no_difference() {
    let mut reversed = rows(20);
    reversed.reverse();
    assert_eq!(map(&hashing(Affinity::None, &rows(20))), map(&hashing(Affinity::None, &reversed)));
}

#[test]
fn a_backend_out_of_service_moves_its_own_clients_only() {
    let before = map(&hashing(Affinity::None, &rows(20)));
    let changes: [fn(&mut RawBackend); 2] = [|row| row.state = "drain".into(), |row| row.healthy = 0.into()];
    for change in changes {
        let mut rows = rows(20);
        change(&mut rows[3]);
        let after = map(&hashing(Affinity::None, &rows));
        for (was, is) in before.iter().zip(&after) {
            assert!(*was == id("cache-3") || was == is, "{was} to {is}");
            assert_ne!(*is, id("cache-3"));
        }
    }
}

#[test]
fn an_ejected_backend_moves_its_own_clients_only_and_gets_them_back() {
    let snapshot = hashing(Affinity::None, &rows(20));
    let before = map(&snapshot);
    eject(snapshot.backend(&id("cache-3")).unwrap());
    let after = map(&snapshot);
    for (was, is) in before.iter().zip(&after) {
        assert!((*was == id("cache-3")) != (was == is), "{was} to {is}");
    }
    let took: std::collections::HashSet<_> =
        before.iter().zip(&after).filter(|(was, _)| **was == id("cache-3")).map(|(_, is)| is).collect();
    assert!(took.len() > 10, "its clients are spread over the others: {took:?}");
}

#[test]
fn a_backend_that_is_removed_or_added_moves_few_others() {
    let (with, without) = (map(&hashing(Affinity::None, &rows(20))), map(&hashing(Affinity::None, &rows(19))));
    let moved = with.iter().zip(&without).filter(|(was, is)| **was != id("cache-19") && was != is).count();
    assert!(moved < CLIENTS as usize / 20, "{moved} of {CLIENTS} moved without need");
    assert!(with.iter().any(|id| id.as_str() == "cache-19"));
}

#[test]
fn clients_are_shared_by_weight() {
    let mut rows = rows(4);
    rows[0].weight = 3.into();
    let mut got: BTreeMap<BackendId, u32> = BTreeMap::new();
    map(&hashing(Affinity::None, &rows)).into_iter().for_each(|id| *got.entry(id).or_default() += 1);
    for (name, got) in got {
        let want = if name.as_str() == "cache-0" { CLIENTS / 2 } else { CLIENTS / 6 };
        assert!(got.abs_diff(want) < want / 5, "{name}: {got}, wants {want}");
    }
}

#[test]
fn a_client_that_retries_goes_the_same_way_each_time() {
    let snapshot = hashing(Affinity::None, &rows(20));
    for n in 0..200 {
        let walk = || {
            let mut tried = Tried::new();
            let next = |_| {
                let pick = choice(&snapshot, n, &tried);
                tried.push(&pick.backend);
                pick.backend.id.clone()
            };
            (0..5).map(next).collect::<Vec<_>>()
        };
        assert_eq!(walk(), walk());
    }
}

#[test]
fn at_the_soft_limit_the_next_of_the_clients_order_is_taken_and_then_all_up_to_the_hard_one() {
    let limited = |row: RawBackend| RawBackend { soft_limit: 2.into(), hard_limit: 3.into(), ..row };
    let snapshot = hashing(Affinity::None, &rows(4).into_iter().map(limited).collect::<Vec<_>>());
    let own = chosen(&snapshot, 7);
    // One client that comes and comes: the crowd behind one address.
    let crowd: Vec<Pick> = (0..12).map(|_| choice(&snapshot, 7, &Tried::new())).collect();
    assert!(crowd[..2].iter().all(|pick| pick.backend.id == own));
    assert!(crowd[2..8].iter().all(|pick| pick.backend.id != own), "others are below their soft limit");
    assert!(snapshot.backends().all(|backend| backend.load.active() == 3));
    let (sa, client) = (region("sa"), client(7));
    let request =
        Request { client_region: None, client_position: None, pop_region: &sa, client: Some(&client), bound: None };
    let app = snapshot.app(&app_name("web")).unwrap();
    let full = pick(app, snapshot.regions(), &request, &Tried::new(), &mut fastrand::Rng::new());
    assert_eq!(full.unwrap_err(), NoBackend::AllFull);
}

#[test]
fn geography_goes_before_the_hash() {
    let mut rows = rows(10);
    rows.iter_mut().skip(5).for_each(|row| row.region = "eu".into());
    let snapshot = hashing(Affinity::None, &rows);
    assert!((0..500).all(|n| choice(&snapshot, n, &Tried::new()).backend.region == region("sa")));
}

#[test]
fn what_is_explained_is_what_is_chosen() {
    let snapshot = hashing(Affinity::None, &rows(20));
    let app = snapshot.app(&app_name("web")).unwrap();
    for n in 0..100 {
        let (sa, client) = (region("sa"), client(n));
        let request =
            Request { client_region: None, client_position: None, pop_region: &sa, client: Some(&client), bound: None };
        let plan = explain(app, snapshot.regions(), &request, &Tried::new(), 3, &mut fastrand::Rng::new());
        assert_eq!(plan.selection, Selection::Maglev);
        assert_eq!(plan.winner, Some(chosen(&snapshot, n)));
    }
}

#[test]
fn a_soft_binding_yields_at_the_soft_limit_if_another_has_room() {
    let limited = |row: RawBackend| RawBackend { soft_limit: 1.into(), ..row };
    let rows: Vec<_> = rows(2).into_iter().map(limited).collect();
    for (affinity, yields) in [(Affinity::Strict, false), (Affinity::Soft, true)] {
        let snapshot = hashing(affinity, &rows);
        let app = snapshot.app(&app_name("web")).unwrap();
        let (sa, bound) = (region("sa"), id("cache-0"));
        let request =
            Request { client_region: None, client_position: None, pop_region: &sa, client: None, bound: Some(&bound) };
        let next = || pick(app, snapshot.regions(), &request, &Tried::new(), &mut fastrand::Rng::new()).unwrap();
        let (first, second, third) = (next(), next(), next());
        assert_eq!((first.backend.id.as_str(), first.reason), ("cache-0", PickReason::Affinity));
        assert_eq!(second.binding_yielded, yields.then_some(Skip::AtSoftLimit));
        assert_eq!(second.backend.id == id("cache-1"), yields);
        assert_eq!((third.backend.id.as_str(), third.binding_yielded.is_none() || !yields), ("cache-0", true));
    }
}
