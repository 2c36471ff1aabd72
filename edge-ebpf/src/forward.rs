//! sk_skb stream verdict: forwards the bytes of an established pair without waking the daemon.
//!
//! What makes this lossless is written in `docs/kernel-path.md`; the numbers below are its rules.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_map_lookup_elem, bpf_sk_release};
use aya_ebpf::macros::{map, stream_verdict};
use aya_ebpf::maps::{Array, HashMap, RingBuf, SockHash};
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::{debug, warn};
use edge_common::{BASED, Control, EVENTS_BYTES, Flow, GATE_FOR_LIFE, MAX_FLOWS, STARTED};

use crate::{atomic, kernel};

const BPF_F_MMAPABLE: u32 = 1 << 10;
/// `bpf_skb_adjust_room` takes at most this many bytes off a socket's skb in one call.
const TRIM_STEP: u32 = 4095;
/// What an skb costs the send buffer besides its payload, bytes: the kernel's own structures (`SKB_TRUESIZE`).
const SKB_OVERHEAD: u64 = 1280;
/// A large skb becomes several, of at most 17 fragments each: about an eighth of the payload more.
const SHARE_OF_OVERHEAD: u64 = 8;
/// Enough steps for the largest skb, 64 KiB.
const TRIM_STEPS: u32 = 17;

/// Sockets of offloaded pairs by cookie: carries the verdict and is the target of redirects.
#[map]
static SOCKETS: SockHash<u64> = SockHash::with_max_entries(MAX_FLOWS, 0);
/// Cookie of a socket to the slot of the direction that begins there.
#[map]
static SLOTS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_FLOWS, 0);
#[map]
static FLOWS: Array<Flow> = Array::with_max_entries(MAX_FLOWS, BPF_F_MMAPABLE);
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Slots of directions that userspace must attend to.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

#[stream_verdict]
pub fn forward(ctx: SkBuffContext) -> u32 {
    // SAFETY: the context is valid; for an sk_skb program the helper reads the cookie of skb->sk.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    // SAFETY: the value is a plain integer that userspace sets before the socket is inserted.
    let Some(slot) = (unsafe { SLOTS.get(cookie) }).copied() else {
        return SK_PASS;
    };
    let (Some(flow), Some(control)) = (FLOWS.get_ptr_mut(slot), CONTROL.get_ptr(0)) else {
        return SK_PASS;
    };
    // SAFETY: both point into map values, which live as long as the program; each field has one writer, and this
    // program runs under the socket's lock, so it is the only one to run for this flow.
    unsafe { decide(&ctx, slot, flow, control) }
}

/// # Safety
/// `flow` and `control` point to map values.
#[inline(always)]
unsafe fn decide(ctx: &SkBuffContext, slot: u32, flow: *mut Flow, control: *const Control) -> u32 {
    // SAFETY: the caller's.
    unsafe {
        if ctx.len() == 0 {
            // A FIN. Redirected it breaks the peer, passed it can kill this socket's own backlog; the end of the
            // stream is seen on the socket all the same.
            (*flow).fins += 1;
            return SK_DROP;
        }
        if !trim_overlap(ctx, flow) {
            // Cannot be answered without corrupting the stream: drop visibly. The byte counts at the end differ and
            // the daemon switches the kernel path off.
            warn!(ctx, "slot {}: overlap of a retransmission could not be cut off", slot);
            return SK_DROP;
        }
        let len = ctx.len();
        if len == 0 {
            return SK_DROP;
        }
        let gated =
            volatile(&raw const (*flow).gate) & GATE_FOR_LIFE != 0 || volatile(&raw const (*control).gate_all) != 0;
        // Userspace still owes bytes that came before these: nothing may overtake them.
        let behind = (*flow).passed != volatile(&raw const (*flow).consumed);
        if gated || behind {
            return pass(slot, flow, len);
        }
        if !has_room(flow, len, volatile(&raw const (*control).backlog_limit)) {
            if (*flow).spills == 0 {
                debug!(ctx, "slot {}: first spill to userspace", slot);
            }
            (*flow).spills += 1;
            return pass(slot, flow, len);
        }
        let peer = (*flow).peer;
        if SOCKETS.redirect_skb(ctx, peer, 0) as u32 != SK_PASS {
            debug!(ctx, "slot {}: redirect refused, left to userspace", slot);
            return pass(slot, flow, len);
        }
        (*flow).redirected += len as u64;
        (*flow).skbs += 1;
        SK_PASS
    }
}

/// Leaves the bytes to userspace, and tells it if it had caught up with everything before them.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn pass(slot: u32, flow: *mut Flow, len: u32) -> u32 {
    // SAFETY: the caller's. The addition is a full barrier: of "userspace publishes consumed, then looks at passed"
    // and "BPF adds to passed, then looks at consumed" at least one sees the other, so no wake-up is lost.
    unsafe {
        let before = atomic::fetch_add(&raw mut (*flow).passed, len as u64);
        if volatile(&raw const (*flow).consumed) == before {
            // A full ring loses the event; the daemon's sweep finds the flow within 100 ms.
            let _ = EVENTS.output::<u32>(slot, 0);
        }
    }
    SK_PASS
}

/// Whether the peer's socket can take `len` more bytes: its own send buffer must have room for them, and no more than
/// `limit` may wait in front of it.
///
/// A redirect un-charges the skb and opens the sender's window, so the list in front of the peer would grow without
/// bound; no counter of the kernel shows it. What waits is what was given to the peer less what it took over. With
/// room in the send buffer the kernel's worker never has to stop half-way, so that the list is empty again at once.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn has_room(flow: *mut Flow, len: u32, limit: u32) -> bool {
    // SAFETY: the caller's; the looked-up socket is released on every way out.
    unsafe {
        let peer = (*flow).peer;
        let sock = bpf_map_lookup_elem((&raw const SOCKETS).cast_mut().cast::<c_void>(), (&raw const peer).cast());
        if sock.is_null() {
            // Not (or no longer) in the map: a redirect would drop the bytes.
            return false;
        }
        let (taken, free) = (kernel::write_seq(sock), kernel::send_room(sock));
        bpf_sk_release(sock);
        let (Some(taken), Some(free)) = (taken, free) else { return false };
        let given = ((*flow).redirected as u32).wrapping_add(volatile(&raw const (*flow).user_written) as u32);
        if (*flow).marks & BASED == 0 {
            // Nothing was redirected yet and userspace has nothing in flight (passed == consumed).
            (*flow).peer_base = taken.wrapping_sub(given);
            (*flow).marks |= BASED;
        }
        let before = given.wrapping_sub(taken.wrapping_sub((*flow).peer_base));
        let skbs = if before == 0 { 1 } else { (*flow).waiting_skbs.saturating_add(1) };
        (*flow).waiting_skbs = skbs;
        let waiting = before.saturating_add(len);
        let cost = u64::from(waiting) + u64::from(waiting) / SHARE_OF_OVERHEAD + u64::from(skbs) * SKB_OVERHEAD;
        waiting <= limit && cost as i64 <= i64::from(free)
    }
}

/// Cuts off the bytes of the skb that were already forwarded: the overlap of a retransmission, or what was read
/// before the socket was inserted. False if that failed.
///
/// # Safety
/// `flow` points to a map value.
#[inline(always)]
unsafe fn trim_overlap(ctx: &SkBuffContext, flow: *mut Flow) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let Some(seq) = kernel::skb_seq(ctx.skb.skb) else { return false };
        if (*flow).marks & STARTED == 0 {
            let Some(start) = kernel::copied_seq(ctx.skb.skb) else { return false };
            (*flow).start_seq = start;
            (*flow).marks |= STARTED;
        }
        // Not copied_seq itself: that lags behind while userspace has passed bytes to read.
        let next = (*flow).start_seq.wrapping_add((*flow).redirected as u32).wrapping_add((*flow).passed as u32);
        let mut overlap = next.wrapping_sub(seq);
        if overlap as i32 <= 0 {
            return true;
        }
        (*flow).trimmed += overlap as u64;
        for _ in 0..TRIM_STEPS {
            let step = if overlap > TRIM_STEP { TRIM_STEP } else { overlap };
            if ctx.adjust_room(-(step as i32), 0, 0).is_err() {
                return false;
            }
            overlap -= step;
            if overlap == 0 {
                return true;
            }
        }
        false
    }
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
