//! The API as its clients see it, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::application::bindings::{BindingPage, BindingsQuery, ClearAnswer, ClearRequest};
use crate::application::explain::{Candidate, Step};
use crate::application::status::{PopState, RejectedRow, sample};

/// A daemon that accepts a reload only when an empty table is allowed.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) draining: AtomicBool,
}

impl Control for Fake {
    fn status(&self) -> Status {
        let state = if self.draining.load(Ordering::Relaxed) { PopState::Draining } else { PopState::Ready };
        Status { state, ..sample::status() }
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        Ok("# EOF\n".to_owned())
    }

    fn reload(&self, allow_empty: bool) -> Answer<'_, ReloadAnswer> {
        let row = RejectedRow { row: "backend b9".to_owned(), why: "port 0".to_owned() };
        let answer = ReloadAnswer { generation: 8, accepted: 0, apps: 0, rejected_rows: vec![row] };
        Box::pin(std::future::ready(if allow_empty { Ok(answer) } else { Err("the table is empty".to_owned()) }))
    }

    fn bindings(&self, query: &BindingsQuery) -> Answer<'_, BindingPage> {
        let page = BindingPage { next: query.limit.map(|limit| limit as usize), ..BindingPage::default() };
        Box::pin(std::future::ready(query.filter().parse().map(|_| page).map_err(|why| why.to_string())))
    }

    fn clear_bindings(&self, request: &ClearRequest) -> Answer<'_, ClearAnswer> {
        let answer = if request.all { Ok(ClearAnswer { cleared: 3 }) } else { Err("say which".to_owned()) };
        Box::pin(std::future::ready(answer))
    }

    fn flows(&self) -> Vec<FlowStatus> {
        let flow = serde_json::json!({
            "id": 3, "client": "192.0.2.1:5", "app": "web", "backend": "b1", "age_secs": 2.5, "forwarder": "sockmap",
            "why": "lively", "since_secs": 0.5, "changes": 1, "bytes_up": 1, "bytes_down": 2, "kernel_up": 0,
            "kernel_down": 1,
        });
        vec![serde_json::from_value(flow).unwrap()]
    }

    fn events(&self, query: EventsQuery) -> Pin<Box<dyn Future<Output = EventsAnswer> + Send + '_>> {
        let answer = EventsAnswer { last: query.after, ..EventsAnswer::default() };
        Box::pin(std::future::ready(answer))
    }

    fn set_forwarder(&self, forwarder: ForwarderChoice) -> Result<ForwarderStatus, String> {
        match forwarder {
            ForwarderChoice::Sockmap => Err("there is no kernel path to use".to_owned()),
            choice => Ok(ForwarderStatus { configured: choice.as_str().to_owned(), ..ForwarderStatus::default() }),
        }
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, String> {
        match query.app.as_deref() {
            Some("nobody") => Ok(Explanation { refused: Some("no_such_app".to_owned()), ..Explanation::default() }),
            _ if query.port == Some(1) => Err("no listener on port 1".to_owned()),
            _ => Ok(Explanation { client: query.client.to_string(), ..sample_explanation() }),
        }
    }

    fn drain_backend(&self, request: &DrainRequest) -> Result<DrainAnswer, String> {
        match request.backend.as_str() {
            "b" => Ok(DrainAnswer { draining: true, deadline_secs: request.deadline_secs, ..DrainAnswer::default() }),
            other => Err(format!("there is no backend {other}")),
        }
    }

    fn ready_backend(&self, request: &DrainRequest) -> Result<DrainAnswer, String> {
        self.drain_backend(request).map(|answer| DrainAnswer { draining: false, ..answer })
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// Two backends in the client's region, one of them out, and one elsewhere.
pub(crate) fn sample_explanation() -> Explanation {
    let candidate = |id: &str, region: &str, region_score: u8| Candidate {
        id: id.to_owned(),
        addr: "192.0.2.1:80".to_owned(),
        region: region.to_owned(),
        country: None,
        state: "ready".to_owned(),
        healthy: true,
        weight: 1,
        soft_limit: 100,
        hard_limit: 0,
        connections: 10,
        region_score,
        distance_km: Some(f64::from(region_score) * 4000.0),
        load_factor: 0.1,
        score: f64::from(region_score) * 100.0 + 0.1,
        rtt_ms: Some(1.25),
        over_soft: false,
        out: None,
        health: "up".to_owned(),
        last_check: Some("wrong_status: status 503".to_owned()),
    };
    let step = |backend: &str, why: &str| Step { backend: backend.to_owned(), why: why.to_owned() };
    let out = Candidate { state: "drain".to_owned(), out: Some("drain".to_owned()), ..candidate("sa-2", "sa", 0) };
    Explanation {
        place: Some("0.0.0.0:443".to_owned()),
        closed: None,
        listener: Some("tls".to_owned()),
        server_name: Some("www.example.com".to_owned()),
        client_position: Some((-23.55, -46.63)),
        client: "200.160.2.1".to_owned(),
        country: Some("BR".to_owned()),
        geo_source: "database".to_owned(),
        client_region: Some("sa".to_owned()),
        pop_region: "eu".to_owned(),
        app: Some("web".to_owned()),
        generation: 7,
        bound: Some("sa-2".to_owned()),
        binding_yielded: Some("drain".to_owned()),
        selection: Some("least_load".to_owned()),
        next_region: Some("position".into()),
        winner: Some("sa-1".to_owned()),
        why: Some("client_region".to_owned()),
        refused: None,
        limits: None,
        denied_by: None,
        queue: None,
        waits_behind: None,
        order: vec![step("sa-1", "client_region"), step("us-1", "nearest_region")],
        candidates: vec![candidate("sa-1", "sa", 0), candidate("us-1", "us", 2), out],
    }
}

/// Serves a fake on `socket` until the handle is aborted.
pub(crate) async fn serve(socket: &Path, tcp: Option<&str>) -> (Option<std::net::SocketAddr>, JoinHandle<()>) {
    let server = AdminServer::bind(socket, tcp.map(|addr| addr.parse().unwrap())).await.unwrap();
    (server.tcp_addr(), tokio::spawn(server.run(Arc::new(Fake::default()))))
}

async fn exchange(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses in mid-request resets; what it said before counts.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(method: &str, path: &str, host: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

#[tokio::test]
async fn the_socket_serves_reads_and_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let (_, server) = serve(&path, None).await;
    let ask = async |method, at, body| {
        exchange(UnixStream::connect(&path).await.unwrap(), &request(method, at, "x", body)).await
    };
    let answer = ask("GET", "/metrics", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200")
            && answer.contains("application/openmetrics-text")
            && answer.ends_with("# EOF\n")
    );
    assert!(ask("GET", "/healthz", "").await.ends_with("ok\n"));
    assert!(ask("GET", "/readyz", "").await.starts_with("HTTP/1.1 200"));
    assert!(ask("GET", "/api/v1/status", "").await.contains("\"generation\":7"));
    assert!(ask("GET", "/api/v1/explain?client=2001:db8::1", "").await.contains("\"client\":\"2001:db8::1\""));
    assert!(ask("GET", "/api/v1/explain?client=192.0.2.1&port=1", "").await.starts_with("HTTP/1.1 404"));
    assert!(ask("GET", "/api/v1/events?after=7&wait_ms=5", "").await.contains("\"last\":7"));
    for wrong in [
        "/api/v1/events?after=x",
        "/api/v1/events?befor=7",
        "/api/v1/explain",
        "/api/v1/explain?client=here",
        "/api/v1/explain?client=192.0.2.1&apps=web",
        "/api/v1/explain?client=192.0.2.1&port=65536",
    ] {
        assert!(ask("GET", wrong, "").await.starts_with("HTTP/1.1 400"), "{wrong}");
    }
    assert!(ask("POST", "/api/v1/reload", "").await.contains("{\"error\":\"the table is empty\"}"));
    assert!(ask("POST", "/api/v1/reload", "{\"allow_empty\":true}").await.contains("\"generation\":8"));
    assert!(ask("POST", "/api/v1/reload", "{\"alow_empty\":true}").await.starts_with("HTTP/1.1 400"));
    assert!(ask("GET", "/api/v1/reload", "").await.starts_with("HTTP/1.1 405"));
    let late = ask("POST", "/api/v1/backends/drain", "{\"backend\":\"b\",\"deadline_secs\":1e9}").await;
    assert!(late.starts_with("HTTP/1.1 400") && late.contains("30 days"), "{late}");
    assert!(ask("GET", "/nothing", "").await.starts_with("HTTP/1.1 404"));
    assert!(ask("POST", "/api/v1/drain", "").await.starts_with("HTTP/1.1 202"));
    let answer = ask("GET", "/readyz", "").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"));
    server.abort();
    let _ = server.await;
    assert!(!path.exists(), "the socket's file goes with its server");
}

#[tokio::test]
async fn a_loopback_address_is_for_reading_by_local_names() {
    let dir = tempfile::tempdir().unwrap();
    let (addr, server) = serve(&dir.path().join("admin.sock"), Some("127.0.0.1:0")).await;
    let addr = addr.unwrap();
    let ask = async |method, at, host: &str| {
        exchange(TcpStream::connect(addr).await.unwrap(), &request(method, at, host, "")).await
    };
    assert!(ask("GET", "/api/v1/status", &addr.to_string()).await.starts_with("HTTP/1.1 200"));
    assert!(ask("GET", "/api/v1/status", "evil.example").await.starts_with("HTTP/1.1 403"));
    assert!(ask("POST", "/api/v1/drain", "localhost").await.starts_with("HTTP/1.1 403"));
    assert!(ask("GET", "/readyz", "localhost").await.starts_with("HTTP/1.1 200"));
    server.abort();
}

#[tokio::test]
async fn garbage_and_too_much_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let (_, server) = serve(&path, None).await;
    let connect = async || UnixStream::connect(&path).await.unwrap();
    let big_header = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(100_000));
    let big_body = request("POST", "/api/v1/reload", "x", &" ".repeat(20_000));
    for (garbage, code) in [
        (&b"\x16\x03\x01\x00\xff\xff\xff"[..], "HTTP/1.1 400"),
        (b"GET / HTTP/9.9\r\n\r\n", "HTTP/1.1 400"),
        (big_header.as_bytes(), "HTTP/1.1 431"),
        (&big_body, "HTTP/1.1 413"),
    ] {
        let mut stream = connect().await;
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(code), "{answer}");
    }
    // Clients that say nothing hold a place each, and others are still served.
    let _silent = futures_of(40, &path).await;
    assert!(exchange(connect().await, &request("GET", "/healthz", "x", "")).await.ends_with("ok\n"));
    server.abort();
}

async fn futures_of(count: usize, path: &Path) -> Vec<UnixStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(UnixStream::connect(path).await.unwrap());
    }
    streams
}
