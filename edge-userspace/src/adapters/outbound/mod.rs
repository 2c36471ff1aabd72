pub mod access_log;
pub mod line_writer;
pub mod logging;
pub mod metrics;
pub mod observer;
mod timestamp;
