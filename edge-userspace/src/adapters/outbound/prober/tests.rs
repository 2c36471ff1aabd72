//! Each kind of check against servers that answer rightly, wrongly, late and not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::domain::HealthCheck;
use crate::domain::testing::{backends, row};

const SECOND: Duration = Duration::from_secs(1);

/// A server on loopback that reads once and sends `answer`; with `None` it says nothing.
async fn server(answer: Option<&'static [u8]>, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                match tls {
                    Some(tls) => {
                        let Ok(mut stream) = tls.accept(stream).await else { return };
                        let _ = stream.read(&mut buffer).await;
                        let _ = stream.write_all(answer.unwrap_or_default()).await;
                        let _ = stream.shutdown().await;
                    }
                    None => {
                        let _ = stream.read(&mut buffer).await;
                        let Some(answer) = answer else { return tokio::time::sleep(SECOND * 60).await };
                        let _ = stream.write_all(answer).await;
                    }
                }
            });
        }
    });
    addr
}

async fn check(addr: SocketAddr, text: &str, limit: Duration) -> (CheckResult, String) {
    let check = HealthCheck::parse(text).unwrap();
    let backend = Arc::clone(&backends(&[row("b", "sa")])[0]);
    let target = Target { addr, backend: &backend };
    let report = TcpProber::default().check(target, b"", check.spec().unwrap(), limit).await;
    // Every connect tells how far it is.
    assert_eq!(backend.load.rtt().estimate(Instant::now()).is_some(), report.result != CheckResult::Refused);
    (report.result, report.detail.unwrap_or_default())
}

#[tokio::test]
async fn a_connect_passes_or_is_refused() {
    let addr = server(None, None).await;
    assert_eq!(check(addr, "tcp", SECOND).await, (CheckResult::Passed, String::new()));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(check(closed, "tcp", SECOND).await.0, CheckResult::Refused);
}

#[tokio::test]
async fn an_exchange_wants_its_answer() {
    let ask = r#"tcp send="PING\r\n" expect="+PONG""#;
    let limit = Duration::from_millis(200);
    assert_eq!(check(server(Some(b"hello +PONG\r\n"), None).await, ask, SECOND).await.0, CheckResult::Passed);
    let (result, detail) = check(server(Some(b"-ERR no\r\n"), None).await, ask, SECOND).await;
    assert_eq!((result, detail.as_str()), (CheckResult::WrongAnswer, "answered \"-ERR no\\r\\n\""));
    assert_eq!(check(server(Some(b""), None).await, ask, SECOND).await.0, CheckResult::Closed);
    assert_eq!(check(server(None, None).await, ask, limit).await.0, CheckResult::TimedOut);
    static ENDLESS: [u8; MAX_ANSWER * 2] = [b'x'; MAX_ANSWER * 2];
    assert_eq!(check(server(Some(&ENDLESS), None).await, ask, SECOND).await.0, CheckResult::WrongAnswer);
}

#[tokio::test]
async fn http_wants_its_status() {
    let limit = Duration::from_millis(200);
    let ok = server(Some(b"HTTP/1.1 204 No Content\r\n\r\n"), None).await;
    assert_eq!(check(ok, "http path=/healthz", SECOND).await.0, CheckResult::Passed);
    let (result, detail) = check(ok, "http status=200", SECOND).await;
    assert_eq!((result, detail.as_str()), (CheckResult::WrongStatus, "status 204"));
    // Its body never ends, and nobody waits for it.
    let endless = server(Some(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx"), None).await;
    assert_eq!(check(endless, "http", SECOND).await.0, CheckResult::Passed);
    let (result, detail) = check(server(Some(b"220 mail ready\r\n"), None).await, "http", SECOND).await;
    assert!(result == CheckResult::WrongAnswer && detail.starts_with("no HTTP"), "{result:?} {detail}");
    assert_eq!(check(server(Some(b""), None).await, "http", SECOND).await.0, CheckResult::Closed);
    assert_eq!(check(server(None, None).await, "http", limit).await.0, CheckResult::TimedOut);
    static HEAD: [u8; 100_000] = [b'x'; 100_000];
    assert_eq!(check(server(Some(&HEAD), None).await, "http", SECOND).await.0, CheckResult::WrongAnswer);
}

#[tokio::test]
async fn https_believes_whom_it_is_told_to() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let addr = server(Some(b"HTTP/1.1 200 OK\r\n\r\n"), Some(TlsAcceptor::from(Arc::new(config)))).await;
    let dir = tempfile::tempdir().unwrap();
    let (ca, none) = (dir.path().join("ca.pem"), dir.path().join("none.pem"));
    std::fs::write(&ca, cert.pem()).unwrap();
    std::fs::write(&none, "nothing").unwrap();
    let (ca, none) = (ca.display(), none.display());
    for (text, result, says) in [
        ("https".to_owned(), CheckResult::Passed, ""),
        ("https status=404".to_owned(), CheckResult::WrongStatus, "status 200"),
        (format!("https verify={ca} sni=a.example"), CheckResult::Passed, ""),
        (format!("https verify={ca} host=a.example:443"), CheckResult::Passed, ""),
        (format!("https verify={ca} sni=b.example"), CheckResult::Tls, "certificate"),
        (format!("https verify={ca}"), CheckResult::Tls, "certificate"),
        (format!("https verify={none}"), CheckResult::Local, "it has no certificate"),
        ("https verify=/nowhere.pem".to_owned(), CheckResult::Local, "authorities in /nowhere.pem"),
    ] {
        let (found, detail) = check(addr, &text, SECOND * 5).await;
        assert!(found == result && detail.contains(says), "{text}: {found:?} {detail}");
    }
    let (system, _) = check(addr, "https verify=system sni=a.example", SECOND * 5).await;
    assert!(matches!(system, CheckResult::Tls | CheckResult::Local), "{system:?}");
    let plain = server(Some(b"220 mail ready\r\n"), None).await;
    assert_eq!(check(plain, "https", SECOND * 5).await.0, CheckResult::Tls);
    let silent = server(None, None).await;
    assert_eq!(check(silent, "https", Duration::from_millis(300)).await.0, CheckResult::TimedOut);
}

#[tokio::test]
async fn a_backend_that_gets_proxy_headers_gets_one_that_names_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let row = |send_proxy: &str| crate::domain::RawBackend {
        wg_ip: "127.0.0.1".into(),
        port: i64::from(port).into(),
        send_proxy: send_proxy.into(),
        ..crate::domain::testing::row("b", "sa")
    };
    let ask = HealthCheck::parse("tcp send=PING expect=PONG").unwrap();
    let other_port = HealthCheck::parse(&format!("tcp send=PING expect=PONG port={port}")).unwrap();
    for (send_proxy, check, begins) in [
        ("v1", &ask, &b"PROXY UNKNOWN\r\nPING"[..]),
        ("v2", &ask, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0PING"),
        ("off", &ask, b"PING"),
        ("v1", &other_port, b"PING"),
    ] {
        let backend = crate::domain::testing::backends(&[row(send_proxy)]).remove(0);
        let prober = TcpProber::default();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut got = vec![0; begins.len()];
            stream.read_exact(&mut got).await.unwrap();
            stream.write_all(b"PONG").await.unwrap();
            got
        };
        let (report, got) = tokio::join!(prober.probe(&backend, check.spec().unwrap(), SECOND * 5), serve);
        assert_eq!((report.result, got.as_slice()), (CheckResult::Passed, begins), "{send_proxy}");
    }
}
