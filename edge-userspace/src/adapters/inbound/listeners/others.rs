//! Which TCP sockets listen in this network namespace, whoever owns them.
//!
//! `/proc/net/tcp` and `tcp6` list the listening sockets first, so that the connections are never read. Anybody may
//! read them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListeningSocket {
    pub addr: SocketAddr,
    /// Tells sockets apart while they live.
    pub inode: u64,
}

/// The sockets that listen on this host, and which of them are ours.
#[derive(Debug)]
pub struct HostSockets {
    read: fn() -> io::Result<Vec<ListeningSocket>>,
    /// As they were when they could be read last; `None` if they never could.
    known: Option<Vec<ListeningSocket>>,
    /// Inodes of our own, those included that are not listed yet.
    own: HashSet<u64>,
    /// Why they can't be read; that is told once.
    failure: Option<String>,
}

impl HostSockets {
    /// Of this network namespace.
    pub fn new() -> Self {
        Self::read_by(listening)
    }

    fn read_by(read: fn() -> io::Result<Vec<ListeningSocket>>) -> Self {
        Self { read, known: None, own: HashSet::new(), failure: None }
    }

    /// Reads them again. Where that fails, for want of descriptors or memory, the last list stays: an empty one would
    /// have other programs' sockets lose their clients, and our own taken for others'.
    pub fn look(&mut self) {
        match (self.read)() {
            Ok(sockets) => {
                let there: HashSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
                self.own.retain(|inode| there.contains(inode));
                self.known = Some(sockets);
                self.failure = None;
            }
            Err(why) => {
                let why = format!("the listening sockets of this host can't be read from /proc: {why}");
                if self.failure.as_ref() != Some(&why) {
                    tracing::warn!("{why}");
                }
                self.failure = Some(why);
            }
        }
    }

    /// All that are known.
    pub fn all(&self) -> &[ListeningSocket] {
        self.known.as_deref().unwrap_or_default()
    }

    /// Where other programs listen. The error says why that was never to be known.
    pub fn foreign(&self) -> Result<Vec<SocketAddr>, &str> {
        match &self.known {
            Some(known) => Ok(known.iter().filter(|socket| !self.is_own(socket)).map(|socket| socket.addr).collect()),
            None => Err(self.failure.as_deref().unwrap_or("the listening sockets of this host were not read yet")),
        }
    }

    pub fn is_own(&self, socket: &ListeningSocket) -> bool {
        self.own.contains(&socket.inode)
    }

    /// A socket of ours, which may be on no list yet.
    pub fn add_own(&mut self, inode: u64) {
        self.own.insert(inode);
    }
}

impl Default for HostSockets {
    fn default() -> Self {
        Self::new()
    }
}

const FILES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
/// TCP_LISTEN, as the files have it.
const LISTEN: &str = "0A";

/// All of them.
pub fn listening() -> io::Result<Vec<ListeningSocket>> {
    let mut all = Vec::new();
    for file in FILES {
        match File::open(file) {
            Ok(file) => read(&mut BufReader::new(file), &mut all)?,
            // Without IPv6 there is no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn read(lines: &mut dyn io::BufRead, all: &mut Vec<ListeningSocket>) -> io::Result<()> {
    for line in lines.lines().skip(1) {
        match parse(&line?) {
            Some(socket) => all.push(socket),
            // The first that is no listener, or a line of another form.
            None => break,
        }
    }
    Ok(())
}

/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`
fn parse(line: &str) -> Option<ListeningSocket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let addr = SocketAddr::new(address(ip)?, u16::from_str_radix(port, 16).ok()?);
    Some(ListeningSocket { addr, inode: fields.nth(5)?.parse().ok()? })
}

/// Words of 32 bits in the byte order of the host.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        if cfg!(target_endian = "big") {
            return;
        }
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(parse(v4), Some(ListeningSocket { addr: "127.0.0.1:8080".parse().unwrap(), inode: 4711 }));
        let v6 = "   0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A \
                  00000000:00000000 00:00000000 00000000     0        0 5 1 0";
        assert_eq!(parse(v6).unwrap().addr, "[2001:db8::1]:80".parse().unwrap());
        assert_eq!(parse(&v4.replace(" 0A ", " 01 ")), None);
        for junk in ["", "x", "0: :", "0: 0100007F:1F90 x 0A", "0: é100007F:1F90 00000000:0000 0A a b c d e 1"] {
            assert_eq!(parse(junk), None, "{junk}");
        }
    }

    #[test]
    fn what_was_read_last_stays_while_nothing_can_be_read() {
        use std::cell::RefCell;

        thread_local! {
            static ANSWER: RefCell<Result<Vec<ListeningSocket>, i32>> = const { RefCell::new(Err(libc::EMFILE)) };
        }
        fn read() -> io::Result<Vec<ListeningSocket>> {
            ANSWER.with_borrow(|answer| answer.clone().map_err(io::Error::from_raw_os_error))
        }
        let socket = |port: u16, inode| ListeningSocket { addr: ([192, 0, 2, 1], port).into(), inode };
        let (ours, theirs) = (socket(80, 1), socket(81, 2));
        let mut sockets = HostSockets::read_by(read);
        sockets.add_own(ours.inode);
        sockets.look();
        assert!(sockets.foreign().unwrap_err().contains("Too many open files"));
        assert!(sockets.all().is_empty());
        ANSWER.set(Ok(vec![ours, theirs]));
        sockets.look();
        for error in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            ANSWER.set(Err(error));
            sockets.look();
            // One that was opened meanwhile.
            sockets.add_own(3);
            assert_eq!((sockets.foreign().unwrap(), sockets.all()), (vec![theirs.addr], &[ours, theirs][..]));
            assert!(sockets.is_own(&ours) && sockets.is_own(&socket(82, 3)) && !sockets.is_own(&theirs));
        }
        ANSWER.set(Ok(vec![theirs, socket(82, 3)]));
        sockets.look();
        assert_eq!(sockets.foreign().unwrap(), [theirs.addr]);
        assert!(!sockets.is_own(&ours) && sockets.is_own(&socket(82, 3)), "ours was closed");
    }

    #[test]
    fn a_socket_that_listens_is_found_by_its_inode() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(local) else { continue };
            let addr = listener.local_addr().unwrap();
            let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
            assert!(listening().unwrap().contains(&ListeningSocket { addr, inode }), "{addr}");
        }
    }
}
