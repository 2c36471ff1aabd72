//! From the first bytes of a connection to a header: whether there is one, how long it is, what it says.
//!
//! The crate `ppp` takes the header apart. Around it: the bounds, what may follow what has come so far, and what it
//! leaves to others (checksum, what the TLVs may hold, sockets that are none of TCP).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

use super::{
    FIXED, LINE_START, LONGEST_HEADER, LONGEST_ID, LONGEST_LINE, LONGEST_NAME, ProxiedAddresses, ProxyHeader,
    ProxyVersion, SIGNATURE,
};

const CHECKSUM: u8 = 0x03;
const SERVER_NAME: u8 = 0x02;
const UNIQUE_ID: u8 = 0x05;

/// CRC-32C (RFC 4960, appendix B).
const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// The beginning of something else.
    NotAHeader,
    /// A header may come of it; nothing else may, if it is `certain`.
    Part { certain: bool },
    /// A header of so many bytes; what follows is payload.
    Whole(usize),
}

/// Why bytes that begin like a header are none that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("its line does not end within the {LONGEST_LINE} bytes that version 1 allows")]
    LineTooLong,
    #[error("its line is malformed: {0}")]
    Line(String),
    #[error("it has {0} bytes, more than the {LONGEST_HEADER} that are taken")]
    TooLong(usize),
    #[error("its version 2 is malformed: {0}")]
    Binary(String),
    #[error("it is for another transport than TCP")]
    NotTcp,
    #[error("its TLV {kind:#04x} is malformed: {why}")]
    Tlv { kind: u8, why: &'static str },
    #[error("its checksum is wrong: it was damaged on its way")]
    Checksum,
}

/// Whether there is a header at the beginning of `bytes`. More of the same bytes may be needed to tell.
pub fn scan(bytes: &[u8]) -> Result<Scan, HeaderError> {
    if begins(bytes, LINE_START) {
        return scan_line(bytes);
    }
    if begins(bytes, SIGNATURE) {
        return scan_binary(bytes);
    }
    Ok(Scan::NotAHeader)
}

/// As far as both go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let common = bytes.len().min(start.len());
    bytes.get(..common) == start.get(..common)
}

fn scan_line(bytes: &[u8]) -> Result<Scan, HeaderError> {
    let line = bytes.get(..LONGEST_LINE.min(bytes.len())).unwrap_or_default();
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => Ok(Scan::Whole(end + 1)),
        None if bytes.len() >= LONGEST_LINE => Err(HeaderError::LineTooLong),
        None => Ok(Scan::Part { certain: bytes.len() >= LINE_START.len() }),
    }
}

fn scan_binary(bytes: &[u8]) -> Result<Scan, HeaderError> {
    let Some(&[high, low]) = bytes.get(FIXED - 2..FIXED) else {
        return Ok(Scan::Part { certain: bytes.len() >= SIGNATURE.len() });
    };
    let whole = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if whole > LONGEST_HEADER {
        return Err(HeaderError::TooLong(whole));
    }
    // What is wrong in the first bytes need not wait for the rest.
    match v2::Header::try_from(bytes) {
        Ok(_) => Ok(Scan::Whole(whole)),
        Err(v2::ParseError::Partial(..)) => Ok(Scan::Part { certain: true }),
        Err(why) => Err(HeaderError::Binary(why.to_string())),
    }
}

/// What a header says; `bytes` are exactly those that [`scan`] measured.
pub fn decode(bytes: &[u8]) -> Result<ProxyHeader, HeaderError> {
    if bytes.starts_with(LINE_START) { decode_line(bytes) } else { decode_binary(bytes) }
}

fn decode_line(bytes: &[u8]) -> Result<ProxyHeader, HeaderError> {
    let header = v1::Header::try_from(bytes).map_err(|why| HeaderError::Line(why.to_string()))?;
    if header.header.len() != bytes.len() {
        return Err(HeaderError::Line("a carriage return stands within it".to_owned()));
    }
    let addresses = match header.addresses {
        v1::Addresses::Unknown => None,
        // Rust's numbers may have a sign, those of the protocol may not.
        _ if bytes.contains(&b'+') => return Err(HeaderError::Line("a port has a sign".to_owned())),
        v1::Addresses::Tcp4(it) => {
            Some(ends((it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)))
        }
        v1::Addresses::Tcp6(it) => {
            Some(ends((it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)))
        }
    };
    Ok(ProxyHeader { version: ProxyVersion::V1, addresses, unique_id: None, server_name: None })
}

/// IPv4 addresses in IPv6 form are IPv4 addresses.
fn ends(client: (IpAddr, u16), to: (IpAddr, u16)) -> ProxiedAddresses {
    let canonical = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
    ProxiedAddresses { client: canonical(client), to: canonical(to) }
}

fn decode_binary(bytes: &[u8]) -> Result<ProxyHeader, HeaderError> {
    let header = v2::Header::try_from(bytes).map_err(|why| HeaderError::Binary(why.to_string()))?;
    let mut said = ProxyHeader { version: ProxyVersion::V2, addresses: None, unique_id: None, server_name: None };
    said.addresses = match header.addresses {
        // What follows LOCAL is to be discarded, and what follows an unspecified family can't be told apart.
        _ if header.command == v2::Command::Local => return Ok(said),
        v2::Addresses::Unspecified => return Ok(said),
        _ if header.protocol != v2::Protocol::Stream => return Err(HeaderError::NotTcp),
        // A client on the sender's own host: the sender's address is the best that there is.
        v2::Addresses::Unix(_) => None,
        v2::Addresses::IPv4(it) => {
            Some(ends((it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)))
        }
        v2::Addresses::IPv6(it) => {
            Some(ends((it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)))
        }
    };
    let checksum = read_tlvs(&header, &mut said)?;
    if checksum.is_some_and(|said| said != checksum_of(bytes, &header)) {
        return Err(HeaderError::Checksum);
    }
    Ok(said)
}

/// Reads what is used of the TLVs, and checks that all of them are whole. Returns the checksum, if one is there.
fn read_tlvs(header: &v2::Header<'_>, said: &mut ProxyHeader) -> Result<Option<u32>, HeaderError> {
    let mut checksum = None;
    for tlv in header.tlvs() {
        let tlv = tlv.map_err(|why| HeaderError::Binary(why.to_string()))?;
        let value = tlv.value.as_ref();
        let bad = |why| HeaderError::Tlv { kind: tlv.kind, why };
        let repeated = match tlv.kind {
            CHECKSUM => {
                let four = value.try_into().map_err(|_| bad("a checksum has four bytes"))?;
                checksum.replace(u32::from_be_bytes(four)).is_some()
            }
            SERVER_NAME => {
                let name = std::str::from_utf8(value).map_err(|_| bad("a server name is UTF-8"))?;
                if name.is_empty() || name.len() > LONGEST_NAME {
                    return Err(bad("a server name has 1 to 255 bytes"));
                }
                said.server_name.replace(name.to_owned()).is_some()
            }
            UNIQUE_ID if value.len() > LONGEST_ID => return Err(bad("a connection id has at most 128 bytes")),
            UNIQUE_ID => said.unique_id.replace(shown(value).into_owned()).is_some(),
            _ => false,
        };
        if repeated {
            return Err(bad("it occurs twice"));
        }
    }
    Ok(checksum)
}

fn shown(id: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(id) {
        Ok(text) if id.iter().all(u8::is_ascii_graphic) => text.into(),
        _ => id.iter().fold("hex:".to_owned(), |text, byte| text + &format!("{byte:02x}")).into(),
    }
}

/// Of the header with zeros in the place of the checksum.
fn checksum_of(bytes: &[u8], header: &v2::Header<'_>) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(bytes.get(..bytes.len() - header.tlv_bytes().len()).unwrap_or_default());
    for tlv in header.tlvs().flatten() {
        digest.update(&[tlv.kind]);
        digest.update(&u16::try_from(tlv.value.len()).unwrap_or(u16::MAX).to_be_bytes());
        digest.update(if tlv.kind == CHECKSUM { &[0; 4] } else { tlv.value.as_ref() });
    }
    digest.finalize()
}
