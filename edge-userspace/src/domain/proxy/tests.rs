#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A header of version 2 by hand.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, body].concat()
}

/// 192.0.2.1:1000 to 198.51.100.2:443.
const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x03, 0xe8, 0x01, 0xbb];

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], &u16::try_from(value.len()).unwrap().to_be_bytes()[..], value].concat()
}

fn with_tlvs(tlvs: &[Vec<u8>]) -> Vec<u8> {
    binary(0x21, 0x11, &[&V4[..], &tlvs.concat()].concat())
}

/// CRC-32C bit by bit, as another way to the same number.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

fn read(bytes: &[u8]) -> Result<ProxyHeader, HeaderError> {
    match scan(bytes)? {
        Scan::Whole(length) => decode(&bytes[..length]),
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn lines_name_the_client() {
    for (line, client, to) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1000 443\r\n", "192.0.2.1:1000", "198.51.100.2:443"),
        ("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", "0.0.0.0:0", "255.255.255.255:65535"),
        ("PROXY TCP6 2001:db8::1 2001:db8::2 1000 443\r\n", "[2001:db8::1]:1000", "[2001:db8::2]:443"),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 1 2\r\n", "192.0.2.1:1", "198.51.100.2:2"),
    ] {
        let header = read(line.as_bytes()).unwrap();
        let addresses = ProxiedAddresses { client: addr(client), to: addr(to) };
        assert_eq!((header.version, header.addresses), (ProxyVersion::V1, Some(addresses)), "{line}");
    }
    let longest = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!(longest.len(), LONGEST_LINE);
    for line in ["PROXY UNKNOWN\r\n", &longest] {
        assert_eq!(read(line.as_bytes()).unwrap().addresses, None);
    }
}

#[test]
fn malformed_lines_are_refused_with_the_reason() {
    for line in [
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1000 443\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1000 443 \r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1000 443 7\r\n",
        "PROXY TCP4  192.0.2.1 198.51.100.2 1000 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1000\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1000 65536\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 01 443\r\n",
        "PROXY TCP4 192.0.2.256 198.51.100.2 1000 443\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1000 443\r\n",
        "PROXY TCP6 192.0.2.1 198.51.100.2 1000 443\r\n",
        "PROXY TCP6 2001:db8::1%eth0 2001:db8::2 1000 443\r\n",
        "PROXY UDP4 192.0.2.1 198.51.100.2 1000 443\r\n",
        "PROXY tcp4 192.0.2.1 198.51.100.2 1000 443\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.2 1000 443\rx\n",
        "PROXY TCP4 host 198.51.100.2 1000 443\r\n",
        "PROXY UNKNOWNX\r\n",
        "PROXY \n",
    ] {
        assert!(refused(line.as_bytes()).starts_with("its line is malformed: "), "{line:?}");
    }
    assert!(refused(b"PROXY TCP4 \xff\xfe\r\n").starts_with("its line is malformed"));
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
    assert_eq!(scan(endless.as_bytes()), Err(HeaderError::LineTooLong));
    assert_eq!(scan(&endless.as_bytes()[..LONGEST_LINE - 1]), Ok(Scan::Part { certain: true }));
}

#[test]
fn binary_headers_name_the_client_and_more() {
    let header = read(&with_tlvs(&[
        tlv(0x01, b"h2"),
        tlv(0x02, b"www.example.com"),
        tlv(0x04, &[0; 9]),
        tlv(0x05, b"lb-7/3"),
        tlv(0x20, &[0; 5]),
        tlv(0xea, b"vpce-1"),
        tlv(0xea, b"again"),
    ]));
    let header = header.unwrap();
    let addresses = ProxiedAddresses { client: addr("192.0.2.1:1000"), to: addr("198.51.100.2:443") };
    assert_eq!((header.version, header.addresses), (ProxyVersion::V2, Some(addresses)));
    assert_eq!(header.server_name.as_deref(), Some("www.example.com"));
    assert_eq!(header.unique_id.as_deref(), Some("lb-7/3"));
    let id = |value: &[u8]| read(&with_tlvs(&[tlv(0x05, value)])).unwrap().unique_id.unwrap();
    assert_eq!(
        (id(&[0, 0xab]), id(b"a b"), id(&[b'x'; 128])),
        ("hex:00ab".into(), "hex:612062".into(), "x".repeat(128))
    );
    let mut mapped = [0; 36];
    mapped[10..16].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 9]);
    let header = read(&binary(0x21, 0x21, &mapped)).unwrap();
    assert_eq!(header.addresses.unwrap().client, addr("192.0.2.9:0"));
}

#[test]
fn senders_that_speak_for_themselves_keep_their_address() {
    let junk = [0xff; 40];
    for header in [
        binary(0x20, 0x00, &[]),
        binary(0x20, 0x11, &V4),
        binary(0x20, 0x12, &V4),
        // What follows LOCAL is to be discarded, whatever it is.
        binary(0x20, 0x11, &[&V4[..], &junk].concat()),
        binary(0x21, 0x00, &junk),
        // A socket of the sender's own host.
        binary(0x21, 0x31, &[0; 216]),
    ] {
        assert_eq!(read(&header).unwrap().addresses, None, "{}", header.escape_ascii());
    }
    let id = read(&binary(0x21, 0x31, &[&[0; 216][..], &tlv(0x05, b"id")].concat())).unwrap().unique_id;
    assert_eq!(id.as_deref(), Some("id"));
}

#[test]
fn malformed_binary_headers_are_refused_with_the_reason() {
    let v6 = [0; 36];
    for (header, why) in [
        (binary(0x11, 0x11, &V4), "malformed"),
        (binary(0x31, 0x11, &V4), "malformed"),
        (binary(0x22, 0x11, &V4), "malformed"),
        (binary(0x21, 0x41, &V4), "malformed"),
        (binary(0x21, 0x13, &V4), "malformed"),
        (binary(0x21, 0x11, &V4[..11]), "malformed"),
        (binary(0x21, 0x11, &[]), "malformed"),
        (binary(0x21, 0x21, &v6[..35]), "malformed"),
        (binary(0x21, 0x31, &[0; 215]), "malformed"),
        (binary(0x21, 0x12, &V4), "another transport than TCP"),
        (binary(0x21, 0x10, &V4), "another transport than TCP"),
        (binary(0x21, 0x22, &v6), "another transport than TCP"),
        (binary(0x21, 0x32, &[0; 216]), "another transport than TCP"),
        (with_tlvs(&[vec![0x04]]), "malformed"),
        (with_tlvs(&[vec![0x04, 0]]), "malformed"),
        (with_tlvs(&[vec![0x04, 0, 1]]), "malformed"),
        (with_tlvs(&[tlv(0x01, b"h2"), vec![0x04, 0xff, 0xff, 1]]), "malformed"),
        (with_tlvs(&[tlv(0x03, b"abc")]), "four bytes"),
        (with_tlvs(&[tlv(0x02, b"")]), "1 to 255"),
        (with_tlvs(&[tlv(0x02, &[b'a'; 256])]), "1 to 255"),
        (with_tlvs(&[tlv(0x02, b"\xff")]), "UTF-8"),
        (with_tlvs(&[tlv(0x05, &[1; 129])]), "128"),
        (with_tlvs(&[tlv(0x05, b"a"), tlv(0x05, b"b")]), "twice"),
        (with_tlvs(&[tlv(0x02, b"a"), tlv(0x02, b"a")]), "twice"),
        (with_tlvs(&[tlv(0x03, &[0; 4])]), "checksum is wrong"),
        (binary(0x21, 0x11, &[&V4[..], &[0; 5000]].concat()), "more than the 4096"),
    ] {
        let said = refused(&header);
        assert!(said.contains(why), "{}: {said}", header.escape_ascii());
    }
}

#[test]
fn a_header_of_the_greatest_length_is_taken_and_none_longer() {
    let fill = |length: usize| with_tlvs(&[tlv(0x04, &vec![0; length - FIXED - V4.len() - 3])]);
    assert_eq!(scan(&fill(LONGEST_HEADER)), Ok(Scan::Whole(LONGEST_HEADER)));
    assert_eq!(scan(&fill(LONGEST_HEADER + 1)[..FIXED]), Err(HeaderError::TooLong(LONGEST_HEADER + 1)));
}

#[test]
fn a_checksum_is_verified() {
    let mut header = with_tlvs(&[tlv(0x05, b"id"), tlv(0x03, &[0; 4]), tlv(0x02, b"name")]);
    let sum = crc32c(&header);
    let at = header.windows(3).position(|three| three == [0x03, 0, 4]).unwrap() + 3;
    header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(read(&header).unwrap().unique_id.as_deref(), Some("id"));
    // Each byte counts: what is not noticed by its form is by the sum.
    for flipped in FIXED..header.len() {
        let mut damaged = header.clone();
        damaged[flipped] ^= 1;
        assert!(scan(&damaged).and_then(|_| decode(&damaged)).is_err(), "byte {flipped}");
    }
}

#[test]
fn what_is_no_header_is_told_at_the_first_byte_that_differs() {
    for other in
        ["GET / HTTP/1.1\r\n", "\x16\x03\x01", "PROPFIND / HTTP/1.1", "PROXY\t", "\r\n\r\n\r\n", "SSH-2.0", "P\n"]
    {
        assert_eq!(scan(other.as_bytes()), Ok(Scan::NotAHeader), "{other:?}");
    }
    for part in [&b"P"[..], b"PROXY", b"\r", b"\r\n\r\n\0\r\nQUIT"] {
        assert_eq!(scan(part), Ok(Scan::Part { certain: false }), "{}", part.escape_ascii());
    }
    for part in [&b"PROXY "[..], b"PROXY TCP4 1", &SIGNATURE[..], &binary(0x21, 0x11, &V4)[..27]] {
        assert_eq!(scan(part), Ok(Scan::Part { certain: true }), "{}", part.escape_ascii());
    }
}

fn announced(client: &str, to: &str, server_name: Option<&str>) -> [ProxyHeader; 2] {
    ProxyVersion::ALL.map(|version| {
        let unique_id = "00000000000000ab-7";
        let said = Announcement { client: addr(client), to: addr(to), server_name, unique_id };
        let bytes = encode(version, &said);
        // What follows is payload.
        let longer = [&bytes[..], b"payload"].concat();
        assert_eq!(scan(&longer), Ok(Scan::Whole(bytes.len())));
        decode(&bytes).unwrap()
    })
}

#[test]
fn what_is_sent_can_be_read() {
    for (client, to) in [
        ("192.0.2.1:1000", "198.51.100.2:443"),
        ("[2001:db8::1]:1000", "[2001:db8::2]:443"),
        ("192.0.2.1:1000", "[2001:db8::2]:443"),
        ("[2001:db8::1]:1000", "198.51.100.2:443"),
    ] {
        let [v1, v2] = announced(client, to, Some("www.example.com"));
        let addresses = Some(ProxiedAddresses { client: addr(client), to: addr(to) });
        assert_eq!((v1.addresses, v2.addresses), (addresses, addresses));
        assert_eq!(v2.server_name.as_deref(), Some("www.example.com"));
        assert_eq!(v2.unique_id.as_deref(), Some("00000000000000ab-7"));
    }
    let [_, v2] = announced("192.0.2.1:1", "[::ffff:192.0.2.2]:2", Some(&"x".repeat(300)));
    assert_eq!((v2.server_name, v2.addresses.unwrap().to), (None, addr("192.0.2.2:2")));
    for version in ProxyVersion::ALL {
        let header = read(&local(version)).unwrap();
        assert_eq!((header.version, header.addresses), (version, None));
    }
}

#[test]
fn headers_that_backends_get_have_names() {
    assert_eq!(ProxyVersion::parse_sent("off"), Ok(None));
    for version in ProxyVersion::ALL {
        assert_eq!(ProxyVersion::parse_sent(version.as_str()), Ok(Some(version)));
    }
    assert!(ProxyVersion::parse_sent("v3").unwrap_err().to_string().contains("use off, v1 or v2"));
}

fn any_beginning() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), 0..300);
    let line = "(TCP4|TCP6|UNKNOWN|UDP4)? ?[0-9a-f.: +\\-\\r]{0,60}(\\r\\n|\\n|\\r)?".prop_map(String::into_bytes);
    prop_oneof![
        bytes.clone(),
        bytes.clone().prop_map(|bytes| [LINE_START, &bytes].concat()),
        line.prop_map(|line| [LINE_START, &line].concat()),
        bytes.clone().prop_map(|bytes| [&SIGNATURE[..], &bytes].concat()),
        (0x1fu8..0x23, prop::sample::select(vec![0u8, 0x10, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0x41]), bytes)
            .prop_map(|(command, family, body)| binary(command, family, &body)),
        prop::collection::vec((prop::sample::select(vec![1u8, 2, 3, 4, 5, 0x20]), any::<Vec<u8>>()), 0..4)
            .prop_map(|tlvs| with_tlvs(&tlvs.iter().map(|(kind, value)| tlv(*kind, value)).collect::<Vec<_>>())),
    ]
}

proptest! {
    /// Whatever comes, it is a header, none, part of one, or refused with a short reason.
    #[test]
    fn no_beginning_panics(bytes in any_beginning()) {
        match scan(&bytes) {
            Ok(Scan::Whole(length)) => {
                prop_assert!(length <= bytes.len() && length <= LONGEST_HEADER);
                if let Err(why) = decode(&bytes[..length]) {
                    prop_assert!(why.to_string().len() < 300);
                }
            }
            Ok(_) => {}
            Err(why) => prop_assert!(why.to_string().len() < 300),
        }
    }

    /// What is said of a part is not taken back when more comes.
    #[test]
    fn more_bytes_confirm_what_fewer_said(bytes in any_beginning(), at in any::<prop::sample::Index>()) {
        let part = &bytes[..at.index(bytes.len() + 1)];
        match (scan(part), scan(&bytes)) {
            (Ok(Scan::NotAHeader), all) => prop_assert_eq!(all, Ok(Scan::NotAHeader)),
            (Ok(Scan::Whole(length)), all) => prop_assert_eq!(all, Ok(Scan::Whole(length))),
            (Ok(Scan::Part { certain: true }), all) => prop_assert_ne!(all, Ok(Scan::NotAHeader)),
            (Ok(Scan::Part { certain: false }), _) => {}
            (Err(_), all) => prop_assert!(all.is_err()),
        }
    }
}
