//! The programs that the daemon loads. Each verdict has its reason and its counter.
//!
//! - [`forward`]: sk_skb stream verdict; redirects an established pair's bytes between its sockets.
//! - [`count`]: sock_ops; counts the connections of each backend.
//! - [`local`]: sk_msg and what belongs to it; hands bytes from one application of this host straight to another.
//!
//! aya has no CO-RE for programs in Rust, so the offsets of kernel fields come from the running kernel's BTF and are
//! set as read-only globals before loading ([`kernel`]).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod count;
mod forward;
mod kernel;
mod local;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
