#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::mpsc;

use super::*;
use crate::application::testing::watch;
use crate::domain::RawRouting;
use crate::domain::testing::{eject, id, row};

/// Answers as it is told, in order; afterwards nothing changes.
#[derive(Default)]
struct Script {
    reads: VecDeque<Result<RawRouting, &'static str>>,
    /// The next answer breaks off behind its backends.
    torn: bool,
}

impl RoutingSource for Script {
    fn changed(&mut self) -> Result<bool, SourceError> {
        Ok(matches!(self.reads.front(), Some(Ok(_))))
    }

    fn read(&mut self, backends: &mut dyn FnMut(Vec<RawBackend>)) -> Result<RawRouting, SourceError> {
        let next = self.reads.pop_front().unwrap_or(Err("the script is over"));
        let mut raw = next.map_err(|why| SourceError::Unreadable { path: "routing.db".into(), why: why.into() })?;
        // One by one: more batches than may wait.
        raw.backends.drain(..).for_each(|row| backends(vec![row]));
        match std::mem::take(&mut self.torn) {
            true => Err(SourceError::Unreadable { path: "routing.db".into(), why: "it is torn".into() }),
            false => Ok(raw),
        }
    }
}

fn rows(ids: &[&str]) -> Result<RawRouting, &'static str> {
    Ok(RawRouting { backends: ids.iter().map(|id| row(id, "sa")).collect(), ..RawRouting::default() })
}

fn script(reads: Vec<Result<RawRouting, &'static str>>) -> (ReloadLoop<Script>, Arc<RoutingTable>) {
    let table = Arc::new(RoutingTable::new());
    (ReloadLoop::new(Script { reads: reads.into(), torn: false }, Arc::clone(&table), Arc::default()), table)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn a_failed_read_keeps_the_last_good_table_and_is_tried_again() {
    let (mut reload, table) = script(vec![rows(&["a"]), Err("locked"), rows(&["a", "b"])]);
    assert!(matches!(reload.tick(at(1)), Tick::Reloaded(report) if report.accepted == 1));
    assert!(matches!(reload.tick(at(2)), Tick::Unchanged));
    assert!(reload.reload(false, at(3)).is_err());
    let status = table.status();
    assert_eq!((status.loaded_at, status.tried_at), (Some(at(1)), Some(at(3))));
    assert_eq!(status.error.as_deref(), Some("routing database routing.db could not be read: locked"));
    assert_eq!((status.accepted_total, status.refused_total, status.report.accepted), (1, 1, 1));
    assert_eq!(table.load().backends().count(), 1);
    assert!(matches!(reload.tick(at(4)), Tick::Reloaded(report) if report.accepted == 2));
    assert_eq!(table.status().error, None);
}

/// Rows are taken in while others are read.
#[test]
fn a_read_that_breaks_off_changes_nothing() {
    let moved = |weight: i64| {
        let rows = ["a", "b", "c", "d", "e"].map(|id| RawBackend { weight: weight.into(), ..row(id, "sa") });
        Ok(RawRouting { backends: rows.to_vec(), ..RawRouting::default() })
    };
    let weights = |table: &RoutingTable| table.load().backends().map(|backend| backend.weight.0).collect::<Vec<_>>();
    let (mut reload, table) = script(vec![moved(1), moved(2), moved(2), rows(&["f"]), moved(2)]);
    reload.tick(at(1));
    let before: Vec<_> = table.load().backends().cloned().collect();
    reload.source.torn = true;
    assert!(matches!(reload.tick(at(2)), Tick::Refused(ReloadError::Source(_))));
    assert!(table.load().backends().zip(&before).all(|(now, before)| Arc::ptr_eq(now, before)));
    assert_eq!(table.load().generation(), 1);
    // The same rows again: those of the torn read are not taken for what is in force.
    assert!(matches!(reload.tick(at(3)), Tick::Reloaded(report) if report.accepted == 5));
    assert_eq!(weights(&table), [2; 5]);
    // A backend that was only in a torn read leaves nothing behind.
    reload.source.torn = true;
    assert!(matches!(reload.tick(at(4)), Tick::Refused(ReloadError::Source(_))));
    assert!(matches!(reload.tick(at(5)), Tick::Reloaded(report) if report.accepted == 5));
}

#[test]
fn an_emptied_table_is_refused_until_confirmed() {
    let (mut reload, table) = script(vec![rows(&["a"]), rows(&[]), rows(&[])]);
    reload.tick(at(1));
    assert!(matches!(reload.tick(at(2)), Tick::Refused(ReloadError::Emptied(_))));
    assert!(table.status().error.as_ref().unwrap().contains("--allow-empty"));
    assert!(reload.reload(true, at(3)).is_ok());
    assert_eq!(table.load().backends().count(), 0);
}

#[test]
fn who_is_put_back_while_too_many_are_ejected_is_not_ejected_any_more() {
    let of = |state: &'static str| {
        let first = RawBackend { state: state.into(), ..row("a", "sa") };
        Ok(RawRouting { backends: vec![first, row("b", "sa")], ..RawRouting::default() })
    };
    let (reload, table) = script(vec![of("maint"), of("ready")]);
    let mut reload = reload.watched_by(watch(&table));
    let backend = |name| Arc::clone(table.snapshot().backend(&id(name)).unwrap());
    reload.tick(at(1));
    ["a", "b"].iter().for_each(|name| eject(&backend(name)));
    reload.tick(at(2));
    assert_eq!(["a", "b"].map(|name| backend(name).load.is_ejected()), [false, true]);
}

#[test]
fn the_thread_answers_commands_and_stops() {
    let (reload, table) = script(vec![rows(&["a"])]);
    let (commands, inbox) = mpsc::sync_channel(8);
    let (answers, answer) = mpsc::sync_channel(8);
    let thread = std::thread::spawn(move || reload.run(Duration::from_secs(3600), &inbox, || {}));
    let done = Box::new(move |result: Result<ReloadReport, ReloadError>| answers.send(result.is_ok()).unwrap());
    commands.send(ReloadCommand::Reload { allow_empty: false, done }).unwrap();
    assert!(answer.recv().unwrap());
    commands.send(ReloadCommand::Stop).unwrap();
    thread.join().unwrap();
    assert_eq!(table.load().generation(), 1);
}

#[tokio::test]
async fn what_the_operator_says_of_a_backend_is_told_once_with_what_it_was_and_not_by_the_first_load() {
    use crate::application::events::EventsQuery;
    use crate::domain::RawBackend;

    let ids: Vec<String> = (0..25).map(|at| format!("b{at:02}")).collect();
    let all = |state: &'static str, healthy: i64| {
        let row = |id: &String| RawBackend { state: state.into(), healthy: healthy.into(), ..row(id, "sa") };
        Ok(RawRouting { backends: ids.iter().map(row).collect(), ..RawRouting::default() })
    };
    let mut first = all("ready", 1).unwrap();
    first.backends[3].state = "drain".into();
    let mut one = first.clone();
    one.backends[3].state = "maint".into();
    one.backends[3].healthy = 0.into();
    // A bad row says nothing; weight and limits are no such word.
    one.backends[4].state = "of grace".into();
    one.backends[5].weight = 7.into();
    let (mut reload, table) = script(vec![Ok(first), Ok(one.clone()), Ok(one), all("drain", 0)]);
    let events = Arc::clone(&reload.events);
    let told = async || {
        let events = events.answer(EventsQuery::default()).await.events;
        let of_backends = events.into_iter().filter(|event| event.kind == "backend_state");
        of_backends.map(|event| (event.name, event.reason)).collect::<Vec<_>>()
    };
    reload.tick(at(1));
    assert!(told().await.is_empty());
    reload.tick(at(2));
    reload.tick(at(3));
    let said = "the routing database says: state maint, was drain; healthy 0, was 1";
    assert_eq!(told().await, [("b03".to_owned(), said.to_owned())]);
    reload.tick(at(4));
    let told = told().await;
    assert_eq!(told.len(), 1 + TOLD_ROWS + 1);
    assert!(told.last().unwrap().1.starts_with("5 further backends"), "{told:?}");
    assert_eq!(table.load().len(), 25);
}
