//! Finds the server name in the beginning of a TLS stream (RFC 8446, 4.1.2 and 5.1; RFC 6066, 3).
//!
//! It needs no more of the ClientHello than what comes up to the name, and no name needs more than [`LONGEST`]. Nothing
//! is kept between two looks: each begins at the first byte, so that a client that waits costs no memory.

use std::borrow::Cow;

use crate::domain::{Greeting, HelloError, ServerName};

/// Bytes that are looked at.
pub(super) const LONGEST: usize = 16 * 1024;

const RECORD_HEADER: usize = 5;
const MOST_IN_RECORD: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Of all versions since SSL 3.0.
const MAJOR_VERSION: u8 = 3;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What a look led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    Found(Greeting),
    /// Nothing can be said before there are so many bytes.
    Wants(usize),
}

/// Looks at what has come so far.
pub(super) fn look(seen: &[u8]) -> Look {
    let seen = seen.get(..LONGEST).unwrap_or(seen);
    let mut handshake = Cow::Borrowed(&[][..]);
    let mut at = 0;
    loop {
        let record = match Record::at(seen, at) {
            Ok(record) => record,
            Err(Stop::More(wanted)) => return wants(wanted, seen.len()),
            // What doesn't begin like TLS is something else.
            Err(Stop::Broken(_)) if at == 0 && !begins_as_tls(seen) => return Look::Found(Greeting::NotTls),
            Err(Stop::Broken(why)) => return Look::Found(Greeting::Broken(why)),
        };
        match at {
            0 => handshake = Cow::Borrowed(record.body),
            _ => handshake.to_mut().extend_from_slice(record.body),
        }
        match server_name(&handshake) {
            Ok(Some(name)) => return Look::Found(Greeting::Named(name)),
            Ok(None) => return Look::Found(Greeting::Nameless),
            Err(Stop::Broken(why)) => return Look::Found(Greeting::Broken(why)),
            Err(Stop::More(_)) if record.end > seen.len() => return wants(record.end, seen.len()),
            Err(Stop::More(_)) => at = record.end,
        }
    }
}

fn wants(bytes: usize, seen: usize) -> Look {
    if seen >= LONGEST {
        return Look::Found(Greeting::Broken(HelloError::TooLong));
    }
    Look::Wants(bytes.min(LONGEST))
}

fn begins_as_tls(seen: &[u8]) -> bool {
    matches!(seen, [HANDSHAKE] | [HANDSHAKE, MAJOR_VERSION, ..])
}

/// Why it doesn't go on.
enum Stop {
    /// For want of bytes; so many are needed, where that is known.
    More(usize),
    Broken(HelloError),
}

/// One TLSPlaintext record of the handshake, as far as it has come.
struct Record<'a> {
    body: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

impl<'a> Record<'a> {
    fn at(seen: &'a [u8], at: usize) -> Result<Self, Stop> {
        let rest = seen.get(at..).unwrap_or_default();
        match rest {
            [kind, ..] if *kind != HANDSHAKE => return Err(Stop::Broken(HelloError::Interrupted)),
            [_, major, ..] if *major != MAJOR_VERSION => return Err(Stop::Broken(HelloError::Record)),
            _ => {}
        }
        let Some((&[_, _, _, high, low], body)) = rest.split_first_chunk::<RECORD_HEADER>() else {
            return Err(Stop::More(at + RECORD_HEADER));
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(1..=MOST_IN_RECORD).contains(&length) {
            return Err(Stop::Broken(HelloError::Record));
        }
        Ok(Self { body: body.get(..length).unwrap_or(body), end: at + RECORD_HEADER + length })
    }
}

/// The server name of a ClientHello that may not have come to its end; `None` where it has, without one.
fn server_name(handshake: &[u8]) -> Result<Option<ServerName>, Stop> {
    let mut hello = Reader { bytes: handshake, at: 0, end: 4 };
    if hello.byte()? != CLIENT_HELLO {
        return Err(Stop::Broken(HelloError::Message));
    }
    let length = hello.number(3)?;
    hello.end += length;
    // Version and random.
    hello.skip(2 + 32)?;
    for bytes_of_length in [1, 2, 1] {
        // Session id, cipher suites, compression methods.
        let length = hello.number(bytes_of_length)?;
        hello.skip(length)?;
    }
    // Without extensions there is nothing more.
    if hello.at < hello.end {
        let length = hello.number(2)?;
        if hello.at + length != hello.end {
            return Err(Stop::Broken(HelloError::Length));
        }
    }
    while hello.at < hello.end {
        let kind = hello.number(2)?;
        let length = hello.number(2)?;
        if kind == usize::from(SERVER_NAME) {
            return host_name(hello.take(length)?).map(Some);
        }
        hello.skip(length)?;
    }
    hello.arrived().map(|()| None)
}

/// The host name in the body of the extension.
fn host_name(extension: &[u8]) -> Result<ServerName, Stop> {
    let mut list = Reader { bytes: extension, at: 0, end: extension.len() };
    let length = list.number(2)?;
    if list.at + length != list.end {
        return Err(Stop::Broken(HelloError::Length));
    }
    while list.at < list.end {
        let kind = list.byte()?;
        let length = list.number(2)?;
        let name = list.take(length)?;
        if kind == HOST_NAME {
            return ServerName::of_client(name).ok_or(Stop::Broken(HelloError::Name));
        }
    }
    Err(Stop::Broken(HelloError::Name))
}

/// Reads what has come of something whose end is known.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    fn skip(&mut self, count: usize) -> Result<(), Stop> {
        let to = self.at.saturating_add(count);
        if to > self.end {
            return Err(Stop::Broken(HelloError::Length));
        }
        self.at = to;
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let from = self.at;
        self.skip(count)?;
        self.bytes.get(from..self.at).ok_or(Stop::More(0))
    }

    /// A number of one, two or three bytes.
    fn number(&mut self, bytes: usize) -> Result<usize, Stop> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// Whether everything that was skipped has come.
    fn arrived(&self) -> Result<(), Stop> {
        if self.bytes.len() < self.end { Err(Stop::More(0)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
