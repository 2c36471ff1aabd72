//! The `sk_lookup` program: gives connections to whole prefixes and ranges of ports to sockets that are bound to
//! neither. It is attached to this network namespace by a link that goes away with the daemon.

mod policy;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, MapData, MapError, PerCpuArray, SockMap};
use aya::programs::{ProgramError, SkLookup};
use aya::{Ebpf, EbpfError, EbpfLoader};
use edge_common::{
    Destination, LEFT, NO_SOCKET, PORTS, PortClasses, STEER_SOCKET_V4, STEER_SOCKET_V6, STEERED,
    Steering as SteeringControl,
};

pub use self::policy::{Claim, Policy, PolicyError};
use crate::adapters::outbound::privileges;

/// Compiled by `cargo xtask build-ebpf` (see build.rs).
static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// What the counters count.
const VERDICTS: [(&str, u32); 3] = [("steered", STEERED), ("left", LEFT), ("no_socket", NO_SOCKET)];

#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    #[error("the kernel refused the sk_lookup program: {0}")]
    Load(#[from] EbpfError),
    #[error("the kernel refused the sk_lookup program: {0}")]
    Program(#[from] ProgramError),
    #[error("a map of the sk_lookup program could not be used: {0}")]
    Map(#[from] MapError),
    #[error("this network namespace could not be opened: {0}")]
    Namespace(std::io::Error),
    #[error("the BPF object lacks {0}: rebuild it with `cargo xtask build-ebpf`")]
    Missing(&'static str),
    #[error("{0}: sk_lookup needs CAP_BPF and CAP_NET_ADMIN")]
    Capability(String),
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// The families of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

/// The loaded program and its maps. Dropping it detaches it.
pub struct Steering {
    control: Array<MapData, SteeringControl>,
    ports: Array<MapData, PortClasses>,
    prefixes: LpmTrie<MapData, Destination, u32>,
    sockets: SockMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    /// Which side is in force, if any, and what each side holds.
    active: Option<usize>,
    sides: [Vec<Key<Destination>>; 2],
    program: Ebpf,
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steering").field("active", &self.active).finish_non_exhaustive()
    }
}

impl Steering {
    /// Loads the program and attaches it to the network namespace of the calling thread. Has no effect before a policy
    /// is applied. Needs CAP_BPF and CAP_NET_ADMIN; what follows needs none. The loader may have loaded others before, and
    /// should: it takes milliseconds to make one, for it reads all types of the kernel.
    pub fn load(loader: &mut EbpfLoader<'_>) -> Result<Self, SteeringError> {
        let mut program = loader.load(PROGRAM).map_err(|why| explained(why.into()))?;
        let steer: &mut SkLookup =
            program.program_mut("steer").ok_or(SteeringError::Missing("program steer"))?.try_into()?;
        steer.load().map_err(|why| explained(why.into()))?;
        let namespace = File::open("/proc/thread-self/ns/net").map_err(SteeringError::Namespace)?;
        steer.attach(namespace).map_err(|why| explained(why.into()))?;
        Ok(Self {
            control: take(&mut program, "STEER_CONTROL")?,
            ports: take(&mut program, "STEER_PORTS")?,
            prefixes: take(&mut program, "STEER_PREFIXES")?,
            sockets: take(&mut program, "STEER_SOCKETS")?,
            counters: take(&mut program, "STEER_COUNTERS")?,
            active: None,
            sides: Default::default(),
            program,
        })
    }

    /// Replaces the policy as a whole: the kernel never sees half of one. Where it fails the old one stays.
    pub fn apply(&mut self, policy: &Policy) -> Result<(), SteeringError> {
        if policy.prefixes.is_empty() {
            self.control.set(0, SteeringControl { active: 0 }, 0)?;
            self.active = None;
            return Ok(());
        }
        let side = self.active.map_or(0, |active| 1 - active);
        self.clear(side)?;
        self.fill(side, policy)?;
        let number = u32::try_from(side).unwrap_or(0);
        self.control.set(0, SteeringControl { active: number + 1 }, 0)?;
        self.active = Some(side);
        Ok(())
    }

    fn fill(&mut self, side: usize, policy: &Policy) -> Result<(), SteeringError> {
        let number = u8::try_from(side).unwrap_or(0);
        for (class, prefix, verdict) in &policy.prefixes {
            let (length, destination) = policy::key(number, *class, *prefix);
            let key = Key::new(length, destination);
            self.prefixes.insert(&key, verdict, 0)?;
            self.sides.get_mut(side).into_iter().for_each(|keys| keys.push(key));
        }
        // Too large for the stack of a thread that has other work, too.
        let mut classes = Box::new(PortClasses([0; PORTS]));
        classes.0.iter_mut().zip(&policy.classes).for_each(|(to, from)| *to = *from);
        Ok(self.ports.set(u32::from(number), classes, 0)?)
    }

    /// Empties a side that is not in force, also one that was filled half.
    fn clear(&mut self, side: usize) -> Result<(), SteeringError> {
        let Some(keys) = self.sides.get_mut(side) else { return Ok(()) };
        while let Some(key) = keys.last() {
            match self.prefixes.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => _ = keys.pop(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Names the socket that stands for its group. It leaves by itself when it is closed.
    pub fn set_socket(&mut self, family: Family, socket: BorrowedFd<'_>) -> Result<(), SteeringError> {
        let index = match family {
            Family::V4 => STEER_SOCKET_V4,
            Family::V6 => STEER_SOCKET_V6,
        };
        Ok(self.sockets.set(index, &socket.as_raw_fd(), 0)?)
    }

    /// Prefixes in force.
    pub fn prefixes(&self) -> usize {
        self.active.and_then(|side| self.sides.get(side)).map_or(0, Vec::len)
    }

    /// How often each verdict was given.
    pub fn verdicts(&self) -> Vec<(&'static str, u64)> {
        let sum = |index| self.counters.get(&index, 0).map_or(0, |values| values.iter().sum());
        VERDICTS.map(|(name, index)| (name, sum(index))).into()
    }

    /// The program's descriptor, for tests that run it on questions of their own.
    pub fn program(&self) -> Option<BorrowedFd<'_>> {
        let program: &SkLookup = self.program.program("steer")?.try_into().ok()?;
        program.fd().ok().map(|fd| fd.as_fd())
    }
}

/// The kernel says "operation not permitted": which capability it missed is known here.
fn explained(why: SteeringError) -> SteeringError {
    match privileges::lacking_of(privileges::STEERING) {
        Some(lacking) => SteeringError::Capability(lacking),
        None => why,
    }
}

fn take<T>(program: &mut Ebpf, name: &'static str) -> Result<T, SteeringError>
where
    T: TryFrom<aya::maps::Map, Error = MapError>,
{
    Ok(T::try_from(program.take_map(name).ok_or(SteeringError::Missing(name))?)?)
}
