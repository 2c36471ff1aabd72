//! sock_ops: the kernel's own count of the established connections of each backend.
//!
//! The daemon tells before it connects a socket which backend it is for, so that connections of other processes in the
//! same cgroup don't count. The kernel keeps that with the socket and drops it with it.

use core::ptr::null_mut;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::{btf_map, map, sock_ops};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::SockOpsContext;
use edge_common::MAX_BACKENDS;

use crate::atomic;

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The slot of an upstream socket's backend.
#[btf_map]
static BACKEND_OF: SkStorage<u32> = SkStorage::new();
/// Established connections by backend slot.
#[map]
static BACKEND_CONNECTIONS: Array<u64> = Array::with_max_entries(MAX_BACKENDS, BPF_F_MMAPABLE);

#[sock_ops]
pub fn count(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx),
        // Told once more for a socket that is closed already, it would be counted out twice.
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE && ctx.arg(0) != BPF_TCP_CLOSE => closed(&ctx),
        _ => {}
    }
    1
}

fn established(ctx: &SockOpsContext) {
    if let Some(count) = counter(ctx) {
        // The callback is what brings us to `closed`; without it the connection must not be counted.
        if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok() {
            // SAFETY: `count` points into a map value.
            unsafe { atomic::fetch_add(count, 1) };
        }
    }
}

fn closed(ctx: &SockOpsContext) {
    if let Some(count) = counter(ctx) {
        // SAFETY: `count` points into a map value.
        unsafe { atomic::fetch_add(count, u64::MAX) };
    }
}

/// The count that the socket belongs to, if the daemon has told.
#[inline(always)]
fn counter(ctx: &SockOpsContext) -> Option<*mut u64> {
    // SAFETY: the context is valid while the program runs.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    let storage = (&raw const BACKEND_OF).cast_mut().cast();
    // SAFETY: `socket` is one, and what is kept with it lives as long; nothing is made where there is nothing.
    let slot = unsafe { bpf_sk_storage_get(storage, socket.cast(), null_mut(), 0).cast::<u32>().as_ref() }?;
    BACKEND_CONNECTIONS.get_ptr_mut(*slot)
}
