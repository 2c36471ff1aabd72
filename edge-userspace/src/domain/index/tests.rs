#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::Arc;

use crate::domain::room::Standing;
use crate::domain::testing::{app_name, backends, id, region, row, snapshot};
use crate::domain::{AppSpec, BackendLoad, Limits, RawBackend, Regions, Selection, SlotPool, Snapshot, World};

#[test]
fn the_sole_app_is_known_only_if_there_is_one() {
    assert_eq!(Snapshot::empty().sole_app(), None);
    let one = snapshot(&[row("a", "sa"), row("b", "us")]);
    assert_eq!(one.sole_app(), Some(&app_name("web")));
    let two = snapshot(&[row("a", "sa"), RawBackend { app: "db".into(), ..row("b", "us") }]);
    assert_eq!(two.sole_app(), None);
    assert_eq!(two.apps().map(|app| app.name().as_str()).collect::<Vec<_>>(), ["db", "web"]);
}

#[test]
fn backends_are_found_by_id_in_their_app_only() {
    let table = snapshot(&[row("a", "sa"), RawBackend { app: "db".into(), ..row("b", "us") }]);
    assert_eq!(table.backends().count(), 2);
    assert_eq!(table.backend(&id("b")).unwrap().app, app_name("db"));
    assert!(table.app(&app_name("web")).unwrap().backend(&id("b")).is_none());
    assert!(table.backend(&id("c")).is_none());
}

/// While a new snapshot is made the old one still routes, and one that began with it may look at it longer: whichever
/// limits change, each knows by its own who has room.
#[test]
fn the_old_snapshot_and_the_new_one_each_know_who_has_room() {
    let limits = [(1, 2), (2, 5), (3, 7), (0, 0), (0, 4)];
    for ((soft, hard), (next_soft, next_hard)) in limits.iter().flat_map(|old| limits.map(|new| (*old, new))) {
        let load = BackendLoad::new(SlotPool::new(1).take().unwrap());
        let with = |soft: i64, hard: i64| {
            let row = RawBackend { soft_limit: soft.into(), hard_limit: hard.into(), ..row("a", "sa") };
            vec![Arc::new(row.parse().unwrap().with_load(Arc::clone(&load)))]
        };
        let old = Snapshot::new(1, with(soft, hard), Regions::default());
        let assert_right = |snapshot: &Snapshot| {
            let app = snapshot.app(&app_name("web")).unwrap();
            let (limits, active) = (app.backends()[0].limits, load.active());
            assert_eq!(app.has_room(), !limits.is_full(active), "{active} of {limits:?}");
            let below_soft = app.everywhere().unwrap().room.draw(Standing::BelowSoft, 0, &|_, bits| bits).is_some();
            let expected = !limits.is_full(active) && !limits.is_over_soft(active);
            assert_eq!(below_soft, expected, "{active} of {limits:?}");
        };
        let unlimited = Limits::new(0, 0).unwrap();
        let mut held: Vec<_> = (0..4).map(|_| load.try_reserve(unlimited).unwrap()).collect();
        assert_right(&old);
        let new = Snapshot::following(&old, with(next_soft, next_hard), World::default());
        let both = || [&old, &new].into_iter().for_each(assert_right);
        both();
        for _ in 0..5 {
            held.push(load.try_reserve(unlimited).unwrap());
            both();
        }
        while held.pop().is_some() {
            both();
        }
    }
}

/// Two threads make its indexes.
#[test]
fn a_large_table_has_each_backend_once_in_its_app_and_takes_over_what_has_not_changed() {
    let rows: Vec<_> = (0..3_000_u32)
        .map(|n| RawBackend { app: format!("app-{:02}", n % 60).as_str().into(), ..row(&format!("b{n:04}"), "sa") })
        .collect();
    let mut all = crate::domain::testing::backends(&rows);
    let table = Snapshot::new(1, all.clone(), Regions::default());
    assert_eq!((table.apps().len(), table.len()), (60, 3_000));
    for app in table.apps() {
        assert_eq!(app.backends().len(), 50);
        assert!(app.backends().iter().all(|backend| backend.app == *app.name() && app.has_room()));
    }
    all.pop();
    let world = World { regions: Arc::clone(&table.world.regions), ..World::default() };
    let next = Snapshot::following(&table, all, world);
    let kept = next.apps().zip(table.apps()).filter(|(now, before)| std::ptr::eq(*now, *before)).count();
    assert_eq!((kept, next.len()), (59, 2_999));
}

/// The table of an app with one region, and that of all its regions, is the same one; where a backend elsewhere has a share
/// of the latter, it is not.
#[test]
fn groups_of_the_same_backends_share_a_table() {
    let app = AppSpec { selection: Selection::Maglev, ..AppSpec::new(app_name("web")) };
    let drained = RawBackend { state: "drain".into(), ..row("c", "us") };
    for (other, shared) in [(row("c", "sa"), true), (drained, false), (row("c", "us"), false)] {
        let world = World { apps: [(app.name.clone(), app.clone())].into(), ..World::default() };
        let table = Snapshot::new(1, backends(&[row("a", "sa"), row("b", "sa"), other]), world);
        let index = table.app(&app_name("web")).unwrap();
        let of_region = index.group(&region("sa")).unwrap().maglev.as_ref().unwrap();
        assert_eq!(Arc::ptr_eq(of_region, index.everywhere().unwrap().maglev.as_ref().unwrap()), shared);
    }
}
