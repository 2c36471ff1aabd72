//! PROXY headers from and to the programs that everybody has: HAProxy and nginx, in front of the POP and behind it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use common::http::{Http, Pace};
use common::{PORT, Row, SOON, World};
use edgeproxy::domain::ProxyVersion;
use edgeproxy::domain::proxy::{Announcement, encode};
use xtask::lab::requirements::Need;
use xtask::lab::{BRAZIL, Daemon, Lab, Ns, OtherProxy, Record};
use xtask::load::connect_from;

const NEEDS: &[Need] = &[Need::Root, Need::Namespaces, Need::OtherProxies];
/// Port of the proxies in front.
const FRONT: u16 = 9000;

/// Where the proxy in front listens and connects from.
fn front(lab: &Lab) -> IpAddr {
    lab.client(500)
}

fn client(lab: &Lab) -> IpAddr {
    lab.client_of(BRAZIL, 33)
}

/// The kinds of proxies in front, by what they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    HaproxyV1,
    HaproxyV2,
    NginxV1,
}

impl Sender {
    fn start(self, world: &World, to: SocketAddr) -> OtherProxy {
        let (clients, from) = (world.lab.namespace(Ns::Clients), front(&world.lab));
        let haproxy = |server: &str| {
            let listen = format!(
                "listen front\n bind {from}:{FRONT}\n unique-id-format haproxy-%pid-%rt\n server pop {to} source \
                 {from} {server}"
            );
            OtherProxy::haproxy(clients, FRONT, &listen).unwrap()
        };
        match self {
            Self::HaproxyV1 => haproxy("send-proxy"),
            Self::HaproxyV2 => haproxy("send-proxy-v2 proxy-v2-options unique-id,crc32c"),
            Self::NginxV1 => {
                let server = format!("listen {from}:{FRONT}; proxy_pass {to}; proxy_bind {from}; proxy_protocol on;");
                OtherProxy::nginx(clients, FRONT, &format!("stream {{ server {{ {server} }} }}")).unwrap()
            }
        }
    }

    fn version(self) -> &'static str {
        if self == Self::HaproxyV2 { "v2" } else { "v1" }
    }
}

/// The kinds of backends, each answering with what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiver {
    Haproxy,
    Nginx,
}

impl Receiver {
    /// Answers with the client's address and port, the address it connected to, and, where it can be told, the
    /// connection's id.
    fn start(self, world: &World) -> OtherProxy {
        let (backends, addr) = (world.lab.namespace(Ns::Backends), world.backend_addr(1));
        match self {
            Self::Haproxy => {
                let told = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id] %[fc_pp_authority]";
                let front = format!(
                    "frontend told\n mode http\n bind {addr} accept-proxy\n http-request return status 200 \
                     content-type text/plain lf-string \"{told}\""
                );
                OtherProxy::haproxy(backends, PORT, &front).unwrap()
            }
            Self::Nginx => {
                let told = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
                            $proxy_protocol_server_port";
                let server = format!("listen {addr} proxy_protocol; location / {{ return 200 \"{told}\"; }}");
                let http = format!(
                    "http {{ access_log off; client_body_temp_path b; proxy_temp_path p; \
                     fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s; server {{ {server} }} }}"
                );
                OtherProxy::nginx(backends, PORT, &http).unwrap()
            }
        }
    }
}

/// A daemon that takes headers from the proxy in front, and sends some to the backend.
fn daemon(world: &World, accept: &str, send: &str) -> Daemon {
    world.database.add(&Row::new("b1", world.backend_addr(1)));
    world.database.execute(&format!("UPDATE backends SET send_proxy = '{send}'"));
    let from = format!("{}", front(&world.lab));
    match accept {
        "off" => world.daemon(&[]),
        _ => world.daemon(&[("accept_proxy", accept), ("proxy_from", &from)]),
    }
}

/// Asks by way of `to`; the client's address, and the words of the answer.
fn ask(world: &World, to: SocketAddr) -> (SocketAddr, Vec<String>) {
    world.lab.run_in(Ns::Clients, || {
        let mut http = Http::connect(client(&world.lab), to).unwrap();
        let from = http.local_addr();
        http.ask(&["who"], 0).unwrap();
        let answer = String::from_utf8(http.answer(Pace::Fast).unwrap()).unwrap();
        (from, answer.split_whitespace().map(str::to_owned).collect())
    })
}

fn record(daemon: &Daemon, client: SocketAddr) -> Record {
    daemon.record_of(client, SOON).unwrap_or_else(|| panic!("no record of {client}: {}", daemon.messages()))
}

/// From the proxy in front, through the POP, to a backend that says what it was told.
fn through(sender: Sender, receiver: Receiver, send: &str, test: &str) {
    let Some(world) = World::new(NEEDS, test) else { return };
    let _receiver = receiver.start(&world);
    let daemon = daemon(&world, "required", send);
    let _sender = sender.start(&world, daemon.addr());
    let at = SocketAddr::new(front(&world.lab), FRONT);
    let (from, told) = ask(&world, at);
    let record = record(&daemon, from);
    // The backend knows the client, and where it connected to: the proxy in front.
    let ends = [from.ip().to_string(), from.port().to_string(), at.ip().to_string(), at.port().to_string()];
    assert_eq!(told.get(..4), Some(&ends[..]), "{told:?} {record:?}");
    if receiver == Receiver::Haproxy && send == "v2" {
        assert_eq!(told.get(4), Some(&record.conn_id));
    }
    assert_eq!(record.country.as_deref(), Some("BR"));
    assert_eq!((record.proxy_in.as_deref(), record.proxy_out.as_deref()), (Some(sender.version()), Some(send)));
    assert_eq!(record.proxied_by.map(|peer| peer.ip()), Some(front(&world.lab)));
    assert_eq!(record.proxied_to, Some(at));
    let id = record.proxied_id.as_deref();
    assert_eq!(id.is_some_and(|id| id.starts_with("haproxy-")), sender == Sender::HaproxyV2, "{record:?}");
    assert_eq!(record.termination, "--", "{record:?}");
}

#[test]
fn from_haproxy_v1_to_nginx_v1() {
    through(Sender::HaproxyV1, Receiver::Nginx, "v1", "from_haproxy_v1_to_nginx_v1");
}

#[test]
fn from_haproxy_v2_to_haproxy_v2() {
    through(Sender::HaproxyV2, Receiver::Haproxy, "v2", "from_haproxy_v2_to_haproxy_v2");
}

#[test]
fn from_nginx_to_haproxy_v1() {
    through(Sender::NginxV1, Receiver::Haproxy, "v1", "from_nginx_to_haproxy_v1");
}

#[test]
fn from_haproxy_v2_to_nginx_v2() {
    through(Sender::HaproxyV2, Receiver::Nginx, "v2", "from_haproxy_v2_to_nginx_v2");
}

/// Without a proxy in front the backend hears of the client and of the POP, over IPv4 and IPv6.
fn direct(receiver: Receiver, send: &str, test: &str) {
    let Some(world) = World::new(NEEDS, test) else { return };
    let _receiver = receiver.start(&world);
    let daemon = daemon(&world, "off", send);
    let (from, told) = ask(&world, daemon.addr());
    let at = daemon.addr();
    let ends = [from.ip().to_string(), from.port().to_string(), at.ip().to_string(), at.port().to_string()];
    assert_eq!(told.get(..4), Some(&ends[..]), "{told:?}");
    let at = daemon.addr_v6();
    let (from, told) = world.lab.run_in(Ns::Clients, || {
        let mut http = Http::connect(BRAZIL.v6(3), at).unwrap();
        http.ask(&["who"], 0).unwrap();
        (http.local_addr(), String::from_utf8(http.answer(Pace::Fast).unwrap()).unwrap())
    });
    let ends = format!("{} {} {} {}", from.ip(), from.port(), at.ip(), at.port());
    assert!(told.starts_with(&ends), "{told}");
}

#[test]
fn haproxy_understands_v1() {
    direct(Receiver::Haproxy, "v1", "haproxy_understands_v1");
}

#[test]
fn haproxy_understands_v2() {
    direct(Receiver::Haproxy, "v2", "haproxy_understands_v2");
}

#[test]
fn nginx_understands_v1() {
    direct(Receiver::Nginx, "v1", "nginx_understands_v1");
}

#[test]
fn nginx_understands_v2() {
    direct(Receiver::Nginx, "v2", "nginx_understands_v2");
}

/// The server name of a header that came in, and our own id, as HAProxy understands them.
#[test]
fn the_name_and_the_id_reach_haproxy() {
    let Some(world) = World::new(NEEDS, "the_name_and_the_id_reach_haproxy") else { return };
    let _receiver = Receiver::Haproxy.start(&world);
    let daemon = daemon(&world, "required", "v2");
    let client = SocketAddr::from(([203, 0, 113, 9], 9));
    let said = Announcement { client, to: client, server_name: Some("www.example.com"), unique_id: "lb-1" };
    let mut stream = world.lab.run_in(Ns::Clients, || connect_from(front(&world.lab), daemon.addr()).unwrap());
    stream.write_all(&encode(ProxyVersion::V2, &said)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    drop(stream);
    let record = record(&daemon, client);
    let told: Vec<_> = answer.lines().last().unwrap().split(' ').skip(4).collect();
    assert_eq!(told, [record.conn_id.as_str(), "www.example.com"], "{answer}");
    assert_eq!(record.proxied_id.as_deref(), Some("lb-1"));
}

/// HAProxy looks whether the POP is alive, with a header of its own (LOCAL), and finds a backend behind it.
#[test]
fn health_checks_of_haproxy_are_served_as_its_own() {
    let Some(world) = World::new(NEEDS, "health_checks_of_haproxy_are_served_as_its_own") else { return };
    let _receiver = Receiver::Nginx.start(&world);
    let daemon = daemon(&world, "required", "v2");
    let (from, to) = (front(&world.lab), daemon.addr());
    let listen = format!(
        "listen front\n bind {from}:{FRONT}\n mode http\n option httpchk GET /\n server pop {to} source {from} \
         send-proxy-v2 check-send-proxy check inter 50ms rise 1 fall 1"
    );
    let _haproxy = OtherProxy::haproxy(world.lab.namespace(Ns::Clients), FRONT, &listen).unwrap();
    let served = |record: &Record| record.backend.is_some() && record.proxied_to.is_none();
    let records = daemon.access_log(SOON, |records| records.iter().filter(|record| served(record)).count() > 2);
    let check = records.iter().find(|record| served(record)).unwrap();
    assert_eq!((check.client().ip(), check.proxy_in.as_deref()), (from, Some("v2")), "{check:?}");
    assert!(check.bytes_down > 0, "{check:?}");
}
