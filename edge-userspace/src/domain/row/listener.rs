//! The table `listeners`.

use ipnet::IpNet;

use super::value::{count_in, flag, optional_text, port, text};
use super::{RowError, raw_row};
use crate::domain::{
    AcceptProxy, AppName, ListenerError, ListenerId, ListenerSpec, Place, PortRange, ServerName, Spot, parse_prefix,
};

raw_row! {
    /// A row of the table `listeners`, not validated.
    RawListener of "listeners" {
        id, app,
        /// An address, a prefix such as `203.0.113.0/24`, or `fd:NAME` for a socket that is handed over.
        address,
        port,
        /// The last port of a range that begins at `port`.
        last_port,
        /// TLS server names separated by commas or spaces; NULL for those that no other row of the place names.
        server_name,
        accept_proxy,
        /// Prefixes that may send a PROXY header, separated by commas or spaces.
        proxy_from,
        max_connections, deleted,
    }
}

impl RawListener {
    /// The id, if it is one.
    pub fn id(&self) -> Result<ListenerId, RowError> {
        Ok(ListenerId::parse(text("id", &self.id)?)?)
    }

    /// The listener the row describes. NULL or absent columns mean: address `0.0.0.0`, one port, every server name, no
    /// PROXY header, no limit, and the only app of the database.
    pub fn parse(&self) -> Result<ListenerSpec, RowError> {
        flag("deleted", &self.deleted)?;
        let accept_proxy =
            optional_text("accept_proxy", &self.accept_proxy)?.map_or(Ok(AcceptProxy::Off), AcceptProxy::parse)?;
        let proxy_from = self.prefixes()?;
        if accept_proxy != AcceptProxy::Off && proxy_from.is_empty() {
            return Err(ListenerError::NobodyTrusted.into());
        }
        Ok(ListenerSpec {
            id: self.id()?,
            app: optional_text("app", &self.app)?.map(AppName::parse).transpose()?,
            spot: self.spot()?,
            server_names: self.server_names()?,
            accept_proxy,
            proxy_from,
            max_connections: count_in("max_connections", &self.max_connections, 0..=10_000_000)?.unwrap_or(0),
        })
    }

    fn spot(&self) -> Result<Spot, RowError> {
        let text = optional_text("address", &self.address)?.unwrap_or("0.0.0.0");
        match Spot::parse_handed(text) {
            // It is bound already.
            Some(handed) => Ok(handed?),
            None => Ok(Place { prefix: Place::parse_prefix(text)?, ports: self.ports()? }.into()),
        }
    }

    fn ports(&self) -> Result<PortRange, RowError> {
        let first = port("port", &self.port)?.ok_or(RowError::Missing { column: "port" })?;
        let last = port("last_port", &self.last_port)?.unwrap_or(first);
        Ok(PortRange::new(first, last)?)
    }

    fn server_names(&self) -> Result<Vec<ServerName>, RowError> {
        let names = optional_text("server_name", &self.server_name)?.unwrap_or_default();
        Ok(words(names).map(ServerName::parse).collect::<Result<_, _>>()?)
    }

    fn prefixes(&self) -> Result<Vec<IpNet>, RowError> {
        let prefixes = optional_text("proxy_from", &self.proxy_from)?.unwrap_or_default();
        let trusted = |text| parse_prefix(text).map_err(|why| ListenerError::ProxyFrom(why).into());
        words(prefixes).map(trusted).collect()
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ']).filter(|word| !word.is_empty())
}
