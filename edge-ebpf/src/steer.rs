//! sk_lookup: gives connections to ranges of ports and to prefixes to sockets that are bound to neither.
//!
//! The kernel asks before it looks for a listening socket. Who is more specific is worked out by the daemon and lies in
//! the layout of the keys (`edge-common/src/steer.rs`): the port leads to its class, and class and address to the
//! longest prefix that holds the port. The verdict is never to drop: what is not steered takes its ordinary way.
#![no_std]
#![no_main]

use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, LpmTrie, PerCpuArray, SockMap};
use aya_ebpf::programs::SkLookupContext;
use edge_common::{
    DESTINATION_FIXED_BITS, Destination, FAMILY_V4, FAMILY_V6, LEFT, MAX_STEER_PREFIXES, NO_SOCKET, PortClasses, STEER,
    STEER_COUNTS, STEER_SOCKET_V4, STEER_SOCKET_V6, STEERED, Steering,
};

const BPF_F_NO_PREALLOC: u32 = 1;
/// `SK_PASS`: go on with the socket that was assigned, or look for one.
const PASS: u32 = 1;
const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

#[map]
static STEER_CONTROL: Array<Steering> = Array::with_max_entries(1, 0);
/// One for each side.
#[map]
static STEER_PORTS: Array<PortClasses> = Array::with_max_entries(2, 0);
#[map]
static STEER_PREFIXES: LpmTrie<Destination, u32> = LpmTrie::with_max_entries(MAX_STEER_PREFIXES, BPF_F_NO_PREALLOC);
/// One socket for each family; it stands for its group (SO_REUSEPORT), from which the kernel chooses by hash.
#[map]
static STEER_SOCKETS: SockMap = SockMap::with_max_entries(2, 0);
#[map]
static STEER_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(STEER_COUNTS, 0);

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    let Some((destination, socket)) = destination(&ctx) else { return PASS };
    let key = Key::new(DESTINATION_FIXED_BITS + 128, destination);
    let Some(verdict) = STEER_PREFIXES.get(&key).copied() else { return PASS };
    let outcome = match verdict {
        STEER if STEER_SOCKETS.redirect_sk_lookup(&ctx, socket, 0).is_ok() => STEERED,
        STEER => NO_SOCKET,
        _ => LEFT,
    };
    count(outcome);
    PASS
}

/// Where the connection goes, as the policy in force classes it, and which socket would take it; `None` where it is
/// none of ours.
#[inline(always)]
fn destination(ctx: &SkLookupContext) -> Option<(Destination, u32)> {
    // SAFETY: the context is valid while the program runs.
    let lookup = unsafe { &*ctx.lookup };
    if lookup.protocol != IPPROTO_TCP {
        return None;
    }
    // SAFETY: the pointer leads into a map value.
    let side = unsafe { core::ptr::read_volatile(&raw const (*STEER_CONTROL.get_ptr(0)?).active) }.checked_sub(1)?;
    let classes = STEER_PORTS.get_ptr(side)?.cast::<u16>();
    let port = (lookup.local_port & 0xffff) as usize;
    // SAFETY: the value holds a class for each of the 65,536 ports.
    let class = unsafe { *classes.add(port) };
    if class == 0 {
        return None;
    }
    let (family, socket) =
        if lookup.family == AF_INET { (FAMILY_V4, STEER_SOCKET_V4) } else { (FAMILY_V6, STEER_SOCKET_V6) };
    // Both are read, without a branch that the compiler could move the reads about for: the verifier wants each to be
    // of a field of the context. The fields of the other family are zero.
    let v6 = &lookup.local_ip6;
    let words = [lookup.local_ip4 | v6[0], v6[1], v6[2], v6[3]];
    // SAFETY: as many bytes; the fields are in network order, as they lie in memory.
    let address = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) };
    Some((Destination { side: side as u8, family, class, address }, socket))
}

#[inline(always)]
fn count(outcome: u32) {
    if let Some(counter) = STEER_COUNTERS.get_ptr_mut(outcome) {
        // SAFETY: the pointer leads into this CPU's own value of the map.
        unsafe { *counter += 1 };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
