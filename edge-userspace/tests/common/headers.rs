//! Proxies in front of the POP, which begin with a PROXY header, and clients that don't.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};

use edgeproxy::domain::ProxyVersion;
use edgeproxy::domain::proxy::{self, Announcement};
use xtask::lab::Ns;
use xtask::load::connect_from;

use super::{SOON, World};

/// Where the lab's clients without a country are.
pub const CLIENTS: &str = "10.64.0.0/16,fd64::/32";

/// 192.0.2.80:443, as the sender's own address.
pub fn sender() -> SocketAddr {
    ([192, 0, 2, 80], 443).into()
}

pub fn header(version: ProxyVersion, client: SocketAddr) -> Vec<u8> {
    let said = Announcement { client, to: sender(), server_name: Some("www.example.com"), unique_id: "lb-1/7" };
    proxy::encode(version, &said)
}

/// A connection from client `n` that begins with `first`.
pub fn open(world: &World, n: u16, to: SocketAddr, first: &[u8]) -> TcpStream {
    let mut stream = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(n), to).unwrap());
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(first).unwrap();
    stream
}

/// Likewise of one that may be refused at once: its connect may be reset before it has returned, then the next one tells
/// more, and it may be too late to write. `None` if that has told it already, for an error is told once.
pub fn try_open(world: &World, from: IpAddr, to: SocketAddr, first: &[u8]) -> (SocketAddr, Option<TcpStream>) {
    let mut connects = (0..100).map(|_| world.lab.run_in(Ns::Clients, || connect_from(from, to)));
    let mut stream = connects.find_map(Result::ok).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let written = stream.write_all(first);
    (stream.local_addr().unwrap(), written.is_ok().then_some(stream))
}

pub fn line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// What an echoing backend sends back for `bytes` and an end of stream, after its name.
pub fn echoed(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    back
}

pub fn is_reset(stream: &mut TcpStream) -> bool {
    let ended = stream.read(&mut [0; 16]);
    ended.is_err_and(|why| matches!(why.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}
