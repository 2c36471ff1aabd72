//! The kernel side of forwarding: the loaded programs, their maps, and the thread that listens to them.

mod applications;
mod btf;
mod cgroup;
mod counts;
mod events;
mod local;
mod mapped;
mod pairs;
pub mod releases;
mod tally;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf, SockHash};
use aya::programs::{ProgramError, SkSkb};
use aya::{Ebpf, EbpfError, EbpfLoader};
use edge_common::{Control, Flow, MAX_FLOWS};

pub use self::applications::{CgroupNews, check_cgroups};
use self::btf::{Btf, BtfError};
pub use self::counts::BackendCounts;
use self::events::Events;
pub(super) use self::events::{Interest, Ready};
pub use self::local::SameHostError;
pub(super) use self::local::{LocalPrograms, LocalSlot};
use self::mapped::{FlowView, MappedArray};
use self::pairs::PairPool;
pub(super) use self::pairs::PairSlot;
pub use self::tally::Tally;

/// The programs, compiled by `cargo xtask build-ebpf` (or a fresh build of them, see build.rs).
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/edge.bpf.o"));

/// Hash of the sources that the programs were built from, as committed with them.
pub const SOURCES: &str = env!("BPF_SOURCES_HASH");

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error("the kernel refused the BPF programs: {0}")]
    Load(#[from] EbpfError),
    #[error("the kernel refused a BPF program: {0}")]
    Program(#[from] ProgramError),
    #[error("a BPF map could not be used: {0}")]
    Map(#[from] MapError),
    #[error("a BPF map or event queue could not be set up: {0}")]
    Io(#[from] io::Error),
    #[error("a program attached to a cgroup would outlive the daemon on kernels before 5.7")]
    NoLinks,
    #[error("the BPF object lacks {0}: rebuild it with `cargo xtask build-ebpf`")]
    Missing(&'static str),
}

/// Where the programs find what they read, by the names of their globals.
#[derive(Debug)]
pub struct Offsets([(&'static str, u32); 5]);

impl Offsets {
    /// Of the running kernel. Takes milliseconds.
    pub fn read() -> Result<Self, KernelError> {
        let btf = Btf::of_running_kernel()?;
        Ok(Self([
            ("OFFSET_COPIED_SEQ", btf.offset_of("tcp_sock", "copied_seq")?),
            ("OFFSET_WRITE_SEQ", btf.offset_of("tcp_sock", "write_seq")?),
            ("OFFSET_WMEM_QUEUED", btf.offset_of("sock", "sk_wmem_queued")?),
            ("OFFSET_SNDBUF", btf.offset_of("sock", "sk_sndbuf")?),
            ("OFFSET_CB", btf.offset_of("sk_buff", "cb")?),
        ]))
    }
}

/// Bounds on what the kernel path may take.
#[derive(Debug, Clone, Copy)]
pub struct KernelLimits {
    /// Pairs in the kernel at once; at most half of [`MAX_FLOWS`].
    pub pairs: u32,
    /// Bytes that may wait in front of one socket.
    pub backlog: u32,
    /// Bytes that may wait in front of all sockets together.
    pub memory: u64,
}

/// The loaded programs and their maps. Dropping it detaches them; sockets in the map then fall back to PASS.
pub struct Kernel {
    sockets: Mutex<SockHash<MapData, u64>>,
    slots: Mutex<HashMap<MapData, u64, u32>>,
    flows: MappedArray<Flow>,
    control: Arc<MappedArray<Control>>,
    pairs: PairPool,
    events: Events,
    counts: Option<Arc<BackendCounts>>,
    /// Of pairs that have ended.
    ended: Mutex<Tally>,
    limits: KernelLimits,
    /// Keeps the programs attached.
    _programs: Mutex<Ebpf>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Loads and attaches the programs. Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
    pub fn load<'a>(
        limits: KernelLimits,
        offsets: &'a Offsets,
        mut loader: EbpfLoader<'a>,
    ) -> Result<Arc<Self>, KernelError> {
        let limits = KernelLimits { pairs: limits.pairs.clamp(1, MAX_FLOWS / 2), ..limits };
        for map in local::ONLY_LOCAL {
            loader.map_max_entries(map, 1);
        }
        for (name, offset) in &offsets.0 {
            loader.override_global(name, offset, true);
        }
        let mut programs = loader.load(PROGRAMS)?;
        let sockets: SockHash<MapData, u64> = take(&mut programs, "SOCKETS")?;
        let verdict: &mut SkSkb =
            programs.program_mut("forward").ok_or(KernelError::Missing("program forward"))?.try_into()?;
        verdict.load()?;
        verdict.attach(sockets.fd())?;
        let flows = map_array(&mut programs, "FLOWS", MAX_FLOWS)?;
        let control = Arc::new(map_array(&mut programs, "CONTROL", 1)?);
        let ring: RingBuf<MapData> = take(&mut programs, "EVENTS")?;
        let logger = aya_log::EbpfLogger::init(&mut programs)
            .inspect_err(|why| tracing::warn!(%why, "log messages of the BPF programs are lost"))
            .ok();
        let counts = BackendCounts::attach(&mut programs);
        let kernel = Arc::new(Self {
            sockets: Mutex::new(sockets),
            slots: Mutex::new(take(&mut programs, "SLOTS")?),
            flows,
            control,
            pairs: PairPool::new(limits.pairs),
            events: Events::new(ring.as_raw_fd(), limits.pairs)?,
            counts: match counts {
                Ok(counts) => Some(Arc::new(counts)),
                Err(why) => {
                    tracing::warn!(%why, "the kernel does not count the connections of backends");
                    None
                }
            },
            ended: Mutex::default(),
            limits,
            _programs: Mutex::new(programs),
        });
        kernel.set_share();
        events::spawn(&kernel, ring, logger)?;
        Ok(kernel)
    }

    /// The kernel's own count of connections, where a cgroup v2 let us attach the program that counts.
    pub fn counts(&self) -> Option<&Arc<BackendCounts>> {
        self.counts.as_ref()
    }

    /// Pairs that are in the kernel now.
    pub fn pairs_in_use(&self) -> u32 {
        self.pairs.in_use()
    }

    /// What was done since the start, by pairs that still run, too.
    pub fn tally(&self) -> Tally {
        // Held meanwhile, so that a pair that ends is not counted twice, nor missing for a moment.
        let ended = self.ended();
        let mut tally = *ended;
        for slot in self.events.live_pairs().flat_map(|pair| [pair * 2, pair * 2 + 1]) {
            tally += Tally::of(self.flow(slot));
        }
        tally
    }

    fn ended(&self) -> MutexGuard<'_, Tally> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts from here on: what the self-test sent is nobody's traffic.
    pub(super) fn restart_count(&self) {
        *self.ended() = Tally::default();
    }

    /// The kill switch: with `gate`, running and new flows are left to userspace, without losing a byte.
    pub fn gate_all(&self, gate: bool) {
        self.control.set_gate_all(gate);
    }

    /// Takes a free pair of flow records; `None` when all are in use.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<PairSlot> {
        let index = self.pairs.take()?;
        self.set_share();
        Some(PairSlot::new(Arc::clone(self), index))
    }

    /// Each flow's share of the memory that may wait in front of sockets, so that the sum keeps to the limit.
    fn set_share(&self) {
        let directions = u64::from(self.pairs.in_use().max(1)) * 2;
        let share = u32::try_from(self.limits.memory / directions).unwrap_or(u32::MAX);
        self.control.set_backlog_limit(share.min(self.limits.backlog));
    }

    fn flow(&self, slot: u32) -> FlowView<'_> {
        self.flows.flow(slot)
    }

    fn insert_socket(&self, cookie: u64, socket: BorrowedFd<'_>) -> Result<(), MapError> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.insert(cookie, socket.as_raw_fd(), 0)
    }

    fn insert_slot(&self, cookie: u64, slot: u32) -> Result<(), MapError> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie, slot, 0)
    }

    fn remove_slot(&self, cookie: u64) {
        // Absent is fine: the insertion may have failed.
        let _ = self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&cookie);
    }
}

fn take<T>(programs: &mut Ebpf, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    Ok(T::try_from(programs.take_map(name).ok_or(KernelError::Missing(name))?)?)
}

fn map_array<T>(programs: &mut Ebpf, name: &'static str, entries: u32) -> Result<MappedArray<T>, KernelError> {
    match programs.take_map(name) {
        // The mapping keeps the array alive, and so do the programs that use it.
        Some(Map::Array(array)) => Ok(MappedArray::new(array.fd().as_fd(), entries)?),
        _ => Err(KernelError::Missing(name)),
    }
}
