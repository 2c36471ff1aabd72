//! Every metric's name and help, in one place. Counters are shown with `_total` appended.

pub(super) const PREFIX: &str = "edgeproxy";

/// Name (after the prefix) and help.
pub(super) type Name = (&'static str, &'static str);

pub(super) const ACCEPTED: Name = ("connections_accepted", "Connections accepted");
pub(super) const CLOSED: Name = ("connections_closed", "Connections ended, by termination letters");
pub(super) const ACTIVE: Name = ("connections_active", "Connections accepted and not yet ended");
pub(super) const REJECTED: Name = ("connections_rejected", "Connections the proxy turned away, by reason");
pub(super) const CONNECT_SECONDS: Name = ("connect_seconds", "Time from accept to an established upstream connection");
pub(super) const DURATION_SECONDS: Name = ("connection_duration_seconds", "Time from accept to the end");
pub(super) const BYTES: Name =
    ("forwarded_bytes", "Payload, running flows included, by direction and by who moved it (userspace or kernel)");
pub(super) const QUEUE_SECONDS: Name = ("queue_seconds", "Time that clients waited for a place on a backend");
pub(super) const QUEUE_WAITING: Name = ("queue_waiting", "Clients that wait for a place on a backend, by app");
pub(super) const QUEUE_LENGTH: Name = ("queue_length", "Clients that may wait for a place on a backend, by app");
pub(super) const LISTENER_CONNECTIONS: Name = ("listener_connections", "Connections of a listener");
pub(super) const LISTENER_MAX_CONNECTIONS: Name =
    ("listener_max_connections", "Connections a listener may have; 0 = no limit of its own");
pub(super) const SOURCES: Name =
    ("sources", "Source prefixes that are counted, with connections and remembered without");
pub(super) const ACCEPT_PAUSES: Name =
    ("accept_pauses", "Times a listener left clients waiting because of max_connection_rate");
pub(super) const REFUSALS_NOT_LOGGED: Name =
    ("refusals_not_logged", "Refused connections left out of the access log because of refusal_log_rate");
pub(super) const CONNECT_FAILURES: Name = ("connect_failures", "Connects to backends that failed, by how");
pub(super) const RETRIES: Name = ("connect_retries", "Connects that were tried again on another backend");
pub(super) const PICKS: Name = ("picks", "Backends connected to, by why they were chosen");
pub(super) const YIELDED: Name = ("bindings_yielded", "Bindings that were not honoured, by why");
pub(super) const PROXY_IN: Name = ("proxy_headers_received", "PROXY headers received, by version");
pub(super) const PROXY_OUT: Name = ("proxy_headers_sent", "PROXY headers sent to backends, by version");
pub(super) const EJECTIONS: Name = (
    "ejections",
    "Backends ejected because they failed connections, by whose (client, or trial: the POP's own) and how",
);
pub(super) const BACKEND_EJECTED: Name = ("backend_ejected", "1 while a backend is ejected");
pub(super) const CHECKS: Name = ("health_checks", "Checks of backends, by result");
pub(super) const CHECK_SECONDS: Name = ("health_check_seconds", "Time that a check of a backend took");
pub(super) const BACKEND_CHECK_UP: Name =
    ("backend_check_up", "0 while a backend is down by its checks, 1 otherwise; only for backends that are checked");
pub(super) const APP_FAIL_OPEN: Name =
    ("app_fail_open", "1 while all backends of an app in service are out and those whose checks fail are asked");
pub(super) const BINDINGS: Name = ("bindings", "Clients bound to a backend");
pub(super) const BINDING_SAVES: Name = ("binding_saves", "Times the bindings were saved to disk, by result");
pub(super) const BINDINGS_SAVED: Name = ("bindings_saved", "Bindings in the file after the last save");
pub(super) const BINDINGS_RESTORED: Name = ("bindings_restored", "Bindings taken over from before the start");
pub(super) const RELOADS: Name = ("reloads", "Reloads of the routing database, by result");
pub(super) const GENERATION: Name = ("routing_generation", "Generation of the routing snapshot in force");
pub(super) const REJECTED_ROWS: Name = ("routing_rejected_rows", "Bad rows in the last read of the routing database");
pub(super) const GEO_LOOKUPS: Name = ("geo_lookups", "Clients located, by where the answer came from");
pub(super) const FLOWS: Name = ("flows", "Connections forwarded, by the forwarder that carried them last");
pub(super) const FORWARDER_CHOSEN: Name =
    ("forwarder_chosen", "Times a forwarder took over a connection, by why; counted when the connection ends");
pub(super) const FALLBACKS: Name =
    ("forwarder_fallbacks", "Connections that did not use or left the kernel path, by why");
pub(super) const KERNEL_PATH: Name = ("kernel_path_active", "1 while new connections may take the kernel path");
pub(super) const FLOWS_IN_KERNEL: Name = ("kernel_flows", "Connections on the kernel path now");
pub(super) const KERNEL_PATH_OFF: Name =
    ("kernel_path_off", "1 for the reason why the kernel path is off where it is wanted, 0 for the others");
pub(super) const BYTE_MISMATCHES: Name = (
    "byte_mismatches",
    "Connections whose byte counts disagreed; one on the kernel path switched that off, one that was spliced splice, one between applications of this host took the mark from its backend",
);
pub(super) const KERNEL_BYTES: Name =
    ("kernel_forwarded_bytes", "Payload the kernel has forwarded, running flows included");
pub(super) const KERNEL_VERDICTS: Name = (
    "kernel_verdicts",
    "Packets on the kernel path: redirected, spilled (left to the daemon for want of room), or nothing but an end",
);
pub(super) const KERNEL_TRIMMED: Name =
    ("kernel_trimmed_bytes", "Bytes of retransmissions on the kernel path that had been forwarded before");
pub(super) const KERNEL_DROPS: Name = (
    "kernel_drops",
    "Packets that TCP dropped on the kernel path: old duplicates, probes, and acknowledgements after an end",
);
pub(super) const KERNEL_DROP_CHECKS: Name = (
    "kernel_drop_checks",
    "Times that the bytes of a connection on the kernel path were compared because packets were dropped before any end: old duplicates, probes of its peer, or the kernel's fault",
);
pub(super) const SAME_HOST: Name = ("same_host_path_active", "1 while the mark same_host of backends has an effect");
pub(super) const SAME_HOST_MARKED: Name = ("same_host_marked", "Backends with the mark same_host");
pub(super) const SAME_HOST_FLOWS: Name = ("same_host_flows", "Connections between applications of this host now");
pub(super) const SAME_HOST_BYTES: Name =
    ("same_host_bytes", "Payload handed over without TCP by connections that have ended");
pub(super) const SAME_HOST_WITHDRAWN: Name =
    ("same_host_withdrawn", "Backends that lost the mark same_host because byte counts disagreed");
pub(super) const SAME_HOST_CGROUPS_MISSING: Name =
    ("same_host_cgroups_missing", "Cgroups of same_host_cgroup whose applications don't take part now");
pub(super) const ACCEPT_ERRORS: Name = ("accept_errors", "Failures of accept, by kind");
pub(super) const LISTENER_CLOSED: Name = ("listener_connections_closed", "Connections that have ended, by listener");
pub(super) const LISTENER_UP: Name = ("listener_up", "1 while a listener accepts connections");
pub(super) const SK_LOOKUP: Name =
    ("sk_lookup_available", "1 if prefixes and ranges of ports can be had without binding each");
pub(super) const SK_LOOKUP_PREFIXES: Name = ("sk_lookup_prefixes", "Entries of the kernel's table for sk_lookup");
pub(super) const SK_LOOKUP_VERDICTS: Name = (
    "sk_lookup_verdicts",
    "Packets that sought a listening socket in prefixes and ranges of ports: steered to ours, left to a bound one, or no socket there",
);
pub(super) const LOST_RECORDS: Name = ("log_records_lost", "Log records dropped because their reader was too slow");
pub(super) const BACKEND_CONNECTIONS: Name =
    ("backend_connections", "Connections of a backend, as the balancer counts them");
pub(super) const BACKEND_KERNEL_CONNECTIONS: Name =
    ("backend_kernel_connections", "Connections of a backend, as the kernel counts them");
pub(super) const BACKEND_RTT: Name =
    ("backend_rtt_microseconds", "Measured round-trip time to a backend; absent while nobody has measured it lately");
pub(super) const BACKEND_HARD_LIMIT: Name = ("backend_hard_limit", "Hard limit of a backend; 0 = unlimited");
pub(super) const BACKEND_AVAILABLE: Name = ("backend_available", "1 if a backend is healthy and in state ready");
pub(super) const EVENTS: Name = ("events", "Events, by kind");
pub(super) const READY: Name = ("ready", "1 while the POP takes new connections");
pub(super) const BUILD: Name = ("build", "The version that runs");
