//! edgeproxy: a TCP proxy for edge points of presence.
pub mod adapters;
pub mod application;
pub mod cli;
pub mod config;
pub mod domain;
