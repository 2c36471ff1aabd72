//! A TCP relay that damages what it carries, to prove that the checks notice.
// System calls without a safe wrapper.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::end::reset_on_close;
use super::server::Server;
use crate::lab::Namespace;

/// What the relay does wrong, in each direction, at a byte position of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Lose(u64),
    Repeat(u64),
    /// Sends two neighbouring bytes in the wrong order.
    Swap(u64),
    Flip(u64),
    /// Ends the stream early.
    Truncate(u64),
    /// Closes both directions when one ends.
    NoHalfClose,
    /// Turns a reset into an end of stream.
    HideReset,
    /// Throws away what is under way when a reset arrives.
    HastyReset,
}

/// Listens on a loopback port and relays to `backend`.
pub(super) fn relay(backend: SocketAddr, fault: Fault) -> io::Result<Server> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::start(&Namespace::host(), listen, move |client| {
        if let Ok(upstream) = TcpStream::connect(backend) {
            let _ = upstream.set_nodelay(true);
            let (client, upstream) = (Arc::new(Leg::new(client)), Arc::new(Leg::new(upstream)));
            let (a, b) = (Arc::clone(&client), Arc::clone(&upstream));
            let down = thread::spawn(move || copy(&b, &a, fault));
            copy(&client, &upstream, fault);
            let _ = down.join();
        }
    })
}

struct Leg {
    stream: TcpStream,
    half_closed: AtomicBool,
}

impl Leg {
    fn new(stream: TcpStream) -> Self {
        Self { stream, half_closed: AtomicBool::new(false) }
    }

    /// Whether an end of stream is none: a write that failed may have taken the reset's error before the read.
    /// After both ends have half-closed the connection is gone, too, and nobody writes.
    fn was_reset(&self) -> bool {
        self.stream.peer_addr().is_err() && !self.half_closed.load(Ordering::SeqCst)
    }
}

fn copy(from: &Leg, to: &Leg, fault: Fault) {
    let (mut buffer, mut position) = (vec![0; 16 << 10], 0);
    let (mut reader, mut writer) = (&from.stream, &to.stream);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) if !from.was_reset() => break,
            Ok(read @ 1..) => {
                let Some(bytes) = damage(fault, position, &buffer[..read]) else { break };
                position += read as u64;
                if fault == Fault::HastyReset {
                    // So slow that bytes are still under way when the reset comes.
                    thread::sleep(Duration::from_millis(1));
                    if from.was_reset() {
                        return reset(&to.stream, fault);
                    }
                }
                if writer.write_all(&bytes).is_err() {
                    return;
                }
            }
            _ if fault == Fault::HideReset => break,
            _ => return reset(&to.stream, fault),
        }
    }
    let how = if fault == Fault::NoHalfClose { Shutdown::Both } else { Shutdown::Write };
    to.half_closed.store(true, Ordering::SeqCst);
    let _ = to.stream.shutdown(how);
}

/// The bytes to send in place of `bytes`, which start at `position`; `None` ends the stream.
fn damage(fault: Fault, position: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = bytes.to_vec();
    let here = |at: u64| at.checked_sub(position).map(|i| i as usize).filter(|i| *i < bytes.len());
    match fault {
        Fault::Lose(at) => drop(here(at).map(|i| out.remove(i))),
        Fault::Repeat(at) => drop(here(at).map(|i| out.insert(i, bytes[i]))),
        Fault::Swap(at) => drop(here(at).filter(|i| *i > 0).map(|i| out.swap(i, i - 1))),
        Fault::Flip(at) => drop(here(at).map(|i| out[i] ^= 1)),
        Fault::Truncate(at) if here(at).is_some() => return None,
        _ => {}
    }
    Some(out)
}

/// Passes a reset on, after what is under way has arrived.
fn reset(to: &TcpStream, fault: Fault) {
    while fault != Fault::HastyReset && unsent(to) > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    reset_on_close(to);
    // Wakes the thread that reads from it; the reset goes out when both threads have let go.
    let _ = to.shutdown(Shutdown::Read);
}

fn unsent(stream: &TcpStream) -> libc::c_int {
    let mut count = 0;
    // SAFETY: TIOCOUTQ writes one int.
    match unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) } {
        0 => count,
        _ => 0,
    }
}
