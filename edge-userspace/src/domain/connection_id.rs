//! Ids of connections that mean something outside this daemon.

use std::fmt;

/// One life of a daemon: a number drawn at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(u64);

impl Instance {
    pub const fn new(drawn: u64) -> Self {
        Self(drawn)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A connection among those of all daemons: sent to backends, and in the access log (`conn_id`).
///
/// The instance and the number of the connection within it: `0f3a6c1e5b7d9a28-1042`. With a million lives of daemons
/// the chance that two have the same instance is one in 40 million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    pub instance: Instance,
    pub number: u64,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.instance, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_the_daemon_and_the_connection() {
        let id = ConnectionId { instance: Instance::new(0xab), number: 1042 };
        assert_eq!(id.to_string(), "00000000000000ab-1042");
    }
}
