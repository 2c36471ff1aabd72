//! What a question asks for: an app, or where a client connects to and the server name it asks for there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::Rules;
use crate::domain::{AppName, ClientAddr, Endpoint, ListenerSpec, RejectReason, ServerName, Snapshot};

/// What a client asks for. With nothing set: what a listener leads to that names no app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    pub app: Option<AppName>,
    /// The port, and where it matters the address, that it connects to.
    pub port: Option<u16>,
    pub to: Option<IpAddr>,
    /// The TLS server name that it asks for.
    pub server_name: Option<ServerName>,
}

/// Why a question can't be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("no listener on {0}: `edgeproxy status` lists them")]
    NoListener(String),
    #[error("several listeners fit: {0}; say which by --to ADDRESS and --port")]
    Several(String),
    #[error("an address is of no use without a port: add --port")]
    AddressAlone,
}

/// The answer.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) app: Option<AppName>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) listener: Option<Arc<ListenerSpec>>,
    /// Why there is no listener.
    pub(super) refused: Option<RejectReason>,
}

impl Target {
    pub(super) fn find(&self, client: ClientAddr, rules: &Rules, snapshot: &Snapshot) -> Result<Asked, TargetError> {
        if let Some(app) = &self.app {
            return Ok(Asked { app: Some(app.clone()), ..Asked::default() });
        }
        let endpoint = match (self.to, self.port, &self.server_name) {
            (Some(ip), Some(port), _) => one(rules, snapshot, SocketAddr::new(ip, port))?,
            (Some(_), None, _) => return Err(TargetError::AddressAlone),
            (None, Some(port), _) => on_port(rules, snapshot, (client, port), self.server_name.as_ref())?,
            (None, None, Some(name)) => named(rules, snapshot, name)?,
            (None, None, None) => return Ok(Asked { app: rules.app(None, snapshot), ..Asked::default() }),
        };
        let name = self.server_name.as_ref().filter(|_| endpoint.routes_by_name());
        let listener = rules.listener(&endpoint, name);
        let refused = match (&listener, name) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(RejectReason::UnknownServerName),
            (None, None) => Some(RejectReason::NoServerName),
        };
        let app = listener.as_ref().and_then(|listener| rules.app(Some(listener), snapshot));
        Ok(Asked { app, endpoint: Some(endpoint), listener, refused })
    }
}

fn one(rules: &Rules, snapshot: &Snapshot, to: SocketAddr) -> Result<Arc<Endpoint>, TargetError> {
    rules.endpoint(snapshot, to, None).ok_or_else(|| TargetError::NoListener(to.to_string()))
}

/// The only endpoint that has the port; of several, that for all addresses of the client's family, or any if all lead to
/// the same app.
fn on_port(
    rules: &Rules,
    snapshot: &Snapshot,
    (client, port): (ClientAddr, u16),
    name: Option<&ServerName>,
) -> Result<Arc<Endpoint>, TargetError> {
    let has = |endpoint: &Endpoint| endpoint.spot.place().is_some_and(|place| place.ports.contains(port));
    match &all(rules, snapshot, has)[..] {
        [] => Err(TargetError::NoListener(format!("port {port}"))),
        [only] => Ok(Arc::clone(only)),
        several => {
            let all_addresses = match client.ip() {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let anywhere = rules.endpoint(snapshot, SocketAddr::new(all_addresses, port), None);
            let app = |endpoint: &Arc<Endpoint>| rules.app(Some(&*rules.listener(endpoint, name)?), snapshot);
            let first = several.first().filter(|first| several.iter().all(|other| app(other) == app(first)));
            anywhere.or_else(|| first.cloned()).ok_or_else(|| TargetError::Several(list(several)))
        }
    }
}

/// The only endpoint that names the server; without one, the only one that would take it all the same.
fn named(rules: &Rules, snapshot: &Snapshot, name: &ServerName) -> Result<Arc<Endpoint>, TargetError> {
    let names = |endpoint: &Endpoint| {
        let listener = endpoint.listener(Some(name.as_str()));
        listener.is_some_and(|listener| !listener.server_names.is_empty())
    };
    let mut found = all(rules, snapshot, names);
    if found.is_empty() {
        found = all(rules, snapshot, Endpoint::routes_by_name);
    }
    match &found[..] {
        [] => Err(TargetError::NoListener(format!("any place for server names, such as {name}"))),
        [only] => Ok(Arc::clone(only)),
        several => Err(TargetError::Several(list(several))),
    }
}

fn all(rules: &Rules, snapshot: &Snapshot, fits: impl Fn(&Endpoint) -> bool) -> Vec<Arc<Endpoint>> {
    let database = snapshot.endpoints().iter().chain(
        // A spot that both name is the database's.
        rules.listeners.iter().filter(|endpoint| snapshot.endpoints().of(&endpoint.spot).is_none()),
    );
    database.filter(|endpoint| fits(endpoint)).cloned().collect()
}

fn list(endpoints: &[Arc<Endpoint>]) -> String {
    endpoints.iter().map(|endpoint| endpoint.spot.to_string()).collect::<Vec<_>>().join(", ")
}
