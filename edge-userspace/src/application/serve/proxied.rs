//! Who the client is, where a proxy in front says so: reads the PROXY header, exactly it and not a byte more.

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use tokio::net::TcpStream;

use super::Rules;
use super::look::{Look, Patience, look};
use super::record::Record;
use super::refusal::Refusal;
use crate::domain::proxy::{HeaderError, LONGEST_HEADER, Scan, decode, scan};
use crate::domain::{AcceptProxy, Endpoint, ProxyHeader, RejectReason, Termination};

/// What a header may be, on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Whatever looks like one is payload.
    No,
    Optional,
    Required,
}

/// The header that was read, and its length.
struct Read {
    header: ProxyHeader,
    length: usize,
}

/// Reads the PROXY header that the listener expects of this peer. From here on the client is who the header names.
/// Returns how many bytes were read.
pub(super) async fn identify(
    client: &TcpStream,
    endpoint: &Endpoint,
    rules: &Rules,
    record: &mut Record<'_>,
) -> Result<u64, Refusal> {
    let peer = record.outcome.peer.ip();
    let wanted = match (endpoint.accept_proxy, endpoint.trusts(peer)) {
        // Not believed, and not refused: it may be a client of its own.
        (AcceptProxy::Off, _) | (AcceptProxy::Optional, false) => Wanted::No,
        (AcceptProxy::Optional, true) => Wanted::Optional,
        (AcceptProxy::Required, true) => Wanted::Required,
        (AcceptProxy::Required, false) => return Err(untrusted(peer)),
    };
    if wanted == Wanted::No {
        return Ok(0);
    }
    let Some(Read { header, length }) = receive(client, wanted, rules).await? else { return Ok(0) };
    if let Some(addresses) = &header.addresses {
        record.outcome.client = addresses.client;
    }
    record.outcome.proxied = Some(header);
    Ok(length as u64)
}

fn untrusted(peer: IpAddr) -> Refusal {
    let detail = format!("{} is not in proxy_from", peer.to_canonical());
    Refusal::rule(RejectReason::ProxyUntrusted).detail(detail)
}

/// `None`: there is none, and there need not be one.
async fn receive(client: &TcpStream, wanted: Wanted, rules: &Rules) -> Result<Option<Read>, Refusal> {
    let optional = wanted == Wanted::Optional;
    let now = Instant::now();
    let whole = now + rules.proxy_header_timeout;
    let first = if optional { now + rules.proxy_optional_wait } else { whole };
    // A signature that is not whole may still be payload.
    let mut certain = false;
    let looked = look::<LONGEST_HEADER, _>(client, Patience { first, whole }, |bytes| {
        let (part, judged) = judge(bytes);
        certain = part;
        judged
    });
    match looked.await {
        Look::Judged(Ok(Some(read))) => take(client, read.length).map(|()| Some(read)),
        Look::Judged(Ok(None)) if optional => Ok(None),
        Look::Judged(Ok(None)) => Err(Refusal::rule(RejectReason::ProxyMissing)),
        Look::Judged(Err(why)) => Err(Refusal::rule(RejectReason::ProxyMalformed).detail(why.to_string())),
        Look::Reset => Err(Refusal::because(Termination::ClientGone)),
        Look::Ended { bytes: _ } | Look::TimedOut { bytes: _ } if optional && !certain => Ok(None),
        // As checks of a TCP port do.
        Look::Ended { bytes: 0 } => Err(Refusal::because(Termination::ClientGone)),
        Look::Ended { bytes } => {
            let detail = format!("the connection ended after {bytes} bytes of it");
            Err(Refusal::rule(RejectReason::ProxyMalformed).detail(detail))
        }
        Look::TimedOut { bytes } => {
            let detail = format!("{bytes} bytes of it came within {} ms", rules.proxy_header_timeout.as_millis());
            Err(Refusal::silent(RejectReason::ProxyTimeout).detail(detail))
        }
    }
}

/// Whether a header has surely begun, and the header, `None` for something else, once that can be told.
fn judge(bytes: &[u8]) -> (bool, Option<Result<Option<Read>, HeaderError>>) {
    match scan(bytes) {
        Ok(Scan::Part { certain }) => (certain, None),
        Ok(Scan::NotAHeader) => (false, Some(Ok(None))),
        Ok(Scan::Whole(length)) => {
            let header = decode(bytes.get(..length).unwrap_or_default());
            (true, Some(header.map(|header| Some(Read { header, length }))))
        }
        Err(why) => (true, Some(Err(why))),
    }
}

/// Takes what was looked at.
fn take(client: &TcpStream, length: usize) -> Result<(), Refusal> {
    let mut header = [0; LONGEST_HEADER];
    let taken = client.try_read(header.get_mut(..length).unwrap_or_default());
    match taken {
        Ok(taken) if taken == length => Ok(()),
        Err(why) if why.kind() == io::ErrorKind::ConnectionReset => Err(Refusal::because(Termination::ClientGone)),
        // Nobody else reads there: what was seen must be there.
        other => {
            tracing::error!(?other, length, "a PROXY header that was there could not be read");
            Err(Refusal::because(Termination::InternalError))
        }
    }
}
