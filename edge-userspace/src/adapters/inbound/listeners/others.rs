//! Which TCP sockets listen in this network namespace, whoever owns them.
//!
//! `/proc/net/tcp` and `tcp6` list the listening sockets first, so that the connections are never read. Anybody may
//! read them.

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
    fn a_socket_that_listens_is_found_by_its_inode() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(local) else { continue };
            let addr = listener.local_addr().unwrap();
            let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
            assert!(listening().unwrap().contains(&ListeningSocket { addr, inode }), "{addr}");
        }
    }
}
