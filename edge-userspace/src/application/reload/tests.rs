#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::mpsc;

use super::*;
use crate::domain::RawRouting;
use crate::domain::testing::row;

/// Answers as it is told, in order; afterwards nothing changes.
#[derive(Default)]
struct Script {
    reads: VecDeque<Result<RawRouting, &'static str>>,
}

impl RoutingSource for Script {
    fn changed(&mut self) -> Result<bool, SourceError> {
        Ok(matches!(self.reads.front(), Some(Ok(_))))
    }

    fn read(&mut self) -> Result<RawRouting, SourceError> {
        let next = self.reads.pop_front().unwrap_or(Err("the script is over"));
        next.map_err(|why| SourceError::Unreadable { path: "routing.db".into(), why: why.into() })
    }
}

fn rows(ids: &[&str]) -> Result<RawRouting, &'static str> {
    Ok(RawRouting { backends: ids.iter().map(|id| row(id, "sa")).collect(), ..RawRouting::default() })
}

fn script(reads: Vec<Result<RawRouting, &'static str>>) -> (ReloadLoop<Script>, Arc<RoutingTable>) {
    let table = Arc::new(RoutingTable::new());
    (ReloadLoop::new(Script { reads: reads.into() }, Arc::clone(&table), Arc::default()), table)
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
