#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use crate::domain::testing::{World, id, region, row};
use crate::domain::*;

#[test]
fn a_plan_shows_every_backend_best_first_and_why_the_others_are_out() {
    let mut world = World::new(&[
        row("eu1", "eu"),
        RawBackend { weight: 2.into(), ..row("sa1", "sa") },
        row("us1", "us"),
        RawBackend { state: "drain".into(), ..row("sa2", "sa") },
        RawBackend { weight: 0.into(), ..row("sa3", "sa") },
    ]);
    let first = std::sync::Arc::clone(world.app().backend(&id("sa1")).unwrap());
    let _held: Vec<_> = (0..50).map(|_| first.load.try_reserve(first.limits).unwrap()).collect();
    let (sa, us, bound) = (region("sa"), region("us"), id("sa2"));
    let request =
        Request { client_region: Some(&sa), client_position: None, pop_region: &us, client: None, bound: Some(&bound) };
    let app = world.snapshot.app(&testing::app_name("web")).unwrap();
    let plan = explain(app, world.snapshot.regions(), &request, &Tried::new(), 8, &mut world.rng);

    let lines: Vec<_> = plan.entries.iter().map(|entry| (entry.id.as_str(), entry.score, entry.skip)).collect();
    assert_eq!(
        lines,
        [
            ("sa1", 0.25, None),
            ("us1", 100.0, None),
            ("eu1", 200.0, None),
            ("sa2", 0.0, Some(Skip::Drain)),
            ("sa3", 0.0, Some(Skip::WeightZero)),
        ]
    );
    assert_eq!((plan.winner, plan.reason), (Some(id("sa1")), Some(PickReason::ClientRegion)));
    assert_eq!(plan.binding_yielded, Some(Skip::Drain));
    assert!((9000.0..10_500.0).contains(&plan.entries[2].distance_km.unwrap()));
    assert_eq!(first.load.active(), 50, "explaining reserves nothing");
    let order: Vec<_> = plan.order.iter().map(|(id, reason)| (id.as_str(), *reason)).collect();
    assert_eq!(
        order,
        [("sa1", PickReason::ClientRegion), ("us1", PickReason::PopRegion), ("eu1", PickReason::NearestRegion)]
    );
}

#[test]
fn load_never_outranks_geography() {
    let mut world = World::new(&[RawBackend { soft_limit: 1.into(), ..row("sa1", "sa") }, row("us1", "us")]);
    let held: Vec<_> = (0..500).map(|_| world.route(Some("sa"), "us").unwrap()).collect();
    assert!(held.iter().all(|pick| pick.backend.id == id("sa1")));
    let (sa, us) = (region("sa"), region("us"));
    let request =
        Request { client_region: Some(&sa), client_position: None, pop_region: &us, client: None, bound: None };
    let app = world.snapshot.app(&testing::app_name("web")).unwrap();
    let plan = explain(app, world.snapshot.regions(), &request, &Tried::new(), 8, &mut world.rng);
    assert!(plan.entries[0].score < plan.entries[1].score);
}
