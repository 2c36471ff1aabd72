#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;

const PACE: CheckPace =
    CheckPace { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 };

/// Takes checks, written `+` (passed), `-` (refused) and `.` (this host's fault); the changes, as `u` and `d`.
fn take(checked: &mut Checked, checks: &str) -> String {
    let now = Instant::now();
    let mut changes = String::new();
    for check in checks.chars() {
        let result = match check {
            '+' => CheckResult::Passed,
            '-' => CheckResult::Refused,
            _ => CheckResult::Local,
        };
        let report = CheckReport { result, detail: None, took: Duration::ZERO };
        changes.push(match checked.take(report, now, &PACE) {
            None => ' ',
            Some(CheckChange::Up { .. }) => 'u',
            Some(CheckChange::Down { .. }) => 'd',
        });
    }
    changes
}

#[test]
fn the_first_check_decides_alone_and_the_others_in_rows() {
    for (checks, changes) in [
        ("+", " "),
        ("-", "d"),
        ("+--+--+---", "         d"),
        ("---+-+-++", "d       u"),
        ("-++---++", "d u  d u"),
        (".-", " d"),
        (".+-.-.-", "      d"),
        ("-+.+", "d  u"),
    ] {
        assert_eq!(take(&mut Checked::default(), checks), changes, "{checks}");
    }
}

#[test]
fn the_last_report_is_kept_and_the_verdict_has_its_time() {
    let mut checked = Checked::default();
    assert_eq!((checked.verdict, checked.since, checked.is_down()), (CheckVerdict::Unknown, None, false));
    take(&mut checked, ".");
    assert_eq!((checked.verdict, checked.last.as_ref().unwrap().0.result), (CheckVerdict::Unknown, CheckResult::Local));
    take(&mut checked, "-");
    assert!(checked.is_down() && checked.since.is_some());
    take(&mut checked, "+");
    assert_eq!((checked.against, checked.verdict), (1, CheckVerdict::Down));
}

proptest! {
    /// However it flaps: one change takes at least as many checks as rise and fall say.
    #[test]
    fn changes_are_bounded_by_rise_and_fall(checks in "[-+.]{0,200}") {
        let changes = take(&mut Checked::default(), &checks);
        let at: Vec<_> = changes.char_indices().filter(|(_, change)| *change != ' ').collect();
        for pair in at.windows(2) {
            let [(first, before), (second, after)] = pair else { unreachable!() };
            prop_assert_ne!(before, after);
            let least = if *after == 'u' { PACE.rise } else { PACE.fall };
            prop_assert!(second - first >= least as usize, "{:?}", changes);
        }
    }
}
