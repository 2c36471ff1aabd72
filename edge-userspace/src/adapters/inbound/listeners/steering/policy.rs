//! From places to what the kernel looks up: ports in classes, and for each class the prefixes that hold its ports.
//!
//! Ports that are held by the same places are of one class. So a range of 65,000 ports is one entry and not 65,000, and
//! a longest-prefix match among the entries of a class gives the longest prefix *that has the port*, which is what
//! [`crate::domain::Endpoints::at`] finds.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use edge_common::{DESTINATION_FIXED_BITS, Destination, FAMILY_V4, FAMILY_V6, LEAVE, MAX_STEER_PREFIXES, PORTS, STEER};
use ipnet::IpNet;

use crate::domain::Place;

/// One side of the map may be filled while the other is in force.
const MOST_PREFIXES: usize = MAX_STEER_PREFIXES as usize / 2;
/// Comparisons of places with intervals of ports: a second's work, far beyond any use.
const MOST_WORK: usize = 100_000_000;

/// A place, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    pub place: Place,
    /// Connections go to our steered socket; else a socket is bound there.
    pub steered: bool,
}

/// What is looked up in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// For each port.
    pub classes: Vec<u16>,
    /// Class, prefix and verdict.
    pub prefixes: Vec<(u16, IpNet, u32)>,
}

/// Why places can't be steered together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("there are too many prefixes and ranges of ports for the kernel's table: at most {MOST_PREFIXES} entries")]
    TooMany,
}

impl Policy {
    /// The policy that answers as the most specific of the claims does: the longest prefix that has the port, then the
    /// fewest ports; of equals, one that is bound.
    pub fn new(claims: &[Claim]) -> Result<Self, PolicyError> {
        let mut policy = Self { classes: vec![0; PORTS], prefixes: Vec::new() };
        let bounds = bounds(claims);
        if bounds.len().saturating_mul(claims.len()) > MOST_WORK {
            return Err(PolicyError::TooMany);
        }
        let mut known: HashMap<Vec<usize>, u16> = HashMap::new();
        for pair in bounds.windows(2) {
            let &[from, to] = pair else { continue };
            let holding = holding(claims, from);
            if !holding.iter().any(|at| claims.get(*at).is_some_and(|claim| claim.steered)) {
                continue;
            }
            let next = u16::try_from(known.len() + 1).map_err(|_| PolicyError::TooMany)?;
            let class = match known.entry(holding) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    policy.add_class(next, new.key().iter().filter_map(|at| claims.get(*at)))?;
                    *new.insert(next)
                }
            };
            policy.classes.get_mut(from as usize..to as usize).into_iter().flatten().for_each(|of| *of = class);
        }
        Ok(policy)
    }

    /// `claims` all hold the ports of the class.
    fn add_class<'a>(&mut self, class: u16, claims: impl Iterator<Item = &'a Claim>) -> Result<(), PolicyError> {
        let mut by_prefix: HashMap<IpNet, &Claim> = HashMap::new();
        for claim in claims {
            let best = by_prefix.entry(claim.place.prefix).or_insert(claim);
            let rank = |claim: &Claim| (claim.place.ports.width(), claim.steered);
            if rank(claim) < rank(best) {
                *best = claim;
            }
        }
        let verdict = |claim: &Claim| if claim.steered { STEER } else { LEAVE };
        self.prefixes.extend(by_prefix.into_iter().map(|(prefix, claim)| (class, prefix, verdict(claim))));
        if self.prefixes.len() > MOST_PREFIXES { Err(PolicyError::TooMany) } else { Ok(()) }
    }
}

/// Where the set of places that hold a port may change, from 0 to 65,536.
fn bounds(claims: &[Claim]) -> Vec<u32> {
    let ports = claims.iter().map(|claim| claim.place.ports);
    let ends = ports.flat_map(|ports| [u32::from(ports.first()), u32::from(ports.last()) + 1]);
    let mut bounds: Vec<u32> = ends.collect();
    bounds.sort_unstable();
    bounds.dedup();
    bounds
}

fn holding(claims: &[Claim], port: u32) -> Vec<usize> {
    let holds = |claim: &Claim| u16::try_from(port).is_ok_and(|port| claim.place.ports.contains(port));
    claims.iter().enumerate().filter(|(_, claim)| holds(claim)).map(|(at, _)| at).collect()
}

/// The key of a prefix in one side of the table, and the length of what is compared.
pub(super) fn key(side: u8, class: u16, prefix: IpNet) -> (u32, Destination) {
    let mut address = [0; 16];
    let family = match prefix {
        IpNet::V4(net) => {
            address.iter_mut().zip(net.network().octets()).for_each(|(to, from)| *to = from);
            FAMILY_V4
        }
        IpNet::V6(net) => {
            address = net.network().octets();
            FAMILY_V6
        }
    };
    (DESTINATION_FIXED_BITS + u32::from(prefix.prefix_len()), Destination { side, family, class, address })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn claims(list: &[(&str, bool)]) -> Vec<Claim> {
        list.iter().map(|(place, steered)| Claim { place: Place::parse(place).unwrap(), steered: *steered }).collect()
    }

    #[test]
    fn all_ports_of_a_prefix_are_one_entry() {
        let policy = Policy::new(&claims(&[("203.0.113.0/24:1-65535", true)])).unwrap();
        assert_eq!(policy.prefixes, [(1, "203.0.113.0/24".parse().unwrap(), STEER)]);
        assert_eq!((policy.classes[0], policy.classes[1], policy.classes[65_535]), (0, 1, 1));
    }

    #[test]
    fn a_bound_port_splits_a_range_in_two_classes_not_three() {
        let policy = Policy::new(&claims(&[("0.0.0.0:1-65535", true), ("0.0.0.0:22", false)])).unwrap();
        assert_eq!(policy.prefixes.len(), 2);
        assert_eq!((policy.classes[21], policy.classes[23]), (1, 1));
        assert!(policy.prefixes.contains(&(policy.classes[22], "0.0.0.0/0".parse().unwrap(), LEAVE)));
    }

    #[test]
    fn what_is_only_bound_is_not_looked_up() {
        let policy = Policy::new(&claims(&[("0.0.0.0:80", false), ("203.0.113.0/24:443", true)])).unwrap();
        assert_eq!((policy.classes[80], policy.classes[443]), (0, 1));
        assert_eq!(policy.prefixes.len(), 1);
        assert_eq!(Policy::new(&[]).unwrap().classes, vec![0; PORTS]);
    }

    #[test]
    fn thousands_of_prefixes_on_one_port_are_one_class_and_too_many_are_refused() {
        let prefix = |n: u32| format!("{}.{}.{}.0/24:443", 1 + n / 65_536, n / 256 % 256, n % 256);
        let claim = |n: u32| Claim { place: Place::parse(&prefix(n)).unwrap(), steered: true };
        let policy = Policy::new(&(0..5_000).map(claim).collect::<Vec<_>>()).unwrap();
        assert_eq!((policy.prefixes.len(), policy.classes[443]), (5_000, 1));
        let claims: Vec<_> = (0..MAX_STEER_PREFIXES / 2 + 1).map(claim).collect();
        assert_eq!(Policy::new(&claims), Err(PolicyError::TooMany));
    }
}
