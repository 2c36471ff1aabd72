//! The socket calls that tokio and socket2 don't offer. All non-blocking, none takes ownership.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::LazyLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

/// Receives what is there. `Ok(0)` is the end of the stream.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is valid for its length.
    let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// What one read brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) len: usize,
    /// There is more to be read at once: bytes, or the end of the stream.
    pub(super) more: bool,
}

/// Receives what is there, and learns whether that was all, from a socket with [`count_what_is_left`]. That costs a
/// tenth to half a microsecond, by the machine; a second read that finds nothing costs as much or more.
pub(super) fn receive_counted(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Room for one control message that holds an int; as u64s, which are aligned as its header must be.
    let mut control = [0_u64; 3];
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to a piece and a control buffer that are valid for their lengths.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled in the message.
    let left = unsafe { left_in_queue(&message) };
    Ok(Received { len, more: left.map_or(len == buffer.len(), |left| left > 0) })
}

/// What the kernel says is left to be read, behind a read from a socket with [`count_what_is_left`].
///
/// # Safety
/// `message` was filled in by `recvmsg`, and its control buffer is still there.
unsafe fn left_in_queue(message: &libc::msghdr) -> Option<libc::c_int> {
    // SAFETY: the caller's; the macro checks that the buffer holds a header.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    let is_count = header.cmsg_level == libc::IPPROTO_TCP && header.cmsg_type == TCP_INQ;
    // SAFETY: such a message holds one int.
    is_count.then(|| unsafe { libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned() })
}

/// Of `linux/tcp.h`. The control message has the number of the option.
const TCP_INQ: libc::c_int = 36;

/// Has reads tell how much is left in the queue.
pub(crate) fn count_what_is_left(socket: BorrowedFd<'_>) {
    // Without it, a read that fills its buffer counts as one behind which there is more.
    let _ = set_option(socket, libc::IPPROTO_TCP, TCP_INQ, 1);
}

#[cfg(test)]
pub(crate) fn counts_what_is_left(socket: BorrowedFd<'_>) -> bool {
    get_option::<libc::c_int>(socket, libc::IPPROTO_TCP, TCP_INQ).is_ok_and(|on| on == 1)
}

/// Queues as much as fits.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the buffer is valid for its length.
    let n = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// The socket's cookie: unique while the host runs, the key of all maps.
pub(super) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    get_option(socket, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// Makes the kernel look at what is queued, so that data from before the insertion passes the verdict.
///
/// Setting SO_RCVLOWAT calls `sk_data_ready`; `recv` would do so too, but leaves `copied_seq` wrong for good.
pub(super) fn kick(socket: BorrowedFd<'_>) {
    let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1);
}

/// Reports the socket as readable only once so many bytes are there, or its end.
pub(crate) fn set_low_water(socket: BorrowedFd<'_>, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes);
}

/// Closing this socket sends a reset and discards what is unsent.
pub(super) fn reset_on_close(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Bytes in the send queue that the peer has not acknowledged (`write_seq - snd_una`).
pub(super) fn unacknowledged(socket: BorrowedFd<'_>) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (TIOCOUTQ) writes one int.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if rc == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Bytes that can be read now, as applications ask for it (FIONREAD).
pub(super) fn readable(socket: BorrowedFd<'_>) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    if rc == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Lets TCP take what the send buffer has room for, however much of it is not sent yet: the room that the verdict looks at.
///
/// With a low `net.ipv4.tcp_notsent_lowat` the kernel's worker would stop while there is room, with what was redirected
/// on nobody's account.
pub(super) fn take_what_has_room(socket: BorrowedFd<'_>) {
    let no_mark = -1;
    let _ = set_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, no_mark);
}

/// Lets the socket's send buffer take `more` bytes beyond what it may hold now; wakes the kernel's writer.
///
/// Beyond `net.core.wmem_max` this needs CAP_NET_ADMIN, which the daemon has given up: the buffer grows as far as it may.
pub(super) fn enlarge_send_buffer(socket: BorrowedFd<'_>, more: u64) {
    let now: libc::c_int = get_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap_or(0);
    // The kernel doubles what is asked for, to account for its own overhead per buffer.
    let want = i64::from(now) / 2 + i64::try_from(more).unwrap_or(0);
    let want = libc::c_int::try_from(want).unwrap_or(libc::c_int::MAX / 2);
    // Asked for too much the kernel takes what it allows, and that may be less than there is by its own tuning.
    let want = want.min(*WMEM_MAX);
    if want > now / 2 {
        let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, want);
    }
}

/// `net.core.wmem_max`, bytes; the kernel's default where it can't be read.
static WMEM_MAX: LazyLock<libc::c_int> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap_or_default();
    text.trim().parse().unwrap_or(212_992)
});

/// Whether the send buffer has room again, by the kernel's measure (a third of what it holds), which is also when it wakes
/// whoever waits for that. Not where it can't be told.
pub(super) fn is_writable(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut asked, Some(&now)), Ok(1)) && asked[0].revents().contains(PollFlags::OUT)
}

/// What TCP says of a socket, read in one consistent call.
#[derive(Debug, Clone, Copy)]
pub(super) struct TcpInfo {
    /// `TCP_CLOSE`: nothing goes in or out any more.
    pub(super) closed: bool,
    /// The peer's FIN came in, or nothing can come in any more.
    pub(super) fin: bool,
    /// Bytes received in order, a FIN counting as one.
    pub(super) received: u64,
    /// Bytes sent that the peer's TCP has acknowledged, counted from an arbitrary start; a FIN counts as one.
    pub(super) acked: u64,
    /// Since the last byte of payload came in.
    pub(super) quiet: Duration,
}

/// `struct tcp_info` of the kernel's stable interface (`linux/tcp.h`), as far as it is used.
#[repr(C)]
struct RawTcpInfo {
    state: u8,
    _bits: [u8; 7],
    _to_unacked: [u32; 4],
    unacked: u32,
    _to_last_data_recv: [u32; 6],
    last_data_recv: u32,
    last_ack_recv: u32,
    _to_rtt: [u32; 2],
    rtt: u32,
    _to_total_retrans: [u32; 8],
    _pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    _to_min_rtt: [u32; 3],
    min_rtt: u32,
}

const _: () = {
    assert!(std::mem::offset_of!(RawTcpInfo, unacked) == 24);
    assert!(std::mem::offset_of!(RawTcpInfo, rtt) == 68);
    assert!(std::mem::offset_of!(RawTcpInfo, min_rtt) == 148);
    assert!(std::mem::offset_of!(RawTcpInfo, bytes_acked) == 120);
    assert!(std::mem::offset_of!(RawTcpInfo, bytes_received) == 128);
};

const TCP_CLOSE: u8 = 7;
/// TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING (`net/tcp_states.h`).
const FIN_RECEIVED: [u8; 5] = [6, TCP_CLOSE, 8, 9, 11];

pub(super) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let raw = raw_tcp_info(socket)?;
    Ok(TcpInfo {
        closed: raw.state == TCP_CLOSE,
        fin: FIN_RECEIVED.contains(&raw.state),
        received: raw.bytes_received,
        acked: raw.bytes_acked,
        quiet: Duration::from_millis(u64::from(raw.last_data_recv)),
    })
}

/// What was acknowledged longer ago says nothing about now.
const ACKNOWLEDGED_LATELY: Duration = Duration::from_secs(2);

/// By so much, beyond twice the least, a smoothed time may differ without meaning anything.
const JITTER_MICROS: u32 = 1_000;

/// The smoothed round-trip time (`srtt`, RFC 6298), if it is of now and tells of the way.
///
/// A peer that has nothing to answer yet delays its acknowledgements, by 40 ms and more in Linux, and TCP counts that.
/// So a smoothed time of more than twice the least one of this connection is left out; connects tell of ways that have
/// become longer.
pub(super) fn round_trip(socket: BorrowedFd<'_>) -> Option<Duration> {
    let info = raw_tcp_info(socket).ok()?;
    let lately = u128::from(info.last_ack_recv) <= ACKNOWLEDGED_LATELY.as_millis();
    // `u32::MAX`, or 0 from a kernel that doesn't tell, is no bound.
    let bound = info.min_rtt.wrapping_sub(1).saturating_mul(2).saturating_add(JITTER_MICROS);
    (lately && info.rtt > 0 && info.rtt <= bound).then(|| Duration::from_micros(info.rtt.into()))
}

/// Connections in the queue of a listening socket (`sk_ack_backlog`).
pub(crate) fn queue_len(listener: BorrowedFd<'_>) -> u32 {
    raw_tcp_info(listener).map_or(0, |info| info.unacked)
}

fn raw_tcp_info(socket: BorrowedFd<'_>) -> io::Result<RawTcpInfo> {
    get_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)
}

/// TCP's count of what came in order, and what of it was not read yet; `None` while more keeps coming.
pub(super) fn received_and_unread(socket: BorrowedFd<'_>) -> Option<(TcpInfo, u64)> {
    let mut before = tcp_info(socket).ok()?;
    for _ in 0..LOOKS {
        let unread = readable(socket);
        let now = tcp_info(socket).ok()?;
        if now.received == before.received {
            return Some((now, unread));
        }
        before = now;
    }
    None
}

/// The count of packets that the socket dropped (`SK_MEMINFO_DROPS`), old duplicates and ends of streams among them.
pub(super) fn drops(socket: BorrowedFd<'_>) -> u32 {
    /// Of `linux/sock_diag.h`: the last of nine values of SO_MEMINFO.
    const DROPS: usize = 8;
    get_option::<[u32; DROPS + 1]>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO).map_or(0, |values| values[DROPS])
}

/// How often [`taken_over`] looks before it gives up; acknowledgements come in between now and then.
const LOOKS: usize = 16;

/// Bytes that the socket's TCP has taken over for sending, sent or not, counted from an arbitrary start; before a FIN.
///
/// What is acknowledged plus what is not (`write_seq - snd_una`), when no acknowledgement came in between the two
/// calls. `bytes_sent - bytes_retrans + notsent_bytes` looks as good and takes one call, but counts twice what the
/// device's queue refused to take: under local drops it says that bytes are out which are not.
pub(super) fn taken_over(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    for _ in 0..LOOKS {
        let before = raw_tcp_info(socket)?.bytes_acked;
        let waiting = unacknowledged(socket);
        if raw_tcp_info(socket)?.bytes_acked == before {
            return Ok(Some(before + waiting));
        }
    }
    Ok(None)
}

/// Reads an option of plain-old-data type; the kernel may fill less of it than we know, never more.
fn get_option<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes; callers use integers and `repr(C)` structs of integers only.
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len) };
    // SAFETY: zero is a valid value of every such type.
    if rc == 0 { Ok(unsafe { value.assume_init() }) } else { Err(io::Error::last_os_error()) }
}

fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: passes one int.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
