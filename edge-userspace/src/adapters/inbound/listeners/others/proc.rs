//! `/proc/net/tcp` and `tcp6` list the listening sockets first, so that the connections are never read. Behind the
//! last one the kernel looks through its whole table of connections for a line to follow, which takes it 10 ms where
//! that has 262,144 places (measured, 24 GiB of memory): hence only where it can't be asked directly.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::ListeningSocket;

const FILES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
/// TCP_LISTEN, as the files have it.
const LISTEN: &str = "0A";

/// All of them. Anybody may read the files.
pub(super) fn listening() -> io::Result<Vec<ListeningSocket>> {
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
    #![allow(clippy::unwrap_used)]

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
}
