//! The PROXY protocol: a header in front of a connection's bytes that names the client. Version 1 is a line of text,
//! version 2 is binary and can carry more (TLVs). Specification: `proxy-protocol.txt` of HAProxy.

mod decode;
mod encode;

use std::net::SocketAddr;

use serde::Serialize;

pub use decode::{HeaderError, Scan, decode, scan};
pub use encode::{Announcement, encode, local};

/// The longest line of version 1, its end included, as the protocol has it.
pub const LONGEST_LINE: usize = 107;
/// The longest header of version 2 that is taken, of the 64 KiB that the protocol could say. Addresses and all that
/// senders are known to add, names of client certificates included, stay below 1 KiB.
pub const LONGEST_HEADER: usize = 4096;
/// The longest connection id, as the protocol has it.
const LONGEST_ID: usize = 128;
/// The longest server name: host names have 253 bytes at most (RFC 1035), other senders allow 255.
const LONGEST_NAME: usize = 255;

const LINE_START: &[u8] = b"PROXY ";
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2: signature, version and command, family, length.
const FIXED: usize = SIGNATURE.len() + 4;

/// Version of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text: addresses only.
    V1,
    /// Binary: with the server name and the connection id.
    V2,
}

/// Why a text does not say which header a backend gets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("send_proxy {0:?} is unknown: use off, v1 or v2")]
pub struct SendProxyError(String);

impl ProxyVersion {
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// Which header a backend gets; `None` for `off`.
    pub fn parse_sent(text: &str) -> Result<Option<Self>, SendProxyError> {
        match Self::ALL.into_iter().find(|version| version.as_str() == text) {
            None if text != "off" => Err(SendProxyError(text.chars().take(60).collect())),
            version => Ok(version),
        }
    }

    /// The inverse of [`Self::parse_sent`].
    pub fn shown(sent: Option<Self>) -> &'static str {
        sent.map_or("off", Self::as_str)
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyHeader {
    pub version: ProxyVersion,
    /// `None`: the sender speaks for itself, or does not know; the connection's own addresses count.
    pub addresses: Option<ProxiedAddresses>,
    /// The sender's id of the connection: as it is where it is printable, else in hexadecimal digits after `hex:`.
    pub unique_id: Option<String>,
    /// The name that the client asked the sender for.
    pub server_name: Option<String>,
}

/// The two ends of the client's connection to the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxiedAddresses {
    pub client: SocketAddr,
    pub to: SocketAddr,
}

#[cfg(test)]
mod tests;
