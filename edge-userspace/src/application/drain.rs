//! Ending in good order: no new connections, existing ones live until they end or the deadline passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::flows::Flow;

/// Tells connections that their time is up: all of them, or those whose flow was marked.
#[derive(Debug, Default)]
pub struct Cut {
    now: AtomicBool,
    notify: Notify,
}

impl Cut {
    /// Ends every connection that waits, and those that will.
    pub fn now(&self) {
        self.now.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Has those whose flow was marked find out. All wake for that: it is rare, and a mark costs a connection nothing
    /// while it waits.
    pub fn marked(&self) {
        self.notify.notify_waiters();
    }

    /// Waits until it is time for this flow. Never returns before.
    pub async fn wait(&self, flow: &Flow) {
        loop {
            let mut notified = std::pin::pin!(self.notify.notified());
            // Registered before the flags are read, so that neither `now` nor `marked` can slip through in between.
            notified.as_mut().enable();
            if self.now.load(Ordering::Acquire) || flow.is_cut() {
                return;
            }
            notified.await;
        }
    }
}

/// Counts the connections of the daemon; the count is that of the live [`Held`]s.
#[derive(Debug, Default)]
pub struct Connections {
    active: AtomicUsize,
    draining: AtomicBool,
    none_left: Notify,
}

impl Connections {
    /// Takes a place; `None` at `limit` (0 is no limit).
    pub fn hold(self: &Arc<Self>, limit: usize) -> Option<Held> {
        let before = self.active.fetch_add(1, Ordering::AcqRel);
        let held = Held(Arc::clone(self));
        (limit == 0 || before < limit).then_some(held)
    }

    pub fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Waits until no connection is left.
    pub async fn none_left(&self) {
        loop {
            let mut notified = std::pin::pin!(self.none_left.notified());
            notified.as_mut().enable();
            if self.active() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One connection's place; gives it back when dropped.
#[derive(Debug)]
pub struct Held(Arc<Connections>);

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::domain::testing::{app_name, id as backend_id};

    #[test]
    fn the_limit_counts_live_connections_only() {
        let connections = Arc::new(Connections::default());
        let first = connections.hold(1);
        assert!(first.is_some());
        assert!(connections.hold(1).is_none());
        assert_eq!(connections.active(), 1);
        drop(first);
        assert!(connections.hold(1).is_some());
    }

    #[tokio::test]
    async fn a_cut_reaches_those_who_wait_and_those_who_come_later() {
        let cut = Arc::new(Cut::default());
        let waiting = tokio::spawn({
            let cut = Arc::clone(&cut);
            async move { cut.wait(&flow(1)).await }
        });
        tokio::task::yield_now().await;
        cut.now();
        waiting.await.unwrap();
        cut.wait(&flow(2)).await;
    }

    #[tokio::test]
    async fn a_marked_flow_is_cut_and_no_other() {
        let cut = Arc::new(Cut::default());
        let flows = [Arc::new(flow(1)), Arc::new(flow(2))];
        let [marked, other] = flows.clone().map(|flow| {
            let cut = Arc::clone(&cut);
            tokio::spawn(async move { cut.wait(&flow).await })
        });
        tokio::task::yield_now().await;
        flows[0].cut();
        cut.marked();
        marked.await.unwrap();
        tokio::task::yield_now().await;
        assert!(!other.is_finished());
        other.abort();
    }

    fn flow(id: u64) -> Flow {
        Flow::new(id, ([192, 0, 2, 1], 4000).into(), app_name("web"), backend_id("b"))
    }

    #[tokio::test]
    async fn none_left_ends_with_the_last_connection() {
        let connections = Arc::new(Connections::default());
        let held = connections.hold(0);
        let waiting = tokio::spawn({
            let connections = Arc::clone(&connections);
            async move { connections.none_left().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap();
    }
}
