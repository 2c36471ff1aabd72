//! The in-kernel forwarder: one offloaded pair, from insertion to the end.
//!
//! The kernel moves the bytes; what is left to do here is what it can't: read and write what the verdict left to
//! userspace (a spill), carry the end of a stream or a reset across, and never let either happen before the bytes
//! that came first. The rules and the measurements behind them are in `docs/kernel-path.md`.

mod endings;
mod loss;
mod spilling;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use self::loss::Watch;
use self::spilling::Spilling;
use super::delivery::Delivery;
use super::kernel::{Interest, Kernel, PairSlot, Ready};
use super::lane::{Both, Pending, Side, TURN, with_scratch};
use super::{MEASURE_EVERY, SpillLimits, TimeLimits, socket};
use crate::application::drain::Cut;
use crate::application::flows::{Flow, InKernel as _};
use crate::domain::{ByteCounts, Fallback, ForwarderKind, Termination, Why};

/// How soon to look again for what the kernel gives no event for (a backlog that drains), the longer the more often
/// nothing had changed.
const RETRY_MILLIS: [u64; 9] = [1, 1, 2, 4, 8, 16, 32, 64, 100];
/// After so many fruitless looks in a row the idle limit is checked, too: about every six seconds.
const LOOKS_PER_IDLE_CHECK: usize = 64;
/// Passed bytes that can't be read for so long wait behind this socket's own backlog: the directions are entangled.
const ENTANGLED_AFTER: Duration = Duration::from_millis(200);
/// Such bytes are on nobody's account, so the sender's window stays open: with so many of them nothing is waited for.
const ENTANGLED_BYTES: u64 = 1024 * 1024;
/// Unless TCP takes over what is meant for the socket meanwhile: where both sides send as fast as they can, much waits for
/// moments. It has stopped when nothing moved for so long.
const STANDSTILL: Duration = Duration::from_millis(20);
/// And this many are too many in any case: nobody accounts for them.
const MOST_PASSED: u64 = 4 * ENTANGLED_BYTES;
/// Passed bytes of a closed socket that can't be read for so long never will be.
const DEAD_AFTER: Duration = Duration::from_secs(1);
/// Bytes that are between two counts for so long are lost: received and not through the verdict when the stream has ended,
/// or given to a socket that has nothing to send and does not take them.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// How long what came before a reset may take to reach the other side.
pub(super) const RESET_LINGER: Duration = Duration::from_secs(5);

/// What the kernel path did with a pair.
#[derive(Debug)]
pub(super) struct Report {
    /// Bytes since the insertion.
    pub(super) bytes: ByteCounts,
    pub(super) termination: Termination,
    pub(super) fallback: Option<Fallback>,
    /// The byte counts disagree: the kernel path must not be used again until somebody has looked.
    pub(super) corrupt: Option<String>,
    /// To the backend, at the end.
    round_trip: Option<Duration>,
}

/// A pair in the kernel. The sockets close when it is dropped, before the records are given back.
#[derive(Debug)]
pub(super) struct Offload {
    sockets: Both<TcpStream>,
    slot: PairSlot,
    lanes: Both<Lane>,
    /// What was moved before the insertion.
    before: ByteCounts,
    watch: Watch,
    /// The kernel path is off for everybody: everything is left to userspace meanwhile.
    off: bool,
    /// The fallback that is on record.
    told: Option<Fallback>,
    spilling: Spilling,
    watched: Both<Interest>,
    wanted: Both<Interest>,
    /// When this end last achieved something.
    active: Instant,
    /// A time limit, and until when it can't be reached, as far as that is known.
    quiet_until: Option<(Duration, Instant)>,
    delivery: Delivery,
    /// Which side reset the connection, and when that was seen.
    reset: Option<(Side, Instant)>,
    fallback: Option<Fallback>,
    corrupt: Option<String>,
}

/// One direction, as userspace sees it.
#[derive(Debug)]
struct Lane {
    /// The socket where it begins is not in the map: nothing is redirected, everything is read here.
    plain: bool,
    /// Bytes read from the source, all of them before the insertion included.
    read_before: u64,
    /// Bytes read here since the insertion.
    read: u64,
    /// Bytes written here since the insertion.
    written: u64,
    /// What the target's TCP had taken over at the insertion.
    target_base: u64,
    /// The value of `redirected` at which the target was last seen to have taken over everything.
    drained_at: u64,
    pending: Pending,
    source: Source,
    /// An event said that the source's stream may have ended.
    hung_up: bool,
    /// The end of the stream was passed on.
    shut: bool,
    /// The target takes nothing any more.
    broken: bool,
    /// Since when passed bytes could not be read, or received bytes have not passed the verdict.
    stuck: Option<Instant>,
    /// How much the socket's TCP had taken over when much waited behind it, and since when.
    taking: Option<(Option<u64>, Instant)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Open,
    Ended,
    Reset,
}

/// What a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    Event,
    /// The kernel gives no event for it.
    Soon,
    /// Nothing, but others should have their turn.
    Turn,
}

impl Offload {
    /// Takes over a pair, or gives it back with the reason why it must be copied.
    ///
    /// `before` was read from each socket so far, and all of it written out; `header` was read from the client, too,
    /// and went nowhere.
    pub(super) fn begin(
        kernel: &Arc<Kernel>,
        sockets: Both<TcpStream>,
        before: ByteCounts,
        header: u64,
    ) -> Result<Box<Self>, (Fallback, Both<TcpStream>)> {
        // The map takes established sockets only. Found out now the pair can still be copied in the ordinary way.
        if sockets.iter().any(|socket| socket::tcp_info(socket.as_fd()).map_or(true, |info| info.fin)) {
            return Err((Fallback::InsertRefused, sockets));
        }
        let Some(mut slot) = kernel.reserve() else {
            return Err((Fallback::NoFreeRecord, sockets));
        };
        let Both { client, backend } = &sockets;
        [client, backend].into_iter().for_each(|socket| socket::take_what_has_room(socket.as_fd()));
        let [Some(client_base), Some(backend_base)] =
            [client, backend].map(|s| socket::taken_over(s.as_fd()).ok().flatten())
        else {
            return Err((Fallback::InsertRefused, sockets));
        };
        let lanes =
            Both { client: Lane::new(header + before.up, backend_base), backend: Lane::new(before.down, client_base) };
        // Records, then the backend, then the client: a socket whose peer is not in the map passes everything, one
        // without a record too. If the backend is refused nothing is in the map yet.
        let prepared = slot
            .prepare(Both { client: client.as_fd(), backend: backend.as_fd() })
            .and_then(|()| slot.insert(Side::Backend, backend.as_fd()));
        if let Err(why) = prepared {
            tracing::debug!(%why, "backend socket not inserted");
            return Err((Fallback::InsertRefused, sockets));
        }
        let watch = Watch::new(&sockets);
        // On the heap: futures that it is moved through would each hold it.
        let mut offload = Box::new(Self {
            sockets,
            slot,
            lanes,
            before,
            watch,
            off: false,
            told: None,
            spilling: Spilling::new(Instant::now()),
            watched: Both::default(),
            wanted: Both::default(),
            active: Instant::now(),
            quiet_until: None,
            delivery: Delivery::default(),
            reset: None,
            fallback: None,
            corrupt: None,
        });
        offload.insert_client();
        Ok(offload)
    }

    /// A socket never leaves the map while it lives, so if this fails both directions stay in userspace for life.
    fn insert_client(&mut self) {
        let client = &self.sockets.client;
        if let Err(why) = self.slot.insert(Side::Client, client.as_fd()) {
            tracing::debug!(%why, "client socket not inserted");
            self.gate(Fallback::InsertRefused);
            self.lanes.client.plain = true;
        }
    }

    fn gate(&mut self, why: Fallback) {
        self.slot.flow(Side::Client).gate();
        self.slot.flow(Side::Backend).gate();
        self.fallback.get_or_insert(why);
    }

    /// Sees the pair through to its end.
    ///
    /// `demotes` says when a pair that spills again and again is to be left to userspace for life, if at all.
    // Here and below an `async fn` would hold its arguments twice, for as long as the pair lives.
    pub(super) fn run(
        mut self: Box<Self>,
        limits: &TimeLimits,
        cut: &Cut,
        flow: &Flow,
        demotes: &(dyn Fn() -> Option<SpillLimits> + Sync),
    ) -> impl Future<Output = Report> + Send {
        flow.count_in_kernel(Some(self.slot.counts()));
        async move {
            let termination = self.end(limits, cut, flow, demotes).await;
            let report = self.finish(termination);
            flow.count_in_kernel(None);
            flow.measure(|| report.round_trip);
            report
        }
    }

    /// Its end.
    #[allow(clippy::manual_async_fn)]
    fn end(
        &mut self,
        limits: &TimeLimits,
        cut: &Cut,
        flow: &Flow,
        demotes: &(dyn Fn() -> Option<SpillLimits> + Sync),
    ) -> impl Future<Output = Termination> + Send {
        async move {
            for side in Side::BOTH {
                let fd = self.sockets[side].as_fd();
                if self.slot.watch(side, fd, Interest::default()).is_err() {
                    return Termination::OutOfResources;
                }
                socket::kick(fd);
            }
            let mut timer = pin!(tokio::time::sleep(limits.idle));
            let mut cut = pin!(cut.wait(flow));
            let mut ready = Ready::ALL;
            let mut fruitless = 0;
            let mut measure_at = Instant::now() + MEASURE_EVERY;
            loop {
                let before = self.progress();
                let wait = match self.step(ready) {
                    Ok(wait) => wait,
                    Err(termination) => return termination,
                };
                if self.progress() == before {
                    fruitless += 1;
                } else {
                    fruitless = 0;
                    self.active = Instant::now();
                }
                self.rewatch();
                self.look_for_spilling(demotes);
                if let Err(termination) = self.look_for_loss() {
                    return termination;
                }
                self.tell(flow);
                let now = Instant::now();
                if now >= measure_at {
                    self.measure(flow);
                    measure_at = now + MEASURE_EVERY;
                }
                if wait == Wait::Turn {
                    tokio::task::yield_now().await;
                    let now = poll_fn(|cx| Poll::Ready(self.poll_wake(cx, timer.as_mut(), cut.as_mut()))).await;
                    ready = match now {
                        Poll::Ready(Some(woken)) => woken,
                        Poll::Ready(None) => return Termination::KilledByDrain,
                        Poll::Pending => Ready::NONE,
                    };
                    continue;
                }
                let pause = match self.pause(wait, fruitless, ready, limits) {
                    Ok(pause) => pause,
                    Err(termination) => return termination,
                };
                timer.as_mut().reset(tokio::time::Instant::now() + pause);
                match poll_fn(|cx| self.poll_wake(cx, timer.as_mut(), cut.as_mut())).await {
                    Some(woken) => ready = woken,
                    None => return Termination::KilledByDrain,
                }
            }
        }
    }

    /// Tells how far the backend is.
    fn measure(&self, flow: &Flow) {
        flow.measure(|| socket::round_trip(self.sockets.backend.as_fd()));
    }

    fn look_for_spilling(&mut self, demotes: &(dyn Fn() -> Option<SpillLimits> + Sync)) {
        let redirected = Both::of(|side| self.slot.flow(side).redirected());
        let passed = Both::of(|side| self.slot.flow(side).passed());
        let now = Instant::now();
        let off = self.fallback.is_some() || self.off || self.slot.kernel_is_off();
        match demotes().filter(|_| !off) {
            None => self.spilling.restart(now, redirected, passed),
            Some(limits) if self.spilling.too_often(now, redirected, passed, limits) => self.gate(Fallback::Spilling),
            Some(_) => {}
        }
    }

    /// Publishes how the flow is doing.
    fn tell(&mut self, flow: &Flow) {
        flow.publish(self.before + self.written());
        let off = self.slot.kernel_is_off();
        if self.fallback != self.told {
            self.told = self.fallback;
            self.fallback.into_iter().for_each(|why| flow.step(ForwarderKind::Copy, Why::Fallback(why)));
        } else if off != self.off && self.fallback.is_none() {
            let now = if off { ForwarderKind::Copy } else { ForwarderKind::Sockmap };
            flow.step(now, Why::Switched);
        }
        self.off = off;
    }

    fn written(&self) -> ByteCounts {
        ByteCounts { up: self.lanes.client.written, down: self.lanes.backend.written, ..ByteCounts::default() }
    }

    fn poll_wake(
        &self,
        cx: &mut Context<'_>,
        timer: Pin<&mut tokio::time::Sleep>,
        cut: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Option<Ready>> {
        if let Poll::Ready(ready) = self.slot.poll_ready(cx) {
            return Poll::Ready(Some(ready));
        }
        if cut.poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        timer.poll(cx).map(|()| Some(Ready::NONE))
    }

    /// Does everything that can be done now. An error is the end.
    fn step(&mut self, ready: Ready) -> Result<Wait, Termination> {
        self.wanted = Both::default();
        for side in Side::BOTH {
            self.lanes[side].hung_up |= ready.hung_up(side);
        }
        let mut wait = Wait::Event;
        // A direction that finds its target gone changes what the other one has to do: hence the second round.
        for side in [Side::Client, Side::Backend, Side::Client] {
            wait = wait.max(self.advance(side)?);
        }
        if self.reset.is_some() {
            return self.carry_reset();
        }
        if Side::BOTH.into_iter().all(|side| self.lanes[side].shut) {
            return Err(Termination::Normal);
        }
        Ok(wait)
    }

    /// Moves one direction as far as it goes.
    fn advance(&mut self, side: Side) -> Result<Wait, Termination> {
        let turn = self.lanes[side].written + TURN as u64;
        while self.lanes[side].written < turn {
            let lane = &self.lanes[side];
            if lane.shut || lane.broken || lane.source == Source::Reset && lane.pending.is_empty() {
                if lane.shut && lane.hung_up {
                    self.look_for_late_reset(side);
                }
                return Ok(Wait::Event);
            }
            let wait = if !lane.pending.is_empty() {
                self.look_for_blocked_reset(side);
                self.write_out(side)?
            } else if lane.source == Source::Ended {
                self.pass_on_end(side)?
            } else if lane.plain || self.slot.flow(side).passed() > lane.read {
                self.read_in(side)?
            } else if lane.hung_up {
                self.examine_end(side)?
            } else {
                Some(Wait::Event)
            };
            if let Some(wait) = wait {
                return Ok(wait);
            }
        }
        Ok(Wait::Turn)
    }

    /// Writes pending bytes; they must not overtake what the kernel still holds for the target.
    fn write_out(&mut self, side: Side) -> Result<Option<Wait>, Termination> {
        if let Some(instead) = self.hold_back(side) {
            return Ok(instead);
        }
        let lane = &mut self.lanes[side];
        match socket::send(self.sockets[side.other()].as_fd(), lane.pending.rest()) {
            Ok(n) => {
                lane.pending.advance(n);
                self.count_written(side, n);
                Ok(None)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.wanted[side.other()].writable = true;
                Ok(Some(Wait::Event))
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(None),
            Err(_) => {
                self.target_gone(side);
                Ok(None)
            }
        }
    }

    fn count_written(&mut self, side: Side, n: usize) {
        let lane = &mut self.lanes[side];
        lane.written += n as u64;
        let flow = self.slot.flow(side);
        flow.publish_written(lane.written);
        if lane.pending.is_empty() && !lane.plain {
            flow.publish_consumed(lane.read);
        }
    }

    /// Reads what the verdict left to userspace. `Ok(0)` is no end of stream here: the rest may still be on its way
    /// through this socket's own backlog.
    fn read_in(&mut self, side: Side) -> Result<Option<Wait>, Termination> {
        let received = with_scratch(|buffer| {
            let n = socket::receive(self.sockets[side].as_fd(), buffer)?;
            self.write_through(side, buffer.get(..n).unwrap_or_default());
            Ok::<_, std::io::Error>(n)
        });
        let lane = &mut self.lanes[side];
        match received {
            Ok(0) if lane.plain => lane.source = Source::Ended,
            Ok(n) if n > 0 => (lane.stuck, lane.taking) = (None, None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock && lane.plain => {
                self.wanted[side].readable = true;
                return Ok(Some(Wait::Event));
            }
            Ok(_) => return self.wait_for_passed(side),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return self.wait_for_passed(side),
            Err(_) if lane.plain => self.source_reset(side),
            // The error is reported once; what was received before it can still be read.
            Err(_) => {
                lane.hung_up = true;
                return self.wait_for_passed(side);
            }
        }
        Ok(None)
    }

    /// Writes what was just read as far as that goes, and keeps the rest.
    fn write_through(&mut self, side: Side, bytes: &[u8]) {
        self.lanes[side].read += bytes.len() as u64;
        let drained = !bytes.is_empty() && matches!(self.drained(side), Drained::Yes);
        // What fails here fails again with the rest.
        let sent = || socket::send(self.sockets[side.other()].as_fd(), bytes).unwrap_or(0);
        let written = if drained { sent() } else { 0 };
        self.lanes[side].pending.keep(bytes.get(written..).unwrap_or_default());
        if written > 0 {
            self.count_written(side, written);
        }
    }

    /// Bytes passed the verdict and can't be read yet.
    fn wait_for_passed(&mut self, side: Side) -> Result<Option<Wait>, Termination> {
        self.wanted[side].readable = true;
        let since = *self.lanes[side].stuck.get_or_insert_with(Instant::now);
        if self.lanes[side].hung_up && self.info(side).is_none_or(|info| info.closed) {
            if since.elapsed() >= DEAD_AFTER {
                // The socket's own backlog died with it, and these bytes behind it: TCP gives no more for a reset.
                self.source_reset(side);
                return Ok(None);
            }
            return Ok(Some(Wait::Soon));
        }
        let unread = self.slot.flow(side).passed().saturating_sub(self.lanes[side].read);
        let many = unread >= ENTANGLED_BYTES && !self.is_taking(side);
        if since.elapsed() >= ENTANGLED_AFTER || many || unread >= MOST_PASSED {
            self.disentangle(side);
        }
        Ok(Some(Wait::Soon))
    }

    /// Whether the TCP of that side's socket has taken over anything lately.
    fn is_taking(&mut self, side: Side) -> bool {
        let taken = socket::taken_over(self.sockets[side].as_fd()).ok().flatten();
        let (before, since) = self.lanes[side].taking.unwrap_or((None, Instant::now()));
        let moves = before != taken;
        self.lanes[side].taking = Some((taken, if moves { Instant::now() } else { since }));
        moves || since.elapsed() < STANDSTILL
    }

    /// Passed bytes queue behind the bytes that the kernel still has to send on the same socket. A client that reads
    /// nothing until all it sends is taken would wait for ever: give its socket room for that backlog, and leave both
    /// directions to userspace from now on, so that no new backlog can form.
    fn disentangle(&mut self, side: Side) {
        let Ok(Some(taken)) = socket::taken_over(self.sockets[side].as_fd()) else { return };
        let reverse = &self.lanes[side.other()];
        let given = self.slot.flow(side.other()).redirected() + reverse.written;
        let backlog = given.saturating_sub(taken - reverse.target_base);
        if backlog > 0 {
            self.gate(Fallback::Entangled);
            // Where there is room the kernel's worker was only not scheduled yet, and TCP goes on sizing its buffer itself.
            let socket = self.sockets[side].as_fd();
            if !socket::is_writable(socket) {
                socket::enlarge_send_buffer(socket, backlog * 2);
            }
            (self.lanes[side].stuck, self.lanes[side].taking) = (None, None);
        }
    }

    /// What to do instead of giving the target more, while it has not taken over what the kernel holds for it.
    fn hold_back(&mut self, side: Side) -> Option<Option<Wait>> {
        match self.drained(side) {
            Drained::Yes => None,
            Drained::NotYet => Some(Some(Wait::Soon)),
            Drained::TargetGone => {
                self.target_gone(side);
                Some(None)
            }
        }
    }

    /// Whether the target's TCP has taken over every byte that was meant for it so far. Shutting it down or writing
    /// before that loses or overtakes the rest.
    fn drained(&mut self, side: Side) -> Drained {
        let redirected = self.slot.flow(side).redirected();
        if self.lanes[side].drained_at == redirected {
            return Drained::Yes;
        }
        if self.info(side.other()).is_none_or(|info| info.closed) {
            return Drained::TargetGone;
        }
        let Ok(Some(taken)) = socket::taken_over(self.sockets[side.other()].as_fd()) else { return Drained::NotYet };
        let lane = &mut self.lanes[side];
        let (taken, given) = (taken - lane.target_base, redirected + lane.written);
        if taken < given {
            return Drained::NotYet;
        }
        if taken > given {
            self.corrupt = Some(format!("{given} bytes were given to a socket that took {taken}"));
        }
        lane.drained_at = redirected;
        Drained::Yes
    }

    /// How long to sleep if no event comes, or the end: a time limit is reached.
    fn pause(
        &mut self,
        wait: Wait,
        fruitless: usize,
        ready: Ready,
        limits: &TimeLimits,
    ) -> Result<Duration, Termination> {
        let half_closed = Side::BOTH.into_iter().any(|side| self.lanes[side].shut);
        let limit = if half_closed { limits.half_close } else { limits.idle };
        // Reading the clock of both sockets costs two calls: only when the time may really be up.
        // The sweep wakes a blocked pair again and again: that alone must not put the limit off.
        let due = wait == Wait::Event && ready == Ready::NONE || fruitless % LOOKS_PER_IDLE_CHECK == 1;
        let now = Instant::now();
        let known = self.quiet_until.filter(|(known, until)| *known == limit && *until > now);
        let left = match known {
            Some((_, until)) => until - now,
            None if due => {
                let left = self.idle_left(limit)?;
                self.quiet_until = Some((limit, now + left));
                left
            }
            None => limit,
        };
        if wait == Wait::Event {
            return Ok(left.min(self.watch.pause()));
        }
        let millis = RETRY_MILLIS.get(fruitless).or(RETRY_MILLIS.last()).copied().unwrap_or(1);
        Ok(Duration::from_millis(millis))
    }

    fn idle_left(&mut self, limit: Duration) -> Result<Duration, Termination> {
        let quiet =
            Side::BOTH.into_iter().filter_map(|side| self.info(side)).map(|info| info.quiet).min().unwrap_or(limit);
        // What was received long ago may be on its way to a slow reader still, here.
        match limit.checked_sub(quiet.min(self.active.elapsed())) {
            Some(left) if !left.is_zero() => Ok(left),
            _ if let Some(left) = self.left_to_arrive() => Ok(left),
            _ if self.delivery.goes_on(&self.sockets) => {
                self.active = Instant::now();
                Ok(limit)
            }
            _ if self.lanes.client.shut => Err(Termination::BackendIdle),
            _ => Err(Termination::ClientIdle),
        }
    }

    fn rewatch(&mut self) {
        for side in Side::BOTH {
            let wanted = self.wanted[side];
            if wanted != self.watched[side] && self.slot.rewatch(side, self.sockets[side].as_fd(), wanted).is_ok() {
                self.watched[side] = wanted;
            }
        }
    }

    fn info(&self, side: Side) -> Option<socket::TcpInfo> {
        socket::tcp_info(self.sockets[side].as_fd()).ok()
    }

    /// Changes whenever something was achieved.
    fn progress(&self) -> (u64, usize) {
        let lanes = &self.lanes;
        let passed: u64 = Side::BOTH.into_iter().map(|side| self.slot.flow(side).passed()).sum();
        let bytes = passed + lanes.iter().map(|lane| lane.read + lane.written).sum::<u64>();
        (bytes, lanes.iter().filter(|lane| lane.shut || lane.broken || lane.source != Source::Open).count())
    }

    fn finish(mut self: Box<Self>, termination: Termination) -> Report {
        if termination != Termination::Normal {
            self.audit();
            if matches!(termination, Termination::ClientIdle | Termination::BackendIdle) {
                self.audit_standstill();
            }
            self.sockets.iter().for_each(|socket| socket::reset_on_close(socket.as_fd()));
        }
        let (up, down) = self.slot.counts().bytes();
        self.note_drops();
        Report {
            bytes: self.written() + ByteCounts { up, down, kernel_up: up, kernel_down: down },
            termination,
            fallback: self.fallback,
            corrupt: self.corrupt,
            round_trip: socket::round_trip(self.sockets.backend.as_fd()),
        }
    }
}

enum Drained {
    Yes,
    NotYet,
    TargetGone,
}

impl Lane {
    fn new(read_before: u64, target_base: u64) -> Self {
        Self {
            plain: false,
            read_before,
            read: 0,
            written: 0,
            target_base,
            drained_at: 0,
            pending: Pending::default(),
            source: Source::Open,
            hung_up: false,
            shut: false,
            broken: false,
            stuck: None,
            taking: None,
        }
    }

    fn break_off(&mut self) {
        self.broken = true;
        self.pending.discard();
    }
}
