//! The table of settings: the one place where a setting is declared.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use ipnet::IpNet;

use super::kinds::{CgroupPath, ForwarderChoice, ListenSpots, LogFormat, LogLevel, LoopbackAddr};
use super::value::{Rule, Value};
use crate::domain::{AcceptProxy, AppName, GeoOverride, Region};

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// As in the file; the environment name and the flag are derived from it.
    pub name: &'static str,
    /// What a value looks like, for people.
    pub kind: &'static str,
    /// Several values, separated by commas (or a TOML array).
    pub list: bool,
    pub rule: Rule,
    /// As a user would write it; empty = not set.
    pub default: &'static str,
    pub help: &'static str,
    /// Parses a text and returns it in its canonical form.
    pub(super) check: fn(&str) -> Result<String, String>,
}

impl Key {
    /// The row with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// `EDGEPROXY_LISTEN_ADDR` for `listen_addr`.
    pub fn env(&self) -> String {
        format!("EDGEPROXY_{}", self.name.to_ascii_uppercase())
    }

    /// `listen-addr` for `listen_addr`.
    pub fn flag(&self) -> &'static str {
        let flag = FLAGS.iter().find(|(name, _)| *name == self.name);
        flag.map_or(self.name, |(_, flag)| flag)
    }
}

/// Name and flag of each key: the command line wants flags that live for ever.
static FLAGS: LazyLock<Vec<(&str, String)>> =
    LazyLock::new(|| KEYS.iter().map(|key| (key.name, key.name.replace('_', "-"))).collect());

/// Makes of one declaration the struct, the table and the constructor, so that they cannot drift apart.
macro_rules! settings {
    ($( $(#[doc = $help:literal])+ $field:ident: $type:ty, $name:literal = $default:literal, $rule:expr; )+) => {
        /// The settings in force. Every value has been checked.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Settings { $( $(#[doc = $help])+ pub $field: $type, )+ }

        /// All settings, in the order of the documentation.
        pub static KEYS: &[Key] = &[ $( Key {
            name: $name,
            kind: <$type as Value>::KIND,
            list: <$type as Value>::LIST,
            rule: $rule,
            default: $default,
            help: concat!($($help),+).trim_ascii(),
            check: |text| <$type as Value>::parse(text, &$rule).map(|value| value.show(&$rule)),
        }, )+ ];

        impl Settings {
            /// Builds the settings from one text for each key, or says which text is bad.
            pub(super) fn from_texts(text_of: impl Fn(&Key) -> String) -> Result<Self, Vec<(&'static Key, String)>> {
                let mut bad = Vec::new();
                let mut keys = KEYS.iter();
                $( let $field: Option<$type> = keys.next().and_then(|key| {
                    Value::parse(&text_of(key), &key.rule).map_err(|why| bad.push((key, why))).ok()
                }); )+
                match ($($field,)+) {
                    ($(Some($field),)+) => Ok(Self { $($field),+ }),
                    _ => Err(bad),
                }
            }
        }
    };
}

settings! {
    /// Where the proxy accepts clients, besides the listeners of the routing database: addresses, prefixes or ranges of ports, sockets of the service manager; `none`: only those of the database.
    listen_addr: ListenSpots, "listen_addr" = "0.0.0.0:8080", Rule::TEXT;
    /// The app that the listeners lead to; not set: the only app in the database.
    app: Option<AppName>, "app" = "", Rule::TEXT;
    /// Whether connections to `listen_addr` begin with a PROXY header, which names the client (docs/proxy-protocol.md).
    accept_proxy: AcceptProxy, "accept_proxy" = "off", Rule::TEXT;
    /// Prefixes whose PROXY headers are believed; needed unless `accept_proxy` is `off`.
    proxy_from: Vec<IpNet>, "proxy_from" = "", Rule::TEXT;
    /// Until when a PROXY header must be whole, on all listeners that take one.
    proxy_header_timeout: Duration, "proxy_header_timeout_ms" = "5000", Rule::millis(1, 600_000);
    /// With `optional`: how long a connection from `proxy_from` is waited for to begin before it counts as one without a header, for protocols in which the server speaks first.
    proxy_optional_wait: Duration, "proxy_optional_wait_ms" = "500", Rule::millis(1, 600_000);
    /// The routing database (SQLite).
    db_path: PathBuf, "db_path" = "routing.db", Rule::TEXT;
    /// The region of this POP.
    region: Region, "region" = "sa", Rule::TEXT;
    /// How often the routing database is looked at for changes.
    db_reload: Duration, "db_reload_secs" = "5", Rule::seconds(0.05, 3600.0);
    /// A country or city database (mmdb); not set: the embedded one.
    geoip_path: Option<PathBuf>, "geoip_path" = "", Rule::TEXT;
    /// Where prefixes are, before any database: a country or a region, e.g. `127.0.1.0/24=BR,10.0.0.0/8=region:eu`.
    geo_override: Vec<GeoOverride>, "geo_override" = "", Rule::TEXT;
    /// How long a client keeps its backend after its last connection.
    binding_ttl: Duration, "binding_ttl_secs" = "600", Rule::seconds(0.1, 31_536_000.0);
    /// How many bindings are kept at most.
    binding_capacity: usize, "binding_capacity" = "1000000", Rule::count(1, 100_000_000);
    /// How often bindings that have ended are swept out (they never count as live).
    binding_gc_interval: Duration, "binding_gc_interval_secs" = "60", Rule::seconds(0.1, 86_400.0);
    /// A file in which bindings outlive the daemon, in a directory that it may write; not set: they end with it.
    bindings_path: Option<PathBuf>, "bindings_path" = "", Rule::TEXT;
    /// How often bindings are saved there; they are saved at the end, too.
    bindings_save_interval: Duration, "bindings_save_secs" = "30", Rule::seconds(0.1, 86_400.0);
    /// Leading bits of an IPv4 client address that tell clients apart for affinity.
    affinity_prefix_v4: u8, "affinity_prefix_v4" = "32", Rule::count(0, 32);
    /// Leading bits of an IPv6 client address that tell clients apart for affinity.
    affinity_prefix_v6: u8, "affinity_prefix_v6" = "64", Rule::count(0, 128);
    /// Time limit of one connect to a backend.
    connect_timeout: Duration, "connect_timeout_ms" = "3000", Rule::millis(1, 600_000);
    /// How many different backends are tried for one connection.
    connect_attempts: u32, "connect_attempts" = "3", Rule::count(1, 16);
    /// Time limit of all connects for one connection together.
    connect_budget: Duration, "connect_budget_ms" = "10000", Rule::millis(1, 3_600_000);
    /// Connects in a row that fail, or connections reset at once, before a backend is ejected; a timeout counts as all of them. 0 = never eject.
    ejection_failures: u32, "ejection_failures" = "3", Rule::count(0, 1000);
    /// How long a backend is ejected at first; each further time it is twice as long.
    ejection: Duration, "ejection_secs" = "10", Rule::seconds(0.1, 86_400.0);
    /// How long a backend is ejected at most.
    ejection_longest: Duration, "ejection_longest_secs" = "300", Rule::seconds(0.1, 86_400.0);
    /// Part of an app's backends that may be ejected at once, in percent, rounded up; never all of them.
    ejection_max_percent: u32, "ejection_max_percent" = "50", Rule::count(0, 100);
    /// How long a backend that comes back after an ejection or failed health checks gets less than its share of new clients.
    slow_start: Duration, "slow_start_secs" = "30", Rule::seconds(0.0, 3600.0);
    /// Where the TLS server name decides between listeners: how long a client may take to name one.
    server_name_timeout: Duration, "server_name_timeout_ms" = "5000", Rule::millis(1, 600_000);
    /// How often a backend is checked that is to be checked (column `health_check`), give or take a tenth; for checks that don't say it themselves.
    health_interval: Duration, "health_interval_ms" = "2000", Rule::millis(100, 3_600_000);
    /// Time limit of one health check, likewise.
    health_timeout: Duration, "health_timeout_ms" = "1000", Rule::millis(10, 600_000);
    /// Checks in a row that pass and bring a backend back, likewise.
    health_rise: u32, "health_rise" = "2", Rule::count(1, 100);
    /// Checks in a row that fail and take a backend out, likewise.
    health_fall: u32, "health_fall" = "3", Rule::count(1, 100);
    /// Health checks under way at once, and as many trials of ejected backends; others wait for them. Never more than a sixteenth of the limit on open files.
    health_checks_at_once: u32, "health_checks_at_once" = "256", Rule::count(1, 65_536);
    /// A connection without a byte in either direction is closed after this time.
    idle_timeout: Duration, "idle_timeout_secs" = "3600", Rule::seconds(0.1, 31_536_000.0);
    /// A connection that one side has half-closed is closed after this time without a byte.
    half_close_timeout: Duration, "half_close_timeout_secs" = "300", Rule::seconds(0.1, 31_536_000.0);
    /// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged, or a peer may keep its window closed. 0 = the system's limit.
    tcp_user_timeout: Duration, "tcp_user_timeout_ms" = "300000", Rule::millis(0, 86_400_000);
    /// Idle time before the first TCP keepalive probe. 0 = no keepalive.
    keepalive: Duration, "keepalive_secs" = "60", Rule::whole_seconds(0, 32_767);
    /// Length of the listen queue (the system's net.core.somaxconn caps it).
    backlog: u32, "backlog" = "4096", Rule::count(1, 65_535);
    /// Connections held at once. 0 = what the limit on open files allows.
    max_connections: u32, "max_connections" = "0", Rule::count(0, 10_000_000);
    /// Connections accepted in a second, by all listeners together; what comes beyond that waits in the listen queue. 0 = no limit.
    max_connection_rate: u32, "max_connection_rate" = "0", Rule::count(0, 1_000_000);
    /// Connections that may come at once before that rate counts. 0 = as many as in a second.
    max_connection_burst: u32, "max_connection_burst" = "0", Rule::count(0, 10_000_000);
    /// Connections of one source at once. 0 = no limit.
    source_max_connections: u32, "source_max_connections" = "0", Rule::count(0, 10_000_000);
    /// Connections of one source in a second. 0 = no limit.
    source_rate: u32, "source_rate" = "0", Rule::count(0, 1_000_000);
    /// Connections of one source that may come at once before that rate counts. 0 = as many as in a second.
    source_burst: u32, "source_burst" = "0", Rule::count(0, 10_000_000);
    /// Leading bits of an IPv4 client address that make a source.
    source_prefix_v4: u8, "source_prefix_v4" = "32", Rule::count(0, 32);
    /// Leading bits of an IPv6 client address that make a source.
    source_prefix_v6: u8, "source_prefix_v6" = "64", Rule::count(0, 128);
    /// How many sources without connections are remembered for their rate.
    source_capacity: usize, "source_capacity" = "131072", Rule::count(1, 100_000_000);
    /// Refused connections that are logged in a second, for each reason; the metrics count them all. 0 = no limit.
    refusal_log_rate: u32, "refusal_log_rate" = "1000", Rule::count(0, 1_000_000);
    /// Worker threads. 0 = one for each core.
    workers: usize, "workers" = "0", Rule::count(0, 1024);
    /// What moves the bytes: `auto` copies first, splices what is large and takes the kernel path where that pays.
    forwarder: ForwarderChoice, "forwarder" = "auto", Rule::TEXT;
    /// With `auto`: bytes a second, both directions together, from which a transfer takes the kernel path. 0 = never, transfers are spliced.
    auto_bytes_per_sec: u32, "auto_bytes_per_sec" = "0", Rule::count(0, 4_000_000_000);
    /// With `auto`: messages a second, back and forth, from which a connection takes the kernel path.
    auto_messages_per_sec: u32, "auto_messages_per_sec" = "500", Rule::count(1, 1_000_000_000);
    /// With `auto`: changes of direction within `auto_window_ms` that such a conversation has at least.
    auto_turns: u32, "auto_turns" = "10", Rule::count(1, 1_000_000);
    /// With `auto`: the mean size up to which its messages are messages; beyond that they are transfers.
    auto_largest_message_kib: u32, "auto_largest_message_kib" = "64", Rule::kib(1, 65_536);
    /// With `auto`: the mean size of messages from which `auto_conversations` sets no limit. 0 = it always does.
    auto_sizeable_message_kib: u32, "auto_sizeable_message_kib" = "0", Rule::kib(0, 65_536);
    /// With `auto`: lively conversations up to which a worker gives them to the kernel path; more are copied.
    auto_conversations: u32, "auto_conversations" = "8", Rule::count(0, 1_000_000);
    /// With `auto`: the shortest time over which these rates are taken.
    auto_window: Duration, "auto_window_ms" = "20", Rule::millis(1, 60_000);
    /// With `auto`: a connection whose receiver takes less than was read more often than once in so many reads stays out of the kernel path, which would leave its bytes to the daemon. 0 = none stays out.
    auto_reads_per_block: u32, "auto_reads_per_block" = "8", Rule::count(0, 1_000_000);
    /// With `auto`: a connection leaves the kernel path for life when more than this share of its bytes, in percent, is left to the daemon (a spill). 100 = none leaves.
    auto_spill_percent: u8, "auto_spill_percent" = "50", Rule::count(1, 100);
    /// With `auto`: for how many seconds in a row that must be so; seconds without a byte don't count.
    auto_spill: Duration, "auto_spill_secs" = "3", Rule::whole_seconds(1, 86_400);
    /// With `auto` and `splice`: reads of at least so much that must be full before what follows is spliced.
    splice_read_kib: u32, "splice_read_kib" = "64", Rule::kib(16, 256);
    /// With `auto` and `splice`: how many of them there must be in a row.
    splice_reads: u8, "splice_reads" = "1", Rule::count(1, 255);
    /// With `chaos`, for tests: of 1,000 operations on a socket, how many fail as if the peer had reset it.
    chaos_fail_permille: u32, "chaos_fail_permille" = "0", Rule::count(0, 1000);
    /// With `chaos`, for tests: of 1,000 operations on a socket, how many stall, up to 20 ms.
    chaos_delay_permille: u32, "chaos_delay_permille" = "20", Rule::count(0, 1000);
    /// Whether the kernel path may be used on a kernel whose sockmap is known to lose data, because its vendor mended it.
    sockmap_on_denied_kernels: bool, "sockmap_on_denied_kernels" = "false", Rule::TEXT;
    /// Bytes a direction may have queued in the kernel before back-pressure sets in.
    sockmap_backlog_kib: u32, "sockmap_backlog_kib" = "256", Rule::kib(64, 65_536);
    /// Bytes all directions together may have queued in the kernel.
    sockmap_memory_mib: u32, "sockmap_memory_mib" = "256", Rule::mib(1, 1_048_576);
    /// Connections on the kernel path at once.
    max_flows: u32, "max_flows" = "8192", Rule::count(1, 16_384);
    /// Cgroups v2 whose applications may be handed bytes without TCP, for backends with the mark `same_host`; not set: none.
    same_host_cgroup: Vec<CgroupPath>, "same_host_cgroup" = "", Rule::TEXT;
    /// Bytes that may wait for one such application before TCP takes over.
    same_host_budget_kib: u32, "same_host_budget_kib" = "256", Rule::kib(16, 65_536);
    /// How long existing connections may go on after SIGTERM.
    drain_timeout: Duration, "drain_timeout_secs" = "30", Rule::seconds(0.0, 86_400.0);
    /// The admin socket (Unix): metrics, status and the commands that change anything.
    admin_socket: PathBuf, "admin_socket" = "/run/edgeproxy/admin.sock", Rule::TEXT;
    /// A loopback TCP address that serves the reading half of the admin API; not set: none.
    admin_listen: Option<LoopbackAddr>, "admin_listen" = "", Rule::TEXT;
    /// The least severe messages that are logged.
    log_level: LogLevel, "log_level" = "info", Rule::TEXT;
    /// Format of the log on standard error.
    log_format: LogFormat, "log_format" = "json", Rule::TEXT;
    /// Whether each connection is logged, as a JSON line on standard output.
    access_log: bool, "access_log" = "true", Rule::TEXT;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_default_is_valid_and_canonical() {
        for key in KEYS {
            assert_eq!((key.check)(key.default).as_deref(), Ok(key.default), "{}", key.name);
        }
        assert!(Settings::from_texts(|key| key.default.to_owned()).is_ok());
    }

    #[test]
    fn names_are_unique_and_documented() {
        let names: HashSet<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), KEYS.len());
        assert!(KEYS.iter().all(|key| key.help.ends_with(['.', '`']) || key.help.ends_with("none.")));
    }
}
