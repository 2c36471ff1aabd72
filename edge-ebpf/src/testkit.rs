//! Not part of the daemon: a tc classifier that loses packets, for tests on kernels without netem.
#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Packets out of 1,000 to lose.
#[unsafe(no_mangle)]
static DROP_PER_MILLE: Global<u32> = Global::new(0);

#[classifier]
pub fn drop_random(_: TcContext) -> i32 {
    // SAFETY: no arguments.
    let dice = unsafe { bpf_get_prandom_u32() } % 1_000;
    if dice < DROP_PER_MILLE.load() { TC_ACT_SHOT } else { TC_ACT_OK }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
