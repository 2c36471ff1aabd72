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
//!
//! **Nobody waits behind those who can't use what is free.** A place that is no good for one waiter, because he has tried
//! that backend, is offered to those behind. He is marked as having left it, until the next announcement. Who comes
//! and has nobody before him but such looks at once, also where the line is full, and those who left a place are not called
//! for it again.
//!
//! **Nobody waits in vain.** After a change that may have left some with nothing to wait for, everybody looks once, in
//! order; many changes at a time are one. For what nobody announces the first looks now and then, and a few of those who
//! left a place.

mod line;
mod stands;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use self::line::{Line, Turn};
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

    /// Something may have changed that nobody announced: the first in each line looks again, and those behind it if there
    /// is more than one place; all of them, where something has changed. Of those who left what is free a few look at a
    /// time. To be called several times a second.
    pub fn reconsider(&self) {
        self.all().iter().for_each(|queue| queue.announce(Line::reconsider));
    }

    /// The table has changed: see [`AppQueue::changed`].
    pub fn changed(&self) {
        self.all().iter().for_each(|queue| queue.changed());
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

/// How often something had been announced, or may have changed, when a waiter was called.
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

    /// Whether there seems to be a place that is of no use to those who wait and would be before this one. It need not
    /// enter the line to look for it, and the line may be full.
    pub fn is_left_to(&self, source: &ClientPrefix) -> bool {
        let line = self.line();
        !line.closed && line.is_left_to(line.next_turn(source))
    }

    /// How many would be before one of this source that joined a line of at most `length` now. Walks only those of later
    /// rounds, whose sources have brought several: all workers need the line.
    pub fn before(&self, source: &ClientPrefix, length: u32) -> Result<usize, NoTurn> {
        let line = self.line();
        let behind = line.waiters.range(line.next_turn(source)..).count();
        if line.closed {
            return Err(NoTurn::Closed);
        }
        let has_room = line.waiters.len() < usize::try_from(length).unwrap_or(usize::MAX);
        let makes_room = length > 0 && behind > 0;
        if has_room || makes_room { Ok(line.waiters.len() - behind) } else { Err(NoTurn::Full) }
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
        let called = if pushed_out.as_ref().is_some_and(|gone| gone.called) { line.call_first(true) } else { None };
        self.waiting.store(line.waiters.len(), Ordering::SeqCst);
        drop(line);
        // It finds that it has no place in the line any more.
        let told = pushed_out.and_then(|gone| gone.waker);
        called.into_iter().chain(told).for_each(Waker::wake);
        Ok(Ticket { queue: Arc::clone(self), turn })
    }

    /// A place has become free, and counts as free. Calls one who waits.
    pub fn freed(&self) {
        self.announce(Line::announced);
    }

    /// Backends have come, gone or changed. Calls one who waits; the others look before long whether they still have
    /// something to wait for.
    pub fn changed(&self) {
        self.announce(|line| {
            line.announced();
            line.changed = true;
        });
    }

    fn announce(&self, note: impl FnOnce(&mut Line)) {
        if self.is_empty() {
            return;
        }
        let mut line = self.line();
        note(&mut line);
        let waker = line.call_first(true);
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
        let (calls, closed, called) = (Calls(line.calls), line.closed, line.is_called(self.turn));
        match line.waiters.get_mut(&self.turn) {
            None => Poll::Ready(Called::Go(NoTurn::Full)),
            Some(_) if closed => Poll::Ready(Called::Go(NoTurn::Closed)),
            Some(_) if called => Poll::Ready(Called::Look(calls)),
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
        let waker = line.looked_in_vain(self.turn, others_may);
        drop(line);
        waker.into_iter().for_each(Waker::wake);
    }

    /// This one has a place. `more`: there seems to be another.
    pub fn served(self, more: bool) {
        let mut line = self.queue.line();
        line.round = line.round.max(self.turn.round);
        line.remove(self.turn);
        let waker = line.call_first(more);
        self.queue.waiting.store(line.waiters.len(), Ordering::SeqCst);
        drop(line);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut line = self.queue.line();
        let Some(gone) = line.remove(self.turn) else { return };
        // The call was meant for a place that is still free.
        let waker = if gone.called { line.call_first(true) } else { None };
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
