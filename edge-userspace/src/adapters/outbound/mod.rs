//! What the daemon reaches out to.

pub mod access_log;
pub mod bindings;
pub mod connector;
mod file_identity;
pub mod forward;
pub mod geo;
mod geo_status;
pub mod line_writer;
pub mod logging;
pub mod metrics;
pub mod observer;
pub mod privileges;
pub mod prober;
pub mod refusal_log;
pub mod sqlite;
pub mod tcp_options;
mod timestamp;
