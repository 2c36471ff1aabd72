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
    limit: Duration,
    record: &mut Record<'_>,
) -> Result<(), ConnectFailure> {
    let Some(version) = version else { return Ok(()) };
    send(backend, &header(version, &record.outcome), limit).await?;
    record.outcome.announced = Some(version);
    Ok(())
}

async fn send(backend: &mut TcpStream, header: &[u8], limit: Duration) -> Result<(), ConnectFailure> {
    match tokio::time::timeout(limit, backend.write_all(header)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ConnectFailure::Refused),
        Err(_) => Err(ConnectFailure::TimedOut),
    }
}

/// What a header that came in said of the client is passed on.
fn header(version: ProxyVersion, outcome: &Outcome) -> Vec<u8> {
    let proxied = outcome.proxied.as_ref();
    let own_name = outcome.server_name.as_ref().map(|name| name.as_str());
    let said = Announcement {
        client: outcome.client,
        to: proxied.and_then(|header| header.addresses).map_or(outcome.to, |addresses| addresses.to),
        // What was seen here is surer than what is told.
        server_name: own_name.or_else(|| proxied.and_then(|header| header.server_name.as_deref())),
        unique_id: &outcome.connection_id().to_string(),
    };
    encode(version, &said)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_header_is_the_first_that_a_backend_gets() {
        let (mut near, mut far) = connected().await;
        send(&mut near, b"header", LIMIT).await.unwrap();
        near.write_all(b"payload").await.unwrap();
        let mut all = [0; 13];
        far.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"headerpayload");
    }

    #[tokio::test]
    async fn a_backend_that_is_gone_does_not_take_the_header() {
        let (mut near, far) = connected().await;
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        // Until the reset is here.
        near.readable().await.unwrap();
        assert_eq!(send(&mut near, b"header", LIMIT).await, Err(ConnectFailure::Refused));
        // One that takes nothing.
        let (mut near, _far) = connected().await;
        let much = vec![0; 64 << 20];
        assert_eq!(send(&mut near, &much, Duration::from_millis(50)).await, Err(ConnectFailure::TimedOut));
    }
}
