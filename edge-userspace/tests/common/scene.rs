//! One daemon and its only backend, by any forwarder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::SocketAddr;

use xtask::lab::requirements::Need;
use xtask::lab::{Cgroups, Daemon};

use super::polling::Client;
use super::stage::one_marked;
use super::{Row, World};

/// Neither the backend nor the clients block, or `sk_msg` would leave them to others.
#[derive(Debug)]
pub struct Scene {
    // Dropped in this order: a cgroup can go when the daemon is gone.
    pub daemon: Daemon,
    pub world: World,
    pub forwarder: &'static str,
    _cgroups: Option<Cgroups>,
}

impl Scene {
    /// `serve` starts the backend. `None` where the machine lacks what the test needs.
    pub fn new(
        forwarder: &'static str,
        settings: &[(&str, &str)],
        serve: fn(&World, SocketAddr),
        needs: &[Need],
        test: &str,
    ) -> Option<Self> {
        let world = World::new(needs, test)?;
        let addr = world.backend_addr(1);
        let (daemon, cgroups) = if forwarder == "sk_msg" {
            let (cgroups, _, daemon) = one_marked(&world, settings);
            (daemon, Some(cgroups))
        } else {
            world.database.add(&Row::new("b1", addr));
            (world.daemon(&[&[("forwarder", forwarder)][..], settings].concat()), None)
        };
        serve(&world, addr);
        Some(Self { daemon, world, forwarder, _cgroups: cgroups })
    }

    /// The `n`-th client, connected.
    pub fn client(&self, n: u16) -> Client {
        Client::connect(&self.world, n, self.daemon.addr())
    }
}
