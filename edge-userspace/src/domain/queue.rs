//! Who waits for a place on a backend of an app, and whose turn it is. Nothing here sleeps: a waiter is a waker.
//!
//! **Order.** Each source has one connection in a round, the first to come first: a source that brings many waits for its
//! second until every other source has had its first. Who comes while others wait goes to the end of his round, whether a
//! place is free by then or not: places that become free go to those who wait.
//!
//! **Nobody sleeps beside a free place.** A place that becomes free calls one waiter, the first that was not called yet,
//! and only that one. A waiter that was called tries to reserve; if it succeeds and there is more, it calls the next. Who
//! waits enters the line *before* it looks for a place one last time, and who frees a place counts it as free *before* it
//! looks at the line: one of the two sees the other. A waiter that finds nothing sleeps only if no place was announced
//! since before it looked ([`Ticket::declined`]); who leaves after it was called hands the call on.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{AppName, ClientPrefix};

/// The lines of all apps. They outlive snapshots.
#[derive(Debug, Default)]
pub struct Lobby {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    by_app: HashMap<AppName, Arc<AppQueue>>,
    closed: bool,
}

impl Lobby {
    /// The line of an app.
    pub fn queue(&self, app: &AppName) -> Arc<AppQueue> {
        let mut lines = lock(&self.lines);
        if let Some(queue) = lines.by_app.get(app) {
            return Arc::clone(queue);
        }
        let queue = Arc::new(AppQueue::default());
        queue.line().closed = lines.closed;
        lines.by_app.insert(app.clone(), Arc::clone(&queue));
        queue
    }

    /// Something has changed: the first in each line looks again, and those behind it if there is more than one place.
    pub fn reconsider(&self) {
        self.all().iter().for_each(|queue| queue.freed());
    }

    /// Turns all away who wait, and those who come.
    pub fn close(&self) {
        lock(&self.lines).closed = true;
        self.all().iter().for_each(|queue| queue.close());
    }

    /// Forgets the lines of apps that are gone.
    pub fn tidy(&self) {
        lock(&self.lines).by_app.retain(|_, queue| Arc::strong_count(queue) > 1);
    }

    fn all(&self) -> Vec<Arc<AppQueue>> {
        lock(&self.lines).by_app.values().map(Arc::clone).collect()
    }
}

/// Who waits for a place of one app.
#[derive(Debug, Default)]
pub struct AppQueue {
    /// Length of the line, for who only wants to know whether there is one.
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    waiters: BTreeMap<Turn, Waiter>,
    /// Of each source that waits.
    shares: HashMap<ClientPrefix, Share>,
    /// Of the last who was served.
    round: u64,
    arrivals: u64,
    /// Places announced since the start.
    calls: u64,
    closed: bool,
}

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    round: u64,
    arrival: u64,
}

#[derive(Debug)]
struct Waiter {
    source: ClientPrefix,
    called: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Share {
    waiting: u32,
    /// The round of its last.
    last: u64,
}

/// Why nobody more may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTurn {
    /// The line is as long as it may be.
    Full,
    /// The daemon is ending.
    Closed,
}

/// What a waiter is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called {
    /// To look for a place.
    Look(Calls),
    /// To go: another came whose turn was before, and the line was full.
    Go(NoTurn),
}

/// How many places had been announced when a waiter was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls(u64);

impl AppQueue {
    /// Whether nobody waits. The one look that it costs those who need not wait.
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Enters a line of at most `length`. Where it is full the last goes, if that is not the one who comes.
    pub fn join(self: &Arc<Self>, source: ClientPrefix, length: u32) -> Result<Ticket, NoTurn> {
        let mut line = self.line();
        if line.closed {
            return Err(NoTurn::Closed);
        }
        let turn = line.next_turn(&source);
        let mut pushed_out = None;
        if line.waiters.len() >= usize::try_from(length).unwrap_or(usize::MAX) {
            let last = line.waiters.last_key_value().map(|(last, _)| *last);
            let last = last.filter(|last| length > 0 && turn < *last).ok_or(NoTurn::Full)?;
            pushed_out = line.remove(last);
        }
        line.enter(turn, source);
        // Its call was meant for a place that is still free.
        let called = if pushed_out.as_ref().is_some_and(|waiter| waiter.called) { line.call_first() } else { None };
        self.waiting.store(line.waiters.len(), Ordering::SeqCst);
        drop(line);
        // It finds that it has no place in the line any more.
        let told = pushed_out.and_then(|waiter| waiter.waker);
        called.into_iter().chain(told).for_each(Waker::wake);
        Ok(Ticket { queue: Arc::clone(self), turn })
    }

    /// A place has become free, and counts as free. Calls one who waits.
    pub fn freed(&self) {
        if self.is_empty() {
            return;
        }
        let mut line = self.line();
        line.calls += 1;
        let waker = line.call_first();
        drop(line);
        waker.into_iter().for_each(Waker::wake);
    }

    fn close(&self) {
        let mut line = self.line();
        line.closed = true;
        let wakers: Vec<_> = line.waiters.values_mut().filter_map(|waiter| waiter.waker.take()).collect();
        drop(line);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }
}

impl Line {
    fn next_turn(&mut self, source: &ClientPrefix) -> Turn {
        let after_its_last = self.shares.get(source).map_or(0, |share| share.last + 1);
        self.arrivals += 1;
        Turn { round: after_its_last.max(self.round), arrival: self.arrivals }
    }

    fn enter(&mut self, turn: Turn, source: ClientPrefix) {
        let share = self.shares.entry(source).or_default();
        share.waiting += 1;
        share.last = turn.round;
        // Who is alone has to look by himself: until now nobody was called.
        let called = self.waiters.is_empty();
        self.waiters.insert(turn, Waiter { source, called, waker: None });
    }

    fn remove(&mut self, turn: Turn) -> Option<Waiter> {
        let waiter = self.waiters.remove(&turn)?;
        if let Some(share) = self.shares.get_mut(&waiter.source) {
            share.waiting -= 1;
            if share.waiting == 0 {
                self.shares.remove(&waiter.source);
            } else if share.last == turn.round {
                // Its rounds are without a gap up to its last, but for those that left out of turn.
                share.last = share.last.saturating_sub(1);
            }
        }
        Some(waiter)
    }

    /// Calls the first who was not called yet.
    fn call_first(&mut self) -> Option<Waker> {
        let waiter = self.waiters.values_mut().find(|waiter| !waiter.called)?;
        waiter.called = true;
        waiter.waker.take()
    }

    /// The same among those behind `turn`.
    fn call_after(&mut self, turn: Turn) -> Option<Waker> {
        let behind = self.waiters.range_mut((std::ops::Bound::Excluded(turn), std::ops::Bound::Unbounded));
        let waiter = behind.map(|(_, waiter)| waiter).find(|waiter| !waiter.called)?;
        waiter.called = true;
        waiter.waker.take()
    }
}

/// A place in a line; leaves it when dropped.
#[derive(Debug)]
#[must_use = "dropping the ticket leaves the line"]
pub struct Ticket {
    queue: Arc<AppQueue>,
    turn: Turn,
}

impl Ticket {
    /// Whether this one is called.
    pub fn poll_called(&self, context: &mut Context<'_>) -> Poll<Called> {
        let mut line = self.queue.line();
        let (calls, closed) = (Calls(line.calls), line.closed);
        match line.waiters.get_mut(&self.turn) {
            None => Poll::Ready(Called::Go(NoTurn::Full)),
            Some(_) if closed => Poll::Ready(Called::Go(NoTurn::Closed)),
            Some(waiter) if waiter.called => Poll::Ready(Called::Look(calls)),
            Some(waiter) => {
                waiter.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// There was no place when this one looked. It is called again at once if one was announced since it was `called`.
    /// `others_may`: there is one that only this waiter can't take.
    pub fn declined(&self, called: Calls, others_may: bool) {
        let mut line = self.queue.line();
        if Calls(line.calls) != called {
            return;
        }
        if let Some(waiter) = line.waiters.get_mut(&self.turn) {
            waiter.called = false;
        }
        let waker = if others_may { line.call_after(self.turn) } else { None };
        drop(line);
        waker.into_iter().for_each(Waker::wake);
    }

    /// This one has a place. `more`: there seems to be another.
    pub fn served(self, more: bool) {
        let mut line = self.queue.line();
        line.round = line.round.max(self.turn.round);
        line.remove(self.turn);
        let waker = if more { line.call_first() } else { None };
        self.queue.waiting.store(line.waiters.len(), Ordering::SeqCst);
        drop(line);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut line = self.queue.line();
        let Some(waiter) = line.remove(self.turn) else { return };
        // The call was meant for a place that is still free.
        let waker = if waiter.called { line.call_first() } else { None };
        self.queue.waiting.store(line.waiters.len(), Ordering::SeqCst);
        drop(line);
        waker.into_iter().for_each(Waker::wake);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
