//! The use cases. They depend on the domain and on ports; adapters are handed in.

pub mod admission;
pub mod arrival;
pub mod backend_drain;
pub mod bindings;
pub mod checks;
pub mod drain;
pub mod events;
pub mod explain;
pub mod flows;
pub mod health;
pub mod listening;
pub mod locate;
pub mod marked_behind_headers;
pub mod ports;
pub mod queue;
pub mod reload;
pub mod routing;
pub mod rtt;
pub mod serve;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod unknown_regions;
