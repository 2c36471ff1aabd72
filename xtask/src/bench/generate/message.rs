//! What goes over the wire, and how it is checked.
//!
//! A message is a header of 16 bytes and a body. The answer to a request has the same length and header. Bodies and
//! streams are pieces of one fixed pattern whose period is a prime, so that a byte lost, doubled or moved shows.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;

pub(super) const HEADER: usize = 16;
/// Longest message, header included.
const MAX: usize = 64 * 1024;
/// Most bytes read or written at once.
pub(super) const CHUNK: usize = 256 * 1024;
const PERIOD: usize = 65_521;
const MAGIC: u8 = 0xe5;
/// Of each read of a stream, this many bytes at either end are compared: a shift changes every byte.
const EDGE: usize = 64;

/// What a connection, or a message on it, is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A request; more may follow.
    Call,
    /// A request; the backend closes after its answer.
    LastCall,
    /// From here on a stream of bytes, from the client, to it, or both.
    Up,
    Down,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Length of the message with its header; for streams 16.
    pub(super) size: u32,
    /// When the request was to be sent; for streams the pace of the backend in bytes a second, 0 for none.
    pub(super) value: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = MAGIC;
        bytes[1] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER]) -> Result<Self, String> {
        const KINDS: [Kind; 5] = [Kind::Call, Kind::LastCall, Kind::Up, Kind::Down, Kind::Both];
        let kind = KINDS.get(usize::from(bytes[1])).filter(|_| bytes[0] == MAGIC);
        let kind = *kind.ok_or_else(|| format!("no message begins with {:02x?}", &bytes[..4]))?;
        let [_, _, _, _, a, b, c, d, value @ ..] = *bytes;
        let size = u32::from_le_bytes([a, b, c, d]);
        if !(HEADER..=MAX).contains(&(size as usize)) {
            return Err(format!("a message can't have {size} bytes"));
        }
        Ok(Self { kind, size, value: u64::from_le_bytes(value) })
    }

    pub(super) fn is_stream(self) -> bool {
        matches!(self.kind, Kind::Up | Kind::Down | Kind::Both)
    }
}

/// The pattern from `offset` on, at least [`CHUNK`] bytes of it.
pub(super) fn pattern(offset: u64) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let period: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
        period.iter().copied().cycle().take(PERIOD + CHUNK).collect()
    });
    &bytes[usize::try_from(offset % PERIOD as u64).unwrap_or(0)..]
}

/// Whether `bytes` may be what a stream has from `offset` on.
pub(super) fn is_stream_at(bytes: &[u8], offset: u64) -> bool {
    let edge = bytes.len().min(EDGE);
    let last = bytes.len() - edge;
    bytes[..edge] == pattern(offset)[..edge] && bytes[last..] == pattern(offset + last as u64)[..edge]
}

/// Puts messages together again and checks every byte.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    header: [u8; HEADER],
    got: usize,
    size: usize,
}

impl Inbox {
    /// Takes what was read. Stops after the header of a stream, with what comes behind it.
    pub(super) fn take<'a>(
        &mut self,
        mut bytes: &'a [u8],
        mut complete: impl FnMut(Header),
    ) -> Result<&'a [u8], String> {
        while !bytes.is_empty() {
            let taken = if self.got < HEADER { self.take_header(bytes)? } else { self.take_body(bytes)? };
            bytes = &bytes[taken..];
            if self.got >= HEADER && self.got == self.size {
                self.got = 0;
                let header = Header::decode(&self.header)?;
                complete(header);
                if header.is_stream() {
                    break;
                }
            }
        }
        Ok(bytes)
    }

    /// Whether a message has begun and not ended.
    pub(super) fn is_inside(&self) -> bool {
        self.got > 0
    }

    fn take_header(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let taken = bytes.len().min(HEADER - self.got);
        self.header[self.got..self.got + taken].copy_from_slice(&bytes[..taken]);
        self.got += taken;
        if self.got == HEADER {
            self.size = Header::decode(&self.header)?.size as usize;
        }
        Ok(taken)
    }

    fn take_body(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let taken = bytes.len().min(self.size - self.got);
        if bytes[..taken] != pattern(0)[self.got..self.got + taken] {
            return Err(format!("a message is not as it was sent, between byte {} and {taken} more", self.got));
        }
        self.got += taken;
        Ok(taken)
    }
}

/// Messages on their way out.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Header>,
    sent: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, header: Header) {
        self.waiting.push_back(header);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self, stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<()> {
        while let Some(header) = self.waiting.front() {
            let size = header.size as usize;
            scratch[..HEADER].copy_from_slice(&header.encode());
            match stream.write(&scratch[self.sent..size]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.sent == size {
                self.sent = 0;
                self.waiting.pop_front();
            }
        }
        Ok(())
    }
}

/// Room for a message: the pattern, whose first 16 bytes the outbox replaces.
pub(super) fn scratch() -> Vec<u8> {
    pattern(0)[..MAX].to_vec()
}

/// One read, or `None` where there is nothing now.
pub(super) fn read<'a>(stream: &mut TcpStream, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    match stream.read(buffer) {
        Ok(length) => Ok(Some(&buffer[..length])),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn message(kind: Kind, size: u32) -> Vec<u8> {
        let header = Header { kind, size, value: 7 };
        let mut bytes = pattern(0)[..size as usize].to_vec();
        bytes[..HEADER].copy_from_slice(&header.encode());
        bytes
    }

    #[test]
    fn messages_are_put_together_from_pieces_of_any_size() {
        let bytes = [message(Kind::Call, 64), message(Kind::LastCall, 16), message(Kind::Call, 5000)].concat();
        for piece in [1, 7, 16, 100, bytes.len()] {
            let (mut inbox, mut sizes) = (Inbox::default(), Vec::new());
            for bytes in bytes.chunks(piece) {
                inbox.take(bytes, |header| sizes.push((header.kind, header.size))).unwrap();
            }
            assert_eq!(sizes, [(Kind::Call, 64), (Kind::LastCall, 16), (Kind::Call, 5000)], "in pieces of {piece}");
            assert!(!inbox.is_inside());
        }
    }

    #[test]
    fn any_byte_of_a_message_that_changed_is_a_fault() {
        for place in [0, 1, 4, 16, 40, 63] {
            let mut bytes = message(Kind::Call, 64);
            bytes[place] ^= 0x55;
            let mut complete = 0;
            let result = Inbox::default().take(&bytes, |_| complete += 1);
            // A wrong length that is possible leaves the message open.
            assert!(result.is_err() || complete == 0, "byte {place}");
        }
    }

    #[test]
    fn a_stream_stops_the_inbox_at_its_first_byte() {
        let bytes = [message(Kind::Up, 16), vec![1, 2, 3]].concat();
        assert_eq!(Inbox::default().take(&bytes, |_| {}).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn a_stream_that_lost_a_byte_does_not_fit_its_pattern() {
        let sent: Vec<u8> = pattern(100)[..1000].to_vec();
        assert!(is_stream_at(&sent, 100));
        assert!(is_stream_at(&sent, 100 + PERIOD as u64));
        assert!(!is_stream_at(&sent, 101));
        let mut lost = sent.clone();
        lost.remove(500);
        assert!(!is_stream_at(&lost, 100));
        assert!(is_stream_at(&[], 5));
    }
}
