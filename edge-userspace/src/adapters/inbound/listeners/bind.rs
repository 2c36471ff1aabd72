//! Opens listening sockets where they are bound.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Why a listening socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("address {addr} is in use by another program: stop that or choose another address")]
    InUse { addr: SocketAddr },
    #[error("address {addr} is not one of this host's: give it to an interface")]
    NotHere { addr: SocketAddr },
    #[error("address {addr} may not be listened on by this user: ports below 1024 need CAP_NET_BIND_SERVICE")]
    NotAllowed { addr: SocketAddr },
    #[error("address {addr} can't be listened on: {why}")]
    Failed { addr: SocketAddr, why: io::Error },
}

impl ListenError {
    fn of(addr: SocketAddr) -> impl Fn(io::Error) -> Self {
        move |why| match why.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { addr },
            io::ErrorKind::AddrNotAvailable => Self::NotHere { addr },
            io::ErrorKind::PermissionDenied => Self::NotAllowed { addr },
            _ => Self::Failed { addr, why },
        }
    }
}

/// How to open.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Sockets, each to be served by another worker.
    pub count: usize,
    pub backlog: u32,
    /// Sockets of this daemon overlap with the address, so that nobody else's can be told by binding.
    pub own_overlap: bool,
    /// The address need not be there yet: part of a prefix that is routed here, but given to no interface.
    pub free: bool,
}

/// Opens listening sockets for one address, which share it by SO_REUSEPORT.
pub fn open(addr: SocketAddr, manner: Manner) -> Result<Vec<TcpListener>, ListenError> {
    let failed = ListenError::of(addr);
    let addr = match manner.own_overlap {
        true => addr,
        false => claim(addr, manner.free).map_err(&failed)?,
    };
    let backlog = i32::try_from(manner.backlog).unwrap_or(i32::MAX);
    let open = || {
        let socket = bound(addr, true, manner.free)?;
        socket.listen(backlog)?;
        Ok(socket.into())
    };
    (0..manner.count).map(|_| open().map_err(&failed)).collect()
}

/// Without SO_REUSEPORT first: with it, a second daemon would silently take half of the clients. Returns the address
/// with its port filled in: port 0 means any, and all workers must get the same.
fn claim(addr: SocketAddr, free: bool) -> io::Result<SocketAddr> {
    let probe = bound(addr, false, free)?;
    probe.listen(1)?;
    Ok(probe.local_addr()?.as_socket().unwrap_or(addr))
}

fn bound(addr: SocketAddr, shared: bool, free: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        // IPv4 clients come by IPv4 listeners, so that an address never has two forms.
        socket.set_only_v6(true)?;
    }
    match (free, addr) {
        (false, _) => {}
        (true, SocketAddr::V4(_)) => socket.set_freebind_v4(true)?,
        (true, SocketAddr::V6(_)) => socket.set_freebind_v6(true)?,
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn manner(count: usize) -> Manner {
        Manner { count, backlog: 16, own_overlap: false, free: false }
    }

    #[test]
    fn an_address_in_use_is_refused_though_reuseport_would_share_it() {
        let first = open("127.0.0.1:0".parse().unwrap(), manner(2)).unwrap();
        let addr = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), addr);
        assert!(matches!(open(addr, manner(1)), Err(ListenError::InUse { .. })));
        assert!(open(addr, Manner { own_overlap: true, ..manner(1) }).is_ok(), "our own may be shared");
        drop(first);
        assert!(open(addr, manner(1)).is_ok());
    }

    #[test]
    fn ipv4_and_ipv6_listen_side_by_side_on_one_port() {
        let v6 = open("[::]:0".parse().unwrap(), manner(1)).unwrap();
        let port = v6[0].local_addr().unwrap().port();
        assert!(open(SocketAddr::from(([0, 0, 0, 0], port)), manner(1)).is_ok());
    }

    #[test]
    fn an_address_that_is_not_here_is_refused_unless_it_is_part_of_a_prefix() {
        let elsewhere = "203.0.113.77:0".parse().unwrap();
        assert!(matches!(open(elsewhere, manner(1)), Err(ListenError::NotHere { .. })));
        assert!(open(elsewhere, Manner { free: true, ..manner(1) }).is_ok());
    }
}
