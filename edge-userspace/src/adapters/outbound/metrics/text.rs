//! The OpenMetrics text of the counters and of what is derived from the status.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::counters::{Labelled, Times};
use super::names::{self, Name};
use super::{Metrics, Status};
use crate::application::status::{BackendStatus, KernelPathOff, PopState};
use crate::domain::ListenerId;

/// Exemplars are not used; their types still have to be named.
type Exemplar = prometheus_client::metrics::exemplar::Exemplar<[(String, String); 0], f64>;

pub(super) fn render(metrics: Arc<Metrics>, status: Status, bytes: [u64; 4]) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix(names::PREFIX);
    registry.register_collector(Box::new(Scrape { metrics, status, bytes }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape {
    metrics: Arc<Metrics>,
    status: Status,
    /// Payload, in the order of the rows below.
    bytes: [u64; 4],
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Out(&mut encoder);
        self.connections(out)?;
        self.listeners(out)?;
        self.limits(out)?;
        self.decisions(out)?;
        self.forwarding(out)?;
        self.backends(out)?;
        out.info(names::BUILD, &[("version", self.status.version.as_str())])
    }
}

impl Scrape {
    fn connections(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let (m, connections) = (&self.metrics, self.metrics.connections());
        out.counter(names::ACCEPTED, connections.accepted)?;
        out.counters(names::CLOSED, "termination", &m.closed)?;
        out.gauge(names::ACTIVE, connections.active)?;
        out.counters(names::REJECTED, "reason", &m.rejected)?;
        out.counters(names::ACCEPT_ERRORS, "kind", &m.accept_errors)?;
        out.times(names::CONNECT_SECONDS, &m.connect)?;
        out.times(names::DURATION_SECONDS, &m.duration)?;
        let lost = m.lost.iter().map(|(log, count)| ([("log", *log)], count.load(Ordering::Relaxed)));
        out.family(names::LOST_RECORDS, MetricType::Counter, lost)
    }

    fn listeners(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let (listeners, steering) = (&self.status.listeners, &self.status.steering);
        let counts = &self.metrics.by_listener;
        // What was removed has no metrics any more.
        counts.retain(|id, _| listeners.iter().any(|listener| listener.id == id.as_str()));
        let count =
            |id: &str| ListenerId::parse(id).ok().and_then(|id| counts.get(&id).map(|count| *count)).unwrap_or(0);
        let rows = listeners.iter().map(|listener| ([("listener", listener.id.as_str())], count(&listener.id)));
        out.family(names::LISTENER_CLOSED, MetricType::Counter, rows)?;
        let up = listeners.iter().map(|listener| ([("listener", listener.id.as_str())], u64::from(listener.open)));
        out.family(names::LISTENER_UP, MetricType::Gauge, up)?;
        out.gauge(names::SK_LOOKUP, u64::from(steering.available))?;
        out.gauge(names::SK_LOOKUP_PREFIXES, steering.prefixes)?;
        let verdicts = steering.verdicts.iter().map(|(verdict, count)| ([("verdict", verdict.as_str())], *count));
        out.family(names::SK_LOOKUP_VERDICTS, MetricType::Counter, verdicts)
    }

    fn limits(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let limits = &self.status.limits;
        out.times(names::QUEUE_SECONDS, &self.metrics.queue)?;
        let queues = || limits.queues.iter().map(|queue| ([("app", queue.app.as_str())], queue));
        out.family(names::QUEUE_WAITING, MetricType::Gauge, queues().map(|(app, queue)| (app, queue.waiting)))?;
        out.family(names::QUEUE_LENGTH, MetricType::Gauge, queues().map(|(app, queue)| (app, queue.length.into())))?;
        let listeners = || limits.listeners.iter().map(|load| ([("listener", load.listener.as_str())], load));
        let active = listeners().map(|(listener, load)| (listener, load.connections.into()));
        out.family(names::LISTENER_CONNECTIONS, MetricType::Gauge, active)?;
        let most = listeners().map(|(listener, load)| (listener, load.max_connections.into()));
        out.family(names::LISTENER_MAX_CONNECTIONS, MetricType::Gauge, most)?;
        let sources = [("connected", limits.sources_connected), ("remembered", limits.sources_remembered)];
        let sources = sources.into_iter().map(|(state, count)| ([("state", state)], count));
        out.family(names::SOURCES, MetricType::Gauge, sources)?;
        out.counter(names::ACCEPT_PAUSES, limits.accept_pauses)?;
        out.counter(names::REFUSALS_NOT_LOGGED, limits.refusals_not_logged)
    }

    fn decisions(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let (m, status) = (&self.metrics, &self.status);
        out.counters(names::PICKS, "reason", &m.picks)?;
        out.counters(names::CONNECT_FAILURES, "failure", &m.connect_failures)?;
        out.counter(names::RETRIES, m.retries.load(Ordering::Relaxed))?;
        out.counters(names::YIELDED, "reason", &m.yielded)?;
        out.counters(names::PROXY_IN, "version", &m.proxy_in)?;
        out.counters(names::PROXY_OUT, "version", &m.proxy_out)?;
        let ejections = m
            .ejections
            .iter()
            .flat_map(|(by, by_why)| by_why.counts().map(|(why, count)| ([("by", by.as_str()), ("why", why)], count)));
        out.family(names::EJECTIONS, MetricType::Counter, ejections)?;
        out.counters(names::CHECKS, "result", &m.checks)?;
        out.times(names::CHECK_SECONDS, &m.check_seconds)?;
        out.gauge(names::BINDINGS, status.bindings)?;
        if let Some(file) = &status.binding_file {
            let saves = [("ok", file.saves_ok), ("failed", file.saves_failed)];
            let saves = saves.into_iter().map(|(result, count)| ([("result", result)], count));
            out.family(names::BINDING_SAVES, MetricType::Counter, saves)?;
            out.gauge(names::BINDINGS_SAVED, file.bindings)?;
            out.gauge(names::BINDINGS_RESTORED, file.restored)?;
        }
        out.counters(names::GEO_LOOKUPS, "source", &m.geo)?;
        let reloads = [("ok", status.routing.reloads_ok), ("rejected", status.routing.reloads_rejected)];
        let reloads = reloads.into_iter().map(|(result, count)| ([("result", result)], count));
        out.family(names::RELOADS, MetricType::Counter, reloads)?;
        out.gauge(names::GENERATION, status.routing.generation)?;
        out.gauge(names::REJECTED_ROWS, status.routing.rejected_rows.len() as u64)?;
        let events = status.events.iter().map(|(kind, count)| ([("kind", kind.as_str())], *count));
        out.family(names::EVENTS, MetricType::Counter, events)?;
        out.gauge(names::READY, u64::from(status.state == PopState::Ready))
    }

    fn forwarding(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let (m, forwarder) = (&self.metrics, &self.status.forwarder);
        out.counters(names::FLOWS, "forwarder", &m.flows)?;
        let chosen = m.chosen.iter().flat_map(|(kind, by_why)| {
            let counts = by_why.counts().filter(|(_, count)| *count > 0);
            counts.map(|(why, count)| ([("forwarder", kind.as_str()), ("reason", why)], count))
        });
        out.family(names::FORWARDER_CHOSEN, MetricType::Counter, chosen)?;
        out.counters(names::FALLBACKS, "reason", &m.fallbacks)?;
        let places = [("up", "userspace"), ("up", "kernel"), ("down", "userspace"), ("down", "kernel")];
        let bytes = places.into_iter().zip(self.bytes);
        let bytes = bytes.map(|((direction, path), count)| ([("direction", direction), ("path", path)], count));
        out.family(names::BYTES, MetricType::Counter, bytes)?;
        out.gauge(names::KERNEL_PATH, u64::from(forwarder.kernel_path))?;
        let off = KernelPathOff::ALL.map(|why| ([("reason", why.as_str())], u64::from(forwarder.off == Some(why))));
        out.family(names::KERNEL_PATH_OFF, MetricType::Gauge, off.into_iter())?;
        out.counter(names::BYTE_MISMATCHES, forwarder.byte_mismatches)?;
        out.gauge(names::FLOWS_IN_KERNEL, forwarder.flows_in_kernel)?;
        out.counter(names::KERNEL_BYTES, forwarder.kernel_bytes)?;
        let packets = forwarder.kernel_packets;
        let verdicts = [("redirected", packets.redirected), ("spilled", packets.spilled), ("end", packets.ends)];
        let verdicts = verdicts.into_iter().map(|(verdict, count)| ([("verdict", verdict)], count));
        out.family(names::KERNEL_VERDICTS, MetricType::Counter, verdicts)?;
        out.counter(names::KERNEL_TRIMMED, packets.trimmed_bytes)?;
        out.counter(names::KERNEL_DROPS, packets.dropped)?;
        out.counter(names::KERNEL_DROP_CHECKS, packets.drop_checks)?;
        let same_host = &forwarder.same_host;
        out.gauge(names::SAME_HOST, u64::from(same_host.why.is_none()))?;
        out.gauge(names::SAME_HOST_MARKED, same_host.marked)?;
        out.gauge(names::SAME_HOST_FLOWS, same_host.flows)?;
        out.counter(names::SAME_HOST_BYTES, same_host.bytes)?;
        out.gauge(names::SAME_HOST_WITHDRAWN, same_host.withdrawn.len() as u64)?;
        out.gauge(names::SAME_HOST_CGROUPS_MISSING, same_host.missing_cgroups.len() as u64)
    }

    fn backends(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let mut gauge = |name, value: fn(&BackendStatus) -> Option<u64>| {
            let rows = self.status.backends.iter().filter_map(|b| Some((labels(b), value(b)?)));
            out.family(name, MetricType::Gauge, rows)
        };
        gauge(names::BACKEND_CONNECTIONS, |b| Some(b.connections.into()))?;
        gauge(names::BACKEND_KERNEL_CONNECTIONS, |b| b.kernel_connections.map(u64::from))?;
        gauge(names::BACKEND_RTT, |b| b.rtt_ms.map(|ms| (ms * 1e3).round() as u64))?;
        gauge(names::BACKEND_HARD_LIMIT, |b| Some(b.hard_limit.into()))?;
        gauge(names::BACKEND_EJECTED, |b| Some(u64::from(b.health == "ejected")))?;
        gauge(names::BACKEND_AVAILABLE, |b| Some(u64::from(b.healthy && b.state == "ready")))?;
        gauge(names::BACKEND_CHECK_UP, |b| b.check.as_ref().map(|check| u64::from(check.state != "down")))?;
        let apps: BTreeSet<_> = self.status.backends.iter().map(|backend| &backend.app).collect();
        let failing =
            apps.into_iter().map(|app| ([("app", app.as_str())], u64::from(self.status.fail_open.contains(app))));
        out.family(names::APP_FAIL_OPEN, MetricType::Gauge, failing)
    }
}

fn labels(backend: &BackendStatus) -> [(&'static str, &str); 3] {
    [("backend", &backend.id), ("app", &backend.app), ("region", &backend.region)]
}

/// Writes one metric after the other.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn describe<'s>(&'s mut self, name: &'s Name, kind: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name.0, name.1, None::<&Unit>, kind)
    }

    fn counter(&mut self, name: Name, count: u64) -> fmt::Result {
        self.describe(&name, MetricType::Counter)?.encode_counter(&count, None::<&Exemplar>)
    }

    fn gauge(&mut self, name: Name, value: u64) -> fmt::Result {
        self.describe(&name, MetricType::Gauge)?.encode_gauge(&to_gauge(value))
    }

    fn counters(&mut self, name: Name, label: &'static str, counts: &Labelled) -> fmt::Result {
        self.family(name, MetricType::Counter, counts.counts().map(|(value, count)| ([(label, value)], count)))
    }

    fn family<S: EncodeLabelSet>(
        &mut self,
        name: Name,
        kind: MetricType,
        rows: impl Iterator<Item = (S, u64)>,
    ) -> fmt::Result {
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let gauge = matches!(kind, MetricType::Gauge);
        let mut metric = self.describe(&name, kind)?;
        for (labels, value) in rows {
            let mut row = metric.encode_family(&labels)?;
            if gauge {
                row.encode_gauge(&to_gauge(value))?;
            } else {
                row.encode_counter(&value, None::<&Exemplar>)?;
            }
        }
        Ok(())
    }

    fn times(&mut self, name: Name, times: &Times) -> fmt::Result {
        let (sum, buckets) = times.snapshot();
        let count = buckets.iter().map(|(_, count)| count).sum();
        self.describe(&name, MetricType::Histogram)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn info(&mut self, name: Name, labels: &[(&'static str, &str)]) -> fmt::Result {
        self.describe(&name, MetricType::Info)?.encode_info(&labels)
    }
}

fn to_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
