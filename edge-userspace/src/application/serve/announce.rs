//! Tells a backend who the client is: the PROXY header, before any other byte.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::record::Record;
use crate::domain::proxy::{Announcement, encode};
use crate::domain::{ConnectFailure, Outcome, ProxyVersion};

/// Writes the header to a backend that has just been connected, all of it. A backend that does not take it is as good
/// as one that did not accept.
pub(super) async fn announce(
    backend: &mut TcpStream,
    version: Option<ProxyVersion>,
    server_name: Option<&str>,
    limit: Duration,
    record: &mut Record<'_>,
) -> Result<(), ConnectFailure> {
    let Some(version) = version else { return Ok(()) };
    let header = header(version, server_name, &record.outcome);
    match tokio::time::timeout(limit, backend.write_all(&header)).await {
        Ok(Ok(())) => {
            record.outcome.announced = Some(version);
            Ok(())
        }
        Ok(Err(_)) => Err(ConnectFailure::Refused),
        Err(_) => Err(ConnectFailure::TimedOut),
    }
}

/// Of a header that came in, what we don't know better is passed on.
fn header(version: ProxyVersion, server_name: Option<&str>, outcome: &Outcome) -> Vec<u8> {
    let proxied = outcome.proxied.as_ref();
    let said = Announcement {
        client: outcome.client,
        to: proxied.and_then(|header| header.addresses).map_or(outcome.to, |addresses| addresses.to),
        server_name: server_name.or(proxied.and_then(|header| header.server_name.as_deref())),
        unique_id: &outcome.connection_id().to_string(),
    };
    encode(version, &said)
}
