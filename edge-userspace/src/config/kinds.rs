//! Values that are particular to this program: lists, prefixes with countries, loopback addresses, named choices.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::value::{Rule, Value};
use crate::domain::{
    AcceptProxy, BadPrefix, GeoOverride, GeoPlace, ListenerError, Spot, parse_client_prefix, parse_prefix,
};

/// Types that make up a list.
trait Item: Sized + fmt::Display {
    const KIND: &'static str;
    const MAY_BE_EMPTY: bool;
    fn parse(text: &str) -> Result<Self, String>;
    /// Two items with the same key contradict each other.
    fn key(&self) -> String;
}

impl<T: Item> Value for Vec<T> {
    const KIND: &'static str = T::KIND;
    const LIST: bool = true;

    fn parse(text: &str, _: &Rule) -> Result<Self, String> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let items = items.map(T::parse).collect::<Result<Self, _>>()?;
        if items.is_empty() && !T::MAY_BE_EMPTY {
            return Err("must name at least one".to_owned());
        }
        let mut seen = std::collections::HashSet::new();
        match items.iter().map(T::key).find(|key| !seen.insert(key.clone())) {
            Some(twice) => Err(format!("names {twice} twice")),
            None => Ok(items),
        }
    }

    fn show(&self, _: &Rule) -> String {
        self.iter().map(T::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Where the proxy listens by the settings alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenSpots(Vec<Spot>);

/// No listener but those of the routing database.
const NO_LISTENERS: &str = "none";

impl ListenSpots {
    pub fn as_slice(&self) -> &[Spot] {
        &self.0
    }
}

impl Value for ListenSpots {
    const KIND: &'static str = "list of ADDRESS:PORT, PREFIX:PORTS or fd:NAME; or none";
    const LIST: bool = true;

    fn parse(text: &str, rule: &Rule) -> Result<Self, String> {
        match text.trim() {
            NO_LISTENERS => Ok(Self(Vec::new())),
            text => Vec::parse(text, rule).map(Self),
        }
    }

    fn show(&self, rule: &Rule) -> String {
        if self.0.is_empty() { NO_LISTENERS.to_owned() } else { self.0.show(rule) }
    }
}

impl Item for Spot {
    const KIND: &'static str = ListenSpots::KIND;
    const MAY_BE_EMPTY: bool = false;

    fn parse(text: &str) -> Result<Self, String> {
        if text == NO_LISTENERS {
            return Err("must not hold none beside others".to_owned());
        }
        Self::parse(text).map_err(|why| match (text.parse::<IpAddr>(), why) {
            (Ok(IpAddr::V4(ip)), _) => format!("lacks a port: write {ip}:8080"),
            (Ok(IpAddr::V6(ip)), _) => format!("lacks a port: write [{ip}]:8080"),
            (_, ListenerError::Place(_)) => {
                format!("must be ADDRESS:PORT with an IP address, e.g. 0.0.0.0:8080 or [::]:8080, not {text:?}")
            }
            (_, why) => format!("holds {text:?}: {why}"),
        })
    }

    fn key(&self) -> String {
        self.to_string()
    }
}

fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("lacks a port: write {ip}:9090"),
        Ok(IpAddr::V6(ip)) => format!("lacks a port: write [{ip}]:9090"),
        Err(_) => format!("must be ADDRESS:PORT with a loopback address, e.g. 127.0.0.1:9090, not {text:?}"),
    })
}

impl Item for IpNet {
    const KIND: &'static str = "list of prefixes";
    const MAY_BE_EMPTY: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        parse_prefix(text).map_err(|why| format!("must be addresses or prefixes: {why}"))
    }

    fn key(&self) -> String {
        self.to_string()
    }
}

impl Value for AcceptProxy {
    const KIND: &'static str = "off, optional or required";

    fn parse(text: &str, _: &Rule) -> Result<Self, String> {
        Self::parse(text).map_err(|_| not_one_of(text, &Self::ALL.map(Self::as_str)))
    }

    fn show(&self, _: &Rule) -> String {
        self.as_str().to_owned()
    }
}

impl Item for GeoOverride {
    const KIND: &'static str = "list of PREFIX=COUNTRY or PREFIX=region:NAME";
    const MAY_BE_EMPTY: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let form = || format!("must be PREFIX=COUNTRY, e.g. 203.0.113.0/24=BR, or PREFIX=region:NAME, not {text:?}");
        let (prefix, place) = text.split_once('=').ok_or_else(form)?;
        let prefix = parse_client_prefix(prefix.trim()).map_err(|why| match why {
            BadPrefix::Text(_) => form(),
            why => format!("holds a mistake: {why}"),
        })?;
        let place = GeoPlace::parse(place.trim()).map_err(|why| format!("names no place in {text:?}: {why}"))?;
        Ok(Self { prefix, place })
    }

    fn key(&self) -> String {
        self.prefix.to_string()
    }
}

/// A directory of the cgroup v2 file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPath(PathBuf);

impl CgroupPath {
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Item for CgroupPath {
    const KIND: &'static str = "list of paths";
    const MAY_BE_EMPTY: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        if path.is_absolute() {
            return Ok(Self(path));
        }
        Err(format!("must be a whole path, e.g. /sys/fs/cgroup/system.slice/app.service, not {text:?}"))
    }

    fn key(&self) -> String {
        self.to_string()
    }
}

/// An address that only this host can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopbackAddr(SocketAddr);

impl LoopbackAddr {
    pub const fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl Value for LoopbackAddr {
    const KIND: &'static str = "loopback ADDRESS:PORT";

    fn parse(text: &str, _: &Rule) -> Result<Self, String> {
        let addr = socket_addr(text)?;
        if addr.ip().to_canonical().is_loopback() {
            return Ok(Self(addr));
        }
        Err(format!(
            "must be a loopback address such as 127.0.0.1:9090, because the admin API has no log-in; not {addr}"
        ))
    }

    fn show(&self, _: &Rule) -> String {
        self.0.to_string()
    }
}

/// Enums whose values have names.
macro_rules! choice {
    ($(#[$doc:meta])+ $type:ident, $kind:literal { $( $(#[$vdoc:meta])* $variant:ident = $name:literal ),+ }) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type { $( $(#[$vdoc])* $variant ),+ }

        impl $type {
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $name ),+ }
            }
        }

        impl Value for $type {
            const KIND: &'static str = $kind;

            fn parse(text: &str, _: &Rule) -> Result<Self, String> {
                match text { $( $name => Ok(Self::$variant), )+ _ => Err(not_one_of(text, &[$($name),+])) }
            }

            fn show(&self, _: &Rule) -> String {
                self.as_str().to_owned()
            }
        }
    };
}

choice! {
    /// Which forwarder is wanted.
    ForwarderChoice, "auto, copy, splice, sockmap or chaos" {
        /// Copy first; splice and the kernel path for what profits from them.
        Auto = "auto",
        Copy = "copy",
        /// In userspace; what is large goes through pipes.
        Splice = "splice",
        /// In the kernel; the daemon still falls back to `copy` where it cannot, and says so.
        Sockmap = "sockmap",
        /// For tests: operations fail and stall at random.
        Chaos = "chaos"
    }
}

impl std::str::FromStr for ForwarderChoice {
    type Err = String;

    /// As in the settings; `off` is another name of `copy`.
    fn from_str(text: &str) -> Result<Self, String> {
        <Self as Value>::parse(if text == "off" { "copy" } else { text }, &Rule::TEXT)
    }
}

choice! {
    /// Severity of log messages.
    LogLevel, "error, warn, info, debug or trace" {
        Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace"
    }
}

choice! {
    /// Format of log messages.
    LogFormat, "json or text" { Json = "json", Text = "text" }
}

fn not_one_of(text: &str, names: &[&str]) -> String {
    let list = names.join(", ");
    match super::sources::nearest(text, names.iter().copied()) {
        Some(near) => format!("must be one of {list}: did you mean {near}?"),
        None => format!("must be one of {list}, not {text:?}"),
    }
}
