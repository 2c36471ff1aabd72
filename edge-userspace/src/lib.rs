//! edgeproxy

pub mod config;
pub mod domain;
