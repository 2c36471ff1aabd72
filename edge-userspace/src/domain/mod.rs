//! The rules of the product, free of I/O: who may be chosen, in which order, and why.
//!
//! Everything here is plain data and arithmetic. Time, randomness and the routing rows come in from outside, so the
//! same code routes, explains and is tested.

mod acl;
mod addr;
mod affinity;
mod app;
mod backend;
mod check;
mod connection_id;
mod country;
mod courtesy;
mod elsewhere;
mod endpoints;
mod forwarding;
mod greeting;
mod group;
mod health;
mod index;
mod listener;
mod load;
mod locality;
mod maglev;
mod name;
mod nearest;
mod outcome;
mod overrides;
mod plan;
mod prefix;
pub mod proxy;
mod queue;
mod random;
mod rate;
mod regions;
mod room;
pub mod row;
mod rtt;
mod select;
#[cfg(test)]
pub(crate) mod testing;
mod tried;

pub use acl::{Access, AccessError, AccessList, AccessRule};
pub use addr::{AddrError, BackendAddr, ClientAddr};
pub use affinity::{AffinityPrefix, BindingKey, ClientPrefix, PrefixError};
pub use app::{Affinity, AppError, AppSpec, NextRegion, QueueRules, Selection};
pub use backend::{
    Backend, BackendSpec, BackendState, DEFAULT_SOFT_LIMIT, LimitError, Limits, Skip, StateError, Weight,
};
pub use check::{
    CheckChange, CheckDefaults, CheckError, CheckPace, CheckReport, CheckResult, CheckSpec, CheckVerdict, HealthCheck,
    HttpCheck, Probe, StatusRanges, Tls, Verify,
};
pub use connection_id::{ConnectionId, Instance};
pub use country::{CountryCode, CountryError};
pub use courtesy::Courtesy;
pub use endpoints::{Endpoint, Endpoints};
pub use forwarding::{Fallback, ForwarderKind, Step, Why};
pub use greeting::{Greeting, HelloError};
pub use health::{Complaint, Health, HealthRules, Phase, Return, Transition, Witness};
pub use index::{AppIndex, Ejections, Snapshot, World};
pub use listener::{AcceptProxy, ListenerError, ListenerSpec, Place, PortRange, ServerName, Specificity, Spot};
pub use load::{BackendLoad, Permit, Slot, SlotPool};
pub use locality::Locality;
pub use name::{AppName, BackendId, ListenerId, NameError, Region, RuleId, SocketName};
pub use outcome::*;
pub use overrides::{GeoOverride, GeoPlace, OverrideError, Overrides};
pub use plan::{Plan, PlanEntry, explain};
pub use prefix::{BadPrefix, parse_client_prefix, parse_prefix};
pub use proxy::{ProxyHeader, ProxyVersion, SendProxyError};
pub use queue::{AppQueue, Called, Calls, Lobby, NoTurn, Ticket};
pub use random::RandomSource;
pub use rate::{Pace, Rate};
pub use regions::{MAX_REGIONS, Origin, Position, RegionSpec, Regions};
pub use row::{
    RawAcl, RawApp, RawBackend, RawGeoOverride, RawListener, RawRegion, RawRouting, RawRow, RawValue, RowError,
};
pub use rtt::{RTT_FORGOTTEN, RTT_MEMORY, Rtt};
pub use select::{NoBackend, Pick, PickReason, Request, nothing_to_wait_for, pick};
pub use tried::Tried;
