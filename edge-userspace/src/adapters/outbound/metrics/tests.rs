#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use crate::adapters::outbound::observer::sample;
use crate::application::status;

/// Bytes of flows that have not ended.
const RUNNING: ByteCounts = ByteCounts { up: 7, down: 5, kernel_up: 7, kernel_down: 0 };

fn counted() -> Arc<Metrics> {
    let metrics = Metrics::new(vec![("access", Arc::new(AtomicU64::new(4)))]);
    (0..3).for_each(|_| metrics.accepted());
    metrics.located(GeoSource::Override);
    metrics.accept_failed("emfile");
    metrics.accept_failed("a kind nobody has declared");
    metrics.ejected(Complaint::TimedOut, Witness::Client);
    (0..2).for_each(|_| metrics.ejected(Complaint::TimedOut, Witness::Trial));
    let detail = Some("status 503".to_owned());
    let took = std::time::Duration::from_millis(3);
    metrics.checked(&CheckReport { result: CheckResult::WrongStatus, detail, took });
    metrics.closed(&sample::outcome());
    metrics.closed(&sample::rejected());
    Arc::new(metrics)
}

fn text() -> String {
    let metrics = counted();
    metrics.render(status::sample::status(), metrics.ended_bytes(), RUNNING).unwrap()
}

#[test]
fn every_number_is_in_the_text() {
    let text = text();
    for line in [
        "edgeproxy_connections_accepted_total 3",
        "edgeproxy_connections_active 1",
        "edgeproxy_connections_closed_total{termination=\"CD\"} 1",
        "edgeproxy_connections_closed_total{termination=\"--\"} 0",
        "edgeproxy_connections_rejected_total{reason=\"all_full\"} 1",
        "edgeproxy_accept_errors_total{kind=\"emfile\"} 1",
        "edgeproxy_accept_errors_total{kind=\"other\"} 1",
        "edgeproxy_connect_seconds_bucket{le=\"0.001\"} 0",
        "edgeproxy_connect_seconds_bucket{le=\"0.0025\"} 1",
        "edgeproxy_connect_seconds_bucket{le=\"+Inf\"} 1",
        "edgeproxy_connect_seconds_count 1",
        "edgeproxy_connection_duration_seconds_sum 5.0",
        "edgeproxy_forwarded_bytes_total{direction=\"up\",path=\"userspace\"} 60",
        "edgeproxy_forwarded_bytes_total{direction=\"up\",path=\"kernel\"} 47",
        "edgeproxy_forwarder_chosen_total{forwarder=\"copy\",reason=\"start\"} 1",
        "edgeproxy_forwarder_chosen_total{forwarder=\"sockmap\",reason=\"lively\"} 1",
        "edgeproxy_forwarded_bytes_total{direction=\"down\",path=\"kernel\"} 1500",
        "edgeproxy_connect_failures_total{failure=\"refused\"} 1",
        "edgeproxy_connect_retries_total 1",
        "edgeproxy_picks_total{reason=\"client_region\"} 1",
        "edgeproxy_bindings_yielded_total{reason=\"at_hard_limit\"} 1",
        "edgeproxy_proxy_headers_received_total{version=\"v2\"} 1",
        "edgeproxy_proxy_headers_sent_total{version=\"v1\"} 1",
        "edgeproxy_bindings 9",
        "edgeproxy_ejections_total{by=\"client\",why=\"timed_out\"} 1",
        "edgeproxy_ejections_total{by=\"trial\",why=\"timed_out\"} 2",
        "edgeproxy_backend_ejected{backend=\"sa-\\\"1\\\"\",app=\"web\",region=\"sa\"} 1",
        "edgeproxy_health_checks_total{result=\"wrong_status\"} 1",
        "edgeproxy_health_check_seconds_count 1",
        "edgeproxy_backend_check_up{backend=\"sa-\\\"1\\\"\",app=\"web\",region=\"sa\"} 0",
        "edgeproxy_app_fail_open{app=\"web\"} 1",
        "edgeproxy_reloads_total{result=\"rejected\"} 1",
        "edgeproxy_routing_rejected_rows 1",
        "edgeproxy_geo_lookups_total{source=\"override\"} 1",
        "edgeproxy_flows_total{forwarder=\"sockmap\"} 1",
        "edgeproxy_forwarder_fallbacks_total{reason=\"entangled\"} 1",
        "edgeproxy_kernel_path_active 0",
        "edgeproxy_kernel_flows 5",
        "edgeproxy_kernel_forwarded_bytes_total 1000000",
        "edgeproxy_kernel_verdicts_total{verdict=\"spilled\"} 7",
        "edgeproxy_kernel_trimmed_bytes_total 400",
        "edgeproxy_kernel_drops_total 3",
        "edgeproxy_kernel_drop_checks_total 1",
        "edgeproxy_log_records_lost_total{log=\"access\"} 4",
        "edgeproxy_backend_connections{backend=\"sa-\\\"1\\\"\",app=\"web\",region=\"sa\"} 3",
        "edgeproxy_backend_kernel_connections{backend=\"sa-\\\"1\\\"\",app=\"web\",region=\"sa\"} 3",
        "edgeproxy_queue_seconds_bucket{le=\"0.0005\"} 1",
        "edgeproxy_queue_waiting{app=\"web\"} 4",
        "edgeproxy_queue_length{app=\"web\"} 50",
        "edgeproxy_listener_connections{listener=\"web\"} 3",
        "edgeproxy_listener_max_connections{listener=\"web\"} 100",
        "edgeproxy_sources{state=\"connected\"} 2",
        "edgeproxy_sources{state=\"remembered\"} 6",
        "edgeproxy_accept_pauses_total 5",
        "edgeproxy_refusals_not_logged_total 8",
        "edgeproxy_events_total{kind=\"ready\"} 1",
        "edgeproxy_ready 1",
        "edgeproxy_build_info{version=\"0.1.0\"} 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
}

#[test]
fn no_client_address_is_in_the_text() {
    let text = text();
    assert!(!text.contains("203.0.113") && !text.contains("4444"));
}

#[test]
fn status_counts_agree_with_the_counters() {
    let connections = counted().connections();
    assert_eq!((connections.accepted, connections.closed, connections.active), (3, 2, 1));
    assert_eq!(connections.rejected, BTreeMap::from([("all_full".to_owned(), 1)]));
}

#[test]
fn every_metric_is_in_the_documentation() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md");
    let page = std::fs::read_to_string(page).unwrap();
    let text = text();
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap();
        assert!(page.lines().any(|row| row.starts_with(&format!("| `{name}")) && row.contains(help)), "{name}: {help}");
    }
}

#[test]
fn bytes_never_become_fewer() {
    let metrics = counted();
    assert_eq!(metrics.all_bytes(metrics.ended_bytes(), RUNNING), [60, 47, 505, 1500]);
    assert_eq!(
        metrics.all_bytes(metrics.ended_bytes(), ByteCounts::default()),
        [60, 47, 505, 1500],
        "a flow ended and is not counted yet"
    );
    metrics.closed(&sample::outcome());
    assert_eq!(metrics.all_bytes(metrics.ended_bytes(), ByteCounts::default()), [120, 80, 1000, 3000]);
}
