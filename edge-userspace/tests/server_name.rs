//! Listeners that share a port and are told apart by the TLS server name, which is looked at and left to the backend.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::hello::{hello, message, records};
use common::{NETWORK, SOON, World, eventually};
use xtask::lab::requirements::Need;
use xtask::lab::{Daemon, Ns, Record};
use xtask::load::{Manner, NamedBackend, connect_from};

const TLS: &[Need] = &[Need::Root, Need::Namespaces, Need::Openssl];

/// Backend `b<n>` of app `app<n>`.
fn app(world: &World, n: u8) -> NamedBackend {
    let backend = world.backend(n, Manner::Close, |row| row);
    world.database.execute(&format!("UPDATE backends SET app = 'app{n}' WHERE id = 'b{n}'"));
    backend
}

fn listen(world: &World, id: &str, app: &str, names: &str) {
    world.database.execute(&format!(
        "INSERT INTO listeners (id, app, address, port, server_name) VALUES ('{id}', '{app}', '0.0.0.0', 443, {names})"
    ));
}

fn at(world: &World) -> SocketAddr {
    (world.lab.pop(), 443).into()
}

/// Says something in pieces with pauses; what is heard, and the client's address.
fn say(world: &World, bytes: &[u8], piece: usize, end: bool) -> (std::io::Result<String>, SocketAddr) {
    world.lab.run_in(Ns::Clients, || {
        let mut stream = connect_from(world.lab.client(1), at(world)).unwrap();
        let local = stream.local_addr().unwrap();
        for piece in bytes.chunks(piece.max(1)) {
            if stream.write_all(piece).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        if end {
            let _ = stream.shutdown(Shutdown::Write);
        }
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut heard = String::new();
        (stream.read_to_string(&mut heard).map(|_| heard), local)
    })
}

/// What the access log tells of a client that says this.
fn told(world: &World, daemon: &Daemon, bytes: &[u8], piece: usize, end: bool) -> Record {
    let (heard, local) = say(world, bytes, piece, end);
    let record = daemon.record_of(local, SOON).unwrap();
    if record.reject.is_some() {
        // A reset, not an end of the stream.
        assert_eq!(heard.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    // Backends that close without reading reset, too; what they said first may be lost with it.
    record
}

/// The backend's name, or why the client was refused.
fn outcome(world: &World, daemon: &Daemon, bytes: &[u8], piece: usize, end: bool) -> String {
    let record = told(world, daemon, bytes, piece, end);
    record.reject.or(record.backend).unwrap()
}

#[test]
fn the_server_name_decides_between_listeners_of_a_place() {
    let Some(world) = World::new(NETWORK, "the_server_name_decides_between_listeners_of_a_place") else { return };
    let _backends = [app(&world, 1), app(&world, 2), app(&world, 3)];
    listen(&world, "exact", "app1", "'www.example.com, api.example.com'");
    listen(&world, "below", "app2", "'*.example.com'");
    listen(&world, "rest", "app3", "NULL");
    let daemon = world.daemon(&[("server_name_timeout_ms", "1000")]);
    for (name, piece, backend) in [
        (Some("www.example.com"), 10_000, "b1"),
        (Some("API.Example.com"), 100, "b1"),
        (Some("other.example.com"), 1, "b2"),
        (Some("example.net"), 10_000, "b3"),
        (None, 10_000, "b3"),
    ] {
        assert_eq!(outcome(&world, &daemon, &hello(name, 0), piece, false), backend, "{name:?}");
    }
    let split = records(&message(Some("www.example.com"), 600), 2);
    assert_eq!(outcome(&world, &daemon, &split, 500, false), "b1", "records of two bytes");
    let long = hello(Some("www.example.com"), 15_000);
    assert_eq!(outcome(&world, &daemon, &long, 1_400, false), "b1", "many segments");
    // What has no name goes where all names go: its backend knows what to make of it.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x80, 0x2e, 1, 0, 2], &hello(Some("a b"), 0), b""] {
        assert_eq!(outcome(&world, &daemon, bytes, 10_000, true), "b3", "{bytes:?}");
    }
    // A client that waits for the server to speak does so after the limit; one that stops half-way does not.
    assert_eq!(outcome(&world, &daemon, b"", 1, false), "b3");
    assert_eq!(outcome(&world, &daemon, &hello(Some("www.example.com"), 0)[..30], 1_000, false), "server_name_timeout");
    let records = daemon.access_log(Duration::ZERO, |_| true);
    let named = records.iter().find(|record| record.server_name.as_deref() == Some("api.example.com")).unwrap();
    assert_eq!((named.listener.as_deref(), named.app.as_deref()), (Some("exact"), Some("app1")), "{named:?}");
    assert!(records.iter().any(|record| record.listener.as_deref() == Some("rest") && record.server_name.is_none()));
    let status = daemon.status().unwrap();
    let below =
        status.0["listeners"].as_array().unwrap().iter().find(|listener| listener["id"] == "below").unwrap().clone();
    assert_eq!((&below["how"], &below["server_names"][0]), (&"bind".into(), &"*.example.com".into()), "{below}");
}

/// What can't be led anywhere is refused for its own reason, and costs nobody else anything.
#[test]
fn each_malformed_hello_is_refused_with_a_reason_and_harms_nobody() {
    let test = "each_malformed_hello_is_refused_with_a_reason_and_harms_nobody";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backends = [app(&world, 1), common::listening::app(&world, 2)];
    listen(&world, "www", "app1", "'www.example.com'");
    listen(&world, "held", "app2", "'held.example.com'");
    let daemon = world.daemon(&[("server_name_timeout_ms", "800"), ("app", "app1")]);
    let good = hello(Some("www.example.com"), 0);
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let mut interrupted = records(&message(Some("www.example.com"), 0), 40)[..45].to_vec();
    interrupted.extend([21, 3, 3, 0, 2, 2, 40]);
    let bad = "bad_client_hello";
    let record_length = "a TLS record is empty or longer than TLS allows";
    let length = "a length in the ClientHello leads beyond what holds it";
    let name = "the server name in the ClientHello is not a host name";
    let too_long = "no server name in the first 16 KiB of the ClientHello";
    let other_record = "a record that is not part of the handshake comes before the end of the ClientHello";
    let other_message = "the first message of the handshake is not a ClientHello";
    let corpus: Vec<(&str, Vec<u8>, bool, &str, &str)> = vec![
        ("another name", hello(Some("example.net"), 0), false, "unknown_server_name", ""),
        ("a parent of the name", hello(Some("example.com"), 0), false, "unknown_server_name", ""),
        ("no name", hello(None, 0), false, "no_server_name", ""),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n".to_vec(), false, "no_server_name", ""),
        ("SSLv2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], false, "no_server_name", ""),
        ("nothing", Vec::new(), true, "no_server_name", ""),
        ("silence", Vec::new(), false, "server_name_timeout", ""),
        ("a first byte", vec![22], false, "server_name_timeout", ""),
        ("half a hello", good[..50].to_vec(), false, "server_name_timeout", ""),
        ("half a hello and an end", good[..50].to_vec(), true, bad, "the stream ends within the ClientHello"),
        ("17 KiB without a name", hello_of_17_kib(), false, bad, too_long),
        ("an empty record", vec![22, 3, 1, 0, 0], false, bad, record_length),
        ("a record too long", vec![22, 3, 1, 0xff, 0xff, 1], false, bad, record_length),
        ("another message", changed(5, 2), false, bad, other_message),
        ("a session id too long", changed(43, 255), false, bad, length),
        ("cipher suites too long", changed(44, 255), false, bad, length),
        ("extensions too long", changed(50, 255), false, bad, length),
        ("a message too short", changed(8, 40), false, bad, length),
        ("an alert within", interrupted, false, bad, other_record),
        ("a name with a NUL", hello(Some("www\0.example.com"), 0), false, bad, name),
        ("a name too long", hello(Some(&"a".repeat(300)), 0), false, bad, name),
        ("a wildcard", hello(Some("*.example.com"), 0), false, bad, name),
    ];
    // One that was there before is there at the end.
    let mut held = connected(&world);
    held.set_read_timeout(Some(SOON)).unwrap();
    let mut answers = |said: &[u8], expected: &[u8]| {
        held.write_all(said).unwrap();
        let mut heard = vec![0; expected.len()];
        held.read_exact(&mut heard).unwrap();
        assert_eq!(heard, expected);
    };
    let first = hello(Some("held.example.com"), 0);
    answers(&first, &[b"b2\n", &first[..]].concat());
    for (what, bytes, end, reason, detail) in &corpus {
        let record = told(&world, &daemon, bytes, 3_000, *end);
        let said = (record.reject.as_deref(), record.reject_detail.as_deref().unwrap_or_default());
        assert_eq!(said, (Some(*reason), *detail), "{what}");
        assert_eq!(outcome(&world, &daemon, &good, 3_000, false), "b1", "after {what}");
    }
    answers(b"still there", b"still there");
    let metrics = daemon.metrics().unwrap();
    for reason in ["unknown_server_name", "no_server_name", "server_name_timeout", "bad_client_hello"] {
        let counted = format!("edgeproxy_connections_rejected_total{{reason=\"{reason}\"}} ");
        assert!(metrics.lines().any(|line| line.starts_with(&counted) && !line.ends_with(" 0")), "{reason}");
    }
}

fn hello_of_17_kib() -> Vec<u8> {
    records(&message(Some("www.example.com"), 17_000), 16_384)
}

fn connected(world: &World) -> TcpStream {
    world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(9), at(world)).unwrap())
}

/// Hundreds of clients that send a byte now and then take no time of the daemon, and bounded memory.
#[test]
fn slow_clients_cost_little() {
    let Some(world) = World::new(NETWORK, "slow_clients_cost_little") else { return };
    let _backend = app(&world, 1);
    listen(&world, "only", "app1", "'www.example.com'");
    let daemon = world.daemon(&[("app", "app1"), ("server_name_timeout_ms", "60000")]);
    let hello = hello(Some("www.example.com"), 0);
    let mut streams: Vec<_> = (0..300).map(|_| connected(&world)).collect();
    streams.iter_mut().for_each(|stream| stream.write_all(&hello[..20]).unwrap());
    daemon.wait_status(SOON, |status| status.active() == 300).unwrap();
    let (cpu, memory, begun) = (daemon.cpu(), daemon.memory(), Instant::now());
    for round in 0..20 {
        streams.iter_mut().for_each(|stream| stream.write_all(&hello[20 + round..21 + round]).unwrap());
        thread::sleep(Duration::from_millis(20));
    }
    // 6,000 single bytes: without a low-water mark each would be looked at.
    let (cpu, took) = (daemon.cpu() - cpu, begun.elapsed());
    assert!(cpu < took / 4, "{cpu:?} of processor time in {took:?}");
    assert!(daemon.memory() < memory + (4 << 20), "{memory} bytes became {}", daemon.memory());
    streams.iter_mut().for_each(|stream| stream.write_all(&hello[40..]).unwrap());
    for stream in &mut streams {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut heard = [0; 3];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"b1\n");
    }
}

/// A real TLS server with a certificate of its own.
struct TlsServer(Child);

impl TlsServer {
    fn start(world: &World, addr: SocketAddr, name: &str) -> Self {
        let directory = world.database.path().parent().unwrap().to_owned();
        let file = |extension: &str| -> PathBuf { directory.join(format!("{name}.{extension}")) };
        let (key, certificate) = (file("key"), file("crt"));
        let mut request = Command::new("openssl");
        request.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        request.arg("-subj").arg(format!("/CN={name}")).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        assert!(request.stderr(Stdio::null()).status().unwrap().success());
        let mut server = Command::new("openssl");
        server.args(["s_server", "-quiet", "-rev", "-accept", &addr.to_string()]);
        server.arg("-key").arg(&key).arg("-cert").arg(&certificate);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = world.lab.command_in(Ns::Backends, &mut server).spawn().unwrap();
        eventually("the TLS server listens", || world.lab.run_in(Ns::Backends, || TcpStream::connect(addr)).is_ok());
        Self(child)
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a real TLS client says of the server it got, after a word there and back.
fn tls_client(world: &World, arguments: &[&str]) -> String {
    let mut client = Command::new("openssl");
    client.args(["s_client", "-brief", "-connect", &at(world).to_string()]).args(arguments);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = world.lab.command_in(Ns::Clients, &mut client).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"olleh\n").unwrap();
    let end = thread::spawn(move || {
        // `-rev` answers line by line; the client ends with its input.
        thread::sleep(Duration::from_millis(1_500));
        drop(input);
    });
    let output = child.wait_with_output().unwrap();
    end.join().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn real_tls_clients_reach_the_servers_that_they_name() {
    let Some(world) = World::new(TLS, "real_tls_clients_reach_the_servers_that_they_name") else { return };
    let names = ["one.example", "two.example"];
    let _servers: Vec<_> = (1..)
        .zip(names)
        .map(|(n, name)| {
            let addr = world.backend_addr(n);
            world.database.add(&common::Row::new(&format!("b{n}"), addr));
            world.database.execute(&format!("UPDATE backends SET app = 'app{n}' WHERE id = 'b{n}'"));
            listen(&world, name, &format!("app{n}"), &format!("'{name}'"));
            TlsServer::start(&world, addr, name)
        })
        .collect();
    let daemon = world.daemon(&[("app", "app1")]);
    for name in names {
        for version in ["-tls1_2", "-tls1_3"] {
            let said = tls_client(&world, &["-servername", name, version]);
            assert!(said.contains(&format!("CN = {name}")) || said.contains(&format!("CN={name}")), "{name}: {said}");
            assert!(said.contains("hello"), "{name} {version}: {said}");
        }
    }
    let said = tls_client(&world, &["-servername", "three.example"]);
    assert!(!said.contains("Protocol version"), "{said}");
    let records = daemon.access_log(SOON, |records| records.len() >= 5);
    let rejected: Vec<_> = records.iter().filter_map(|record| record.reject.as_deref()).collect();
    assert_eq!(rejected, ["unknown_server_name"], "{records:?}");
}
