//! Commands of the `edgeproxy` binary.

pub mod db;
