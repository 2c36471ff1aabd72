//! Where this host listens already, and whether it is the daemon itself that does.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::others::HostSockets;

/// The addresses that are listened on, and whether all sockets there are our own.
#[derive(Debug, Default)]
pub(super) struct Taken {
    by_address: HashMap<(IpAddr, u16), bool>,
    /// By whether it is IPv4, and port.
    by_port: HashMap<(bool, u16), bool>,
}

impl Taken {
    /// `own` are addresses of ours: the host's list of sockets may be older than they are.
    pub(super) fn new(sockets: &HostSockets, own: impl Iterator<Item = SocketAddr>) -> Self {
        let mut taken = Self::default();
        sockets.all().iter().for_each(|socket| taken.add(socket.addr, sockets.is_own(socket)));
        own.for_each(|addr| taken.add_own(addr));
        taken
    }

    pub(super) fn add_own(&mut self, addr: SocketAddr) {
        self.add(addr, true);
    }

    fn add(&mut self, addr: SocketAddr, is_own: bool) {
        *self.by_address.entry((addr.ip(), addr.port())).or_insert(true) &= is_own;
        *self.by_port.entry((addr.is_ipv4(), addr.port())).or_insert(true) &= is_own;
    }

    /// Whether one of our own sockets takes connections to `addr`, and nobody else's does.
    pub(super) fn by_us_alone(&self, addr: SocketAddr) -> bool {
        let all_addresses: IpAddr =
            if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        if addr.ip() == all_addresses {
            return self.by_port.get(&(addr.is_ipv4(), addr.port())).copied().unwrap_or(false);
        }
        let meeting = [addr.ip(), all_addresses].map(|ip| self.by_address.get(&(ip, addr.port())).copied());
        meeting.contains(&Some(true)) && !meeting.contains(&Some(false))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn an_address_is_ours_where_we_listen_and_nobody_else_does() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut taken = Taken::default();
        for (other, is_own) in
            [("0.0.0.0:80", true), ("192.0.2.1:81", true), ("192.0.2.2:81", false), ("0.0.0.0:82", false)]
        {
            taken.add(addr(other), is_own);
        }
        taken.add_own(addr("192.0.2.1:82"));
        taken.add_own(addr("[2001:db8::1]:81"));
        for (asked, ours) in [
            ("192.0.2.9:80", true),
            ("0.0.0.0:80", true),
            ("[::1]:80", false),
            ("192.0.2.1:81", true),
            ("192.0.2.3:81", false),
            ("0.0.0.0:81", false),
            ("[::]:81", true),
            ("192.0.2.1:82", false),
            ("192.0.2.1:83", false),
        ] {
            assert_eq!(taken.by_us_alone(addr(asked)), ours, "{asked}");
        }
    }
}
