//! The rows of `listeners` say which of them take PROXY headers, and from whom.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use common::headers::{CLIENTS, echoed, header, is_reset, line, open, sender, try_open};
use common::listening::listener;
use common::refusals::wait_for;
use common::{NETWORK, SOON, World, edgeproxy};
use edgeproxy::domain::ProxyVersion;
use xtask::lab::{BRAZIL, Daemon, GERMANY, JAPAN, Record};
use xtask::load::{Manner, NamedBackend};

/// A daemon whose settings know nothing of headers, and a listener of the database, which the operator changes.
struct Scene {
    world: World,
    backends: Vec<NamedBackend>,
    daemon: Daemon,
}

impl Scene {
    /// Four backends of region `sa`, where the POP is, and one of `eu`.
    fn new(test: &str) -> Option<Self> {
        let world = World::new(NETWORK, test)?;
        let region = |n: u8| if n == 5 { "eu" } else { "sa" };
        let backends = (1..=5).map(|n| world.backend(n, Manner::Echo, |row| row.region(region(n)))).collect();
        let daemon = world.daemon(&[("app", "web")]);
        Some(Self { world, backends, daemon })
    }

    /// The row as it is from now on. The places are open and stay so: who connects meets it once it is read.
    fn row(&self, accept_proxy: &str, proxy_from: &str) {
        let before = self.daemon.status().unwrap().number("/routing/generation");
        let ip = self.world.lab.pop();
        self.world.database.execute(&format!(
            "INSERT INTO listeners (id, app, address, port, accept_proxy, proxy_from) \
             VALUES ('lb', 'web', '{ip}', 90, '{accept_proxy}', '{proxy_from}') ON CONFLICT (id) \
             DO UPDATE SET accept_proxy = excluded.accept_proxy, proxy_from = excluded.proxy_from"
        ));
        wait_for(&self.daemon, "the row is read", |status| status.number("/routing/generation") > before);
        assert_eq!(self.daemon.status().unwrap().0["routing"]["rejected_rows"], serde_json::json!([]));
        assert_eq!(listener(&self.daemon, "lb")["open"], true);
    }

    fn place(&self) -> SocketAddr {
        (self.world.lab.pop(), 90).into()
    }

    /// Comes by way of proxy `n`, which names `client`; the backend that it reaches, and the connection.
    fn comes(&self, n: u16, client: SocketAddr) -> (String, TcpStream) {
        let mut stream = open(&self.world, n, self.place(), &header(ProxyVersion::V2, client));
        (line(&mut stream), stream)
    }

    /// The client that the header names is the client.
    fn assert_believed(&self, n: u16, client: SocketAddr, region: &str) {
        let (backend, stream) = self.comes(n, client);
        let peer = stream.local_addr().unwrap();
        assert_eq!(echoed(stream, b"payload"), b"payload");
        let record = self.record(client);
        assert_eq!(record.client_region.as_deref(), Some(region), "{record:?}");
        assert_eq!(record.backend.as_deref(), Some(backend.as_str()));
        assert_eq!((record.proxy_in.as_deref(), record.proxied_by), (Some("v2"), Some(peer)), "{record:?}");
        assert_eq!((record.proxied_to, record.bytes_up), (Some(sender()), 7), "{record:?}");
    }

    /// The sender is the client, and all that it sends is payload.
    fn assert_payload(&self, from: IpAddr, to: SocketAddr, first: &[u8]) {
        let (peer, stream) = try_open(&self.world, from, to, first);
        let mut stream = stream.unwrap();
        assert!(line(&mut stream).starts_with('b'));
        assert_eq!(echoed(stream, b" and more"), [first, b" and more"].concat());
        let record = self.daemon.record_of(peer, SOON).unwrap();
        assert_eq!((record.proxy_in, record.proxied_by), (None, None));
    }

    fn assert_refused(&self, from: IpAddr, first: &[u8], reason: &str, detail: &str) {
        let reached = || self.backends.iter().map(|backend| backend.gauge().total()).sum::<usize>();
        let before = reached();
        let (peer, stream) = try_open(&self.world, from, self.place(), first);
        assert!(stream.is_none_or(|mut stream| is_reset(&mut stream)), "{from} is served");
        let record = self.record(peer);
        assert_eq!((record.termination.as_str(), record.reject.as_deref()), ("PR", Some(reason)), "{record:?}");
        assert!(record.reject_detail.as_deref().unwrap_or_default().contains(detail), "{record:?}");
        assert_eq!(reached(), before, "no backend was asked");
    }

    fn record(&self, client: SocketAddr) -> Record {
        let record = self.daemon.record_of(client, SOON).unwrap();
        assert_eq!(record.listener.as_deref(), Some("lb"), "{record:?}");
        record
    }

    /// One client by way of many proxies keeps its backend, many by way of one are shared out, and the bindings are theirs.
    fn affinity_is_by_the_named_client(&self) {
        let client = |host: u8| self.world.lab.client_of(BRAZIL, host);
        let first = self.comes(50, (client(77), 1).into()).0;
        assert!((51..63).all(|proxy| self.comes(proxy, (client(77), 1).into()).0 == first));
        let backends: HashSet<_> = (100..112).map(|host| self.comes(50, (client(host), 1).into()).0).collect();
        assert!(backends.len() > 1, "{backends:?}");
        let (code, bindings) = edgeproxy(&self.daemon, &["bindings", "list"]);
        assert!(code == 0 && bindings.contains(&client(77).to_string()), "{bindings}");
        assert!(!bindings.contains(&self.world.lab.client(50).to_string()), "{bindings}");
    }
}

#[test]
fn a_row_says_who_may_name_clients_and_a_changed_one_is_what_new_connections_meet() {
    let test = "a_row_says_who_may_name_clients_and_a_changed_one_is_what_new_connections_meet";
    let Some(scene) = Scene::new(test) else { return };
    let (brazilian, german) = (scene.world.lab.client_of(BRAZIL, 9), scene.world.lab.client_of(GERMANY, 9));
    let (one, two, stranger) = (scene.world.lab.client(1), scene.world.lab.client(2), JAPAN.v4(5));
    let claim = header(ProxyVersion::V2, (brazilian, 999).into());
    let untrusted = |who: IpAddr| format!("{who} is not in proxy_from");

    scene.row("required", CLIENTS);
    scene.assert_believed(1, (brazilian, 1).into(), "sa");
    scene.assert_believed(1, (german, 2).into(), "eu");
    scene.affinity_is_by_the_named_client();
    scene.assert_refused(one, b"GET / HTTP/1.1\r\n", "proxy_missing", "");
    scene.assert_refused(stranger, &claim, "proxy_untrusted", &untrusted(stranger));
    // The listener of the settings is none of the row's business.
    scene.assert_payload(one, scene.daemon.addr(), &claim);
    let stays = SocketAddr::new(german, 7);
    let (_, mut held) = scene.comes(1, stays);

    scene.row("optional", CLIENTS);
    scene.assert_believed(1, (german, 3).into(), "eu");
    scene.assert_payload(one, scene.place(), b"GET / HTTP/1.1\r\n");
    scene.assert_payload(stranger, scene.place(), &claim);
    scene.assert_refused(one, b"PROXY TCP4 nonsense\r\n", "proxy_malformed", "line is malformed");

    scene.row("off", "");
    scene.assert_payload(one, scene.place(), &claim);

    // Another proxy is trusted now.
    scene.row("required", &format!("{two}/32"));
    scene.assert_believed(2, (german, 4).into(), "eu");
    scene.assert_refused(one, &claim, "proxy_untrusted", &untrusted(one));
    scene.assert_refused(two, b"GET / HTTP/1.1\r\n", "proxy_missing", "");

    // Who was accepted before has nothing to do with all that.
    held.write_all(b"still here").unwrap();
    let mut back = [0; 10];
    held.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"still here");
    drop(held);
    assert_eq!(scene.record(stays).bytes_up, 10);
    wait_for(&scene.daemon, "nobody is left", |status| status.active() == 0);
}
