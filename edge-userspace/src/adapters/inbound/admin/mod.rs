//! The admin API: HTTP/JSON on a Unix socket and, if asked, its reading half on a loopback address.
//!
//! It knows the daemon only through [`Control`].

mod routes;
mod server;
mod socket;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

pub use routes::ExplainQuery;
pub use server::AdminServer;
pub use socket::AdminError;

use crate::application::backend_drain::{DrainAnswer, DrainRequest};
use crate::application::bindings::{BindingPage, BindingsQuery, ClearAnswer, ClearRequest};
use crate::application::events::{EventsAnswer, EventsQuery};
use crate::application::explain::Explanation;
use crate::application::flows::FlowStatus;
use crate::application::status::{ForwarderStatus, PopState, ReloadAnswer, Status};
use crate::config::ForwarderChoice;

/// An answer that takes its time; the error is for the user.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// What the admin API may see and do.
pub trait Control: Send + Sync {
    fn status(&self) -> Status;
    /// The state alone: asked often, where the status may be long.
    fn state(&self) -> PopState {
        self.status().state
    }
    /// All metrics as OpenMetrics text.
    fn metrics(&self) -> Result<String, fmt::Error>;
    /// How a connection of the client would be routed now. The error names what was asked for and is not there.
    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, String>;
    /// Reads the routing database now. The error says why the last good snapshot stays.
    fn reload(&self, allow_empty: bool) -> Answer<'_, ReloadAnswer>;
    /// A part of the bindings. The error says what is wrong with the question.
    fn bindings(&self, query: &BindingsQuery) -> Answer<'_, BindingPage>;
    /// Ends bindings. The error says what is wrong with the request.
    fn clear_bindings(&self, request: &ClearRequest) -> Answer<'_, ClearAnswer>;
    /// The flows that run now.
    fn flows(&self) -> Vec<FlowStatus>;
    /// What has happened; may wait for it.
    fn events(&self, query: EventsQuery) -> Pin<Box<dyn Future<Output = EventsAnswer> + Send + '_>>;
    /// Changes the forwarder of new connections and of those that run. The error says why it stays.
    fn set_forwarder(&self, forwarder: ForwarderChoice) -> Result<ForwarderStatus, String>;
    /// Gives a backend no new connections, or ends that. The error names what is not there.
    fn drain_backend(&self, request: &DrainRequest) -> Result<DrainAnswer, String>;
    fn ready_backend(&self, request: &DrainRequest) -> Result<DrainAnswer, String>;
    /// Begins to drain, as SIGTERM does; returns at once.
    fn drain(&self);
}

#[cfg(test)]
pub(crate) mod tests;
