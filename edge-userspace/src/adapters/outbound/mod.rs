//! What the daemon reaches out to.

pub mod bindings;
mod file_identity;
pub mod geo;
pub mod sqlite;
