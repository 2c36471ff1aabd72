//! The sockets that answer for prefixes and ranges of ports, and the policy that leads connections to them.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::Job;
use super::super::bind::{self, Manner};
use super::super::steering::{Claim, Family, Policy, Steering};
use super::{Open, Parts};
use crate::application::listening::SteeringStatus;
use crate::domain::{Endpoint, Endpoints, Place, Spot};

/// A connection that was on its way when its listener was removed arrives within this time.
const DEPARTURE: Duration = Duration::from_secs(10);

/// Whether connections can be steered.
#[derive(Debug)]
pub enum Steer {
    /// That is not known yet.
    Loading,
    On(Box<Steering>),
    /// And why not.
    Off(String),
}

#[derive(Debug, Default)]
pub(super) struct Steered {
    v4: Option<Group>,
    v6: Option<Group>,
    /// The claims in force.
    claims: Vec<Claim>,
    /// Spots that are no longer wanted, and since when.
    departed: Vec<(Instant, Arc<Endpoint>)>,
    expected: Vec<Arc<Endpoint>>,
    /// Why the policy in force is not the one that is wanted.
    failure: Option<String>,
}

/// The sockets of one family; the kernel's map has one of them, which stands for all.
#[derive(Debug)]
struct Group {
    open: Result<Open, String>,
}

impl Steered {
    /// Why prefixes and ranges of ports can't be steered; `None` where they can.
    pub(super) fn why_not<'a>(&self, steer: &'a Steer) -> Option<&'a str> {
        match steer {
            Steer::Loading | Steer::On(_) => None,
            Steer::Off(why) => Some(why),
        }
    }

    /// Whether nothing is steered, nor has been until just now.
    pub(super) fn is_idle(&self) -> bool {
        self.expected.is_empty() && self.departed.is_empty()
    }

    /// Why connections to a steered spot don't come.
    pub(super) fn failure(&self, spot: &Spot) -> Option<String> {
        let group = match spot.place()?.prefix.addr() {
            IpAddr::V4(_) => self.v4.as_ref(),
            IpAddr::V6(_) => self.v6.as_ref(),
        };
        group.and_then(|group| group.open.as_ref().err().cloned()).or_else(|| self.failure.clone())
    }

    /// Makes the kernel steer exactly the `wanted` spots, where no socket is bound that is more specific; returns new
    /// sockets for the workers.
    pub(super) fn reconcile(
        &mut self,
        parts: &mut Parts,
        wanted: &[(&Spot, &Endpoints)],
        bound: Vec<Place>,
        foreign: &[SocketAddr],
    ) -> Vec<Job> {
        let Steer::On(steering) = &mut parts.steer else { return Vec::new() };
        self.expect(wanted);
        let places: Vec<Place> = wanted.iter().filter_map(|(spot, _)| spot.place().copied()).collect();
        let mut jobs = Vec::new();
        for family in [Family::V4, Family::V6] {
            let own = places.iter().any(|place| of_family(place, family));
            jobs.extend(self.tend_group(steering, family, own, (parts.workers.len(), parts.backlog)));
        }
        let mut claims: Vec<Claim> = places.into_iter().map(|place| Claim { place, steered: true }).collect();
        if !claims.is_empty() {
            claims.extend(
                bound
                    .into_iter()
                    .chain(foreign.iter().flat_map(|addr| taken_by(*addr)))
                    .map(|place| Claim { place, steered: false }),
            );
        }
        claims.sort_unstable();
        claims.dedup();
        self.apply(steering, claims);
        self.release(wanted);
        self.doors().for_each(|open| open.door.expect(self.endpoints()));
        jobs
    }

    fn apply(&mut self, steering: &mut Steering, claims: Vec<Claim>) {
        if claims == self.claims && self.failure.is_none() {
            return;
        }
        let applied = Policy::new(&claims).map_err(Into::into).and_then(|policy| steering.apply(&policy));
        match applied {
            Ok(()) => (self.claims, self.failure) = (claims, None),
            Err(why) => self.failure = Some(why.to_string()),
        }
    }

    /// Opens the sockets of a family when they are wanted for the first time.
    fn tend_group(
        &mut self,
        steering: &mut Steering,
        family: Family,
        wanted: bool,
        (count, backlog): (usize, u32),
    ) -> Vec<Job> {
        let expected = self.endpoints();
        let group = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        if !wanted || matches!(group, Some(Group { open: Ok(_) })) {
            return Vec::new();
        }
        // Where they are bound doesn't matter, as long as nobody else comes there.
        let home: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let manner = Manner { count, backlog, own_overlap: false, free: false };
        let opened = bind::open(SocketAddr::new(home, 0), manner).map_err(|why| why.to_string());
        let opened = opened.and_then(|listeners| {
            let first = listeners.first().ok_or("there are no workers")?;
            steering.set_socket(family, first.as_fd()).map_err(|why| why.to_string())?;
            Ok(listeners)
        });
        let (open, jobs) = match opened {
            Ok(listeners) => {
                let mut open = Open::new(expected);
                open.bound.extend(listeners.first().and_then(|listener| listener.local_addr().ok()));
                let jobs = listeners.into_iter().map(|listener| open.job(listener, None)).collect();
                (Ok(open), jobs)
            }
            Err(why) => (Err(why), Vec::new()),
        };
        *group = Some(Group { open });
        jobs
    }

    /// Closes the sockets of a family that nothing is wanted of, once nobody can be on the way to them.
    fn release(&mut self, wanted: &[(&Spot, &Endpoints)]) {
        for (family, group) in [(Family::V4, &mut self.v4), (Family::V6, &mut self.v6)] {
            let of_family = |spot: &Spot| spot.place().is_some_and(|place| of_family(place, family));
            let departing = self.departed.iter().any(|(_, endpoint)| of_family(&endpoint.spot));
            if !departing && !wanted.iter().any(|(spot, _)| of_family(spot)) {
                *group = None;
            }
        }
    }

    /// Notes what is wanted, and what no longer is.
    fn expect(&mut self, wanted: &[(&Spot, &Endpoints)]) {
        let now = Instant::now();
        let wanted: Vec<_> = wanted.iter().filter_map(|(spot, endpoints)| endpoints.of(spot)).cloned().collect();
        let spots: HashSet<&Spot> = wanted.iter().map(|endpoint| &endpoint.spot).collect();
        let gone = self.expected.drain(..).filter(|old| !spots.contains(&old.spot));
        self.departed.extend(gone.map(|endpoint| (now, endpoint)));
        self.departed.retain(|(since, _)| now.duration_since(*since) < DEPARTURE);
        self.expected = wanted;
    }

    fn endpoints(&self) -> Endpoints {
        let mut endpoints = Endpoints::default();
        let departed = self.departed.iter().map(|(_, endpoint)| endpoint);
        departed.chain(&self.expected).for_each(|endpoint| endpoints.put(Arc::clone(endpoint)));
        endpoints
    }

    fn doors(&self) -> impl Iterator<Item = &Open> {
        [&self.v4, &self.v6].into_iter().filter_map(|group| group.as_ref()?.open.as_ref().ok())
    }

    pub(super) fn status(&self, steer: &Steer) -> SteeringStatus {
        match steer {
            Steer::Loading => SteeringStatus::default(),
            Steer::Off(why) => SteeringStatus { why: Some(why.clone()), ..SteeringStatus::default() },
            Steer::On(steering) => SteeringStatus {
                available: true,
                why: None,
                prefixes: steering.prefixes() as u64,
                verdicts: steering
                    .verdicts()
                    .into_iter()
                    .map(|(name, count)| (name.to_owned(), count))
                    .collect::<BTreeMap<_, _>>(),
            },
        }
    }
}

fn of_family(place: &Place, family: Family) -> bool {
    place.prefix.addr().is_ipv4() == (family == Family::V4)
}

/// Where a socket takes connections. One that is bound to `::` may take IPv4 as well; whether it does is not told.
fn taken_by(addr: SocketAddr) -> impl Iterator<Item = Place> {
    let both = addr.is_ipv6() && addr.ip().is_unspecified();
    let other = both.then(|| Place::of(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port())));
    std::iter::once(Place::of(addr)).chain(other)
}
