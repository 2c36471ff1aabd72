//! What the daemon reaches out to.

pub mod access_log;
pub mod bindings;
mod file_identity;
pub mod geo;
mod geo_status;
pub mod line_writer;
pub mod logging;
pub mod metrics;
pub mod observer;
pub mod sqlite;
mod timestamp;
