//! sock_ops: the kernel's own count of the established connections of each backend.
//!
//! The daemon names its upstream sockets by cookie before it connects them, so that connections of other processes
//! in the same cgroup don't count.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::macros::{map, sock_ops};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::SockOpsContext;
use edge_common::{MAX_BACKEND_SOCKETS, MAX_BACKENDS};

use crate::atomic;

const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_F_NO_PREALLOC: u32 = 1;

/// Cookie of an upstream socket to its backend's slot.
#[map]
static BACKEND_SOCKETS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_BACKEND_SOCKETS, BPF_F_NO_PREALLOC);
/// Established connections by backend slot.
#[map]
static BACKEND_CONNECTIONS: Array<u64> = Array::with_max_entries(MAX_BACKENDS, BPF_F_MMAPABLE);

#[sock_ops]
pub fn count(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => closed(&ctx),
        _ => {}
    }
    1
}

fn established(ctx: &SockOpsContext) {
    if let Some(count) = counter(cookie(ctx)) {
        // The callback is what brings us to `closed`; without it the connection must not be counted.
        if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok() {
            // SAFETY: `count` points into a map value.
            unsafe { atomic::fetch_add(count, 1) };
        }
    }
}

fn closed(ctx: &SockOpsContext) {
    let cookie = cookie(ctx);
    if let Some(count) = counter(cookie) {
        // SAFETY: `count` points into a map value.
        unsafe { atomic::fetch_add(count, u64::MAX) };
        let _ = BACKEND_SOCKETS.remove(cookie);
    }
}

fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn counter(cookie: u64) -> Option<*mut u64> {
    // SAFETY: a plain integer, set by userspace before connect.
    let slot = unsafe { BACKEND_SOCKETS.get(cookie) }.copied()?;
    BACKEND_CONNECTIONS.get_ptr_mut(slot)
}
