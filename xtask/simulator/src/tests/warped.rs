//! Candidates that do wrong, so that the oracle can show that it notices.

use std::time::Duration;

use edgeproxy::domain::{CheckResult, ConnectFailure, NoBackend, PickReason, Return, Transition};

use crate::candidate::{Ask, Candidate, Choice, End, Kind, News};
use crate::world::{Row, Table, World};

/// What is done wrong, now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// Nothing.
    Nothing,
    /// The next backend of the list instead of the chosen one.
    AnotherBackend,
    /// A client that is bound is said not to be, or the other way round.
    AnotherReason,
    Refuses,
    /// Refuses for another reason.
    AnotherRefusal,
    /// Doesn't say when a backend is ejected.
    Hides,
    /// Says that a backend was ejected.
    Invents,
    /// Counts one too many.
    Counts,
    /// Forgets that a connection has ended.
    Keeps,
    /// Doesn't read the routing database again.
    Sleeps,
    /// Drains nobody.
    IgnoresDrains,
    /// A backend that is clearly farther than the one that was chosen for its time.
    GoesFar,
    /// Says that the nearest is to be measured.
    MeasuresTheKnown,
    /// Says that the nearest was chosen by its region.
    SaysRegion,
    /// Says that one that is to be measured is the nearest.
    SaysNearest,
    /// Takes the region that is next by position, where times say which one is.
    GoesByPosition,
    /// Tries none of those that were ejected.
    TriesNobody,
    /// Tries one that was not.
    TriesAnybody,
    /// Takes each that was tried for one that has accepted the connection.
    TrustsAll,
    /// Doesn't heed what came of it.
    ForgetsTrials,
    /// Lets backends back when their time is over, untried.
    TrustsTime,
    /// Doesn't say that a check has ended an ejection.
    HidesChecked,
    /// Says that a check has ended it where a trial has.
    SaysChecked,
    /// Doesn't say that an ejection has ended because too many were out.
    HidesSurplus,
    /// Says so where its time was over.
    SaysSurplus,
    /// Says of one that has its whole share again that it begins anew.
    SaysAnew,
}

pub(super) struct Warped<'a> {
    inner: Box<dyn Candidate + 'a>,
    wrong: Wrong,
    world: &'a World,
    pop: usize,
    table: Option<Table>,
    turn: u64,
}

impl<'a> Warped<'a> {
    pub(super) fn new(kind: Kind, world: &'a World, pop: usize, wrong: Wrong) -> Self {
        Self { inner: kind.make(world, pop), wrong, world, pop, table: None, turn: 0 }
    }

    /// One of the app that would do but for its way, which is longer than the chosen one's whatever the jitter.
    fn farther(&self, ask: &Ask<'_>, chosen: usize) -> Option<usize> {
        let way = |backend: usize| self.world.round_trip(self.pop, backend);
        let fits = |(at, row): &(usize, &Row)| {
            let far = way(*at) > 5 * way(chosen) + Duration::from_millis(3);
            far && row.is_open() && !row.is_full(self.inner.active(*at)) && !ask.tried.contains(at)
        };
        self.table.as_ref()?.of_app(ask.app).find(fits).map(|(at, _)| at)
    }

    /// What is wrong only where times decide.
    fn warp_time(&mut self, ask: &Ask<'_>, choice: &mut Choice) {
        match (self.wrong, choice.reason) {
            (Wrong::GoesFar, Some(PickReason::NearestRtt)) => {
                choice.backend = self.farther(ask, choice.backend).unwrap_or(choice.backend);
            }
            (Wrong::MeasuresTheKnown, Some(PickReason::NearestRtt)) => choice.reason = Some(PickReason::RttProbe),
            (Wrong::SaysRegion, Some(PickReason::NearestRtt)) => choice.reason = Some(PickReason::PopRegion),
            (Wrong::SaysNearest, Some(PickReason::RttProbe)) => choice.reason = Some(PickReason::NearestRtt),
            _ => {}
        }
    }

    fn now_and_then(&mut self, wrong: Wrong) -> bool {
        self.turn += u64::from(self.wrong == wrong);
        self.wrong == wrong && self.turn.is_multiple_of(5)
    }
}

impl Candidate for Warped<'_> {
    fn reload(&mut self, table: &Table, now: Duration) {
        if self.wrong != Wrong::Sleeps || self.table.is_none() {
            let mut table = table.clone();
            if self.wrong == Wrong::IgnoresDrains {
                table.rows.iter_mut().for_each(|row| row.drained = false);
            }
            self.inner.reload(&table, now);
            self.table = Some(table);
        }
    }

    fn choose(&mut self, ask: &Ask<'_>) -> Result<Choice, NoBackend> {
        let mut decision = self.inner.choose(ask);
        if let Ok(choice) = &mut decision {
            self.warp_time(ask, choice);
            if self.now_and_then(Wrong::AnotherBackend) {
                choice.backend = (choice.backend + 1) % self.world.backends.len();
            }
            if self.now_and_then(Wrong::AnotherReason) {
                let bound = choice.reason == Some(PickReason::Affinity);
                choice.reason = Some(if bound { PickReason::Elsewhere } else { PickReason::Affinity });
            }
            if self.now_and_then(Wrong::Refuses) {
                self.inner.forget(ask.connection);
                return Err(NoBackend::AllFull);
            }
        }
        let other = if decision == Err(NoBackend::AllFull) { NoBackend::NoneEligible } else { NoBackend::AllFull };
        if decision.is_err() && self.now_and_then(Wrong::AnotherRefusal) { Err(other) } else { decision }
    }

    fn connected(&mut self, connection: usize, now: Duration) {
        self.inner.connected(connection, now);
    }

    fn failed(&mut self, connection: usize, failure: ConnectFailure, now: Duration) {
        self.inner.failed(connection, failure, now);
    }

    fn ended(&mut self, connection: usize, end: End, now: Duration) {
        if !self.now_and_then(Wrong::Keeps) {
            self.inner.ended(connection, end, now);
        }
    }

    fn forget(&mut self, connection: usize) {
        if self.wrong != Wrong::Keeps {
            self.inner.forget(connection);
        }
    }

    fn tick(&mut self, now: Duration) {
        self.inner.tick(now);
    }

    fn to_try(&mut self, now: Duration) -> Vec<usize> {
        let mut backends = if self.wrong == Wrong::TriesNobody { Vec::new() } else { self.inner.to_try(now) };
        if self.now_and_then(Wrong::TriesAnybody) {
            backends.push(0);
        }
        backends
    }

    fn tried(&mut self, backend: usize, result: CheckResult, now: Duration) {
        match self.wrong {
            Wrong::ForgetsTrials => {}
            Wrong::TrustsAll => self.inner.tried(backend, CheckResult::Passed, now),
            _ => self.inner.tried(backend, result, now),
        }
    }

    fn news(&mut self) -> Vec<News> {
        let mut news = self.inner.news();
        if self.wrong == Wrong::Hides {
            news.retain(|news| matches!(news, News::Checked { .. }));
        }
        if self.now_and_then(Wrong::Invents) {
            news.push(News::Turned { backend: 0, transition: Transition::Back { why: Return::Connected } });
        }
        match self.wrong {
            Wrong::HidesChecked => hide(&mut news, back(Return::Checked)),
            Wrong::HidesSurplus => hide(&mut news, back(Return::Surplus)),
            Wrong::SaysChecked => say(&mut news, back(Return::Tried), back(Return::Checked)),
            Wrong::SaysSurplus => say(&mut news, back(Return::Over), back(Return::Surplus)),
            Wrong::SaysAnew => say(&mut news, Transition::Recovered, Transition::Anew),
            _ => {}
        }
        news
    }

    fn active(&self, backend: usize) -> u32 {
        self.inner.active(backend) + u32::from(self.wrong == Wrong::Counts && backend == 0)
    }
}

const fn back(why: Return) -> Transition {
    Transition::Back { why }
}

fn hide(news: &mut Vec<News>, what: Transition) {
    news.retain(|news| !matches!(news, News::Turned { transition, .. } if *transition == what));
}

/// Says this instead of that.
fn say(news: &mut [News], that: Transition, this: Transition) {
    for news in news {
        if let News::Turned { transition, .. } = news
            && *transition == that
        {
            *transition = this;
        }
    }
}
