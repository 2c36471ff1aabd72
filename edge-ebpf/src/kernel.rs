//! Fields of kernel structures, at offsets that the daemon takes from the running kernel's BTF.

use aya_ebpf::Global;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_skc_to_tcp_sock};

/// Offset of `tcp_sock.copied_seq`, bytes.
#[unsafe(no_mangle)]
pub static OFFSET_COPIED_SEQ: Global<u32> = Global::new(0);
/// Offset of `tcp_sock.write_seq`, bytes.
#[unsafe(no_mangle)]
pub static OFFSET_WRITE_SEQ: Global<u32> = Global::new(0);
/// Offset of `sock.sk_wmem_queued`, bytes.
#[unsafe(no_mangle)]
static OFFSET_WMEM_QUEUED: Global<u32> = Global::new(0);
/// Offset of `sock.sk_sndbuf`, bytes.
#[unsafe(no_mangle)]
static OFFSET_SNDBUF: Global<u32> = Global::new(0);
/// Offset of `sk_buff.cb`, bytes. `tcp_skb_cb.seq` is the first field of what TCP keeps there.
#[unsafe(no_mangle)]
static OFFSET_CB: Global<u32> = Global::new(0);

/// Reads a `u32` of the TCP socket behind `sock`. `None` if it is no TCP socket.
///
/// # Safety
/// `sock` is null or a socket pointer known to the verifier.
#[inline(always)]
unsafe fn tcp_field(sock: *mut c_void, offset: u32) -> Option<u32> {
    if sock.is_null() {
        return None;
    }
    // SAFETY: the helper takes any socket the verifier knows and returns null for what is not TCP.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sock) }.cast::<u8>();
    if tcp.is_null() {
        return None;
    }
    // SAFETY: probe_read checks the address; the offset was taken from this kernel's own BTF.
    unsafe { bpf_probe_read_kernel(tcp.add(offset as usize).cast::<u32>()) }.ok()
}

/// `tcp_sock.write_seq`: the sequence number after the last byte queued for sending.
///
/// # Safety
/// As for [`tcp_field`].
#[inline(always)]
pub unsafe fn write_seq(sock: *mut c_void) -> Option<u32> {
    // SAFETY: the caller's.
    unsafe { tcp_field(sock, OFFSET_WRITE_SEQ.load()) }
}

/// What the socket's send buffer can still take: `sk_sndbuf - sk_wmem_queued`, negative where it is over-full. A
/// `tcp_sock` begins with its `sock`.
///
/// # Safety
/// As for [`tcp_field`].
#[inline(always)]
pub unsafe fn send_room(sock: *mut c_void) -> Option<i32> {
    // SAFETY: the caller's.
    let (size, queued) =
        unsafe { (tcp_field(sock, OFFSET_SNDBUF.load())?, tcp_field(sock, OFFSET_WMEM_QUEUED.load())?) };
    Some((size as i32).wrapping_sub(queued as i32))
}

/// `tcp_sock.copied_seq` of the socket that received this skb.
#[inline(always)]
pub fn copied_seq(skb: *mut __sk_buff) -> Option<u32> {
    // SAFETY: the context is valid while the program runs; the verifier rewrites the access to `sk`.
    let sock = unsafe { (*skb).__bindgen_anon_2.sk };
    // SAFETY: `sk` of the context is a socket pointer or null.
    unsafe { tcp_field(sock.cast(), OFFSET_COPIED_SEQ.load()) }
}

/// The sequence number of the skb's first byte.
#[inline(always)]
pub fn skb_seq(skb: *mut __sk_buff) -> Option<u32> {
    // SAFETY: at run time the context of an sk_skb program *is* the kernel's sk_buff; probe_read checks the address.
    unsafe { bpf_probe_read_kernel(skb.cast::<u8>().add(OFFSET_CB.load() as usize).cast::<u32>()) }.ok()
}
