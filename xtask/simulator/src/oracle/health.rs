//! What each backend has done to its clients, and whether its ejection is deserved.

use std::time::Duration;

use ::edgeproxy::domain::{CheckPace, Complaint, ConnectFailure, HealthRules, Return, Transition, Witness};

use crate::candidate::End;
use crate::world::{Row, Table};

/// A reset later than this may have any reason.
const EARLY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct HealthBook {
    rules: HealthRules,
    pace: CheckPace,
    backends: Vec<Record>,
    /// Has just done something for which it may have to be ejected.
    accused: Option<usize>,
    /// Has just shown what must end its ejection, or begin it anew.
    owed: Option<(usize, Owed)>,
    /// Those that the POP is trying.
    trying: Vec<bool>,
    /// Those that have come with a reload just now.
    come: Vec<usize>,
    /// Ejected ones that have just come to count again: not too many may be out with them.
    counted_again: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// It has accepted a connection, or may not stay out.
    Back(Return),
    /// It has not.
    Ejection,
}

#[derive(Debug, Clone, Default)]
struct Record {
    failed_in_a_row: u32,
    resets_in_a_row: u32,
    /// When it accepted a connection last.
    accepted: Option<Duration>,
    /// What it has just done: connects that fail and resets count apart.
    last: Option<Misdeed>,
    phase: Phase,
    checks: Checks,
    /// What the last check must have led to.
    expected: Option<Turn>,
    /// Whether it has shown, too, that a backend that only trials kept out accepts connections.
    vouched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misdeed {
    Refused,
    TimedOut,
    Reset,
}

impl Misdeed {
    const fn of(why: Complaint) -> Self {
        match why {
            Complaint::Refused | Complaint::Unreachable => Self::Refused,
            Complaint::TimedOut => Self::TimedOut,
            Complaint::EarlyReset => Self::Reset,
        }
    }
}

/// What checks say, by how many in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Checks {
    /// `None` before the first.
    up: Option<bool>,
    against: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Down,
    Up,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Up,
    Ejected {
        since: Duration,
        lasts: Duration,
        for_resets: bool,
        by: Witness,
    },
    ComingBack,
}

impl HealthBook {
    pub(super) fn new(rules: HealthRules, pace: CheckPace, backends: usize) -> Self {
        Self {
            rules,
            pace,
            backends: vec![Record::default(); backends],
            accused: None,
            owed: None,
            trying: vec![false; backends],
            come: Vec::new(),
            counted_again: Vec::new(),
        }
    }

    /// Of a backend that was not there before nothing is known.
    pub(super) fn reload(&mut self, before: &Table, now: &Table) {
        let come = |at: &usize| before.get(*at).is_none() && now.get(*at).is_some();
        self.come = (0..self.backends.len()).filter(come).collect();
        self.come.iter().for_each(|at| self.backends[*at] = Record::default());
        let was_out = |at: &usize| before.get(*at).is_some_and(|row| !row.is_open());
        self.counted_again = (0..self.backends.len()).filter(was_out).filter(|at| self.is_counted(*at, now)).collect();
    }

    pub(super) fn is_down(&self, backend: usize) -> bool {
        self.backends[backend].checks.up == Some(false)
    }

    /// Whether none of those that take new clients is to be trusted: then checks don't count.
    pub(super) fn fails_open(&self, app: usize, table: &Table) -> bool {
        let mut open = table.of_app(app).filter(|(_, row)| row.is_open()).peekable();
        open.peek().is_some() && open.all(|(at, _)| self.is_ejected(at) || self.is_down(at))
    }

    /// A check that began then has ended. Judges what the one before has led to.
    pub(super) fn checked(
        &mut self,
        backend: usize,
        passed: bool,
        began: Duration,
        table: &Table,
    ) -> Result<(), &'static str> {
        let record = &mut self.backends[backend];
        record.vouched =
            passed && matches!(record.phase, Phase::Ejected { by: Witness::Trial, since, .. } if began >= since);
        let missed = record.expected.take();
        let needed = match record.checks.up {
            None => 1,
            Some(true) => self.pace.fall,
            Some(false) => self.pace.rise,
        };
        if record.checks.up == Some(passed) {
            record.checks.against = 0;
        } else {
            record.checks.against += 1;
        }
        if record.checks.against >= needed {
            // The first check that passes changes nothing.
            record.expected = match (record.checks.up, passed) {
                (_, false) => Some(Turn::Down),
                (Some(false), true) => Some(Turn::Up),
                _ => None,
            };
            let up = if record.expected.is_some() { record.checks.up } else { Some(passed) };
            record.checks = Checks { up, against: 0 };
        }
        if record.vouched && record.expected.is_none() && record.checks.up != Some(false) {
            self.owed = Some((backend, Owed::Back(Return::Checked)));
        }
        match (missed, table.get(backend)) {
            (Some(_), _) => Err("has checks that turned it, and was not turned"),
            (None, None) => Err("was checked though it is not there"),
            (None, Some(_)) => Ok(()),
        }
    }

    /// Whether it is one of those of which a part may be out, and is out.
    fn is_counted(&self, backend: usize, table: &Table) -> bool {
        self.is_ejected(backend) && !self.is_down(backend) && table.get(backend).is_some_and(Row::is_open)
    }

    fn turned(&mut self, backend: usize, turn: Turn, table: &Table) -> Result<(), &'static str> {
        let record = &mut self.backends[backend];
        let expected = record.expected.take();
        record.checks.up = Some(turn == Turn::Up);
        let ejected = matches!(record.phase, Phase::Ejected { .. });
        match turn {
            Turn::Down if record.phase == Phase::ComingBack => record.phase = Phase::Up,
            Turn::Up if record.vouched || !ejected => {
                record.phase = Phase::ComingBack;
                (record.failed_in_a_row, record.resets_in_a_row) = (0, 0);
            }
            _ => {}
        }
        self.counted_again.extend(self.is_counted(backend, table).then_some(backend));
        if expected == Some(turn) { Ok(()) } else { Err("was turned by checks that don't say so") }
    }

    /// Gets only a part of its clients, by chance.
    pub(super) fn is_coming_back(&self, backend: usize) -> bool {
        self.backends[backend].phase == Phase::ComingBack
    }

    pub(super) fn is_ejected(&self, backend: usize) -> bool {
        matches!(self.backends[backend].phase, Phase::Ejected { .. })
    }

    pub(super) fn connected(&mut self, backend: usize, table: &Table, now: Duration) {
        let record = &mut self.backends[backend];
        (record.failed_in_a_row, record.accepted) = (0, Some(now));
        if matches!(record.phase, Phase::Ejected { for_resets: false, .. }) && table.get(backend).is_some() {
            self.owed = Some((backend, Owed::Back(Return::Connected)));
        }
    }

    /// Whether its ejection is over, but that nobody knows whether it accepts connections again.
    fn is_to_be_tried(&self, backend: usize, table: &Table, now: Duration) -> bool {
        let Phase::Ejected { since, lasts, for_resets: false, .. } = self.backends[backend].phase else { return false };
        now >= since + lasts && table.get(backend).is_some()
    }

    /// The POP tries these from now on. Those for which that is wrong, and those that it should try, too.
    pub(super) fn tries(&mut self, chosen: &[usize], table: &Table, now: Duration) -> Vec<(usize, &'static str)> {
        let mut wrong = Vec::new();
        for backend in 0..self.backends.len() {
            let is_due = self.is_to_be_tried(backend, table, now) && !self.trying[backend];
            match chosen.iter().filter(|one| **one == backend).count() {
                0 if is_due => wrong.push((backend, "should be tried")),
                1 if is_due => self.trying[backend] = true,
                0 => {}
                _ => wrong.push((backend, "is tried, and should not be")),
            }
        }
        wrong
    }

    /// The POP has tried it; says what that comes to.
    pub(super) fn tried(&mut self, backend: usize, accepted: bool, table: &Table, now: Duration) -> &'static str {
        self.trying[backend] = false;
        if accepted {
            self.backends[backend].accepted = Some(now);
        }
        // Clients may have been quicker, or their patience over.
        if !self.is_to_be_tried(backend, table, now) {
            return "tried in vain";
        }
        let app = table.rows.get(backend).map_or(0, |row| row.app);
        let (owed, what) = match accepted {
            true => (Owed::Back(Return::Tried), "trial accepted"),
            false if self.has_cell(app, backend, table) => (Owed::Ejection, "trial failed"),
            false => (Owed::Back(Return::Spared), "trial failed and too many are out"),
        };
        self.owed = Some((backend, owed));
        what
    }

    /// Backends of which something was heard that must have had consequences, and had none.
    pub(super) fn owes(&mut self, table: &Table) -> Vec<(usize, &'static str)> {
        self.come.clear();
        let owed = self.owed.take().map(|(backend, owed)| match owed {
            Owed::Back(_) => (backend, "should have come back"),
            Owed::Ejection => (backend, "should have been ejected again"),
        });
        let counted_again = std::mem::take(&mut self.counted_again).into_iter();
        let surplus =
            counted_again.filter(|at| self.is_surplus(*at, table)).map(|at| (at, "is ejected, and one too many"));
        owed.into_iter().chain(surplus).collect()
    }

    fn is_surplus(&self, backend: usize, table: &Table) -> bool {
        let is_room = table.get(backend).is_some_and(|row| self.has_cell(row.app, backend, table));
        self.is_counted(backend, table) && !is_room
    }

    /// One that is still ejected though even the time is over that was left to try it.
    pub(super) fn lingering(&self, table: &Table, now: Duration) -> Option<usize> {
        (0..self.backends.len())
            .filter(|at| table.get(*at).is_some())
            .find(|at| self.is_over(self.backends[*at].phase, now))
    }

    /// Whether an ejection is over without anybody's word.
    fn is_over(&self, phase: Phase, now: Duration) -> bool {
        let Phase::Ejected { since, lasts, for_resets, .. } = phase else { return false };
        now >= since + lasts + if for_resets { Duration::ZERO } else { self.rules.untried }
    }

    pub(super) fn has_accepted_since(&self, backend: usize, began: Duration) -> bool {
        self.backends[backend].accepted.is_some_and(|at| at > began)
    }

    pub(super) fn failed(&mut self, backend: usize, failure: ConnectFailure) {
        let record = &mut self.backends[backend];
        record.failed_in_a_row += 1;
        let timed_out = failure == ConnectFailure::TimedOut;
        record.last = Some(if timed_out { Misdeed::TimedOut } else { Misdeed::Refused });
        self.accused = Some(backend);
    }

    pub(super) fn ended(&mut self, backend: usize, end: End) {
        let record = &mut self.backends[backend];
        if end.reset && !end.answered && end.age < EARLY {
            record.resets_in_a_row += 1;
            record.last = Some(Misdeed::Reset);
            self.accused = Some(backend);
        } else {
            record.resets_in_a_row = 0;
        }
    }

    /// Enough for an ejection: too many in a row, one time-out that counts, or one fault on the way back.
    fn is_guilty(&self, backend: usize) -> bool {
        let (record, rules) = (&self.backends[backend], &self.rules);
        let enough = match record.last {
            Some(Misdeed::Refused) => record.failed_in_a_row >= rules.failures,
            Some(Misdeed::TimedOut) => true,
            Some(Misdeed::Reset) => record.resets_in_a_row >= rules.failures,
            None => false,
        };
        let tries = rules.failures > 0 && !self.is_down(backend);
        record.last.is_some() && tries && (enough || record.phase == Phase::ComingBack)
    }

    /// Whether this one of the app's backends may be ejected beside the others: half of those that take clients, rounded
    /// up, and not all.
    fn has_cell(&self, app: usize, backend: usize, table: &Table) -> bool {
        // Who is both ejected and down counts as down; who is out by the operator's word counts as neither.
        let open = || table.of_app(app).filter(|(at, row)| row.is_open() && !self.is_down(*at));
        let count = open().count();
        let most = (count * self.rules.max_percent as usize).div_ceil(100).min(count.saturating_sub(1));
        let ejected = open().filter(|(at, _)| *at != backend && self.is_ejected(*at));
        ejected.count() < most
    }

    /// Judges a transition, and takes it over.
    pub(super) fn heard(
        &mut self,
        backend: usize,
        transition: Transition,
        table: &Table,
        now: Duration,
    ) -> Result<(), &'static str> {
        match transition {
            Transition::Down { .. } => return self.turned(backend, Turn::Down, table),
            Transition::Up { .. } => return self.turned(backend, Turn::Up, table),
            Transition::Anew if self.come.contains(&backend) => return Ok(()),
            Transition::Anew => return Err("is said to begin anew, and has been there all the time"),
            _ => {}
        }
        let (was, guilty) = (self.backends[backend].phase, self.is_guilty(backend));
        let app = table.rows.get(backend).map_or(0, |row| row.app);
        let (phase, verdict) = match transition {
            Transition::Ejected { why, lasts, by } => {
                let phase = Phase::Ejected { since: now, lasts, for_resets: why == Complaint::EarlyReset, by };
                let again = self.owed.take_if(|owed| *owed == (backend, Owed::Ejection)).is_some();
                let verdict = match again {
                    _ if again != (by == Witness::Trial) => Err("was ejected by another than it is said"),
                    true => self.judge_further_ejection(was, lasts),
                    false if self.backends[backend].last != Some(Misdeed::of(why)) => {
                        Err("was ejected for another thing")
                    }
                    false => self.judge_ejection(was, guilty, lasts, (app, backend), table),
                };
                (phase, verdict)
            }
            Transition::Back { why } => {
                let surplus = why == Return::Surplus && self.counted_again.contains(&backend);
                let earned = self.owed.take_if(|owed| *owed == (backend, Owed::Back(why))).is_some()
                    || (surplus && self.is_surplus(backend, table));
                (Phase::ComingBack, self.judge_return(was, earned, why, now))
            }
            Transition::Recovered if was == Phase::ComingBack => (Phase::Up, Ok(())),
            _ => (Phase::Up, Err("recovered from nothing")),
        };
        let record = &mut self.backends[backend];
        record.phase = phase;
        record.last = None;
        if matches!(transition, Transition::Back { .. }) {
            (record.failed_in_a_row, record.resets_in_a_row) = (0, 0);
        }
        self.accused = self.accused.filter(|accused| *accused != backend);
        verdict
    }

    fn judge_ejection(
        &self,
        was: Phase,
        guilty: bool,
        lasts: Duration,
        (app, backend): (usize, usize),
        table: &Table,
    ) -> Result<(), &'static str> {
        if matches!(was, Phase::Ejected { .. }) {
            Err("was ejected twice")
        } else if !guilty {
            Err("was ejected for nothing")
        } else if !self.has_cell(app, backend, table) {
            Err("was ejected though too many are")
        } else if lasts < self.rules.ejection || lasts > self.rules.longest.max(self.rules.ejection) {
            Err("was ejected for a time that is no ejection's")
        } else {
            Ok(())
        }
    }

    /// Because the POP has tried it in vain: for twice as long, up to the longest.
    fn judge_further_ejection(&self, was: Phase, lasts: Duration) -> Result<(), &'static str> {
        let Phase::Ejected { lasts: before, .. } = was else { return Err("was tried without having been away") };
        let longest = self.rules.longest.max(self.rules.ejection);
        if lasts == (2 * before).min(longest) { Ok(()) } else { Err("was not ejected for twice as long") }
    }

    /// Comes back when its time is over, after resets; else when it has accepted a connection: of the POP's, or of a
    /// client's while no other was left. Or when nobody was able to try it for too long.
    fn judge_return(&self, was: Phase, earned: bool, why: Return, now: Duration) -> Result<(), &'static str> {
        match was {
            Phase::Ejected { .. } if earned => Ok(()),
            Phase::Ejected { for_resets, .. } if self.is_over(was, now) => {
                let over = if for_resets { Return::Over } else { Return::Untried };
                if why == over { Ok(()) } else { Err("came back for another reason than it is said") }
            }
            Phase::Ejected { since, lasts, .. } if now < since + lasts => Err("came back too early"),
            Phase::Ejected { .. } => Err("came back before it had accepted a connection"),
            Phase::Up | Phase::ComingBack => Err("came back without having been away"),
        }
    }

    /// A backend that should have been ejected for what it has just done, and was not.
    pub(super) fn overdue(&mut self, table: &Table) -> Option<usize> {
        let accused = self.accused.take()?;
        let app = table.rows.get(accused)?.app;
        // Of one that is gone nothing is held against the next of its name.
        let known = table.get(accused).is_some();
        let due = known && !self.is_ejected(accused) && self.is_guilty(accused) && self.has_cell(app, accused, table);
        self.backends[accused].last = None;
        due.then_some(accused)
    }
}
