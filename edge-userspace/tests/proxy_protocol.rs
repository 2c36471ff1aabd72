//! PROXY headers: who the client is where a proxy in front says so, and what backends are told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::bench::Bench;
use common::headers::{CLIENTS, echoed, header, is_reset, line, open, sender, try_open};
use common::hello::hello;
use common::{KERNEL, NETWORK, Row, SOON, World, assert_said, eventually};
use edgeproxy::domain::ProxyVersion;
use edgeproxy::domain::proxy::{self, ProxiedAddresses};
use xtask::lab::requirements::Need;
use xtask::lab::{BRAZIL, Cgroups, Daemon, GERMANY, JAPAN, Ns};
use xtask::load::{Behaviour, Load, LoadReport, Manner, Preamble};

fn taking(world: &World, accept: &str, settings: &[(&str, &str)]) -> Daemon {
    world.daemon(&[&[("accept_proxy", accept), ("proxy_from", CLIENTS)], settings].concat())
}

fn at_rest(daemon: &Daemon) {
    let status = daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    assert_eq!(status.active(), 0, "{:#}", status.0);
    assert!(daemon.metrics().unwrap().contains("edgeproxy_byte_mismatches_total 0\n"));
}

#[test]
fn the_client_that_a_header_names_is_the_client() {
    let Some(world) = World::new(NETWORK, "the_client_that_a_header_names_is_the_client") else { return };
    let _backends: Vec<_> = [("sa", 1), ("eu", 2)]
        .map(|(region, n)| world.backend(n, Manner::Echo, |row| row.region(region)))
        .into_iter()
        .chain((3..=6).map(|n| world.backend(n, Manner::Echo, |row| row.region("sa"))))
        .collect();
    let daemon = taking(&world, "required", &[]);
    let brazilian = SocketAddr::new(world.lab.client_of(BRAZIL, 9), 4000);
    let german = SocketAddr::new(world.lab.client_of(GERMANY, 9), 4000);
    let v6 = SocketAddr::new(JAPAN.v6(9), 5000);
    let cases = [(brazilian, "BR", "sa"), (german, "DE", "eu"), (v6, "JP", "ap")];
    for (n, (client, country, region)) in (1..).zip(cases) {
        for version in ProxyVersion::ALL {
            let client = SocketAddr::new(client.ip(), client.port() + version as u16);
            let mut stream = open(&world, n, daemon.addr(), &[&header(version, client)[..], b"hello "].concat());
            let peer = stream.local_addr().unwrap();
            let backend = line(&mut stream);
            assert_eq!(echoed(stream, b"world"), b"hello world");
            let record = daemon.record_of(client, SOON).unwrap();
            assert_eq!(record.country.as_deref(), Some(country), "{record:?}");
            assert_eq!(record.client_region.as_deref(), Some(region), "{record:?}");
            assert_eq!(record.backend.as_deref(), Some(backend.as_str()));
            assert_eq!((record.bytes_up, record.bytes_down), (11, 11 + backend.len() as u64 + 1), "{record:?}");
            assert_eq!(record.proxy_in.as_deref(), Some(version.as_str()));
            assert_eq!((record.proxied_by, record.proxied_to), (Some(peer), Some(sender())));
            let more = (record.proxied_id.as_deref(), record.proxied_name.as_deref());
            let expected = (Some("lb-1/7"), Some("www.example.com"));
            assert_eq!(more, if version == ProxyVersion::V2 { expected } else { (None, None) });
        }
    }
    assert!(line_of(&daemon, "edgeproxy_proxy_headers_received_total{version=\"v2\"}") == 3.0);
    affinity_is_by_the_named_client(&world, &daemon);
    at_rest(&daemon);
}

fn line_of(daemon: &Daemon, name: &str) -> f64 {
    let metrics = daemon.metrics().unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).trim().parse().unwrap()
}

/// One client by way of many proxies keeps its backend; many clients by way of one are shared out.
fn affinity_is_by_the_named_client(world: &World, daemon: &Daemon) {
    let backend = |proxy: u16, client: IpAddr| {
        let mut stream = open(world, proxy, daemon.addr(), &header(ProxyVersion::V2, (client, 1).into()));
        line(&mut stream)
    };
    let client = world.lab.client_of(BRAZIL, 77);
    let first = backend(50, client);
    assert!((51..60).all(|proxy| backend(proxy, client) == first));
    let clients = (100..120).map(|host| backend(50, world.lab.client_of(BRAZIL, host)));
    assert!(clients.collect::<std::collections::HashSet<_>>().len() > 1);
}

/// All come by way of one proxy, which has no limit and is not denied.
#[test]
fn limits_and_rules_are_about_the_client_that_a_header_names() {
    let Some(world) = World::new(NETWORK, "limits_and_rules_are_about_the_client_that_a_header_names") else { return };
    let backend = world.backend(1, Manner::Echo, |row| row);
    world.database.execute("INSERT INTO acl (id, prefix, action) VALUES ('banned', '203.0.113.66', 'deny')");
    let daemon = taking(&world, "required", &[("source_max_connections", "2")]);
    let named = |host: u8, port: u16| SocketAddr::from(([203, 0, 113, host], port));
    let come = |client: SocketAddr| open(&world, 1, daemon.addr(), &header(ProxyVersion::V2, client));
    let mut held = [1, 2].map(|port| come(named(1, port)));
    held.iter_mut().for_each(|stream| assert_eq!(line(stream), "b1"));
    let refusals = [(named(1, 3), "source_connections", None), (named(66, 4), "denied", Some("banned"))];
    for (client, reason, rule) in refusals {
        assert!(is_reset(&mut come(client)), "{client} is served");
        let record = daemon.record_of(client, SOON).unwrap();
        let said = (record.termination.as_str(), record.reject.as_deref(), record.denied_by.as_deref());
        assert_eq!(said, ("PR", Some(reason), rule), "{record:?}");
        assert_eq!(record.proxied_by.unwrap().ip(), world.lab.client(1));
    }
    let mut other = come(named(2, 5));
    assert_eq!(line(&mut other), "b1");
    assert_eq!(echoed(other, b"through the same proxy"), b"through the same proxy");
    let [gone, mut stays] = held;
    assert_eq!(echoed(gone, b"still there"), b"still there");
    assert!(daemon.record_of(named(1, 1), SOON).is_some());
    assert_eq!(line(&mut come(named(1, 6))), "b1", "a place is free again");
    stays.write_all(b"!").unwrap();
    stays.read_exact(&mut [0]).unwrap();
    assert_eq!(backend.gauge().total(), 4, "who was refused has not reached the backend");
}

#[test]
fn who_speaks_for_itself_keeps_its_address() {
    let Some(world) = World::new(NETWORK, "who_speaks_for_itself_keeps_its_address") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = taking(&world, "required", &[]);
    for (n, version) in (1..).zip(ProxyVersion::ALL) {
        let mut stream = open(&world, n, daemon.addr(), &proxy::local(version));
        let peer = stream.local_addr().unwrap();
        assert_eq!(line(&mut stream), "b1");
        drop(stream);
        let record = daemon.record_of(peer, SOON).unwrap();
        assert_eq!((record.proxied_by, record.proxied_to), (Some(peer), None));
        assert_eq!(record.proxy_in.as_deref(), Some(version.as_str()));
    }
    // As a load balancer that looks whether the port is open.
    let checker = open(&world, 9, daemon.addr(), b"");
    let peer = checker.local_addr().unwrap();
    drop(checker);
    let record = daemon.record_of(peer, SOON).unwrap();
    assert_eq!((record.termination.as_str(), record.reject), ("CR", None));
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], &u16::try_from(value.len()).unwrap().to_be_bytes()[..], value].concat()
}

fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, body].concat()
}

/// Beginnings that a listener with `required` refuses, each with its reason and a word of the detail.
fn corpus() -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 3, 232, 1, 187];
    let with = |tlvs: &[Vec<u8>]| binary(0x21, 0x11, &[&v4[..], &tlvs.concat()].concat());
    let malformed = "proxy_malformed";
    let text = |line: &str| line.as_bytes().to_vec();
    vec![
        (text("GET / HTTP/1.1\r\nHost: pop\r\n\r\n"), "proxy_missing", ""),
        (text("PROPFIND / HTTP/1.1\r\n\r\n"), "proxy_missing", ""),
        (vec![0x16, 3, 1, 2, 0, 1, 0], "proxy_missing", ""),
        (vec![0; 64], "proxy_missing", ""),
        (text("\r\n\r\n\r\n"), "proxy_missing", ""),
        (text("PROXY \r\n"), malformed, "line"),
        (text("PROXY TCP4 192.0.2.1 198.51.100.2 1000\r\n"), malformed, "line"),
        (text("PROXY TCP4 192.0.2.1 198.51.100.2 1000 65536\r\n"), malformed, "line"),
        (text("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n"), malformed, "sign"),
        (text("PROXY TCP4 192.0.2.1 198.51.100.2 1000 443\n"), malformed, "line"),
        (text("PROXY TCP6 192.0.2.1 198.51.100.2 1000 443\r\n"), malformed, "line"),
        (text("PROXY UDP4 192.0.2.1 198.51.100.2 1000 443\r\n"), malformed, "line"),
        ([&b"PROXY TCP4 \xff\xfe"[..], b"\r\n"].concat(), malformed, "line"),
        ([b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(), malformed, "107"),
        (binary(0x11, 0x11, &v4), malformed, "version 2"),
        (binary(0x22, 0x11, &v4), malformed, "version 2"),
        (binary(0x21, 0x41, &v4), malformed, "version 2"),
        (binary(0x21, 0x11, &v4[..8]), malformed, "version 2"),
        (binary(0x21, 0x12, &v4), malformed, "another transport"),
        (binary(0x21, 0x22, &[0; 36]), malformed, "another transport"),
        (binary(0x21, 0x11, &[0; 60_000]), malformed, "4096"),
        (with(&[tlv(3, &[0; 4])]), malformed, "checksum"),
        (with(&[tlv(3, &[0; 3])]), malformed, "four bytes"),
        (with(&[vec![4, 255, 255, 0]]), malformed, "version 2"),
        (with(&[tlv(2, b"\xff\xfe")]), malformed, "UTF-8"),
        (with(&[tlv(5, &[1; 129])]), malformed, "128"),
        (with(&[tlv(5, b"a"), tlv(5, b"b")]), malformed, "twice"),
    ]
}

#[test]
fn each_malformed_header_gets_its_reason_and_harms_nobody_else() {
    let Some(world) = World::new(NETWORK, "each_malformed_header_gets_its_reason_and_harms_nobody_else") else {
        return;
    };
    let backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = taking(&world, "required", &[]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Others are served all the while.
        let others = scope.spawn(|| {
            let mut served: u16 = 0;
            while !done.load(Ordering::SeqCst) || served < 20 {
                let client = SocketAddr::from(([203, 0, 113, 1], served));
                let mut stream = open(&world, 1, daemon.addr(), &header(ProxyVersion::V2, client));
                assert_eq!(line(&mut stream), "b1");
                assert_eq!(echoed(stream, b"as ever"), b"as ever");
                served += 1;
            }
            usize::from(served)
        });
        for (first, reason, detail) in corpus() {
            let what = first.iter().take(60).copied().collect::<Vec<_>>();
            let mut stream = open(&world, 2, daemon.addr(), &[&first[..], b"payload"].concat());
            let peer = stream.local_addr().unwrap();
            assert!(is_reset(&mut stream), "{}", what.escape_ascii());
            let record = daemon.record_of(peer, SOON).unwrap();
            let said = (record.termination.as_str(), record.reject.as_deref());
            assert_eq!(said, ("PR", Some(reason)), "{}: {record:?}", what.escape_ascii());
            let why = record.reject_detail.clone().unwrap_or_default();
            assert!(why.contains(detail), "{}: {record:?}", what.escape_ascii());
            assert_eq!((record.backend, record.bytes_up), (None, 0));
        }
        done.store(true, Ordering::SeqCst);
        let served = others.join().unwrap();
        // No refused connection has reached the backend.
        assert_eq!(backend.gauge().total(), served);
    });
    let count = corpus().iter().filter(|(_, reason, _)| *reason == "proxy_malformed").count();
    assert_eq!(line_of(&daemon, "edgeproxy_connections_rejected_total{reason=\"proxy_malformed\"}"), count as f64);
    at_rest(&daemon);
}

/// A header that does not come whole does not hold a place for ever, and one that comes byte by byte is taken.
#[test]
fn slow_headers_have_a_time_limit() {
    let Some(world) = World::new(NETWORK, "slow_headers_have_a_time_limit") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let whole = header(ProxyVersion::V2, ([203, 0, 113, 9], 9).into());
    {
        let daemon = taking(&world, "required", &[("proxy_header_timeout_ms", "300")]);
        for first in [&b""[..], b"PRO", b"PROXY TCP4 192.0.2.1", &whole[..20], &whole[..whole.len() - 1]] {
            let mut stream = open(&world, 3, daemon.addr(), first);
            let peer = stream.local_addr().unwrap();
            assert!(is_reset(&mut stream), "{}", first.escape_ascii());
            let record = daemon.record_of(peer, SOON).unwrap();
            let said = (record.termination.as_str(), record.reject.as_deref());
            assert_eq!(said, ("cR", Some("proxy_timeout")), "{record:?}");
            assert!(record.reject_detail.unwrap().contains(&format!("{} bytes", first.len())));
        }
        at_rest(&daemon);
    }
    let daemon = taking(&world, "required", &[("proxy_header_timeout_ms", "60000")]);
    for (n, version) in (1..).zip(ProxyVersion::ALL) {
        let client = SocketAddr::from(([203, 0, 113, 9], n));
        let mut stream = open(&world, 3, daemon.addr(), b"");
        for byte in header(version, client) {
            stream.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(line(&mut stream), "b1");
        assert_eq!(echoed(stream, b"payload"), b"payload");
        assert!(daemon.record_of(client, SOON).is_some());
    }
    // The end comes in the middle.
    for first in [&b"PROXY TCP4 192"[..], &whole[..30]] {
        let stream = open(&world, 3, daemon.addr(), first);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let record = daemon.record_of(stream.local_addr().unwrap(), SOON).unwrap();
        assert_eq!(record.reject.as_deref(), Some("proxy_malformed"));
        assert!(record.reject_detail.unwrap().contains("ended after"));
    }
}

#[test]
fn only_trusted_prefixes_may_say_who_a_client_is() {
    let Some(world) = World::new(NETWORK, "only_trusted_prefixes_may_say_who_a_client_is") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let claim = header(ProxyVersion::V1, ([203, 0, 113, 9], 9).into());
    let stranger = world.lab.client_of(JAPAN, 5);
    {
        let daemon = taking(&world, "required", &[]);
        let (peer, stream) = try_open(&world, stranger, daemon.addr(), &claim);
        assert!(stream.is_none_or(|mut stream| is_reset(&mut stream)));
        let record = daemon.record_of(peer, SOON).unwrap();
        assert_eq!((record.termination.as_str(), record.reject.as_deref()), ("PR", Some("proxy_untrusted")));
        assert_eq!(record.reject_detail.unwrap(), format!("{stranger} is not in proxy_from"));
    }
    // Not believed, and not refused: what looks like a header is payload, with `optional` and with `off`.
    for accept in ["optional", "off"] {
        let daemon = if accept == "off" { world.daemon(&[]) } else { taking(&world, accept, &[]) };
        let (peer, stream) = try_open(&world, stranger, daemon.addr(), &claim);
        let mut stream = stream.unwrap();
        assert_eq!(line(&mut stream), "b1");
        assert_eq!(echoed(stream, b" and more"), [&claim[..], b" and more"].concat());
        let record = daemon.record_of(peer, SOON).unwrap();
        assert_eq!((record.country.as_deref(), record.proxy_in), (Some("JP"), None));
    }
}

#[test]
fn an_optional_header_may_be_absent() {
    let Some(world) = World::new(NETWORK, "an_optional_header_may_be_absent") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = taking(&world, "optional", &[("proxy_header_timeout_ms", "1000")]);
    let named = SocketAddr::from(([203, 0, 113, 9], 9));
    for version in ProxyVersion::ALL {
        let named = SocketAddr::new(named.ip(), named.port() + version as u16);
        let mut stream = open(&world, 1, daemon.addr(), &header(version, named));
        assert_eq!(line(&mut stream), "b1");
        assert_eq!(echoed(stream, b"payload"), b"payload");
        assert!(daemon.record_of(named, SOON).is_some());
    }
    // Without one; some begin like one, and some of these say no more for a while.
    let pauses = [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(1500)];
    for (first, pause) in
        [&b"GET /"[..], b"P", b"PRO", b"PROPFIND", b"\r\n\r\n"].into_iter().zip(pauses.into_iter().cycle())
    {
        let mut stream = open(&world, 1, daemon.addr(), first);
        let peer = stream.local_addr().unwrap();
        thread::sleep(pause);
        assert_eq!(line(&mut stream), "b1");
        assert_eq!(echoed(stream, b"xyz"), [first, b"xyz"].concat());
        let record = daemon.record_of(peer, SOON).unwrap();
        assert_eq!((record.proxy_in, record.bytes_up), (None, first.len() as u64 + 3));
    }
    // A malformed one is not taken for payload.
    let mut stream = open(&world, 1, daemon.addr(), b"PROXY TCP4 nonsense\r\n");
    assert!(is_reset(&mut stream));
    at_rest(&daemon);
}

/// The backend speaks first, as with SSH or SMTP: clients that wait for it get on.
#[test]
fn servers_that_speak_first_are_heard_through_an_optional_listener() {
    let test = "servers_that_speak_first_are_heard_through_an_optional_listener";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = taking(&world, "optional", &[("proxy_optional_wait_ms", "200")]);
    let started = Instant::now();
    let mut stream = open(&world, 1, daemon.addr(), b"");
    let peer = stream.local_addr().unwrap();
    assert_eq!(line(&mut stream), "b1");
    assert!(started.elapsed() >= Duration::from_millis(200), "the wait is what the setting says");
    assert_eq!(echoed(stream, b"SSH-2.0-client"), b"SSH-2.0-client");
    assert_eq!(daemon.record_of(peer, SOON).unwrap().proxy_in, None);
    // From elsewhere nobody waits for a header.
    let stranger = world.lab.client_of(JAPAN, 5);
    let visit = world.lab.run_in(Ns::Clients, || xtask::load::Visit::start(stranger, daemon.addr()).unwrap());
    let local = visit.local;
    visit.finish().unwrap();
    assert!(daemon.record_of(local, SOON).is_some());
}

#[test]
fn listeners_of_the_settings_and_of_the_database_each_have_their_word() {
    let test = "listeners_of_the_settings_and_of_the_database_each_have_their_word";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let output = world.config().set("accept_proxy", "required").command(&world.lab, &["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("accept_proxy needs proxy_from"));
    let output = world.config().set("proxy_from", CLIENTS).command(&world.lab, &["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    // The row outranks the setting at the same address and port.
    let daemon = taking(&world, "required", &[]);
    let pop = world.lab.pop();
    world.database.execute(&format!(
        "INSERT INTO listeners (id, address, port, accept_proxy) VALUES ('plain', '{pop}', {}, 'off')",
        daemon.addr().port()
    ));
    eventually("the row takes effect", || {
        let mut stream = open(&world, 1, daemon.addr(), b"GET /");
        line(&mut stream) == "b1"
    });
}

/// Each connection begins with a header of its own, in one packet with the first bytes of payload.
fn preamble(id: u64) -> Preamble {
    let version = ProxyVersion::ALL[usize::try_from(id / 2 % 2).unwrap()];
    let port = u16::try_from(id).unwrap();
    let client = match id % 3 {
        0 => SocketAddr::new(JAPAN.v6(9), port),
        _ => ([203, 0, 113, 9], port).into(),
    };
    Preamble { client, bytes: header(version, client) }
}

/// What each backend was told: the client, and the id of the connection in the access log.
fn assert_announced(report: &LoadReport, version: Option<ProxyVersion>, daemon: &Daemon) {
    for checked in &report.connections {
        let announced = &checked.backend.as_ref().unwrap().announced;
        assert_eq!(announced.is_some(), version.is_some());
        let (Some(version), Some(bytes)) = (version, announced) else { continue };
        let told = proxy::decode(bytes).unwrap();
        let client = checked.client_addr.unwrap();
        assert_eq!(told.version, version);
        assert_eq!(told.addresses, Some(ProxiedAddresses { client, to: sender() }));
        let record = daemon.record_of(client, SOON).unwrap();
        assert_eq!(record.proxy_out.as_deref(), Some(version.as_str()));
        if version == ProxyVersion::V2 {
            assert_eq!(told.unique_id, Some(record.conn_id));
            // Passed on from the header that came in, where that had one.
            assert_eq!(told.server_name, record.proxied_name);
        }
    }
}

/// Byte-exact, with headers in and out, however the bytes are forwarded; no count is off by a header.
fn every_byte(forwarder: &str, needs: &[Need], sent: Option<ProxyVersion>, test: &str) {
    let Some(world) = World::new(needs, test) else { return };
    let bench = Bench::of(world, forwarder, |world| {
        let send = ProxyVersion::shown(sent);
        world.database.execute(&format!("UPDATE backends SET send_proxy = '{send}'"));
        taking(world, "required", &[("forwarder", forwarder)])
    });
    let report = bench.run(&Load { preamble: Some(preamble), ..Load::mixed(20 * Behaviour::ALL.len() as u64, 21) });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
    assert_announced(&report, sent, &bench.daemon);
    // Much in both directions at once, and aborts in full flow.
    let behaviours = vec![Behaviour::Duplex, Behaviour::ClientAborts, Behaviour::BackendAborts, Behaviour::LateBackend];
    let bulk = Load { preamble: Some(|id| preamble(id + 1000)), behaviours, ..Load::mixed(16, 22) };
    let report = bench.run(&Load { at_once: 8, max_bytes: 32 << 20, ..bulk });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    at_rest(&bench.daemon);
    let status = bench.daemon.status().unwrap();
    assert_eq!(status.number("/forwarder/byte_mismatches"), 0, "{:#}", status.0);
}

#[test]
fn copy_carries_every_byte_behind_headers() {
    every_byte("copy", NETWORK, Some(ProxyVersion::V1), "copy_carries_every_byte_behind_headers");
}

#[test]
fn splice_carries_every_byte_behind_headers() {
    every_byte("splice", NETWORK, Some(ProxyVersion::V2), "splice_carries_every_byte_behind_headers");
}

#[test]
fn sockmap_carries_every_byte_behind_headers() {
    every_byte("sockmap", KERNEL, Some(ProxyVersion::V2), "sockmap_carries_every_byte_behind_headers");
}

#[test]
fn sockmap_carries_every_byte_behind_a_header_that_came_in() {
    every_byte("sockmap", KERNEL, None, "sockmap_carries_every_byte_behind_a_header_that_came_in");
}

#[test]
fn auto_carries_every_byte_behind_headers() {
    every_byte("auto", KERNEL, Some(ProxyVersion::V2), "auto_carries_every_byte_behind_headers");
}

/// A local client of a marked backend, with a header before its bytes: the ordinary way, and the backend does not bear
/// with the verdict.
#[test]
fn a_header_and_a_marked_backend_take_the_ordinary_way() {
    let Some(world) = World::new(KERNEL, "a_header_and_a_marked_backend_take_the_ordinary_way") else { return };
    let cgroups = Cgroups::create().unwrap();
    let bench = Bench::of(world, "sockmap", |world| {
        world.database.execute("UPDATE backends SET same_host = 1");
        let config = world.config().set("same_host_cgroup", cgroups.applications().display());
        let config = config.set("forwarder", "sockmap").set("accept_proxy", "optional").set("proxy_from", CLIENTS);
        Daemon::start(&world.lab, &config.cgroup(cgroups.daemon())).unwrap()
    });
    assert_eq!(bench.daemon.status().unwrap().text("/forwarder/same_host/why"), None);
    let report = bench.run(&Load { preamble: Some(preamble), ..Load::mixed(4 * Behaviour::ALL.len() as u64, 23) });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
    for checked in &report.connections {
        let record = bench.daemon.record_of(checked.client_addr.unwrap(), SOON).unwrap();
        assert_eq!(record.fallback.as_deref(), Some("proxy_header"), "{record:?}");
        assert_ne!(record.forwarder.as_deref(), Some("sk_msg"), "{record:?}");
    }
    at_rest(&bench.daemon);
}

/// All begin with a header then, so no mark can have an effect: that is said, and nobody waits for it.
#[test]
fn marked_backends_behind_listeners_that_require_headers_are_told() {
    let test = "marked_backends_behind_listeners_that_require_headers_are_told";
    let Some(world) = World::new(KERNEL, test) else { return };
    let cgroups = Cgroups::create().unwrap();
    let _backend = world.backend(1, Manner::Echo, Row::same_host);
    let config = world.config().set("same_host_cgroup", cgroups.applications().display());
    let config = config.set("accept_proxy", "required").set("proxy_from", CLIENTS);
    let daemon = Daemon::start(&world.lab, &config.cgroup(cgroups.daemon())).unwrap();
    let why = "accept_proxy = required: a connection that begins with a PROXY header can't be handed over";
    let told = || daemon.status().unwrap().text("/forwarder/same_host/why").map(str::to_owned);
    assert!(told().is_some_and(|told| told.starts_with(why)), "{:?}", told());
    assert_said(&daemon, why);
    assert_said(&daemon, "same_host_off");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_same_host_path_active 0\n"), "{metrics}");
    let client = SocketAddr::from(([203, 0, 113, 9], 9));
    let mut stream = open(&world, 1, daemon.addr(), &header(ProxyVersion::V2, client));
    assert_eq!(line(&mut stream), "b1");
    assert_eq!(echoed(stream, b"a few bytes"), b"a few bytes");
    let record = daemon.record_of(client, SOON).unwrap();
    assert_eq!((record.fallback.as_deref(), record.forwarder.as_deref()), (Some("proxy_header"), Some("copy")));
    // Clients of a listener that takes none can have their bytes handed over.
    let plain = "INSERT INTO listeners (id, address, port) VALUES ('plain', '10.64.0.1', 8099)";
    world.database.execute(&plain.replace("10.64.0.1", &world.lab.pop().to_string()));
    eventually("the other listener counts", || told().is_none());
}

/// One that is promoted to the kernel path after a while, by `auto`.
#[test]
fn a_connection_with_headers_is_promoted() {
    let Some(world) = World::new(KERNEL, "a_connection_with_headers_is_promoted") else { return };
    let echo = EchoBehindHeader::start(&world);
    world.database.add(&Row::new("b1", world.backend_addr(1)));
    world.database.execute("UPDATE backends SET send_proxy = 'v2'");
    let daemon = taking(&world, "required", &[("auto_messages_per_sec", "1")]);
    let client = SocketAddr::from(([203, 0, 113, 9], 9));
    let mut stream = open(&world, 1, daemon.addr(), &header(ProxyVersion::V2, client));
    // Long enough for it to be seen talking.
    let (started, mut messages) = (Instant::now(), 0_u32);
    while messages < 500 || started.elapsed() < Duration::from_millis(500) {
        let message = [messages.to_le_bytes(); 250].concat();
        stream.write_all(&message).unwrap();
        let mut back = [0; 1000];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back[..], message[..]);
        messages += 1;
    }
    assert_eq!(echoed(stream, b"end"), b"end");
    let bytes = u64::from(messages) * 1_000 + 3;
    let record = daemon.record_of(client, SOON).unwrap();
    assert_eq!(record.forwarder.as_deref(), Some("sockmap"), "{record:?}");
    assert_eq!((record.bytes_up, record.bytes_down, record.termination.as_str()), (bytes, bytes, "--"));
    at_rest(&daemon);
    drop(echo);
}

/// The name that was looked at here counts, also where a proxy in front tells another one; the ClientHello itself
/// reaches the backend behind the header.
#[test]
fn a_server_name_that_was_seen_here_is_what_a_backend_is_told() {
    let test = "a_server_name_that_was_seen_here_is_what_a_backend_is_told";
    let Some(world) = World::new(NETWORK, test) else { return };
    let backend = world.lab.run_in(Ns::Backends, || std::net::TcpListener::bind(world.backend_addr(1)).unwrap());
    world.database.add(&Row::new("b1", world.backend_addr(1)));
    world.database.execute(&format!(
        "UPDATE backends SET send_proxy = 'v2'; INSERT INTO listeners (id, address, port, server_name, accept_proxy, \
         proxy_from) VALUES ('tls', '0.0.0.0', 443, '*.example.com', 'optional', '{CLIENTS}')"
    ));
    let daemon = world.daemon(&[]);
    let (to, hello) = ((world.lab.pop(), 443).into(), hello(Some("seen.example.com"), 0));
    let named = SocketAddr::from(([203, 0, 113, 9], 9));
    for proxied in [None, Some(header(ProxyVersion::V2, named))] {
        let first = [proxied.clone().unwrap_or_default(), hello.clone()].concat();
        let stream = open(&world, 1, to, &first);
        let client = if proxied.is_some() { named } else { stream.local_addr().unwrap() };
        let (mut backend, _) = backend.accept().unwrap();
        backend.set_read_timeout(Some(SOON)).unwrap();
        let mut said = vec![0; 16];
        backend.read_exact(&mut said).unwrap();
        let mut rest = vec![0; usize::from(u16::from_be_bytes([said[14], said[15]]))];
        backend.read_exact(&mut rest).unwrap();
        said.extend(rest);
        let told = proxy::decode(&said).unwrap();
        assert_eq!(told.server_name.as_deref(), Some("seen.example.com"));
        assert_eq!(told.addresses.unwrap().client, client);
        let authority = tlv(2, b"seen.example.com");
        assert!(said.windows(authority.len()).any(|part| part == authority), "{}", said.escape_ascii());
        let mut payload = vec![0; hello.len()];
        backend.read_exact(&mut payload).unwrap();
        assert_eq!(payload, hello);
        drop((stream, backend));
        let record = daemon.record_of(client, SOON).unwrap();
        assert_eq!(record.server_name.as_deref(), Some("seen.example.com"), "{record:?}");
        assert_eq!(record.proxied_name.as_deref(), proxied.map(|_| "www.example.com"), "{record:?}");
    }
}

/// Sends back all that follows the PROXY header.
struct EchoBehindHeader {
    _thread: thread::JoinHandle<()>,
}

impl EchoBehindHeader {
    fn start(world: &World) -> Self {
        let listener = world.lab.run_in(Ns::Backends, || std::net::TcpListener::bind(world.backend_addr(1)).unwrap());
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut fixed = [0; 16];
            stream.read_exact(&mut fixed).unwrap();
            let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
            stream.read_exact(&mut rest).unwrap();
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..read]).unwrap();
            }
        });
        Self { _thread: thread }
    }
}

/// Bytes that are handed over without TCP leave no place for a header: such a row is refused, with the reason.
#[test]
fn a_mark_for_this_host_and_a_header_exclude_each_other() {
    let Some(world) = World::new(NETWORK, "a_mark_for_this_host_and_a_header_exclude_each_other") else { return };
    let _first = world.backend(1, Manner::Echo, |row| row);
    let _second = world.backend(2, Manner::Echo, Row::same_host);
    world.database.execute("UPDATE backends SET send_proxy = 'v2' WHERE id = 'b2'");
    let daemon = world.daemon(&[]);
    let status = daemon.status().unwrap();
    assert_eq!(status.backends().len(), 1);
    let why = status.text("/routing/rejected_rows/0/why").unwrap();
    assert!(why.contains("same_host and send_proxy exclude each other"), "{why}");
    assert_said(&daemon, "same_host and send_proxy exclude each other");
}

/// `edgeproxy db` sets and shows what backends get.
#[test]
fn the_db_commands_know_send_proxy() {
    let Some(world) = World::new(NETWORK, "the_db_commands_know_send_proxy") else { return };
    let db = |arguments: &[&str]| {
        let mut command = world.config().command(&world.lab, &[&["db"], arguments].concat());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let add = |id: &str, send: &str| {
        db(&["add", id, "--app", "web", "--region", "sa", "--addr", "192.0.2.1:80", "--send-proxy", send]).0
    };
    assert!(add("b1", "v2") && add("b2", "off") && !add("b3", "v3"));
    assert!(db(&["set", "b2", "send_proxy=v1"]).0);
    assert!(!db(&["set", "b2", "same_host=1"]).0);
    let list: serde_json::Value = serde_json::from_str(&db(&["list", "--json"]).1).unwrap();
    assert_eq!((&list[0]["send_proxy"], &list[1]["send_proxy"]), (&"v2".into(), &"v1".into()));
    let daemon = world.daemon(&[]);
    let status = daemon.status().unwrap();
    assert_eq!(status.text("/backends/0/send_proxy"), Some("v2"));
}
