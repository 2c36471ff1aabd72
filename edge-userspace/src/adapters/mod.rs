//! Adapters: how the world reaches the daemon, and what it reaches out to.

pub mod inbound;
pub mod outbound;
