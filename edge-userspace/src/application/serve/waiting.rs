//! A place on a backend, now or as soon as it is this connection's turn.

use std::time::Instant;

use super::record::Record;
use super::{Proxy, Random, Refusal};
use crate::application::ports::{Connector, Forwarder};
use crate::application::queue::{NoPlace, Now, Search};
use crate::domain::{AppName, ClientAddr, Pick, RejectReason, Request, Termination, Tried};

impl<C: Connector, F: Forwarder> Proxy<C, F> {
    pub(super) async fn place(
        &self,
        app: &AppName,
        request: Request<'_>,
        tried: &Tried,
        record: &mut Record<'_>,
    ) -> Result<Pick, NoPlace> {
        let mut search = Search {
            routing: &self.routing,
            app,
            request,
            tried,
            source: self.admission.prefix(ClientAddr::new(record.outcome.client.ip())),
            random: Random(self.random),
        };
        match search.now()? {
            Now::Place(pick) => Ok(pick),
            Now::Ticket(ticket, limit) => {
                // One limit for all of a connection's waiting: after a failed connect it goes on with what is left.
                let limit = limit.saturating_sub(record.outcome.queued.unwrap_or_default());
                record.waits_since(Instant::now());
                let waited = search.wait(ticket, limit).await;
                record.waits_no_more();
                waited
            }
        }
    }
}

impl Refusal {
    /// No place was found.
    pub(super) fn no_place(why: NoPlace) -> Self {
        let (termination, reject) = match why {
            NoPlace::NoBackend(why) => return Self::no_backend(why),
            NoPlace::QueueFull => (Termination::QueueFull, RejectReason::QueueFull),
            NoPlace::TimedOut => (Termination::QueueTimedOut, RejectReason::QueueTimedOut),
            NoPlace::Ending => return Self::because(Termination::KilledByDrain),
        };
        Self { reject: Some(reject), ..Self::because(termination) }
    }
}
