//! Where a client has arrived, and whom it asks for: from the socket to the listener.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::record::Record;
use super::refusal::Refusal;
use super::{Proxy, Rules};
use crate::application::arrival::Arrival;
use crate::application::ports::{Connector, Forwarder};
use crate::domain::{
    AppName, Endpoint, Greeting, ListenerSpec, RejectReason, ServerName, Snapshot, SocketName, Spot, Termination,
};

impl Rules {
    /// Where a client that connected to `to` has arrived: the more specific of what the settings and the database say;
    /// the database outranks the settings. On a socket that was handed over its name decides, not the address.
    pub fn endpoint(&self, snapshot: &Snapshot, to: SocketAddr, handed: Option<&SocketName>) -> Option<Arc<Endpoint>> {
        if let Some(name) = handed {
            return snapshot.endpoints().handed(name).or_else(|| self.listeners.handed(name)).cloned();
        }
        let (here, there) = (self.listeners.at(to), snapshot.endpoints().at(to));
        // Of equals the last one is the greatest.
        let specificity = |endpoint: &&Arc<Endpoint>| endpoint.spot.place().map(|place| place.specificity());
        here.into_iter().chain(there).max_by_key(specificity).cloned()
    }

    /// The listener of a server name at an endpoint. What the database says of a spot of the settings adds to it.
    pub fn listener(&self, endpoint: &Endpoint, name: Option<&ServerName>) -> Option<Arc<ListenerSpec>> {
        let name = name.map(ServerName::as_str);
        let of_settings = |spot: &Spot| self.listeners.of(spot)?.listener(name);
        endpoint.listener(name).or_else(|| of_settings(&endpoint.spot)).cloned()
    }

    /// The app a listener leads to.
    pub fn app(&self, listener: Option<&ListenerSpec>, snapshot: &Snapshot) -> Option<AppName> {
        let named = listener.and_then(|listener| listener.app.as_ref());
        named.or(self.app.as_ref()).or_else(|| snapshot.sole_app()).cloned()
    }
}

impl<C: Connector, F: Forwarder> Proxy<C, F> {
    /// What is expected where the client has arrived. Who was in the queue of a listener that has been removed since is
    /// served as before.
    pub(super) fn arrive(&self, arrival: &Arrival, record: &mut Record<'_>) -> Result<Arc<Endpoint>, Refusal> {
        let current = self.rules.endpoint(&self.routing.load(), arrival.to, arrival.door.name());
        let endpoint = current.or_else(|| arrival.door.last(arrival.to));
        let endpoint = endpoint.ok_or(Refusal::rule(RejectReason::NoListener))?;
        // So that a refusal on the way to the server name says where it was, as far as that is sure.
        record.outcome.listener = endpoint.sole().map(|listener| listener.id.clone());
        Ok(endpoint)
    }

    /// Finds the listener among those that share the place, by the server name where that decides.
    pub(super) async fn ask_for(
        &self,
        client: &TcpStream,
        endpoint: &Endpoint,
        record: &mut Record<'_>,
    ) -> Result<Arc<ListenerSpec>, Refusal> {
        let listener = if endpoint.routes_by_name() {
            self.by_name(self.greeter.greeting(client).await, endpoint, record)?
        } else {
            self.rules.listener(endpoint, None).ok_or(Refusal::rule(RejectReason::NoListener))?
        };
        record.outcome.listener = Some(listener.id.clone());
        Ok(listener)
    }

    fn by_name(
        &self,
        greeting: Greeting,
        endpoint: &Endpoint,
        record: &mut Record<'_>,
    ) -> Result<Arc<ListenerSpec>, Refusal> {
        record.outcome.server_name = greeting.server_name().cloned();
        let nobody = match &greeting {
            Greeting::Gone => return Err(Refusal::because(Termination::ClientGone)),
            // It has begun to speak, so no server that speaks first can be meant.
            Greeting::Slow => return Err(Refusal::silent(RejectReason::ServerNameTimeout)),
            Greeting::Silent => Refusal::silent(RejectReason::ServerNameTimeout),
            Greeting::Named(_) => Refusal::rule(RejectReason::UnknownServerName),
            Greeting::Nameless | Greeting::NotTls => Refusal::rule(RejectReason::NoServerName),
            Greeting::Broken(why) => Refusal::rule(RejectReason::BadClientHello).detail(why.to_string()),
        };
        self.rules.listener(endpoint, greeting.server_name()).ok_or(nobody)
    }

    /// The app that a listener leads to.
    pub(super) fn app(&self, listener: &ListenerSpec, record: &mut Record<'_>) -> Result<AppName, Refusal> {
        let app = self.rules.app(Some(listener), &self.routing.load());
        let app = app.ok_or(Refusal::rule(RejectReason::NoApp))?;
        record.outcome.app = Some(app.clone());
        Ok(app)
    }
}
