//! The use case of finding a place on a backend, and of waiting for one while all of an app are full. Whose turn it is,
//! is for [`AppQueue`](crate::domain::AppQueue) to say.

use std::future::poll_fn;
use std::time::Duration;

use super::routing::RoutingTable;
use crate::domain::{
    AppIndex, AppName, Called, ClientPrefix, NoBackend, NoTurn, Pick, RandomSource, Request, Ticket, Tried,
    nothing_to_wait_for, pick,
};

/// What is looked for.
#[allow(missing_debug_implementations, reason = "sources of randomness need not be printable")]
pub struct Search<'a, R> {
    pub routing: &'a RoutingTable,
    pub app: &'a AppName,
    pub request: Request<'a>,
    pub tried: &'a Tried,
    /// Each source has its turn.
    pub source: ClientPrefix,
    pub random: R,
}

/// What a connection has that came just now.
#[derive(Debug)]
pub enum Now {
    Place(Pick),
    /// A ticket, and how long it may wait.
    Ticket(Ticket, Duration),
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    NoBackend(NoBackend),
    /// The queue is full: nobody more may wait, or others were before this one.
    QueueFull,
    TimedOut,
    /// The daemon is ending.
    Ending,
}

impl From<NoBackend> for NoPlace {
    fn from(why: NoBackend) -> Self {
        Self::NoBackend(why)
    }
}

impl From<NoTurn> for NoPlace {
    fn from(why: NoTurn) -> Self {
        match why {
            NoTurn::Full => Self::QueueFull,
            NoTurn::Closed => Self::Ending,
        }
    }
}

impl<R: RandomSource> Search<'_, R> {
    /// Chooses and reserves by the snapshot of this moment. While all backends are full, or others wait for what is free,
    /// it takes a ticket, as the app allows.
    pub fn now(&mut self) -> Result<Now, NoPlace> {
        let snapshot = self.routing.load();
        let index = snapshot.app(self.app).ok_or(NoPlace::NoBackend(NoBackend::NoSuchApp))?;
        let choose = || pick(index, snapshot.regions(), &self.request, self.tried, &mut self.random);
        if let Some(pick) = at_once(index, &self.source, &self.request, self.tried, choose)? {
            return Ok(Now::Place(pick));
        }
        let rules = index.spec().queue;
        Ok(Now::Ticket(index.queue().join(self.source, rules.length)?, rules.timeout))
    }

    /// Waits for a place, `limit` at most. To stop waiting is to drop this.
    pub async fn wait(&mut self, ticket: Ticket, limit: Duration) -> Result<Pick, NoPlace> {
        tokio::time::timeout(limit, self.served(ticket)).await.unwrap_or(Err(NoPlace::TimedOut))
    }

    async fn served(&mut self, ticket: Ticket) -> Result<Pick, NoPlace> {
        loop {
            let called = match poll_fn(|context| ticket.poll_called(context)).await {
                Called::Look(called) => called,
                Called::Go(why) => return Err(why.into()),
            };
            let (found, room) = self.look();
            match found {
                Ok(pick) => {
                    ticket.served(room);
                    return Ok(pick);
                }
                // If there is room, it is on a backend that this connection has tried.
                Err(NoBackend::AllFull) => ticket.declined(called, room),
                Err(why) => return Err(NoPlace::NoBackend(why)),
            }
            // Where it is called again at once, other connections of this thread get their turn before.
            tokio::task::yield_now().await;
        }
    }

    /// Chooses and reserves, and says whether there is room after that.
    fn look(&mut self) -> (Result<Pick, NoBackend>, bool) {
        let snapshot = self.routing.load();
        let Some(index) = snapshot.app(self.app) else { return (Err(NoBackend::NoSuchApp), false) };
        let found = pick(index, snapshot.regions(), &self.request, self.tried, &mut self.random);
        (found, index.has_room())
    }
}

/// How many in the queue have their turn before one that came now; `None`: it need not wait. `found` is what it would find.
/// Takes no place and no ticket.
pub fn waits_behind(
    index: &AppIndex,
    source: &ClientPrefix,
    request: &Request<'_>,
    found: Result<(), NoBackend>,
) -> Result<Option<usize>, NoPlace> {
    match at_once(index, source, request, &Tried::new(), || found)? {
        Some(()) => Ok(None),
        None => Ok(Some(index.queue().before(source, index.spec().queue.length)?)),
    }
}

/// What `choose` finds for one that came just now; `None` where it has to wait for a place, if it may.
fn at_once<T>(
    index: &AppIndex,
    source: &ClientPrefix,
    request: &Request<'_>,
    tried: &Tried,
    choose: impl FnOnce() -> Result<T, NoBackend>,
) -> Result<Option<T>, NoBackend> {
    if index.queue().is_empty() || index.queue().is_left_to(source) {
        match choose() {
            Err(NoBackend::AllFull) if index.spec().queue.length > 0 => Ok(None),
            found => found.map(Some),
        }
    } else {
        nothing_to_wait_for(index, request, tried).map_or(Ok(None), Err)
    }
}

#[cfg(test)]
mod tests;
