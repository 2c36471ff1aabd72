//! Which endpoint of a prefix has a port, where ranges of ports may overlap.

use std::collections::BTreeMap;

use crate::domain::PortRange;

/// At each port from which on another endpoint counts, that one, or none. Of several that have a port it is the one with the
/// fewest ports, then the lowest.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports(BTreeMap<u16, Option<(PortRange, usize)>>);

impl Ports {
    /// Adds the endpoint number `at`, whose range none has yet.
    pub(super) fn add(&mut self, ports: PortRange, at: usize) {
        self.cut(ports.first());
        // Beyond the last port nothing has to go on as before.
        ports.last().checked_add(1).into_iter().for_each(|next| self.cut(next));
        for (_, known) in self.0.range_mut(ports.first()..=ports.last()) {
            if known.is_none_or(|(other, _)| rank(ports) < rank(other)) {
                *known = Some((ports, at));
            }
        }
    }

    /// The endpoint that has the port.
    pub(super) fn at(&self, port: u16) -> Option<usize> {
        self.covering(port).map(|(_, at)| at)
    }

    fn covering(&self, port: u16) -> Option<(PortRange, usize)> {
        *self.0.range(..=port).next_back()?.1
    }

    /// Has a stretch begin at `port`.
    fn cut(&mut self, port: u16) {
        let before = self.covering(port);
        self.0.entry(port).or_insert(before);
    }
}

fn rank(ports: PortRange) -> (u16, u16) {
    (ports.width(), ports.first())
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
        assert_eq!(ports.0.len(), 2_000);
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
