#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::Arc;

use super::*;

fn emit(events: &Events, count: usize) {
    (0..count).for_each(|n| events.emit(EventKind::RowRejected, Subject::row("b1"), format!("reason {n}")));
}

fn after(after: u64, wait_ms: u32) -> EventsQuery {
    EventsQuery { after, wait_ms }
}

fn numbers(answer: &EventsAnswer) -> Vec<u64> {
    answer.events.iter().map(|event| event.seq).collect()
}

#[tokio::test]
async fn events_are_numbered_and_told_after_a_number() {
    let events = Events::default();
    assert_eq!(events.answer(after(0, 0)).await.events, []);
    emit(&events, 3);
    events.emit(EventKind::Ready, Subject::pop(), "now");
    let answer = events.answer(after(2, 0)).await;
    assert_eq!((numbers(&answer), answer.last, answer.lost), (vec![3, 4], 4, 0));
    let [row, ready] = &answer.events[..] else { panic!("{answer:?}") };
    assert_eq!((&*row.kind, &*row.level, &*row.subject, &*row.name), ("row_rejected", "warn", "row", "b1"));
    assert_eq!((&*row.reason, &*ready.kind, &ready.app), ("reason 2", "ready", &None));
    assert_eq!(events.totals(), BTreeMap::from([("ready".to_owned(), 1), ("row_rejected".to_owned(), 3)]));
    assert!(numbers(&events.answer(after(4, 0)).await).is_empty());
    assert_eq!(numbers(&events.answer(after(77, 0)).await), [1, 2, 3, 4], "that number was another daemon's");
}

#[tokio::test]
async fn only_the_last_ones_are_kept_and_what_is_lost_is_told() {
    let events = Events::default();
    emit(&events, KEPT + 10);
    let answer = events.answer(after(0, 0)).await;
    assert_eq!((answer.events.len(), answer.events[0].seq, answer.lost), (KEPT, 11, 10));
    assert_eq!(events.answer(after(5, 0)).await.lost, 5);
    assert_eq!(events.answer(after(10, 0)).await.lost, 0);
    assert_eq!(numbers(&events.answer(after(KEPT as u64 + 8, 0)).await).len(), 2);
}

#[tokio::test]
async fn who_waits_is_woken_by_the_next_event_or_when_the_time_is_over() {
    let events = Arc::new(Events::default());
    assert!(numbers(&events.answer(after(0, 20)).await).is_empty());
    let waiting = tokio::spawn({
        let events = Arc::clone(&events);
        async move { events.answer(after(0, 10_000)).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    emit(&events, 1);
    assert_eq!(numbers(&waiting.await.unwrap()), [1]);
}

#[tokio::test]
async fn a_crowd_that_waits_does_not_hold_every_connection_of_the_admin_api() {
    let events = Arc::new(Events::default());
    let waiting: Vec<_> = (0..MAX_WAITING + 5)
        .map(|_| {
            let events = Arc::clone(&events);
            tokio::spawn(async move { events.answer(after(0, 10_000)).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(waiting.iter().filter(|task| task.is_finished()).count(), 5);
}

#[tokio::test]
async fn a_reason_has_bounds() {
    let events = Events::default();
    events.emit(EventKind::ReloadRefused, Subject::routing(), "ä".repeat(10_000));
    assert_eq!(events.answer(after(0, 0)).await.events[0].reason.chars().count(), MAX_REASON);
}

#[test]
fn every_kind_has_its_own_name_and_is_in_the_documentation() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md")).unwrap();
    let names: std::collections::HashSet<_> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(names.len(), EventKind::ALL.len());
    for kind in EventKind::ALL {
        let row = format!("| `{}` | {} |", kind.as_str(), kind.level().as_str());
        assert!(page.contains(&row), "{row} is not in docs/observability.md");
    }
}
