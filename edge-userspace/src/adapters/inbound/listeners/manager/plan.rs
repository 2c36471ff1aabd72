//! How each spot is going to be served.

use std::collections::HashMap;

use crate::domain::{SocketName, Spot};

/// Sockets that are bound for prefixes and ranges of ports, of all listeners together, where `sk_lookup` can't be had.
/// Each takes a descriptor.
pub const MOST_BINDS: u64 = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    Bind,
    Steer,
    Handed(SocketName),
    /// It can't be served, and why.
    Refused(String),
}

/// `no_steering` says why prefixes and ranges of ports can't be steered.
pub(super) fn plan<'a>(spots: impl Iterator<Item = &'a Spot>, no_steering: Option<&str>) -> HashMap<Spot, Plan> {
    let mut left = MOST_BINDS;
    let mut one = |spot: &Spot| match (spot, no_steering) {
        (Spot::Handed(name), _) => Plan::Handed(name.clone()),
        (Spot::Place(place), _) if place.socket_addr().is_some() => Plan::Bind,
        (Spot::Place(_), None) => Plan::Steer,
        (Spot::Place(place), Some(why)) => match left.checked_sub(place.count()) {
            Some(rest) => {
                left = rest;
                Plan::Bind
            }
            None => Plan::Refused(format!(
                "it takes {} sockets, and {left} of {MOST_BINDS} for prefixes and ranges of ports are left; \
                 without number it takes sk_lookup, which is not to be had: {why}",
                place.count()
            )),
        },
    };
    spots.map(|spot| (spot.clone(), one(spot))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn plans(spots: &[&str], no_steering: Option<&str>) -> Vec<Plan> {
        let spots: Vec<_> = spots.iter().map(|spot| Spot::parse(spot).unwrap()).collect();
        let mut plans = plan(spots.iter(), no_steering);
        spots.iter().map(|spot| plans.remove(spot).unwrap()).collect()
    }

    #[test]
    fn single_addresses_are_bound_and_the_rest_is_steered() {
        let spots = ["0.0.0.0:80", "[::1]:80", "fd:web", "0.0.0.0:1-65535", "203.0.113.0/24:443"];
        let web = Plan::Handed(SocketName::parse("web").unwrap());
        assert_eq!(plans(&spots, None), [Plan::Bind, Plan::Bind, web, Plan::Steer, Plan::Steer]);
    }

    #[test]
    fn without_sk_lookup_a_thousand_sockets_are_bound_and_no_more() {
        let all = plans(&["0.0.0.0:1000-1999", "0.0.0.0:3000-3023", "203.0.113.0/31:80"], Some("no privileges"));
        assert_eq!(all[..2], [Plan::Bind, Plan::Bind]);
        let Plan::Refused(why) = &all[2] else { panic!("{:?}", all[2]) };
        assert!(why.contains("takes 2 sockets, and 0 of 1024") && why.ends_with("no privileges"), "{why}");
        assert!(matches!(plans(&["[2001:db8::/32]:443"], Some("x"))[..], [Plan::Refused(_)]));
    }
}
