//! Types of the path between two applications of this host (`sk_msg`), see `docs/same-host.md`.

/// Flow records of same-host pairs: four per connection, see [`LocalFlow`].
pub const MAX_LOCAL_FLOWS: u32 = 32_768;

/// Sockets of local applications that the programs hold at once.
pub const MAX_LOCAL_SOCKETS: u32 = 65_536;

/// Connections whose ends the kernel remembers from their establishment until they are paired.
pub const MAX_ENDS: u32 = 16_384;

/// What a message costs in kernel memory beyond its bytes: `struct sk_msg` comes from the slab of 1 KiB.
pub const MESSAGE_OVERHEAD: u32 = 1024;

/// One end of a TCP connection: the sequence numbers of the first byte it sends and of the first it receives. The
/// other end has the same two numbers the other way round, wherever it is and whatever translates its addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct End {
    pub sends_from: u32,
    pub receives_from: u32,
}

impl End {
    /// The same connection as the other end sees it.
    pub const fn other(self) -> Self {
        Self { sends_from: self.receives_from, receives_from: self.sends_from }
    }
}

/// A socket, by the name and the place the kernel has for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LocalSocket {
    pub cookie: u64,
    /// Address of its `struct sock`. Only ever read through, after the cookie there was compared.
    pub address: u64,
}

/// A socket of the daemon: its end of a connection and the place the kernel has for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OwnSocket {
    pub end: End,
    /// As in [`LocalSocket`].
    pub address: u64,
}

/// The addresses of a connection, as one end sees them; IPv4 in the first word, the others zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Addresses {
    pub local: [u32; 4],
    pub remote: [u32; 4],
    /// In host order, as the next.
    pub local_port: u32,
    pub remote_port: u32,
}

/// What one socket hands over to an application's. A pair has four: from each application to the other, and from the
/// daemon to each application. The cache lines belong to: constants, the sender's program, userspace and the program
/// that looks for it.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub struct LocalFlow {
    pub source: LocalSocket,
    pub target: LocalSocket,
    /// `write_seq` of the source before its first byte.
    pub source_base: u32,
    /// `copied_seq` of the target before its first byte.
    pub target_base: u32,
    /// Not zero: the source is the daemon's socket, which looks for order and room itself.
    pub relay: u32,
    _constant: [u32; 5],

    /// Bytes put straight into the target's queue. Written by the verdict only, as are all of this line.
    pub redirected: u64,
    pub messages: u64,
    /// Messages that took the way through TCP.
    pub passes: u64,
    /// Messages that took it because the target had no room.
    pub spills: u64,
    /// Messages up to here have been read.
    pub read_messages: u64,
    /// Once the bytes up to here have been read, so have the messages up to the next field.
    pub mark_bytes: u64,
    pub mark_messages: u64,
    /// Bytes that the daemon's socket left to the target's TCP, since the target can't have them handed over: then
    /// nothing more is, by anybody, or it would be read before them.
    pub by_tcp: u64,

    /// Not zero: nothing is redirected. Written by userspace only, as is the next.
    pub gate: u32,
    /// Of the bytes that the source sent through TCP, those that the daemon has handed over; the lower 32 bits.
    pub consumed: u32,
    /// Written by the program `look` when userspace asks, as is what follows: whether both sockets are what they were.
    pub seen: u32,
    /// Bytes the source gave to TCP.
    pub seen_written: u32,
    /// Bytes that the target's application has read from TCP: none, if all is well.
    pub seen_copied: u32,
    /// Bytes handed over that the target's application has not read.
    pub seen_waiting: u32,
    _user: [u64; 5],
}

impl LocalFlow {
    /// A fresh record of the direction from `source` to `target`, whose streams of bytes begin where their ends say.
    pub fn between(source: LocalSocket, source_end: End, target: LocalSocket, target_end: End) -> Self {
        let (source_base, target_base) = (source_end.sends_from, target_end.receives_from);
        Self { source, target, source_base, target_base, ..Self::default() }
    }

    /// What the daemon's socket `relay` hands over to the same target.
    pub fn by_relay(self, relay: LocalSocket) -> Self {
        Self { relay: 1, source: relay, ..self }
    }
}

/// [`LocalFlow::seen`]: the source is still the socket of the record.
pub const SEEN_SOURCE: u32 = 1;
/// [`LocalFlow::seen`]: the target is still the socket of the record.
pub const SEEN_TARGET: u32 = 2;
/// [`LocalFlow::seen`]: the source's application reads with blocking calls.
pub const SEEN_SOURCE_BLOCKS: u32 = 4;
/// [`LocalFlow::seen`]: the source was accepted, or made, by an application.
pub const SEEN_SOURCE_OWNED: u32 = 8;

/// Settings of all same-host flows. Written by userspace only.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(8))]
pub struct LocalControl {
    /// Not zero: nothing is redirected (the kill switch).
    pub gate_all: u32,
    /// Bytes that may wait for a target's application, the cost of their messages included.
    pub budget: u32,
}

const _: () = {
    assert!(size_of::<LocalFlow>() == 192);
    assert!(core::mem::offset_of!(LocalFlow, redirected) == 64);
    assert!(core::mem::offset_of!(LocalFlow, gate) == 128);
    assert!(size_of::<LocalControl>() == 8);
    assert!(size_of::<End>() == 8);
};

#[cfg(feature = "user")]
mod user {
    #![allow(unsafe_code)]
    // SAFETY: `repr(C)`, made of integers only, every byte pattern is valid and padding is explicit.
    unsafe impl aya::Pod for super::End {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LocalSocket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::OwnSocket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LocalFlow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LocalControl {}
}
