//! The BPF maps of a daemon, as root may change them behind its back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use aya::maps::{HashMap, Map, MapData, MapInfo, SockHash};
use aya::programs::loaded_programs;
use rustix::net::sockopt::socket_cookie;
use xtask::lab::Daemon;

use super::descriptors::socket_of;

/// The map of that name that the daemon's program `program` uses.
pub fn map_of(daemon: &Daemon, program: &str, map: &str) -> MapData {
    let held = held_programs(daemon);
    let programs = loaded_programs().map(Result::unwrap);
    let mut programs = programs.filter(|info| held.contains(&info.id()) && info.name_as_str() == Some(program));
    let ids = programs.next().expect("the daemon has that program").map_ids().unwrap().unwrap();
    let id = ids.into_iter().find(|id| MapInfo::from_id(*id).unwrap().name_as_str() == Some(map));
    MapData::from_id(id.expect("the program uses that map")).unwrap()
}

/// Ids of the BPF programs that the daemon has open.
fn held_programs(daemon: &Daemon) -> Vec<u32> {
    let files = fs::read_dir(format!("/proc/{}/fdinfo", daemon.pid())).unwrap();
    let infos = files.filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
    let id = |info: String| info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    infos.filter_map(id).collect()
}

/// Makes the daemon's own sockets of one same-host pair unknown to the verdict: what the daemon hands over then goes
/// into the reader's TCP, where it must never be.
pub fn break_a_relay(daemon: &Daemon) {
    let mut slots: HashMap<_, u64, u32> =
        HashMap::try_from(Map::HashMap(map_of(daemon, "hand_over", "LOCAL_SLOTS"))).unwrap();
    let all: Vec<(u64, u32)> = slots.iter().map(Result::unwrap).collect();
    // Of the four records of a pair the last two are the daemon's.
    let pair = all.iter().find(|(_, slot)| slot % 4 >= 2).expect("a pair").1 / 4;
    let relays: Vec<u64> =
        all.iter().filter(|(_, slot)| slot / 4 == pair && slot % 4 >= 2).map(|(key, _)| *key).collect();
    assert_eq!(relays.len(), 2);
    relays.iter().for_each(|cookie| slots.remove(cookie).unwrap());
}

/// Has the kernel give `thief` what it is to give to the daemon's socket to this peer.
pub fn divert(daemon: &Daemon, peer: SocketAddr, thief: &TcpStream) {
    let cookie = socket_cookie(socket_of(daemon, peer)).unwrap();
    let mut sockets: SockHash<_, u64> =
        SockHash::try_from(Map::SockHash(map_of(daemon, "forward", "SOCKETS"))).unwrap();
    sockets.insert(cookie, thief.as_raw_fd(), 0).unwrap();
}
