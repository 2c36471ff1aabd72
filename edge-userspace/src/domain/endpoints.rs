//! Finds the listener of a connection by the address it was made to, and by the server name where several share one.

mod ports;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use self::ports::Ports;
use super::{AcceptProxy, ListenerError, ListenerSpec, Place, SocketName, Spot};

/// All places where clients are expected, indexed.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    list: Vec<Arc<Endpoint>>,
    by_spot: HashMap<Spot, usize>,
    /// For each length of prefix that occurs, longest first, the ports of each prefix.
    by_length: Vec<(u8, HashMap<IpNet, Ports>)>,
}

/// A spot, and the listeners that share it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub spot: Spot,
    pub accept_proxy: AcceptProxy,
    pub proxy_from: Vec<IpNet>,
    by_name: HashMap<String, Arc<ListenerSpec>>,
    /// Below a name: the key begins with a dot.
    by_parent: HashMap<String, Arc<ListenerSpec>>,
    default: Option<Arc<ListenerSpec>>,
}

impl Endpoints {
    /// Adds a listener, unless it contradicts one that is there.
    pub fn add(&mut self, spec: ListenerSpec) -> Result<(), ListenerError> {
        let known = self.by_spot.get(&spec.spot).and_then(|at| self.list.get_mut(*at));
        match known {
            Some(endpoint) => Arc::make_mut(endpoint).add(spec),
            None => {
                self.put(Arc::new(Endpoint::of(spec)?));
                Ok(())
            }
        }
    }

    /// Adds an endpoint as it is, in the place of one of the same spot.
    pub fn put(&mut self, endpoint: Arc<Endpoint>) {
        match self.by_spot.get(&endpoint.spot).and_then(|at| self.list.get_mut(*at)) {
            Some(known) => *known = endpoint,
            None => {
                let at = self.list.len();
                self.by_spot.insert(endpoint.spot.clone(), at);
                if let Spot::Place(place) = endpoint.spot {
                    self.index(place, at);
                }
                self.list.push(endpoint);
            }
        }
    }

    fn index(&mut self, place: Place, at: usize) {
        let length = place.prefix.prefix_len();
        let found = self.by_length.binary_search_by(|(known, _)| length.cmp(known));
        let place_of_length = found.unwrap_or_else(|free| {
            self.by_length.insert(free, (length, HashMap::new()));
            free
        });
        if let Some((_, prefixes)) = self.by_length.get_mut(place_of_length) {
            prefixes.entry(place.prefix).or_default().add(place.ports, at);
        }
    }

    /// Does what would otherwise be done when the first client comes.
    pub fn prepare(&self) {
        self.by_length.iter().flat_map(|(_, prefixes)| prefixes.values()).for_each(Ports::prepare);
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.list.iter()
    }

    /// The endpoint of exactly this spot.
    pub fn of(&self, spot: &Spot) -> Option<&Arc<Endpoint>> {
        self.by_spot.get(spot).and_then(|at| self.list.get(*at))
    }

    /// The endpoint of sockets that the service manager hands over under this name.
    pub fn handed(&self, name: &SocketName) -> Option<&Arc<Endpoint>> {
        self.of(&Spot::Handed(name.clone()))
    }

    /// The most specific endpoint that holds the address a client connected to: the longest prefix that has the port,
    /// then the fewest ports.
    pub fn at(&self, addr: SocketAddr) -> Option<&Arc<Endpoint>> {
        let ip = addr.ip().to_canonical();
        self.by_length
            .iter()
            .find_map(|(length, prefixes)| self.list.get(prefixes.get(&prefix(ip, *length)?)?.at(addr.port())?))
    }
}

/// The prefix of an address; `None` where the family has no prefixes so long.
fn prefix(ip: IpAddr, length: u8) -> Option<IpNet> {
    IpNet::new(ip, length).ok().map(|net| net.trunc())
}

impl Endpoint {
    /// That of one listener.
    pub fn of(spec: ListenerSpec) -> Result<Self, ListenerError> {
        let mut endpoint = Self {
            spot: spec.spot.clone(),
            accept_proxy: spec.accept_proxy,
            proxy_from: spec.proxy_from.clone(),
            by_name: HashMap::new(),
            by_parent: HashMap::new(),
            default: None,
        };
        endpoint.add(spec)?;
        Ok(endpoint)
    }

    /// Adds a listener of the same spot, unless it contradicts one that is there.
    pub fn add(&mut self, spec: ListenerSpec) -> Result<(), ListenerError> {
        let agrees = spec.accept_proxy == self.accept_proxy && are_same(&spec.proxy_from, &self.proxy_from);
        if let Some(other) = self.listeners().next().filter(|_| !agrees) {
            return Err(ListenerError::ProxyDisagrees { other: other.id.clone() });
        }
        if let Some(other) = self.default.as_ref().filter(|_| spec.server_names.is_empty()) {
            return Err(ListenerError::PlaceTaken { other: other.id.clone() });
        }
        for name in &spec.server_names {
            let taken = match name.wildcard() {
                Some(parent) => self.by_parent.get(parent),
                None => self.by_name.get(name.as_str()),
            };
            if let Some(other) = taken {
                return Err(ListenerError::NameTaken { other: other.id.clone(), name: name.clone() });
            }
        }
        let spec = Arc::new(spec);
        for name in &spec.server_names {
            match name.wildcard() {
                Some(parent) => self.by_parent.insert(parent.to_owned(), Arc::clone(&spec)),
                None => self.by_name.insert(name.as_str().to_owned(), Arc::clone(&spec)),
            };
        }
        if spec.server_names.is_empty() {
            self.default = Some(spec);
        }
        Ok(())
    }

    /// Takes out a listener that was added; whether another one is left.
    pub fn remove(&mut self, spec: &ListenerSpec) -> bool {
        for name in &spec.server_names {
            match name.wildcard() {
                Some(parent) => self.by_parent.remove(parent),
                None => self.by_name.remove(name.as_str()),
            };
        }
        if spec.server_names.is_empty() {
            self.default = None;
        }
        self.default.is_some() || self.routes_by_name()
    }

    /// Whether that address may say who a client is.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.proxy_from.iter().any(|prefix| prefix.contains(&peer))
    }

    /// Whether the server name decides between listeners, so that the ClientHello must be looked at.
    pub fn routes_by_name(&self) -> bool {
        !self.by_name.is_empty() || !self.by_parent.is_empty()
    }

    /// The listener of all who come to the place, where no server name decides.
    pub fn sole(&self) -> Option<&Arc<ListenerSpec>> {
        self.default.as_ref().filter(|_| !self.routes_by_name())
    }

    /// The listener of a server name in lower case: an exact name first, then the longest `*.` above it, then the one
    /// that takes every name.
    pub fn listener(&self, server_name: Option<&str>) -> Option<&Arc<ListenerSpec>> {
        server_name.and_then(|name| self.named(name)).or(self.default.as_ref())
    }

    fn named(&self, name: &str) -> Option<&Arc<ListenerSpec>> {
        let parents = name.match_indices('.').filter_map(|(dot, _)| name.get(dot..));
        self.by_name.get(name).or_else(|| parents.into_iter().find_map(|parent| self.by_parent.get(parent)))
    }

    /// All listeners of the place; one with several names may come several times.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<ListenerSpec>> {
        self.default.iter().chain(self.by_name.values()).chain(self.by_parent.values())
    }
}

/// Whatever their order.
fn are_same(some: &[IpNet], others: &[IpNet]) -> bool {
    let set = |nets: &[IpNet]| nets.iter().copied().collect::<BTreeSet<_>>();
    set(some) == set(others)
}

#[cfg(test)]
mod tests;
