//! Which endpoint of a prefix has a port, where ranges of ports may overlap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::OnceLock;

use crate::domain::PortRange;

/// Of several endpoints that have a port it is the one with the fewest ports, then the lowest.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports {
    /// Each with the number of its endpoint.
    ranges: Vec<(PortRange, usize)>,
    /// Made of all ranges at once: one after the other, each would go through all that lie inside it.
    stretches: OnceLock<Stretches>,
}

/// Each port from which on another endpoint counts, and that endpoint, or none; sorted.
type Stretches = Vec<(u16, Option<usize>)>;

impl Ports {
    /// Adds the endpoint number `at`, whose range none has yet.
    pub(super) fn add(&mut self, ports: PortRange, at: usize) {
        self.ranges.push((ports, at));
        self.stretches.take();
    }

    /// The endpoint that has the port.
    pub(super) fn at(&self, port: u16) -> Option<usize> {
        let stretches = self.stretches();
        let before = stretches.partition_point(|(first, _)| *first <= port).checked_sub(1)?;
        stretches.get(before)?.1
    }

    /// Spares the first who asks for a port the work.
    pub(super) fn prepare(&self) {
        self.stretches();
    }

    fn stretches(&self) -> &Stretches {
        self.stretches.get_or_init(|| stretches(self.ranges.clone()))
    }
}

fn stretches(mut ranges: Vec<(PortRange, usize)>) -> Stretches {
    // Beyond the last port there is nothing.
    let ends = ranges.iter().flat_map(|(ports, _)| [Some(ports.first()), ports.last().checked_add(1)]);
    let mut ends: Vec<u16> = ends.flatten().collect();
    ends.sort_unstable();
    ends.dedup();
    ranges.sort_unstable_by_key(|(ports, _)| ports.first());
    let mut coming = ranges.into_iter().peekable();
    // Those that have begun, the one that counts on top. One that is over goes when it gets there.
    let mut begun = BinaryHeap::new();
    let mut stretches = Vec::with_capacity(ends.len());
    for port in ends {
        while let Some((ports, at)) = coming.next_if(|(ports, _)| ports.first() <= port) {
            begun.push(Reverse((ports.width(), ports.first(), ports.last(), at)));
        }
        while begun.peek().is_some_and(|Reverse((_, _, last, _))| *last < port) {
            begun.pop();
        }
        stretches.push((port, begun.peek().map(|Reverse((.., at))| *at)));
    }
    stretches.dedup_by_key(|(_, at)| *at);
    stretches
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    #[test]
    fn there_are_no_more_stretches_than_ends_of_ranges() {
        let mut ports = Ports::default();
        (0..1_000_u16).for_each(|n| ports.add(range(n * 2, n * 2), n.into()));
        ports.add(range(0, u16::MAX), 1_000);
        assert_eq!((ports.at(998), ports.at(999), ports.at(u16::MAX)), (Some(499), Some(1_000), Some(1_000)));
        assert_eq!(ports.stretches().len(), 2_000);
    }

    /// If each went through all that lie inside it, this would take minutes.
    #[test]
    fn as_many_ranges_as_can_be_lie_inside_each_other() {
        let mut ports = Ports::default();
        (0..=u16::MAX / 2).rev().for_each(|n| ports.add(range(n, u16::MAX - n), n.into()));
        for port in 0..=u16::MAX {
            assert_eq!(ports.at(port), Some(port.min(u16::MAX - port).into()));
        }
    }

    #[test]
    fn what_is_added_later_counts_too() {
        let mut ports = Ports::default();
        ports.add(range(10, 20), 0);
        assert_eq!((ports.at(9), ports.at(15)), (None, Some(0)));
        ports.add(range(15, 15), 1);
        assert_eq!((ports.at(14), ports.at(15), ports.at(16)), (Some(0), Some(1), Some(0)));
    }

    proptest! {
        #[test]
        fn the_smallest_range_that_has_the_port_counts(
            ranges in prop::collection::btree_set((0u16..40, 0u16..40), 0..12),
            high in prop::bool::ANY,
        ) {
            // At either end of all ports.
            let end = |n: u16| if high { u16::MAX - n } else { n };
            let ranges: Vec<PortRange> =
                ranges.iter().map(|(a, b)| range(end(*a).min(end(*b)), end(*a).max(end(*b)))).collect();
            let mut known = Ports::default();
            let mut added = Vec::new();
            for range in ranges {
                if !added.contains(&range) {
                    known.add(range, added.len());
                    added.push(range);
                }
            }
            for port in (0..50).map(end) {
                let having = added.iter().enumerate().filter(|(_, range)| range.contains(port));
                let expected = having.min_by_key(|(_, range)| (range.width(), **range)).map(|(at, _)| at);
                prop_assert_eq!(known.at(port), expected, "port {}", port);
            }
        }
    }
}
