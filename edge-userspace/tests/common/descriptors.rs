//! Sockets of a daemon, as root may share them with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fs;
use std::net::{SocketAddr, TcpStream};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use xtask::lab::Daemon;

/// The daemon's socket to this peer.
pub fn socket_of(daemon: &Daemon, peer: SocketAddr) -> TcpStream {
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten();
    let sockets = files
        .filter(|file| fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")));
    let copy = |file: fs::DirEntry| {
        let number = file.file_name().to_string_lossy().parse().ok()?;
        Some(TcpStream::from(pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?))
    };
    sockets.filter_map(copy).find(|socket| socket.peer_addr().is_ok_and(|other| other == peer)).unwrap()
}
