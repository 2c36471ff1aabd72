//! Headers for backends.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{LONGEST_ID, LONGEST_NAME, ProxyVersion, SIGNATURE};

/// Version 2 and the command, as one byte.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// Family and transport, as one byte.
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// Types of TLVs.
const AUTHORITY: u8 = 0x02;
const UNIQUE_ID: u8 = 0x05;

/// What a backend is told of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement<'a> {
    pub client: SocketAddr,
    /// Where the client connected to.
    pub to: SocketAddr,
    /// The name that the client asked for, where it is known. Version 2 only.
    pub server_name: Option<&'a str>,
    /// The connection's id in our logs. Version 2 only.
    pub unique_id: &'a str,
}

/// The header of a client's connection.
pub fn encode(version: ProxyVersion, said: &Announcement<'_>) -> Vec<u8> {
    let (client, to) = same_family(said.client, said.to);
    match version {
        ProxyVersion::V1 => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {} {} {} {}\r\n", client.ip(), to.ip(), client.port(), to.port());
            line.into_bytes()
        }
        ProxyVersion::V2 => {
            let mut body = Vec::with_capacity(128);
            put_address(&mut body, client.ip());
            put_address(&mut body, to.ip());
            body.extend(client.port().to_be_bytes());
            body.extend(to.port().to_be_bytes());
            if let Some(name) = said.server_name {
                put_tlv(&mut body, AUTHORITY, name.as_bytes(), LONGEST_NAME);
            }
            put_tlv(&mut body, UNIQUE_ID, said.unique_id.as_bytes(), LONGEST_ID);
            binary(PROXY, if client.is_ipv4() { TCP4 } else { TCP6 }, &body)
        }
    }
}

/// The header of a connection of our own, such as a health check: it has no client.
pub fn local(version: ProxyVersion) -> Vec<u8> {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        ProxyVersion::V2 => binary(LOCAL, UNSPECIFIED, &[]),
    }
}

/// A header has one family for both addresses: where they differ, the IPv4 one takes its IPv6 form.
fn same_family(client: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
    let (client, to) = (canonical(client), canonical(to));
    if client.is_ipv4() == to.is_ipv4() {
        return (client, to);
    }
    let widened = |addr: SocketAddr| SocketAddr::new(widened(addr.ip()).into(), addr.port());
    (widened(client), widened(to))
}

fn widened(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn put_address(body: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => body.extend(ip.octets()),
        IpAddr::V6(ip) => body.extend(ip.octets()),
    }
}

/// A value longer than its type may have is left out.
fn put_tlv(body: &mut Vec<u8>, kind: u8, value: &[u8], longest: usize) {
    if let Ok(length) = u16::try_from(value.len())
        && value.len() <= longest
    {
        body.push(kind);
        body.extend(length.to_be_bytes());
        body.extend(value);
    }
}

fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    // Two addresses, a name and an id: far below the limit.
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + body.len());
    header.extend(SIGNATURE);
    header.extend([command, family]);
    header.extend(length.to_be_bytes());
    header.extend(body);
    header
}
