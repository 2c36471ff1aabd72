//! Listening sockets that the service manager hands over by name: systemd's socket activation (`sd_listen_fds(3)`).
//!
//! The three variables are all there is to the protocol, and each descriptor has to be looked at here anyway, so no
//! library is used.
// Takes possession of descriptors by number, and asks the kernel which are open.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, SockRef, Type};

use crate::domain::SocketName;

/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;
/// What a socket is called that has no name.
const UNNAMED: &str = "unknown";

/// What was handed over.
#[derive(Debug, Default)]
pub struct Handed {
    sockets: Vec<(SocketName, TcpListener)>,
}

impl Handed {
    /// Takes what is there, once in the life of the process. To be called before the process opens anything: what is not
    /// open by then was not handed over, whatever the variables say. The errors say what can't be used, and why.
    pub fn take() -> Result<Self, Vec<String>> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Ok(Self::default());
        }
        let names = announced(|name| std::env::var(name).ok(), std::process::id()).map_err(|why| vec![why])?;
        let (mut handed, mut refused) = (Self::default(), Vec::new());
        for (fd, name) in (FIRST..).zip(names) {
            match socket(fd).and_then(|socket| Ok((SocketName::parse(&name).map_err(|why| why.to_string())?, socket))) {
                Ok(named) => handed.sockets.push(named),
                Err(why) => refused.push(format!("descriptor {fd} ({name}) {why}")),
            }
        }
        if refused.is_empty() { Ok(handed) } else { Err(refused) }
    }

    pub fn names(&self) -> BTreeSet<&SocketName> {
        self.sockets.iter().map(|(name, _)| name).collect()
    }

    /// All sockets of that name.
    pub fn named<'a>(&'a self, name: &'a SocketName) -> impl Iterator<Item = &'a TcpListener> {
        self.sockets.iter().filter(move |(known, _)| known == name).map(|(_, socket)| socket)
    }

    /// Where they are bound.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.iter().filter_map(|(_, socket)| socket.local_addr().ok())
    }
}

/// The names of the descriptors that are meant for process `pid`, in their order.
fn announced(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Result<Vec<String>, String> {
    let meant = variable("LISTEN_PID").is_some_and(|text| text.parse() == Ok(pid));
    let Some(count) = variable("LISTEN_FDS").filter(|_| meant) else { return Ok(Vec::new()) };
    let count: u16 = count.parse().map_err(|_| format!("LISTEN_FDS is {count:?}: it must be a small number"))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(|name| if name.is_empty() { UNNAMED } else { name });
    Ok(names.chain(std::iter::repeat(UNNAMED)).take(count.into()).map(str::to_owned).collect())
}

/// Takes one descriptor, if it is open.
fn socket(fd: RawFd) -> Result<TcpListener, String> {
    // SAFETY: asks about a number.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err("is not open: whoever sets LISTEN_FDS has to leave that many sockets open".to_owned());
    }
    // SAFETY: it is open, and was before this process opened anything: it is whoever's who started it, who says that it
    // is for this process, and it is taken once.
    listener(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Refuses what nobody can connect to by TCP.
fn listener(descriptor: OwnedFd) -> Result<TcpListener, String> {
    let socket = SockRef::from(&descriptor);
    let is = |what: std::io::Result<bool>| what.unwrap_or(false);
    let inet = is(socket.domain().map(|domain| [Domain::IPV4, Domain::IPV6].contains(&domain)));
    let tcp = is(socket.protocol().map(|protocol| protocol == Some(Protocol::TCP)));
    if !inet || !tcp || !is(socket.r#type().map(|kind| kind == Type::STREAM)) || !is(socket.is_listener()) {
        return Err("is no listening TCP socket (ListenStream= with an address, Accept=no)".to_owned());
    }
    let prepared = socket.set_cloexec(true).and_then(|()| socket.set_nonblocking(true));
    prepared.map_err(|why| why.to_string())?;
    Ok(descriptor.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn names(pid: &str, fds: &str, names: Option<&str>) -> Result<Vec<String>, String> {
        let variable = |name: &str| match name {
            "LISTEN_PID" => Some(pid.to_owned()),
            "LISTEN_FDS" => Some(fds.to_owned()),
            _ => names.map(str::to_owned),
        };
        announced(variable, 42)
    }

    #[test]
    fn descriptors_are_named_in_their_order() {
        assert_eq!(names("42", "3", Some("https:https:admin")).unwrap(), ["https", "https", "admin"]);
        assert_eq!(names("42", "2", Some("one")).unwrap(), ["one", UNNAMED]);
        assert_eq!(names("42", "2", None).unwrap(), [UNNAMED, UNNAMED]);
        assert_eq!(names("42", "0", Some("x")).unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_meant_for_another_process_is_left_alone() {
        assert_eq!(names("43", "3", None).unwrap(), [""; 0]);
        assert_eq!(announced(|_| None, 42).unwrap(), [""; 0]);
        assert!(names("42", "many", None).is_err());
        assert!(names("42", "99999999", None).is_err());
    }

    #[test]
    fn only_listening_tcp_sockets_are_of_use() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listener(OwnedFd::from(tcp)).is_ok());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listener(OwnedFd::from(udp)).unwrap_err().contains("no listening TCP socket"));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(listener(OwnedFd::from(file)).is_err());
    }
}
