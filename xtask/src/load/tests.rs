//! The checks must notice every kind of damage, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::IpAddr;

use super::faulty::{Fault, relay};
use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Runs mixed load over a relay with a fault.
fn through(fault: Fault, behaviours: &[Behaviour], connections: u64) -> LoadReport {
    let (host, ledger) = (Namespace::host(), Ledger::new());
    let backend = CheckedBackend::start(&host, "b1", (LOOPBACK, 0).into(), &ledger).unwrap();
    let relay = relay(backend.addr(), fault).unwrap();
    let load = Load { at_once: 16, behaviours: behaviours.to_vec(), ..Load::mixed(connections, 11) };
    load.run(&host, &ledger, |_| (LOOPBACK, relay.addr))
}

#[test]
fn a_good_relay_passes() {
    let report = through(Fault::None, &Behaviour::ALL, 300);
    report.assert_clean();
    assert!(report.bytes_up() > 1 << 20 && report.bytes_down() > 1 << 20);
}

/// How many of ten long exchanges a fault spoils.
fn spoiled(fault: Fault) -> usize {
    through(fault, &[Behaviour::SlowBackend, Behaviour::SlowClient], 10).faults().len()
}

#[test]
fn a_lost_byte_fails() {
    assert_eq!(spoiled(Fault::Lose(40_000)), 10);
}

#[test]
fn a_repeated_byte_fails() {
    assert_eq!(spoiled(Fault::Repeat(40_000)), 10);
}

#[test]
fn bytes_out_of_order_fail() {
    assert!(spoiled(Fault::Swap(40_001)) >= 8, "neighbours may be equal, or fall into two reads");
}

#[test]
fn a_flipped_bit_fails() {
    assert_eq!(spoiled(Fault::Flip(40_000)), 10);
}

#[test]
fn a_truncated_stream_fails() {
    assert_eq!(spoiled(Fault::Truncate(40_000)), 10);
}

#[test]
fn a_half_close_that_closes_both_ways_fails() {
    assert!(!through(Fault::NoHalfClose, &[Behaviour::ClientFirst], 10).faults().is_empty());
}

#[test]
fn a_reset_that_arrives_as_an_end_fails() {
    let resets = [Behaviour::ClientResets, Behaviour::BackendResets];
    assert_eq!(through(Fault::HideReset, &resets, 10).faults().len(), 10);
}

#[test]
fn bytes_thrown_away_by_a_reset_fail() {
    assert!(!through(Fault::HastyReset, &[Behaviour::ClientResets], 32).faults().is_empty());
}
