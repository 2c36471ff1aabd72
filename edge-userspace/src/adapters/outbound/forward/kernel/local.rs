//! The programs and maps of the path between two applications of this host, and the place of one pair in them.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use aya::maps::{HashMap, MapData, SockHash};
use aya::programs::sock_ops::SockOpsLinkId;
use aya::programs::{CgroupAttachMode, ProgramError, RawTracePoint, RawTracePointRunOptions, SkMsg, SockOps, TestRun};
use aya::{Ebpf, EbpfLoader};
use edge_common::{
    End, LocalControl, LocalFlow, LocalSocket, MAX_LOCAL_FLOWS, OwnSocket, SEEN_SOURCE, SEEN_SOURCE_BLOCKS,
    SEEN_SOURCE_OWNED, SEEN_TARGET,
};

use super::super::lane::{Both, Side};
use super::super::socket;
use super::applications::{Adopt, Applications, CgroupNews, check_cgroups};
use super::btf::Btf;
use super::cgroup::Place;
use super::mapped::MappedArray;
use super::pairs::PairPool;
use super::{KernelError, PROGRAMS, map_array, take};
use crate::application::flows::InKernel;

/// Maps that only the ordinary kernel path uses: here they take the least room there is.
const NOT_USED: [&str; 5] = ["SOCKETS", "SLOTS", "FLOWS", "CONTROL", "BACKEND_CONNECTIONS"];
/// Maps that only this path uses.
pub(super) const ONLY_LOCAL: [&str; 9] = [
    "LOCAL_SOCKETS",
    "LOCAL_SLOTS",
    "LOCAL_FLOWS",
    "LOCAL_CONTROL",
    "OWN_SOCKETS",
    "OWN_CONNECTIONS",
    "LOCAL_ENDS",
    "EXPECTED",
    "MARKED_PORTS",
];
/// Fields of the kernel's structures that the programs read, by the name of the global that holds the offset.
const OFFSETS: [(&str, &str, &str); 12] = [
    ("OFFSET_COPIED_SEQ", "tcp_sock", "copied_seq"),
    ("OFFSET_WRITE_SEQ", "tcp_sock", "write_seq"),
    ("OFFSET_COOKIE", "sock_common", "skc_cookie"),
    ("OFFSET_STATE", "sock_common", "skc_state"),
    ("OFFSET_PROT", "sock_common", "skc_prot"),
    ("OFFSET_PRESSURE", "proto", "memory_pressure"),
    ("OFFSET_RMEM", "sock", "sk_backlog"),
    ("OFFSET_RCVLOWAT", "sock", "sk_rcvlowat"),
    ("OFFSET_ULP", "inet_connection_sock", "icsk_ulp_ops"),
    ("OFFSET_SOCKET", "sock", "sk_socket"),
    ("OFFSET_FILE", "socket", "file"),
    ("OFFSET_FLAGS", "file", "f_flags"),
];

/// Why there is no same-host path.
#[derive(Debug, thiserror::Error)]
pub enum SameHostError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("same_host_cgroup {0} is not there")]
    Absent(PathBuf),
    #[error("same_host_cgroup {0} can't be opened: {1}")]
    NoCgroup(PathBuf, std::io::Error),
    #[error("same_host_cgroup {0} is not a directory of a cgroup v2 file system (usually below /sys/fs/cgroup)")]
    NotACgroup(PathBuf),
    #[error("same_host_cgroup {0} can't be attached to: {1}")]
    Attach(PathBuf, ProgramError),
    #[error(
        "same_host_cgroup {0} holds this daemon: its own sockets must not be among the applications'. Name the applications' cgroups, or run the daemon in another one"
    )]
    HoldsDaemon(PathBuf),
    #[error("this process stands in no cgroup v2: {0}")]
    NoOwnCgroup(std::io::Error),
    #[error(
        "another daemon with a same-host path is in cgroup {0}, or somebody else has locked that directory (lslocks says who): daemons would take each other's connections for their own, so run each in a cgroup of its own, and none below another's"
    )]
    Shared(PathBuf),
}

impl SameHostError {
    /// Whether it is no matter of configuration, and may end.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

/// The loaded programs. Dropping it detaches them; paired sockets then go on through TCP.
pub(in super::super) struct LocalPrograms {
    sockets: Mutex<SockHash<MapData, u64>>,
    slots: Mutex<HashMap<MapData, u64, u32>>,
    ports: Mutex<HashMap<MapData, u32, u32>>,
    own: HashMap<MapData, u64, OwnSocket>,
    connections: Mutex<HashMap<MapData, End, u32>>,
    ends: HashMap<MapData, End, LocalSocket>,
    flows: MappedArray<LocalFlow>,
    control: MappedArray<LocalControl>,
    pairs: PairPool,
    /// Bytes handed over by pairs that have ended.
    forwarded: AtomicU64,
    /// Read by each pair that looks at its sockets.
    programs: RwLock<Ebpf>,
    applications: Mutex<Applications>,
    /// Keeps other daemons with such a path out of this one's cgroup.
    _place: Place,
}

impl std::fmt::Debug for LocalPrograms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalPrograms").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}

impl LocalPrograms {
    /// Loads the programs and attaches them: one to this process's own cgroup, one to each that is named.
    pub(in super::super) fn load(cgroups: &[PathBuf], pairs: u32, budget: u32) -> Result<Arc<Self>, SameHostError> {
        check_cgroups(cgroups)?;
        // Before the programs: from their first moment on they would see the sockets of all who are in the cgroup.
        let place = Place::take()?;
        let mut programs = load_object()?;
        let sockets: SockHash<MapData, u64> = take(&mut programs, "LOCAL_SOCKETS")?;
        let verdict: &mut SkMsg = program(&mut programs, "hand_over")?;
        verdict.load().map_err(KernelError::from)?;
        verdict.attach(sockets.fd()).map_err(KernelError::from)?;
        let look: &mut RawTracePoint = program(&mut programs, "look")?;
        look.load().map_err(KernelError::from)?;
        let own: &mut SockOps = program(&mut programs, "own")?;
        own.load().map_err(KernelError::from)?;
        own.attach(place.cgroup(), CgroupAttachMode::Single).map_err(KernelError::from)?;
        adopt(&mut programs).and_then(SockOps::load).map_err(KernelError::from)?;
        let flows = map_array(&mut programs, "LOCAL_FLOWS", MAX_LOCAL_FLOWS)?;
        let control: MappedArray<LocalControl> = map_array(&mut programs, "LOCAL_CONTROL", 1)?;
        control.set_budget(budget);
        let slots = Mutex::new(take(&mut programs, "LOCAL_SLOTS")?);
        let ports = Mutex::new(take(&mut programs, "MARKED_PORTS")?);
        let own = take(&mut programs, "OWN_SOCKETS")?;
        let connections = Mutex::new(take(&mut programs, "OWN_CONNECTIONS")?);
        let ends = take(&mut programs, "LOCAL_ENDS")?;
        let programs = RwLock::new(programs);
        let applications = Applications::attach(&programs, cgroups, Instant::now())?;
        Ok(Arc::new(Self {
            sockets: Mutex::new(sockets),
            slots,
            ports,
            own,
            connections,
            ends,
            flows,
            control,
            pairs: PairPool::new(pairs.clamp(1, MAX_LOCAL_FLOWS / 4)),
            forwarded: AtomicU64::new(0),
            programs,
            applications: Mutex::new(applications),
            _place: place,
        }))
    }

    /// Takes in the applications of cgroups that have come since, and says which are gone. Cheap where nothing changed.
    pub(in super::super) fn look_for_cgroups(&self) -> Vec<CgroupNews> {
        lock(&self.applications).look(&self.programs, Instant::now())
    }

    /// The named cgroups whose applications don't take part, and why.
    pub(in super::super) fn missing_cgroups(&self) -> BTreeMap<PathBuf, String> {
        lock(&self.applications).missing().map(|(path, why)| (path.to_owned(), why.to_owned())).collect()
    }

    /// Whether any applications take part.
    pub(in super::super) fn has_applications(&self) -> bool {
        lock(&self.applications).any()
    }

    /// A marked backend listens on this port: its end of a connection is to be known.
    pub(in super::super) fn expect(&self, port: u16) -> Result<(), KernelError> {
        Ok(lock(&self.ports).insert(u32::from(port), 1, 0)?)
    }

    /// None does any more.
    pub(in super::super) fn expect_no_more(&self, port: u16) {
        // Absent is fine: there was no room for it.
        let _ = lock(&self.ports).remove(&u32::from(port));
    }

    /// The other end of this connection is not wanted any more, should it still come.
    pub(in super::super) fn forget(&self, own: OwnSocket) {
        // Absent is fine: the backend has no mark.
        let _ = lock(&self.connections).remove(&own.end);
    }

    /// The kill switch: with `gate` everything takes the way through TCP, without losing a byte.
    pub(in super::super) fn gate_all(&self, gate: bool) {
        self.control.set_gate(gate);
    }

    /// Whether it is on.
    pub(in super::super) fn is_gated(&self) -> bool {
        self.control.is_gated()
    }

    pub(in super::super) fn pairs_in_use(&self) -> u32 {
        self.pairs.in_use()
    }

    /// Bytes handed over by pairs that have ended.
    pub(in super::super) fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Counts from here on: what the self-test sent is nobody's traffic.
    pub(in super::super) fn restart_count(&self) {
        self.forwarded.store(0, Ordering::Relaxed);
    }

    /// One of the daemon's own sockets.
    pub(in super::super) fn own(&self, socket: BorrowedFd<'_>) -> Option<OwnSocket> {
        self.own.get(&socket::cookie(socket).ok()?, 0).ok().filter(|own| own.address != 0)
    }

    /// The socket at the other end of a connection of the daemon's, if it is a named application's.
    pub(in super::super) fn application(&self, own: OwnSocket) -> Option<LocalSocket> {
        self.ends.get(&own.end.other(), 0).ok()
    }

    /// Takes a socket out from under the verdict. Only for one that nothing was handed to, or whose application has
    /// read it all: it goes on unharmed.
    pub(in super::super) fn release(&self, cookie: u64) {
        // Absent is fine: it may have closed.
        let _ = lock(&self.sockets).remove(&cookie);
    }

    /// Puts one of this process's own sockets under the verdict.
    pub(in super::super) fn adopt(&self, socket: BorrowedFd<'_>) -> Result<LocalSocket, KernelError> {
        let cookie = socket::cookie(socket)?;
        let own = self.own(socket).ok_or(KernelError::Missing("the record of a socket"))?;
        lock(&self.sockets).insert(cookie, socket.as_raw_fd(), 0)?;
        Ok(LocalSocket { cookie, address: own.address })
    }

    /// Makes two applications' sockets a pair, with the daemon's own ones as relays. From here on the verdict hands
    /// over what it can.
    pub(in super::super) fn pair(
        self: &Arc<Self>,
        own: Both<OwnSocket>,
        relays: Both<LocalSocket>,
        ends: Both<LocalSocket>,
    ) -> Option<LocalSlot> {
        let index = self.pairs.take()?;
        let slot = LocalSlot { programs: Arc::clone(self), index, ends, relays };
        for side in Side::BOTH {
            let (source, target) = (side, side.other());
            // The applications see the daemon's connections the other way round.
            let (source_end, target_end) = (own[source].end.other(), own[target].end.other());
            let direct = LocalFlow::between(ends[source], source_end, ends[target], target_end);
            let relay = direct.by_relay(relays[target]);
            // SAFETY: no program reads a record that no cookie leads to.
            unsafe {
                ptr::write_volatile(slot.record(side), direct);
                ptr::write_volatile(slot.relay(side), relay);
            }
        }
        // The relays first: the applications must not begin while the daemon can't go on.
        let cookies = [(relays, 3), (ends, 0)].into_iter().flat_map(|(sockets, first)| {
            Side::BOTH.map(|side| (sockets[side].cookie, if first == 0 { side.index() } else { first - side.index() }))
        });
        let all = cookies.into_iter().try_for_each(|(cookie, at)| lock(&self.slots).insert(cookie, index * 4 + at, 0));
        all.inspect_err(|why| tracing::debug!(%why, "a local pair was not made")).ok().map(|()| slot)
    }

    fn look(&self, slot: u32) {
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = u64::from(slot);
        let programs = self.programs.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(aya::programs::Program::RawTracePoint(look)) = programs.program("look") {
            let _ = look.test_run(options).inspect_err(|why| tracing::debug!(%why, "sockets can't be looked at"));
        }
    }
}

impl Adopt for RwLock<Ebpf> {
    fn attach(&self, cgroup: File) -> Result<SockOpsLinkId, ProgramError> {
        let mut programs = self.write().unwrap_or_else(PoisonError::into_inner);
        adopt(&mut programs)?.attach(cgroup, CgroupAttachMode::Single)
    }

    fn detach(&self, link: SockOpsLinkId) {
        let mut programs = self.write().unwrap_or_else(PoisonError::into_inner);
        let link = adopt(&mut programs).and_then(|adopt| adopt.take_link(link));
        drop(programs);
        // Closes it.
        drop(link);
    }
}

fn adopt(programs: &mut Ebpf) -> Result<&mut SockOps, ProgramError> {
    // It was there when it was loaded.
    programs.program_mut("adopt").ok_or(ProgramError::NotLoaded)?.try_into()
}

fn load_object() -> Result<Ebpf, KernelError> {
    let btf = Btf::of_running_kernel()?;
    let offsets = OFFSETS.map(|(name, of, member)| btf.offset_of(of, member).map(|offset| (name, offset)));
    let offsets = offsets.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut loader = EbpfLoader::new();
    for (name, offset) in &offsets {
        loader.override_global(name, offset, true);
    }
    for map in NOT_USED {
        loader.map_max_entries(map, 1);
    }
    Ok(loader.load(PROGRAMS)?)
}

fn program<'a, T>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, KernelError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    Ok(programs.program_mut(name).ok_or(KernelError::Missing(name))?.try_into()?)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pair's place in the maps. Given back when dropped: what the applications send after that goes through TCP.
#[derive(Debug)]
pub(in super::super) struct LocalSlot {
    programs: Arc<LocalPrograms>,
    index: u32,
    ends: Both<LocalSocket>,
    relays: Both<LocalSocket>,
}

/// Two sockets at one moment, for the direction from the first to the second.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Look {
    /// What the source gave to TCP, the lower 32 bits; `None` if the socket is gone. The end of its stream counts as
    /// one.
    pub(in super::super) written: Option<u32>,
    /// The source's application reads with blocking calls.
    pub(in super::super) blocks: bool,
    /// The source has an application that owns it.
    pub(in super::super) accepted: bool,
    /// What the target's application has read from TCP, and the bytes handed over that wait for it; `None` if the
    /// socket is gone.
    pub(in super::super) target: Option<Waiting>,
}

#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Waiting {
    pub(in super::super) copied: u32,
    pub(in super::super) bytes: u32,
}

impl LocalSlot {
    fn record(&self, side: Side) -> *mut LocalFlow {
        self.programs.flows.entry(self.index * 4 + side.index())
    }

    /// The record of what the daemon hands over for the direction that begins at `side`.
    fn relay(&self, side: Side) -> *mut LocalFlow {
        self.programs.flows.entry(self.index * 4 + 2 + side.index())
    }

    /// Publishes that of the bytes that came through TCP the first `bytes` have been handed over.
    pub(in super::super) fn publish_consumed(&self, side: Side, bytes: u64) {
        let low = (bytes & u64::from(u32::MAX)) as u32;
        // SAFETY: an aligned u32 inside the mapping, only accessed atomically.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.record(side)).consumed) }.store(low, Ordering::SeqCst);
    }

    /// Bytes handed over that began at `side`.
    pub(in super::super) fn redirected(&self, side: Side) -> u64 {
        // SAFETY: an aligned u64 inside the mapping, only accessed atomically.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.record(side)).redirected) }.load(Ordering::SeqCst)
    }

    /// Bytes that the daemon handed over for that direction.
    pub(in super::super) fn handed_over(&self, side: Side) -> u64 {
        // SAFETY: as in `redirected`.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.relay(side)).redirected) }.load(Ordering::SeqCst)
    }

    /// Bytes of that direction that the daemon wrote and that went to the reader's TCP, since it can't have them handed over.
    pub(in super::super) fn by_tcp(&self, side: Side) -> u64 {
        // SAFETY: as in `redirected`.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.relay(side)).by_tcp) }.load(Ordering::SeqCst)
    }

    /// Looks at both sockets of the direction that begins at `side`.
    pub(in super::super) fn look(&self, side: Side) -> Look {
        self.programs.look(self.index * 4 + side.index());
        let record = self.record(side);
        // SAFETY: aligned u32s inside the mapping; written by the program that has just run, for this task only.
        let (seen, written, copied, bytes) = unsafe {
            let field = |field: *mut u32| AtomicU32::from_ptr(field).load(Ordering::SeqCst);
            (
                field(&raw mut (*record).seen),
                field(&raw mut (*record).seen_written),
                field(&raw mut (*record).seen_copied),
                field(&raw mut (*record).seen_waiting),
            )
        };
        Look {
            written: (seen & SEEN_SOURCE != 0).then_some(written),
            blocks: seen & SEEN_SOURCE_BLOCKS != 0,
            accepted: seen & SEEN_SOURCE_OWNED != 0,
            target: (seen & SEEN_TARGET != 0).then_some(Waiting { copied, bytes }),
        }
    }

    /// What was handed over, for the list of flows.
    pub(in super::super) fn counts(&self) -> Arc<dyn InKernel> {
        Arc::new(LocalCounts { programs: Arc::clone(&self.programs), index: self.index })
    }

    /// Closed, everything takes the way through TCP from now on.
    pub(in super::super) fn set_gate(&self, closed: bool) {
        for side in Side::BOTH {
            // SAFETY: as in `redirected`.
            unsafe { AtomicU32::from_ptr(&raw mut (*self.record(side)).gate) }.store(closed.into(), Ordering::SeqCst);
        }
    }

    /// Whether the kill switch is on for all.
    pub(in super::super) fn kernel_is_off(&self) -> bool {
        self.programs.is_gated()
    }
}

struct LocalCounts {
    programs: Arc<LocalPrograms>,
    index: u32,
}

impl InKernel for LocalCounts {
    fn bytes(&self) -> (u64, u64) {
        let redirected = |side: Side| {
            let record = self.programs.flows.entry(self.index * 4 + side.index());
            // SAFETY: as in `LocalSlot::redirected`.
            unsafe { AtomicU64::from_ptr(&raw mut (*record).redirected) }.load(Ordering::Relaxed)
        };
        (redirected(Side::Client), redirected(Side::Backend))
    }
}

impl Drop for LocalSlot {
    fn drop(&mut self) {
        for socket in self.ends.iter().chain(self.relays.iter()) {
            // Absent is fine: the insertion may have failed.
            let _ = lock(&self.programs.slots).remove(&socket.cookie);
        }
        let moved = self.redirected(Side::Client) + self.redirected(Side::Backend);
        self.programs.forwarded.fetch_add(moved, Ordering::Relaxed);
        self.programs.pairs.give_back(self.index);
    }
}

impl MappedArray<LocalControl> {
    fn set_gate(&self, gate: bool) {
        // SAFETY: an aligned u32 inside the mapping, only accessed atomically.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entry(0)).gate_all) }.store(gate.into(), Ordering::SeqCst);
    }

    fn is_gated(&self) -> bool {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entry(0)).gate_all) }.load(Ordering::SeqCst) != 0
    }

    fn set_budget(&self, bytes: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entry(0)).budget) }.store(bytes, Ordering::SeqCst);
    }
}
