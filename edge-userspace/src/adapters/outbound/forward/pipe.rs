//! Pipes for splice(2): bytes go from socket to socket by reference, without a copy to userspace.
//!
//! A pipe belongs to a direction only while bytes are in it; in between it waits in its thread's pool.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes a new pipe is asked to hold. Its slots are what counts: one for each page or part of one, so that packets
/// of 1,448 bytes fill a pipe with a third of that.
const FIRST_SIZE: usize = 256 * 1024;
/// What a pipe grows to when slots run out before bytes do. More is refused without CAP_SYS_RESOURCE
/// (`fs.pipe-max-size`).
const FULL_SIZE: usize = 1024 * 1024;
/// Empty pipes that a thread keeps.
const KEPT: usize = 64;
/// Pipes of all threads together, in use and kept, at most. Each takes two file descriptors.
pub const MOST: usize = 512;

static ALL: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(MOST);

/// No more pipes than that, because file descriptors are wanted for connections.
pub fn limit(pipes: usize) {
    LIMIT.store(pipes.min(MOST), Ordering::Relaxed);
}

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, both ends non-blocking.
#[derive(Debug)]
pub(super) struct Pipe {
    input: OwnedFd,
    output: OwnedFd,
    held: usize,
    size: usize,
}

impl Pipe {
    /// An empty pipe; `None` if there are none left to have: then bytes are copied.
    pub(super) fn take() -> Option<Self> {
        POOL.with_borrow_mut(Vec::pop).or_else(|| Self::new().ok())
    }

    fn new() -> io::Result<Self> {
        if ALL.fetch_add(1, Ordering::Relaxed) >= LIMIT.load(Ordering::Relaxed) {
            ALL.fetch_sub(1, Ordering::Relaxed);
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut ends: [RawFd; 2] = [-1; 2];
        // SAFETY: writes two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } != 0 {
            ALL.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::last_os_error());
        }
        let [output, input] = ends;
        // SAFETY: fresh and ours.
        let (input, output) = unsafe { (OwnedFd::from_raw_fd(input), OwnedFd::from_raw_fd(output)) };
        let mut pipe = Self { input, output, held: 0, size: 0 };
        pipe.resize(FIRST_SIZE);
        Ok(pipe)
    }

    /// Keeps the pipe for others if it is empty and the pool has room; else closes it, with what is in it.
    pub(super) fn give_back(self) {
        if self.held == 0 {
            POOL.with_borrow_mut(|pool| {
                // Those that others might want are not kept.
                if pool.len() < KEPT && ALL.load(Ordering::Relaxed) <= LIMIT.load(Ordering::Relaxed) / 2 {
                    pool.push(self);
                }
            });
        }
    }

    /// Bytes in the pipe.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// More slots for the next fill, where fewer bytes came in one go than were there.
    pub(super) fn grow(&mut self) {
        if self.size < FULL_SIZE {
            self.resize(FULL_SIZE);
        }
    }

    /// Without CAP_SYS_RESOURCE a user's pipes share `fs.pipe-user-pages-soft`; where that is used up, the size stays.
    fn resize(&mut self, size: usize) {
        let asked = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
        // SAFETY: no pointers.
        let got = unsafe { libc::fcntl(self.input.as_raw_fd(), libc::F_SETPIPE_SZ, asked) };
        // Not asked for again either way.
        self.size = usize::try_from(got).unwrap_or(0).max(size);
    }

    /// Moves up to `most` bytes from `socket` into the pipe. 0 is the end of the stream.
    ///
    /// Only into an empty pipe: `WouldBlock` then says that the socket has nothing, and not that slots ran out.
    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "what is in the pipe goes out first");
        self.held = splice(socket.as_raw_fd(), self.input.as_raw_fd(), most)?;
        Ok(self.held)
    }

    /// Moves bytes from the pipe to `socket`.
    pub(super) fn drain(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = splice(self.output.as_raw_fd(), socket.as_raw_fd(), self.held)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        ALL.fetch_sub(1, Ordering::Relaxed);
    }
}

fn splice(from: RawFd, to: RawFd, most: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: neither end has an offset.
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), most, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_go_through_in_order_and_the_pipe_is_used_again() {
        let ((mut near, from), (to, mut far)) = (connected(), connected());
        near.write_all(b"first").unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(from.as_fd(), 1 << 16).unwrap(), 5);
        assert_eq!(pipe.drain(to.as_fd()).unwrap(), 5);
        let mut got = [0; 5];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"first");
        let ends = pipe.input.as_raw_fd();
        pipe.give_back();
        assert_eq!(Pipe::take().unwrap().input.as_raw_fd(), ends);
    }

    #[test]
    fn nothing_there_is_not_the_end() {
        let (near, from) = connected();
        from.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(from.as_fd(), 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(near);
        assert_eq!(pipe.fill(from.as_fd(), 100).unwrap(), 0);
    }

    /// Each slot takes a page, or what TCP has joined, however many bytes the pipe was asked to hold: the kernel moves
    /// what fits, and a grown pipe more.
    #[test]
    fn a_pipe_whose_slots_ran_out_takes_more_once_it_has_grown() {
        const BYTES: usize = 200_000;
        let fill = |pipe: &mut Pipe| {
            let (mut near, mut from) = connected();
            let sender = std::thread::spawn(move || near.write_all(&[7; BYTES]).unwrap());
            while socket_holds(&from) < BYTES / 4 {
                std::thread::yield_now();
            }
            let filled = pipe.fill(from.as_fd(), 1 << 20).unwrap();
            let mut rest = Vec::new();
            from.read_to_end(&mut rest).unwrap();
            sender.join().unwrap();
            assert_eq!(filled + rest.len(), BYTES, "nothing is lost between a fill and a read");
            filled
        };
        let mut pipe = Pipe::new().unwrap();
        pipe.resize(4096);
        let first = fill(&mut pipe);
        assert!(first < BYTES / 4, "{first} bytes in one go: the one slot did not run out");
        let mut grown = Pipe::new().unwrap();
        grown.resize(4096);
        grown.grow();
        assert!(fill(&mut grown) > first);
    }

    fn socket_holds(socket: &TcpStream) -> usize {
        let mut buffer = vec![0; 200_000];
        socket.peek(&mut buffer).unwrap()
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_not_kept() {
        let (mut near, from) = connected();
        near.write_all(b"left over").unwrap();
        let mut pipe = Pipe::take().unwrap();
        pipe.fill(from.as_fd(), 100).unwrap();
        pipe.give_back();
        assert_eq!(Pipe::take().unwrap().held(), 0);
    }
}
