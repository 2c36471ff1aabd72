//! Signals as wishes of the operator.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read the routing database again.
    Reload,
    /// The first SIGTERM or SIGINT: stop accepting, let connections end, exit.
    Drain,
    /// The second: exit at once, with this code (128 + the signal's number, as shells expect).
    Quit { exit_code: u8 },
}

/// The handlers of this process. From its creation on none of the three signals kills the process by itself.
#[derive(Debug)]
pub struct Signals {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    draining: bool,
}

impl Signals {
    /// Must be called within a tokio runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            draining: false,
        })
    }

    /// Waits for the next signal. Cancelling loses none.
    pub async fn next(&mut self) -> Signal {
        let number = tokio::select! {
            _ = self.hangup.recv() => return Signal::Reload,
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
        };
        self.stop(number)
    }

    fn stop(&mut self, number: i32) -> Signal {
        if std::mem::replace(&mut self.draining, true) {
            return Signal::Quit { exit_code: 128 + u8::try_from(number).unwrap_or(0) };
        }
        Signal::Drain
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    /// One test for all, because signals belong to the whole process.
    #[tokio::test]
    async fn hangup_reloads_first_term_drains_second_quits() {
        let mut signals = Signals::install().unwrap();
        let raise = |number| {
            // SAFETY: raise takes no pointers, and handlers for these signals are installed.
            assert_eq!(unsafe { libc::raise(number) }, 0);
        };
        raise(libc::SIGHUP);
        assert_eq!(signals.next().await, Signal::Reload);
        raise(libc::SIGTERM);
        assert_eq!(signals.next().await, Signal::Drain);
        raise(libc::SIGINT);
        assert_eq!(signals.next().await, Signal::Quit { exit_code: 130 });
        raise(libc::SIGTERM);
        assert_eq!(signals.next().await, Signal::Quit { exit_code: 143 });
    }
}
