//! How an app wants its clients spread.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;

use common::{NETWORK, SOON, World, eventually};
use xtask::lab::Daemon;
use xtask::load::Manner;

fn app(world: &World, columns: &str, values: &str) {
    world.database.execute(&format!("INSERT INTO apps (name, {columns}) VALUES ('web', {values})"));
}

/// The backend of each of 60 clients, by one connection each.
fn homes(world: &World, daemon: &Daemon) -> HashMap<u16, String> {
    let of = |n| {
        let visit = world.visit(n, daemon.addr()).unwrap();
        let backend = visit.backend.clone();
        visit.finish().unwrap();
        (n, backend)
    };
    (0..60).map(of).collect()
}

/// By what the daemon says: whose health is up or down is its own affair.
fn reload(world: &World, daemon: &Daemon, sql: &str) {
    let generation = daemon.status().unwrap().number("/routing/generation");
    world.database.execute(sql);
    daemon.post("/api/v1/reload", "{}").unwrap();
    eventually("the change is live", || daemon.status().unwrap().number("/routing/generation") > generation);
}

#[test]
fn a_hashed_client_keeps_its_backend_across_reload_and_restart() {
    let Some(world) = World::new(NETWORK, "a_hashed_client_keeps_its_backend_across_reload_and_restart") else {
        return;
    };
    let _backends: Vec<_> = (1..=4).map(|n| world.backend(n, Manner::Close, |row| row)).collect();
    app(&world, "selection", "'maglev'");
    let mut daemon = world.daemon(&[]);
    let first = homes(&world, &daemon);
    assert!(first.values().collect::<std::collections::HashSet<_>>().len() == 4, "{first:?}");
    assert_eq!(homes(&world, &daemon), first);
    assert!(
        daemon
            .access_log(SOON, |records| records.len() >= 120)
            .iter()
            .all(|record| record.why.as_deref() != Some("affinity"))
    );

    reload(&world, &daemon, "UPDATE backends SET state = 'drain' WHERE id = 'b2'");
    for (n, backend) in homes(&world, &daemon) {
        assert_ne!(backend, "b2");
        assert!(first[&n] == "b2" || first[&n] == backend, "client {n}: {} to {backend}", first[&n]);
    }
    reload(&world, &daemon, "UPDATE backends SET state = 'ready' WHERE id = 'b2'");
    assert_eq!(homes(&world, &daemon), first);

    daemon.terminate().unwrap();
    let daemon = world.daemon(&[]);
    assert_eq!(homes(&world, &daemon), first);
}
