#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;
use crate::domain::{CheckDefaults, HealthCheck};

fn parse(text: &str) -> CheckSpec {
    let check = HealthCheck::parse(text).unwrap();
    CheckSpec::clone(check.spec().unwrap())
}

fn refused(text: &str) -> String {
    HealthCheck::parse(text).unwrap_err().to_string()
}

#[test]
fn each_kind_has_its_words() {
    assert_eq!(HealthCheck::parse("none"), Ok(HealthCheck::Off));
    assert_eq!(parse("tcp").probe, Probe::Connect);
    let probe = parse(r#"tcp send="PING\r\n" expect="+PONG""#).probe;
    assert_eq!(probe, Probe::Exchange { send: b"PING\r\n".to_vec(), expect: b"+PONG".to_vec() });
    let probe = parse(r#"tcp expect="\x00\xfF \"\\ä""#).probe;
    assert_eq!(probe, Probe::Exchange { send: Vec::new(), expect: b"\x00\xff \"\\\xc3\xa4".to_vec() });
    let plain = HttpCheck { path: "/".into(), host: None, status: StatusRanges::default(), tls: None };
    assert_eq!(parse("http").probe, Probe::Http(plain.clone()));
    let Probe::Http(full) = parse("http path=/healthz?full=1 status=200,204,301-302 host=example.com:81").probe else {
        panic!("not http")
    };
    assert_eq!((full.path.as_str(), full.host.as_deref()), ("/healthz?full=1", Some("example.com:81")));
    let expected = [199, 200, 201, 204, 301, 302, 303].map(|code| full.status.contains(code));
    assert_eq!(expected, [false, true, false, true, true, true, false]);
    let tls = Tls { verify: Verify::None, sni: None };
    assert_eq!(parse("https").probe, Probe::Http(HttpCheck { tls: Some(tls), ..plain.clone() }));
    let tls = Tls { verify: Verify::File("/etc/ca.pem".into()), sni: Some("a.example".into()) };
    let probe = parse("https  verify=/etc/ca.pem\tsni=a.example").probe;
    assert_eq!(probe, Probe::Http(HttpCheck { tls: Some(tls), ..plain }));
}

#[test]
fn the_pace_is_that_of_the_check_or_else_of_the_settings() {
    let second = Duration::from_secs(1);
    let defaults = CheckDefaults { interval: second * 2, timeout: second, rise: 2, fall: 3 };
    let pace = parse("tcp").pace(&defaults);
    assert_eq!((pace.interval, pace.timeout, pace.rise, pace.fall), (second * 2, second, 2, 3));
    let spec = parse("tcp interval=250ms timeout=1m rise=1 fall=100 port=65535");
    let pace = spec.pace(&defaults);
    let expected = (Duration::from_millis(250), second * 60, 1, 100);
    assert_eq!((pace.interval, pace.timeout, pace.rise, pace.fall), expected);
    assert_eq!(spec.port.unwrap().get(), 65_535);
}

#[test]
fn what_is_not_understood_is_named() {
    for (text, says) in [
        ("", "begin with tcp, http, https or none"),
        ("ping", "begin with tcp, http, https or none"),
        ("TCP", "begin with tcp, http, https or none"),
        ("none port=80", "begin with tcp, http, https or none"),
        ("tcp port", "has \"port\" where NAME=VALUE should be"),
        ("tcp send=\"PING", "does not end"),
        ("tcp send=\"a\"b expect=c", "has \"b expect=c\" where NAME=VALUE"),
        ("tcp expect=\"\\q\"", "escape \\q"),
        ("tcp expect=\"\\xg0\"", "escape \\xg0"),
        ("tcp expect=\"\\x1", "escape \\x1"),
        ("tcp send=PING", "add expect="),
        ("tcp expect=\"\"", "1 to 512 bytes"),
        ("tcp port=80 port=81", "option port is given twice"),
        ("tcp path=/", "option path is unknown with tcp: tcp has send, expect, interval"),
        ("http sni=a.example", "option sni is unknown with http"),
        ("http intervall=2s", "option intervall is unknown"),
        ("http path=healthz", "begins with /"),
        ("http path=\"/a b\"", "no spaces"),
        ("http path=\"/\\r\\nX: y\"", "no spaces"),
        ("http host=\"a\\r\\nX: y\"", "host is"),
        ("http status=99", "codes from 100 to 599"),
        ("http status=399-200", "codes from 100 to 599"),
        ("http status=200,", "codes from 100 to 599"),
        ("http status=2xx", "codes from 100 to 599"),
        ("https verify=yes", "none, system or the whole path"),
        ("https sni=a.example:443", "without a port"),
        ("tcp interval=2", "a time from 100ms to 60m"),
        ("tcp interval=99ms", "a time from 100ms"),
        ("tcp interval=61m", "a time from 100ms"),
        ("tcp interval=1h", "a time from 100ms"),
        ("tcp timeout=-1s", "a time from 10ms"),
        ("tcp timeout=99999999999999999999s", "a time from 10ms"),
        ("tcp rise=0", "from 1 to 100"),
        ("tcp fall=101", "from 1 to 100"),
        ("tcp port=0", "a port from 1 to 65535"),
        ("tcp port=65536", "a port from 1 to 65535"),
    ] {
        let why = refused(text);
        assert!(why.contains(says) && why.starts_with("health_check"), "{text}: {why}");
    }
    assert!(refused(&format!("tcp expect={}", "a".repeat(3000))).contains("longer than 2048"));
}

proptest! {
    #[test]
    fn no_text_panics(
        text in "\\PC{0,80}|(tcp|http|https)( (send|expect|path|status|host|sni|port|rise)=[-\\\\x0-9a-z\"/,. ]{0,12}){0,4}",
    ) {
        if let Err(why) = HealthCheck::parse(&text) {
            prop_assert!(why.to_string().len() < 1000);
        }
    }
}
