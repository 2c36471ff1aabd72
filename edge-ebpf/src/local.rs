//! sk_msg: hands what an application of this host sends straight to another application of this host.
//!
//! Two sock_ops programs learn which sockets belong together: [`own`] sees the daemon's connections, [`adopt`] those
//! of the applications in the cgroups that the operator named, and puts them under the verdict [`hand_over`]. What
//! makes this lossless, ordered and bounded is written in `docs/same-host.md`.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::bindings::{
    BPF_F_INGRESS, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RWND_INIT,
};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_skc_to_tcp_sock};
use aya_ebpf::macros::{map, raw_tracepoint, sk_msg, sock_ops};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, SockHash};
use aya_ebpf::programs::{RawTracePointContext, SkMsgContext, SockOpsContext};
use aya_ebpf::{EbpfContext, Global};
use edge_common::{
    Addresses, End, LocalControl, LocalFlow, LocalSocket, MAX_ENDS, MAX_LOCAL_FLOWS, MAX_LOCAL_SOCKETS,
    MESSAGE_OVERHEAD, OwnSocket, SEEN_SOURCE, SEEN_SOURCE_BLOCKS, SEEN_SOURCE_OWNED, SEEN_TARGET,
};

use crate::atomic::fetch_add;
use crate::kernel::{OFFSET_COPIED_SEQ, OFFSET_WRITE_SEQ};

/// A pair has the records of both its directions, then those of what the daemon hands over for each.
const RELAYS_BEHIND: u32 = 2;

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// States of a TCP socket that can receive: ESTABLISHED, FIN_WAIT1, FIN_WAIT2.
const RECEIVING: u32 = 1 << 1 | 1 << 4 | 1 << 5;
const ESTABLISHED: u8 = 1;
const O_NONBLOCK: u32 = 0o4000;
const AF_INET6: u32 = 10;

/// Offset of `sock_common.skc_cookie`, bytes; a `sock` begins with its `sock_common`, a `tcp_sock` with its `sock`.
#[unsafe(no_mangle)]
static OFFSET_COOKIE: Global<u32> = Global::new(0);
/// Offset of `sock_common.skc_state`, bytes.
#[unsafe(no_mangle)]
static OFFSET_STATE: Global<u32> = Global::new(0);
/// Offset of `sock_common.skc_prot`, bytes.
#[unsafe(no_mangle)]
static OFFSET_PROT: Global<u32> = Global::new(0);
/// Offset of `proto.memory_pressure`, bytes.
#[unsafe(no_mangle)]
static OFFSET_PRESSURE: Global<u32> = Global::new(0);
/// Offset of `sock.sk_backlog`, bytes; its first member is the `rmem_alloc` that the kernel calls `sk_rmem_alloc`.
#[unsafe(no_mangle)]
static OFFSET_RMEM: Global<u32> = Global::new(0);
/// Offset of `sock.sk_rcvlowat`, bytes.
#[unsafe(no_mangle)]
static OFFSET_RCVLOWAT: Global<u32> = Global::new(0);
/// Offset of `inet_connection_sock.icsk_ulp_ops`, bytes.
#[unsafe(no_mangle)]
static OFFSET_ULP: Global<u32> = Global::new(0);

/// Offset of `sock.sk_socket`, bytes.
#[unsafe(no_mangle)]
static OFFSET_SOCKET: Global<u32> = Global::new(0);
/// Offset of `socket.file`, bytes.
#[unsafe(no_mangle)]
static OFFSET_FILE: Global<u32> = Global::new(0);
/// Offset of `file.f_flags`, bytes.
#[unsafe(no_mangle)]
static OFFSET_FLAGS: Global<u32> = Global::new(0);

/// Sockets of local applications by cookie: carries the verdict and is the target of redirects.
#[map]
static LOCAL_SOCKETS: SockHash<u64> = SockHash::with_max_entries(MAX_LOCAL_SOCKETS, 0);
/// Cookie of a paired socket to the slot of the direction that begins there.
#[map]
static LOCAL_SLOTS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_LOCAL_FLOWS, BPF_F_NO_PREALLOC);
#[map]
static LOCAL_FLOWS: Array<LocalFlow> = Array::with_max_entries(MAX_LOCAL_FLOWS, BPF_F_MMAPABLE);
#[map]
static LOCAL_CONTROL: Array<LocalControl> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The daemon's sockets, by cookie.
#[map]
static OWN_SOCKETS: LruHashMap<u64, OwnSocket> = LruHashMap::with_max_entries(MAX_ENDS, 0);
/// The daemon's connections as it sees them; the value says nothing.
#[map]
static OWN_CONNECTIONS: LruHashMap<End, u32> = LruHashMap::with_max_entries(MAX_ENDS, 0);
/// Sockets of local applications, by their end of the connection.
#[map]
static LOCAL_ENDS: LruHashMap<End, LocalSocket> = LruHashMap::with_max_entries(MAX_ENDS, 0);
/// Connections that somebody is opening to the daemon, as it sees them; the value says nothing.
#[map]
static EXPECTED: LruHashMap<Addresses, u32> = LruHashMap::with_max_entries(MAX_ENDS, 0);
/// Ports of marked backends; the value says nothing.
#[map]
static MARKED_PORTS: HashMap<u32, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Attached to the daemon's own cgroup: remembers the ends of its connections.
#[sock_ops]
pub fn own(ctx: SockOpsContext) -> u32 {
    // Asked for a SYN that came in, before it is answered.
    if ctx.op() == BPF_SOCK_OPS_RWND_INIT {
        let _ = EXPECTED.insert(addresses(&ctx), 1, 0);
    } else if established(&ctx) {
        let end = end_of(&ctx);
        let _ = OWN_SOCKETS.insert(cookie_of(&ctx), OwnSocket { end, address: address_of(&ctx) }, 0);
        let to_backend = ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
        if to_backend && MARKED_PORTS.get_ptr(u32::from_be(ctx.remote_port())).is_some() {
            let _ = OWN_CONNECTIONS.insert(end, 1, 0);
        }
    }
    1
}

/// Attached to the cgroups that the operator named: takes up the ends of connections with the daemon.
#[sock_ops]
pub fn adopt(ctx: SockOpsContext) -> u32 {
    if established(&ctx) && with_daemon(&ctx) {
        let (end, cookie, address) = (end_of(&ctx), cookie_of(&ctx), address_of(&ctx));
        // A socket under the verdict must not be read with blocking calls. One that was accepted has no file yet.
        if ctx.op() == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && blocks(address) != Some(false) {
            return 1;
        }
        // SAFETY: the context is valid while the program runs.
        let inserted = unsafe { LOCAL_SOCKETS.update(cookie, &mut *ctx.ops, 0) };
        if inserted.is_ok() && address != 0 {
            let _ = LOCAL_ENDS.insert(end, LocalSocket { cookie, address }, 0);
        }
    }
    1
}

/// Address of the kernel's `struct sock`, 0 if it is no TCP socket.
#[inline(always)]
fn address_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the verifier rewrites the access to `sk`.
    let sock = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sock.is_null() {
        return 0;
    }
    // SAFETY: a socket the verifier knows; null for what is not TCP.
    unsafe { bpf_skc_to_tcp_sock(sock.cast()) as u64 }
}

#[inline(always)]
fn established(ctx: &SockOpsContext) -> bool {
    matches!(ctx.op(), BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
}

/// The daemon's end of a connection to a marked backend is established before the backend's, and so known here. A
/// client's end is established before the daemon's, but after the daemon has seen its SYN.
#[inline(always)]
fn with_daemon(ctx: &SockOpsContext) -> bool {
    if ctx.op() == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        return OWN_CONNECTIONS.get_ptr(end_of(ctx).other()).is_some();
    }
    let Addresses { local, remote, local_port, remote_port } = addresses(ctx);
    let other = Addresses { local: remote, remote: local, local_port: remote_port, remote_port: local_port };
    EXPECTED.get_ptr(other).is_some()
}

#[inline(always)]
fn addresses(ctx: &SockOpsContext) -> Addresses {
    let (local_port, remote_port) = (ctx.local_port(), u32::from_be(ctx.remote_port()));
    let (mut local, mut remote) = ([ctx.local_ip4(), 0, 0, 0], [ctx.remote_ip4(), 0, 0, 0]);
    if ctx.family() == AF_INET6 {
        // Word by word: the verifier allows no wider access.
        // SAFETY: the context is valid while the program runs.
        let (near, far) = unsafe { (&(*ctx.ops).local_ip6, &(*ctx.ops).remote_ip6) };
        let v6 = ([near[0], near[1], near[2], near[3]], [far[0], far[1], far[2], far[3]]);
        let mapped = v6.1[0] == 0 && v6.1[1] == 0 && v6.1[2] == u32::to_be(0xffff);
        if mapped {
            (local, remote) = ([v6.0[3], 0, 0, 0], [v6.1[3], 0, 0, 0]);
        } else {
            (local, remote) = v6;
        }
    }
    Addresses { local, remote, local_port, remote_port }
}

#[inline(always)]
fn end_of(ctx: &SockOpsContext) -> End {
    // SAFETY: the context is valid while the program runs.
    unsafe { End { sends_from: (*ctx.ops).snd_nxt, receives_from: (*ctx.ops).rcv_nxt } }
}

#[inline(always)]
fn cookie_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[sk_msg]
pub fn hand_over(ctx: SkMsgContext) -> u32 {
    // SAFETY: the verifier rewrites the access to `sk`.
    let sock = unsafe { (*ctx.msg).__bindgen_anon_3.sk };
    if sock.is_null() {
        return SK_PASS;
    }
    // SAFETY: a socket the verifier knows; null for what is not TCP.
    let source = unsafe { bpf_skc_to_tcp_sock(sock.cast::<c_void>()) } as u64;
    let Some(cookie) = field::<u64>(source, OFFSET_COOKIE.load()) else { return SK_PASS };
    // SAFETY: a plain integer that userspace sets after the record is complete.
    let Some(slot) = (unsafe { LOCAL_SLOTS.get(cookie) }).copied() else { return SK_PASS };
    let (Some(flow), Some(control)) = (LOCAL_FLOWS.get_ptr_mut(slot), LOCAL_CONTROL.get_ptr(0)) else {
        return SK_PASS;
    };
    // SAFETY: all point into map values. The program runs under the source's lock, so it is the only one to run for
    // this flow, and each field has one writer.
    unsafe {
        if (*flow).source.cookie != cookie {
            SK_PASS
        } else if (*flow).relay != 0 {
            relay_on(&ctx, flow)
        } else if let Some(relay) = LOCAL_FLOWS.get_ptr_mut(slot + RELAYS_BEHIND) {
            decide(&ctx, source, (flow, relay), control)
        } else {
            SK_PASS
        }
    }
}

/// Hands over what the daemon writes. It has looked for order and room itself. Where the target has come to read in a way in
/// which bytes can't be handed to it, they take the way through TCP, and so must all that follow: the kernel reads what
/// was handed over before what TCP has.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn relay_on(ctx: &SkMsgContext, flow: *mut LocalFlow) -> u32 {
    // SAFETY: the caller's.
    unsafe {
        let len = ctx.size() as u64;
        if (*flow).by_tcp == 0 {
            if is_gone(flow) {
                (*flow).passes += 1;
                return SK_PASS;
            }
            if is_plain((*flow).target.address) && redirected(ctx, flow) {
                (*flow).redirected += len;
                (*flow).messages += 1;
                return SK_PASS;
            }
        }
        (*flow).by_tcp += len;
        SK_PASS
    }
}

/// Where the target is closed the redirect fails: TCP will tell the sender.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn redirected(ctx: &SkMsgContext, flow: *const LocalFlow) -> bool {
    // SAFETY: the caller's.
    let target = unsafe { (*flow).target.cookie };
    LOCAL_SOCKETS.redirect_msg(ctx, target, BPF_F_INGRESS as u64) as u32 == SK_PASS
}

/// # Safety
/// `flow`, `relay` and `control` point to map values.
#[inline(always)]
unsafe fn decide(
    ctx: &SkMsgContext,
    source: u64,
    (flow, relay): (*mut LocalFlow, *mut LocalFlow),
    control: *const LocalControl,
) -> u32 {
    // SAFETY: the caller's.
    unsafe {
        let len = ctx.size();
        let gated = volatile(&raw const (*flow).gate) != 0 || volatile(&raw const (*control).gate_all) != 0;
        if gated || !in_order(source, flow) || !is_plain(source) {
            (*flow).passes += 1;
            return SK_PASS;
        }
        // Only now, and behind a barrier: what the daemon left to TCP was noted before it said that it is on its way.
        if fetch_add(&raw mut (*relay).by_tcp, 0) != 0 {
            (*flow).passes += 1;
            return SK_PASS;
        }
        let room = has_room(flow, len, volatile(&raw const (*control).budget));
        if !room || !is_there(flow) || !is_plain((*flow).target.address) {
            (*flow).spills += 1;
            return SK_PASS;
        }
        if !redirected(ctx, flow) {
            (*flow).passes += 1;
            return SK_PASS;
        }
        (*flow).redirected += len as u64;
        (*flow).messages += 1;
        SK_PASS
    }
}

/// Whether the daemon has handed over all that the source ever sent through TCP. It says so after the bytes are in
/// the target's queue, and the source can't send while this runs, so nothing can be overtaken.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn in_order(source: u64, flow: *const LocalFlow) -> bool {
    // SAFETY: the caller's.
    let (base, consumed) = unsafe { ((*flow).source_base, volatile(&raw const (*flow).consumed)) };
    field::<u32>(source, OFFSET_WRITE_SEQ.load()).is_some_and(|written| written.wrapping_sub(base) == consumed)
}

/// Whether the target is still the socket of the record, and can receive.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn is_there(flow: *const LocalFlow) -> bool {
    // SAFETY: the caller's.
    let target = unsafe { (*flow).target };
    field::<u64>(target.address, OFFSET_COOKIE.load()) == Some(target.cookie)
        && field::<u8>(target.address, OFFSET_STATE.load()).is_some_and(|state| RECEIVING >> (state & 31) & 1 == 1)
}

/// Whether nobody reads from the target any more: its application has closed it. TCP will tell the sender. One that was not
/// accepted yet has no owner either, and is established.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn is_gone(flow: *const LocalFlow) -> bool {
    // SAFETY: the caller's.
    let (there, address) = unsafe { (is_there(flow), (*flow).target.address) };
    !there || blocks(address).is_none() && field::<u8>(address, OFFSET_STATE.load()) != Some(ESTABLISHED)
}

/// Whether it is a socket that bytes may be handed to: an application's that reads without blocking calls.
#[inline(always)]
fn is_plain(address: u64) -> bool {
    blocks(address) == Some(false)
        // TLS in the kernel would be told plain text.
        && field::<u64>(address, OFFSET_ULP.load()) == Some(0)
        // A reader that waits for a minimum is not woken by what is handed over.
        && field::<u32>(address, OFFSET_RCVLOWAT.load()).is_some_and(|least| least <= 1)
}

/// Whether the application that owns the socket reads it with blocking calls; `None` before it was accepted.
///
/// A blocking `recv` on a socket under the verdict fails with EAGAIN where the kernel wakes it for another reason than
/// data, and MSG_WAITALL is not kept.
#[inline(always)]
fn blocks(address: u64) -> Option<bool> {
    let socket = field::<u64>(address, OFFSET_SOCKET.load())?;
    let file = field::<u64>(socket, OFFSET_FILE.load())?;
    Some(field::<u32>(file, OFFSET_FLAGS.load())? & O_NONBLOCK == 0)
}

/// Whether `len` more bytes may wait for the target's application. The kernel itself sets no limit.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn has_room(flow: *mut LocalFlow, len: u32, budget: u32) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let address = (*flow).target.address;
        let Some(unread) = field::<u32>(address, OFFSET_RMEM.load()) else { return false };
        if under_pressure(address) {
            return false;
        }
        // Bytes that wait are known exactly, be they from here or from the target's other sender; messages from marks
        // that the reader has passed for sure.
        let read = (*flow).redirected.saturating_sub(unread as u64);
        if unread == 0 || read >= (*flow).mark_bytes {
            (*flow).read_messages = if unread == 0 { (*flow).messages } else { (*flow).mark_messages };
            (*flow).mark_messages = (*flow).messages;
            (*flow).mark_bytes = (*flow).redirected;
        }
        let messages = (*flow).messages - (*flow).read_messages + 1;
        unread as u64 + len as u64 + messages * MESSAGE_OVERHEAD as u64 <= budget as u64
    }
}

/// Whether TCP is short of memory: a redirect could then fail, which the sender would see as an error.
#[inline(always)]
fn under_pressure(address: u64) -> bool {
    let pressure = field::<u64>(address, OFFSET_PROT.load())
        .and_then(|proto| field::<u64>(proto, OFFSET_PRESSURE.load()))
        .and_then(|flag| field::<u64>(flag, 0));
    pressure != Some(0)
}

/// Run by the daemon when it wants to know (BPF_PROG_TEST_RUN): the first argument is the slot of a flow.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn look(ctx: RawTracePointContext) -> i32 {
    let Some(flow) = LOCAL_FLOWS.get_ptr_mut(ctx.arg::<u64>(0) as u32) else { return 0 };
    // SAFETY: points into a map value; userspace runs this for a flow from one task only.
    unsafe {
        let (source, target) = ((*flow).source, (*flow).target);
        let mut seen = 0;
        if field::<u64>(source.address, OFFSET_COOKIE.load()) == Some(source.cookie) {
            seen |= SEEN_SOURCE;
            seen |= match blocks(source.address) {
                Some(true) => SEEN_SOURCE_OWNED | SEEN_SOURCE_BLOCKS,
                Some(false) => SEEN_SOURCE_OWNED,
                None => 0,
            };
            let written = field::<u32>(source.address, OFFSET_WRITE_SEQ.load()).unwrap_or(0);
            (*flow).seen_written = written.wrapping_sub((*flow).source_base);
        }
        if field::<u64>(target.address, OFFSET_COOKIE.load()) == Some(target.cookie) {
            seen |= SEEN_TARGET;
            (*flow).seen_waiting = field::<u32>(target.address, OFFSET_RMEM.load()).unwrap_or(u32::MAX);
            let copied = field::<u32>(target.address, OFFSET_COPIED_SEQ.load()).unwrap_or(0);
            (*flow).seen_copied = copied.wrapping_sub((*flow).target_base);
        }
        (*flow).seen = seen;
    }
    1
}

/// Reads a field of a kernel structure. The address may be stale: then the read fails or gives anything, and what
/// depends on it is only ever which way bytes take.
#[inline(always)]
fn field<T>(address: u64, offset: u32) -> Option<T> {
    if address == 0 {
        return None;
    }
    // SAFETY: probe_read checks the address.
    unsafe { bpf_probe_read_kernel((address + offset as u64) as *const T) }.ok()
}

/// Reads a field that another CPU may write at any time.
///
/// # Safety
/// `field` points into a map value.
#[inline(always)]
unsafe fn volatile<T: Copy>(field: *const T) -> T {
    // SAFETY: the caller's.
    unsafe { core::ptr::read_volatile(field) }
}
