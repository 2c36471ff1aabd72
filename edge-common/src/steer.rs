//! What the daemon tells the `sk_lookup` program, which steers connections to sockets that are not bound to where they
//! go.
//!
//! The policy is there twice: one side is in force while the other one is written, so that a change is one store.

/// Ports of one address.
pub const PORTS: usize = 65_536;

/// Prefixes in both sides of the policy together (`STEER_PREFIXES`). Memory is taken for those that are there only.
pub const MAX_STEER_PREFIXES: u32 = 1 << 18;

/// Bits of [`Destination`] before the address: side, family and class are always compared as a whole.
pub const DESTINATION_FIXED_BITS: u32 = 32;

/// In `STEER_SOCKETS`.
pub const STEER_SOCKET_V4: u32 = 0;
pub const STEER_SOCKET_V6: u32 = 1;

/// [`Destination::family`].
pub const FAMILY_V4: u8 = 4;
pub const FAMILY_V6: u8 = 6;

/// Value of `STEER_PREFIXES`: the connection goes to our socket.
pub const STEER: u32 = 1;
/// Value of `STEER_PREFIXES`: a socket is bound there, ours or another program's, which is more specific.
pub const LEAVE: u32 = 2;

/// Places of `STEER_COUNTS`, each counted by the program: given to our socket.
pub const STEERED: u32 = 0;
/// Left to a socket that is bound there.
pub const LEFT: u32 = 1;
/// Meant for our socket, which is not there.
pub const NO_SOCKET: u32 = 2;
/// Number of counters.
pub const STEER_COUNTS: u32 = 3;

/// For each port the class it belongs to. Ports that the same places hold are of one class; those that none holds are
/// of class 0, which has no prefixes.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct PortClasses(pub [u16; PORTS]);

/// Which side is in force. Written by userspace only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Steering {
    /// 0 for none, else the number of the side plus one.
    pub active: u32,
}

/// The key of `STEER_PREFIXES`, a longest-prefix-match trie: what stands first is compared as a whole, the address as
/// far as the entry's prefix goes. So a lookup gives the longest prefix among those that hold the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Destination {
    /// 0 or 1.
    pub side: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]: `::/0` must not match IPv4.
    pub family: u8,
    pub class: u16,
    /// In network order; IPv4 in the first four bytes.
    pub address: [u8; 16],
}

const _: () = {
    assert!(size_of::<PortClasses>() == 131_072);
    assert!(size_of::<Destination>() == 20);
    assert!(core::mem::offset_of!(Destination, address) * 8 == DESTINATION_FIXED_BITS as usize);
};

#[cfg(feature = "user")]
mod user {
    #![allow(unsafe_code)]
    // SAFETY: made of integers only, every byte pattern is valid and there is no padding.
    unsafe impl aya::Pod for super::PortClasses {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Steering {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Destination {}
}
