#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::super::sample::{extension, hello, message, records, server_name};
use super::*;

/// What a client's bytes lead to that come one after the other, each look with one more than the last.
fn slowly(bytes: &[u8]) -> Option<Greeting> {
    (1..=bytes.len()).find_map(|seen| match look(&bytes[..seen]) {
        Look::Found(greeting) => Some(greeting),
        Look::Wants(wanted) => {
            assert!(wanted > seen && wanted <= LONGEST, "{seen} bytes are there, {wanted} are wanted");
            None
        }
    })
}

fn named(host: &str) -> Greeting {
    Greeting::Named(ServerName::parse(host).unwrap())
}

fn broken(bytes: &[u8]) -> HelloError {
    match look(bytes) {
        Look::Found(Greeting::Broken(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_name_is_found_in_lower_case_wherever_it_stands() {
    assert_eq!(slowly(&hello("WWW.Example.COM")), Some(named("www.example.com")));
    let last = message(&[extension(0xfe0d, &[1; 3000]), server_name(b"a.example")]);
    assert_eq!(slowly(&records(&last, 16_384)), Some(named("a.example")));
}

#[test]
fn no_more_is_waited_for_than_comes_up_to_the_name() {
    let long = records(&message(&[server_name(b"a.example"), extension(21, &vec![0; 20_000])]), 16_384);
    assert_eq!(look(&long[..200]), Look::Found(named("a.example")));
    assert_eq!(slowly(&long), Some(named("a.example")));
}

#[test]
fn a_hello_may_come_in_records_of_any_size() {
    for size in [1, 2, 5, 100] {
        let message = message(&[extension(0xfe0d, &[1; 300]), server_name(b"a.example")]);
        assert_eq!(slowly(&records(&message, size)), Some(named("a.example")), "records of {size}");
    }
}

#[test]
fn a_hello_without_a_name_is_known_at_its_end() {
    let nameless = records(&message(&[extension(43, &[2, 3, 4])]), 16_384);
    assert_eq!(look(&nameless[..nameless.len() - 1]), Look::Wants(nameless.len()));
    assert_eq!(look(&nameless), Look::Found(Greeting::Nameless));
    // TLS 1.0 without extensions.
    let mut old = message(&[]);
    old.truncate(old.len() - 6);
    old[3] -= 6;
    assert_eq!(look(&records(&old, 16_384)), Look::Found(Greeting::Nameless));
}

#[test]
fn what_is_not_tls_is_told_by_its_first_bytes() {
    let ssl2 = [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10];
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"S", &ssl2, &[22, 2], &[22, 0, 0, 0, 5], b"PROXY TCP4 "] {
        assert_eq!(look(bytes), Look::Found(Greeting::NotTls), "{bytes:?}");
    }
    assert_eq!(look(&[22]), Look::Wants(5));
}

#[test]
fn what_begins_as_tls_and_is_not_is_refused_with_the_reason() {
    let good = hello("a.example");
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(broken(&change(5, 2)), HelloError::Message);
    // Lengths that lie: of the session id, the cipher suites, the extensions, the list of names.
    for (at, value) in [(43, 255), (76, 255), (86, 9), (8, 50)] {
        assert_eq!(broken(&change(at, value)), HelloError::Length, "byte {at}");
    }
    assert_eq!(broken(&[22, 3, 1, 0, 0]), HelloError::Record);
    assert_eq!(broken(&[22, 3, 1, 255, 255]), HelloError::Record);
    let halves = records(&good[5..], 60);
    let mut interrupted = halves[..65].to_vec();
    interrupted.extend([21, 3, 3, 0, 2, 2, 40]);
    assert_eq!(broken(&interrupted), HelloError::Interrupted);
    for name in [&b"a b"[..], b"", b"*.example", b"\xff\xfe", &[b'a'; 300], b"a\0b"] {
        assert_eq!(broken(&records(&message(&[server_name(name)]), 16_384)), HelloError::Name, "{name:?}");
    }
}

#[test]
fn a_name_beyond_16_kib_is_not_looked_for() {
    let long = records(&message(&[extension(21, &vec![0; 17_000]), server_name(b"a.example")]), 16_384);
    assert!(matches!(look(&long[..LONGEST - 1]), Look::Wants(LONGEST)));
    assert_eq!(broken(&long[..LONGEST]), HelloError::TooLong);
    assert_eq!(broken(&long), HelloError::TooLong);
    // Of many small records, too.
    assert_eq!(broken(&records(&message(&[extension(21, &vec![0; 5_000])]), 1)), HelloError::TooLong);
}

proptest! {
    #[test]
    fn no_bytes_panic_and_all_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = slowly(&bytes);
    }

    #[test]
    fn no_hello_with_changed_bytes_panics(
        changes in proptest::collection::vec((0usize..400, any::<u8>()), 1..8),
        size in 1usize..300,
    ) {
        let mut bytes = records(&message(&[extension(43, &[2, 3, 4]), server_name(b"www.example.com")]), size);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let _ = slowly(&bytes);
    }
}
