//! Which TCP sockets listen in this network namespace, whoever owns them.

mod diag;
mod proc;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

/// One listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListeningSocket {
    pub addr: SocketAddr,
    /// Tells sockets apart while they live.
    pub inode: u64,
}

/// The sockets that listen on this host, and which of them are ours.
#[derive(Debug)]
pub struct HostSockets {
    read: Read,
    /// As they were when they could be read last; `None` if they never could.
    known: Option<Vec<ListeningSocket>>,
    /// Inodes of our own, those included that are not listed yet.
    own: HashSet<u64>,
    /// Why they can't be read; that is told once.
    failure: Option<String>,
}

impl HostSockets {
    /// Of this network namespace.
    pub fn new() -> Self {
        Self::read_by(listening)
    }

    fn read_by(read: Read) -> Self {
        Self { read, known: None, own: HashSet::new(), failure: None }
    }

    /// Reads them again. Where that fails, for want of descriptors or memory, the last list stays: an empty one would
    /// have other programs' sockets lose their clients, and our own taken for others'.
    pub fn look(&mut self) {
        match (self.read)() {
            Ok(sockets) => {
                let there: HashSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
                self.own.retain(|inode| there.contains(inode));
                self.known = Some(sockets);
                self.failure = None;
            }
            Err(why) => {
                let why = format!("the listening sockets of this host can't be read: {why}");
                if self.failure.as_ref() != Some(&why) {
                    tracing::warn!("{why}");
                }
                self.failure = Some(why);
            }
        }
    }

    /// All that are known.
    pub fn all(&self) -> &[ListeningSocket] {
        self.known.as_deref().unwrap_or_default()
    }

    /// Where other programs listen. The error says why that was never to be known.
    pub fn foreign(&self) -> Result<Vec<SocketAddr>, &str> {
        match &self.known {
            Some(known) => Ok(known.iter().filter(|socket| !self.is_own(socket)).map(|socket| socket.addr).collect()),
            None => Err(self.failure.as_deref().unwrap_or("the listening sockets of this host were not read yet")),
        }
    }

    pub fn is_own(&self, socket: &ListeningSocket) -> bool {
        self.own.contains(&socket.inode)
    }

    /// A socket of ours, which may be on no list yet.
    pub fn add_own(&mut self, inode: u64) {
        self.own.insert(inode);
    }
}

impl Default for HostSockets {
    fn default() -> Self {
        Self::new()
    }
}

/// All of them: from `sock_diag`, or from /proc on a kernel without it.
pub fn listening() -> io::Result<Vec<ListeningSocket>> {
    static WITHOUT_DIAG: AtomicBool = AtomicBool::new(false);
    ask((diag::listening, proc::listening), &WITHOUT_DIAG)
}

type Read = fn() -> io::Result<Vec<ListeningSocket>>;

/// What the first says, or else the second. Once the first `never` answers it is not asked again: each time the kernel
/// would look for a module to load.
fn ask((first, second): (Read, Read), never: &AtomicBool) -> io::Result<Vec<ListeningSocket>> {
    if !never.load(Ordering::Relaxed) {
        match first() {
            Err(why) if !passes(&why) => {
                tracing::info!(%why, "the kernel can't be asked by sock_diag who listens on this host: /proc is read");
                never.store(true, Ordering::Relaxed);
            }
            // With little left /proc may still be had.
            Err(_) => {}
            found => return found,
        }
    }
    second()
}

/// Whether the same question may be answered the next time.
fn passes(why: &io::Error) -> bool {
    matches!(why.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EINTR))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn what_was_read_last_stays_while_nothing_can_be_read() {
        use std::cell::RefCell;

        thread_local! {
            static ANSWER: RefCell<Result<Vec<ListeningSocket>, i32>> = const { RefCell::new(Err(libc::EMFILE)) };
        }
        fn read() -> io::Result<Vec<ListeningSocket>> {
            ANSWER.with_borrow(|answer| answer.clone().map_err(io::Error::from_raw_os_error))
        }
        let socket = |port: u16, inode| ListeningSocket { addr: ([192, 0, 2, 1], port).into(), inode };
        let (ours, theirs) = (socket(80, 1), socket(81, 2));
        let mut sockets = HostSockets::read_by(read);
        sockets.add_own(ours.inode);
        sockets.look();
        assert!(sockets.foreign().unwrap_err().contains("Too many open files"));
        assert!(sockets.all().is_empty());
        ANSWER.set(Ok(vec![ours, theirs]));
        sockets.look();
        for error in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            ANSWER.set(Err(error));
            sockets.look();
            // One that was opened meanwhile.
            sockets.add_own(3);
            assert_eq!((sockets.foreign().unwrap(), sockets.all()), (vec![theirs.addr], &[ours, theirs][..]));
            assert!(sockets.is_own(&ours) && sockets.is_own(&socket(82, 3)) && !sockets.is_own(&theirs));
        }
        ANSWER.set(Ok(vec![theirs, socket(82, 3)]));
        sockets.look();
        assert_eq!(sockets.foreign().unwrap(), [theirs.addr]);
        assert!(!sockets.is_own(&ours) && sockets.is_own(&socket(82, 3)), "ours was closed");
    }

    #[test]
    fn a_kernel_that_can_not_be_asked_is_asked_once() {
        use std::sync::atomic::{AtomicI32, AtomicUsize};

        static ERROR: AtomicI32 = AtomicI32::new(libc::EMFILE);
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        fn first() -> io::Result<Vec<ListeningSocket>> {
            ASKED.fetch_add(1, Ordering::SeqCst);
            Err(io::Error::from_raw_os_error(ERROR.load(Ordering::SeqCst)))
        }
        fn second() -> io::Result<Vec<ListeningSocket>> {
            Ok(vec![ListeningSocket { addr: ([192, 0, 2, 1], 80).into(), inode: 1 }])
        }
        let never = AtomicBool::new(false);
        let asked = || {
            assert_eq!(ask((first, second), &never).unwrap(), second().unwrap());
            ASKED.load(Ordering::SeqCst)
        };
        assert_eq!([asked(), asked()], [1, 2], "a lack passes");
        ERROR.store(libc::ENOENT, Ordering::SeqCst);
        assert_eq!([asked(), asked(), asked()], [3, 3, 3]);
    }

    #[test]
    fn a_socket_that_listens_is_found_by_its_inode() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(local) else { continue };
            let addr = listener.local_addr().unwrap();
            let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
            for read in [diag::listening, proc::listening] {
                assert!(read().unwrap().contains(&ListeningSocket { addr, inode }), "{addr}");
            }
        }
    }
}
