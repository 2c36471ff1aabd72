#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;
use crate::adapters::outbound::bindings::tests::{TestClock, key};
use crate::application::ports::Bindings as _;
use crate::domain::testing::id;
use crate::domain::{AffinityPrefix, ClientAddr};

const TTL: Duration = Duration::from_secs(600);

fn place() -> (tempfile::TempDir, BindingFile) {
    let directory = tempfile::tempdir().unwrap();
    let file = BindingFile::at(&directory.path().join("bindings")).unwrap();
    (directory, file)
}

fn table(clock: &TestClock) -> BindingTable<TestClock> {
    BindingTable::with_clock(TTL, 10_000, clock.clone())
}

fn at(secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + secs)
}

#[test]
fn what_is_saved_is_restored_with_the_time_that_is_left() {
    let (_directory, file) = place();
    let clock = TestClock::new();
    let before = table(&clock);
    before.bind(key(1), &id("b1"));
    clock.advance(400_000);
    before.bind(key(2), &id("b2"));
    let v6 = ClientAddr::new("2001:4860::1".parse().unwrap());
    let v6 = AffinityPrefix::default().key(&AppName::parse("other").unwrap(), v6);
    before.bind(v6.clone(), &id("b1"));
    let saved = file.save(&before, at(0)).unwrap();
    assert_eq!((saved.bindings, saved.bytes), (3, fs::metadata(file.path()).unwrap().len()));
    assert!(fs::metadata(&file.draft).is_err());

    // A minute later.
    let clock = TestClock::new();
    let after = table(&clock);
    assert_eq!(file.load(&after, at(60)).unwrap(), 3);
    let get = |key: &BindingKey| after.peek(key).map(|id| id.to_string());
    assert_eq!((get(&key(1)).as_deref(), get(&key(2)).as_deref()), (Some("b1"), Some("b2")));
    assert_eq!(get(&v6).as_deref(), Some("b1"));
    clock.advance(139_000);
    assert!(get(&key(1)).is_some());
    clock.advance(1_000);
    assert!(get(&key(1)).is_none(), "400 + 60 + 140 seconds are over");
    assert!(get(&key(2)).is_some());

    let late = table(&TestClock::new());
    assert_eq!(file.load(&late, at(200)).unwrap(), 2, "one was over by then");
    let early = table(&TestClock::new());
    assert_eq!(file.load(&early, at(0) - Duration::from_secs(3600)).unwrap(), 3, "the clock was set back");
}

#[test]
fn what_has_come_since_is_not_overwritten_and_the_capacity_holds() {
    let (_directory, file) = place();
    let clock = TestClock::new();
    let before = table(&clock);
    (0..100).for_each(|n| before.bind(key(n), &id("old")));
    file.save(&before, at(0)).unwrap();
    let after = BindingTable::with_clock(TTL, 50, clock);
    after.bind(key(7), &id("new"));
    assert_eq!(file.load(&after, at(0)).unwrap(), 49);
    assert_eq!(after.len(), 50);
    assert_eq!(after.peek(&key(7)).unwrap(), id("new"));
}

#[test]
fn what_is_damaged_is_not_used() {
    let (_directory, file) = place();
    let clock = TestClock::new();
    let before = table(&clock);
    (0..100).for_each(|n| before.bind(key(n), &id("b")));
    file.save(&before, at(0)).unwrap();
    let good = fs::read(file.path()).unwrap();
    let load = |bytes: &[u8]| {
        fs::write(file.path(), bytes).unwrap();
        let table = table(&TestClock::new());
        let said = file.load(&table, at(0)).map_err(|why| why.to_string());
        assert_eq!(table.len(), said.clone().unwrap_or(0), "all or nothing");
        said
    };
    assert_eq!(load(&good), Ok(100));
    for (bytes, why) in [
        (good[..good.len() - 1].to_vec(), "checksum"),
        (good[..20].to_vec(), "checksum"),
        (good[..10].to_vec(), "none of edgeproxy's"),
        (Vec::new(), "none of edgeproxy's"),
        (b"SQLite format 3\0".repeat(9), "none of edgeproxy's"),
        ([&good[..8], &[2], &good[9..]].concat(), "version 2"),
        ([&good[..50], &[good[50] ^ 1], &good[51..]].concat(), "checksum"),
    ] {
        assert!(load(&bytes).unwrap_err().contains(why), "{why}");
    }
    fs::remove_file(file.path()).unwrap();
    assert_eq!(file.load(&before, at(0)).unwrap(), 0, "no file is no mistake");
}

#[test]
fn a_place_has_one_owner_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bindings");
    let owner = BindingFile::at(&path).unwrap();
    let said = BindingFile::at(&path).unwrap_err().to_string();
    assert!(said.contains("in use by another daemon") && said.contains("bindings.lock"), "{said}");
    drop(owner);
    BindingFile::at(&path).unwrap();
}

#[test]
fn a_place_that_can_not_be_written_is_named() {
    let said = BindingFile::at(Path::new("/proc/nowhere/bindings")).unwrap_err().to_string();
    assert!(said.contains("/proc/nowhere/bindings") && said.contains("bindings_path"), "{said}");
}

proptest! {
    /// Whatever a file with a right checksum holds, nothing panics.
    #[test]
    fn no_content_panics(body in prop::collection::vec(any::<u8>(), 0..200), kinds in any::<bool>()) {
        let kinds = if kinds { body.iter().map(|byte| byte % 8).collect() } else { body };
        let mut bytes = [MAGIC, &VERSION.to_le_bytes()[..], &[0; 8], &kinds].concat();
        let sum = SUM.checksum(&bytes);
        bytes.extend(sum.to_le_bytes());
        let _ = decode(&bytes, at(0), drop);
    }
}
