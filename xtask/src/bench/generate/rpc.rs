//! Requests and answers on connections that stay: as fast as answers come, or at a fixed rate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::Outcome;
use super::call::{Buffers, Call};
use super::control::Control;
use super::message::Kind;
use super::reactor::{Interest, Reactor, Ready};

/// How often a thread without events looks whether it is to stop.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How long answers may take after the stop.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Size of messages at a fixed rate.
const OPEN_LOOP_BYTES: u32 = 64;

/// Connections, one thread's memory, and where results go.
struct Callers<'a> {
    reactor: Reactor,
    calls: Vec<Option<Call>>,
    answered: Vec<bool>,
    buffers: Buffers,
    control: &'a Control,
    outcome: Outcome,
}

/// One request outstanding on each connection at all times.
pub(super) fn closed_loop(to: SocketAddr, connections: u32, bytes: u32, control: &Arc<Control>) -> io::Result<Outcome> {
    let mut callers = Callers::connect(to, connections, control)?;
    callers.each(|callers, token| callers.send(token, bytes, callers.control.now()));
    let mut deadline = None;
    while !callers.finished(&mut deadline) {
        for ready in callers.reactor.wait(LOOK)? {
            let answers = callers.take(ready);
            if answers > 0 && !control.is_stopping() {
                callers.send(ready.token, bytes, control.now());
            }
        }
    }
    Ok(callers.outcome)
}

/// Requests at fixed moments, on one connection after the other, whether answers have come or not. Times count from
/// the intended moment, so a stall is charged to every request it held up.
pub(super) fn open_loop(
    to: SocketAddr,
    connections: u32,
    per_second: u32,
    control: &Arc<Control>,
) -> io::Result<Outcome> {
    let mut callers = Callers::connect(to, connections, control)?;
    // The first request sets a connection up and belongs to no rate.
    callers.each(|callers, token| callers.send(token, OPEN_LOOP_BYTES, callers.control.now()));
    let interval = 1_000_000_000 / u64::from(per_second.max(1));
    let timer = timer(interval)?;
    let timer_token = callers.calls.len();
    callers.reactor.add(&timer, timer_token, Interest::READ)?;
    let (start, mut sent, mut deadline) = (control.now(), 0, None);
    while !callers.finished(&mut deadline) {
        for ready in callers.reactor.wait(LOOK)? {
            if ready.token < timer_token {
                callers.take(ready);
                continue;
            }
            rustix::io::read(&timer, &mut [0_u8; 8])?;
            while !control.is_stopping() && start + (sent + 1) * interval <= control.now() {
                sent += 1;
                let token = usize::try_from(sent).unwrap_or(0) % timer_token;
                callers.send(token, OPEN_LOOP_BYTES, start + sent * interval);
            }
        }
    }
    Ok(callers.outcome)
}

/// A timer that fires every `interval` nanoseconds.
fn timer(interval: u64) -> io::Result<std::os::fd::OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let interval = Timespec { tv_sec: 0, tv_nsec: i64::try_from(interval).unwrap_or(i64::MAX) };
    let setting = Itimerspec { it_interval: interval, it_value: interval };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
    Ok(timer)
}

impl<'a> Callers<'a> {
    fn connect(to: SocketAddr, connections: u32, control: &'a Control) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        let calls: io::Result<Vec<_>> =
            (0..connections as usize).map(|token| Call::connect(to, token, &reactor).map(Some)).collect();
        let mut calls = calls?;
        for call in calls.iter_mut().flatten() {
            established(&call.stream)?;
        }
        let (buffers, answered) = (Buffers::new(), vec![false; calls.len()]);
        Ok(Self { reactor, calls, answered, buffers, control, outcome: Outcome::new()? })
    }

    fn each(&mut self, work: impl Fn(&mut Self, usize)) {
        for token in 0..self.calls.len() {
            work(self, token);
        }
    }

    fn send(&mut self, token: usize, bytes: u32, when: u64) {
        let Some(call) = &mut self.calls[token] else { return };
        if let Err(error) = call.send(Kind::Call, bytes, when, &mut self.buffers, &self.reactor) {
            self.lose(token, &error);
        }
    }

    /// Takes what has arrived; the number of answers in it.
    fn take(&mut self, ready: Ready) -> usize {
        let Some(call) = &mut self.calls[ready.token] else { return 0 };
        let (control, outcome, mut answers) = (self.control, &mut self.outcome, 0);
        let result = call.on_ready(ready, &mut self.buffers, &self.reactor, |when| {
            answers += 1;
            control.unit();
            if control.is_recording() {
                outcome.record(control.now().saturating_sub(when));
            }
        });
        let closed = call.closed;
        if answers > 0 && !std::mem::replace(&mut self.answered[ready.token], true) {
            control.establish();
        }
        match result {
            Err(error) => self.lose(ready.token, &error),
            Ok(()) if closed => self.lose(ready.token, &io::Error::other("the connection was closed")),
            Ok(()) => {}
        }
        answers
    }

    fn lose(&mut self, token: usize, error: &io::Error) {
        self.control.fault(format!("connection {token}: {error}"));
        self.calls[token] = None;
    }

    /// Whether the stop has come and all answers with it.
    fn finished(&mut self, deadline: &mut Option<Instant>) -> bool {
        if !self.control.is_stopping() {
            return false;
        }
        let left: usize = self.calls.iter().flatten().map(Call::outstanding).sum();
        let late = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) < Instant::now();
        if late && left > 0 {
            self.control.fault(format!("{left} requests were not answered within {PATIENCE:?}"));
        }
        late || left == 0
    }
}

/// Waits until the connect has succeeded.
pub(super) fn established(stream: &std::net::TcpStream) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    let mut sockets = [PollFd::new(stream, PollFlags::OUT)];
    if poll(&mut sockets, Some(&limit))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within 10 s"));
    }
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
