//! The kernel path is correct or it is off, and whoever asks is told why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use common::{KERNEL, World};
use xtask::lab::Daemon;
use xtask::load::Manner;

#[test]
fn a_kernel_that_is_known_to_lose_data_is_denied() {
    let Some(world) = World::new(KERNEL, "a_kernel_that_is_known_to_lose_data_is_denied") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let config = world.config().ancient_kernel();
    for forwarder in ["auto", "sockmap"] {
        let daemon = Daemon::start(&world.lab, &config.clone().set("forwarder", forwarder)).unwrap();
        let why = common::assert_kernel_path_off(&daemon, "denied_kernel");
        assert!(why.starts_with("sockmap of kernel 2.6.") && why.contains("sockmap_on_denied_kernels"), "{why}");
        common::assert_in_userspace(&world.exchange(&daemon));
        let check = config.clone().set("forwarder", forwarder).command(&world.lab, &["check"]).output().unwrap();
        assert!(check.status.success(), "a POP without a kernel path is a POP all the same: {check:?}");
        assert!(String::from_utf8_lossy(&check.stdout).contains(&why), "{check:?}");
    }
}

#[test]
fn an_operator_may_insist_on_a_denied_kernel() {
    let Some(world) = World::new(KERNEL, "an_operator_may_insist_on_a_denied_kernel") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let config = world.config().ancient_kernel().set("forwarder", "sockmap").set("sockmap_on_denied_kernels", "true");
    let daemon = Daemon::start(&world.lab, &config).unwrap();
    assert_on(&daemon);
    common::assert_said(&daemon, "sockmap_on_denied_kernels is set");
    let record = world.exchange(&daemon);
    assert_eq!(record.forwarder.as_deref(), Some("sockmap"), "{record:?}");
    assert!(record.kernel_up > 0, "{record:?}");
}

/// The kernel path is on, and nothing says otherwise.
fn assert_on(daemon: &Daemon) {
    let status = daemon.status().unwrap();
    assert_eq!(status.text("/forwarder/active"), Some("sockmap"), "{:#}", status.0);
    assert_eq!(status.text("/forwarder/off"), None, "{:#}", status.0);
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_kernel_path_active 1\n"), "{metrics}");
    assert!(!metrics.lines().any(|line| line.starts_with("edgeproxy_kernel_path_off{") && line.ends_with(" 1")));
}
