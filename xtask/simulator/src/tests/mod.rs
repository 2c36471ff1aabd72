//! The simulator as the oracle of the selection: worlds at random, and every decision judged.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod warped;
mod worlds;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use edgeproxy::domain::{Complaint, NoBackend, PickReason, Skip};
use proptest::prelude::*;

use self::warped::{Warped, Wrong};
use self::worlds::{Knobs, knobs, random};
use crate::candidate::{Candidate, Kind};
use crate::engine::{self, Run, Verdict};
use crate::measure::Figures;
use crate::oracle::Fault;
use crate::report;
use crate::scenes::{self, Ailment, Size};
use crate::world::{Change, Condition, Edit, Happening, State, World};

fn no_fault(run: &Run) -> Result<(), TestCaseError> {
    let verdict = &run.verdict;
    prop_assert!(verdict.faults.is_empty(), "{:?}\n{}", verdict.faults, verdict.words.join("\n"));
    prop_assert_eq!(verdict.admitted, verdict.released);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never above a hard limit, never to a backend that may not be chosen, no two apps mixed, in the documented order,
    /// refused only where nobody is free and for the true reason, ejected for cause; all connections accounted for.
    #[test]
    fn whatever_happens_no_decision_is_wrong(knobs in knobs()) {
        let world = random(knobs);
        for kind in Kind::ALL.into_iter().filter(|kind| kind.promises().order) {
            no_fault(&engine::run(&world, kind))?;
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    /// The others break none of the rules that hold for whoever chooses; only the seed goes above limits.
    #[test]
    fn the_others_are_not_unfit_for_the_comparison(knobs in knobs()) {
        let world = random(knobs);
        for kind in Kind::ALL.into_iter().filter(|kind| kind.promises().exact_counts && !kind.promises().order) {
            no_fault(&engine::run(&world, kind))?;
        }
        let seed = engine::run(&world, Kind::Seed);
        prop_assert!(seed.verdict.faults.keys().all(|fault| *fault == Fault::OverHard), "{:?}", seed.verdict);
    }
}

prop_compose! {
    fn shares()(
        seed in any::<u64>(),
        weights in prop::collection::vec(1..=5u32, 2..=6),
        mean in prop::sample::select(vec![0.0, 0.05, 1.0, 20.0]),
    ) -> (u64, Vec<u32>, f64) {
        (seed, weights, mean)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whether connections are short or long, each backend gets its weight's share, within five standard deviations of
    /// drawing at random.
    #[test]
    fn shares_follow_weights((seed, weights, mean) in shares()) {
        let world = worlds::calm(seed, &weights, mean);
        let run = engine::run(&world, Kind::Edgeproxy);
        no_fault(&run)?;
        let (count, total) = (world.arrivals.len() as f64, f64::from(weights.iter().sum::<u32>()));
        for (at, weight) in weights.iter().enumerate() {
            let share = f64::from(*weight) / total;
            let bound = 5.0 * (count * share * (1.0 - share)).sqrt();
            let got = run.figures.chosen[at] as f64;
            prop_assert!((got - count * share).abs() <= bound, "{at} got {got} of {count}: {:?}", run.figures.chosen);
        }
    }
}

fn busy_knobs(seed: u64) -> Knobs {
    Knobs { seed, apps: 2, backends: 8, arrivals: 300, failures: 8, edits: 20 }
}

fn play_warped(seed: u64, kind: Kind, wrong: Wrong) -> Verdict {
    let mut world = random(busy_knobs(seed));
    if wrong == Wrong::GoesFar {
        // Far must be far.
        world.happenings.retain(|(_, what)| !matches!(what, Happening::Detour(..)));
    }
    warp(&world, kind, wrong)
}

fn warp(world: &World, kind: Kind, wrong: Wrong) -> Verdict {
    let mut believed = world.clone();
    if wrong == Wrong::TrustsTime {
        believed.rules.health.untried = Duration::ZERO;
    }
    if wrong == Wrong::GoesByPosition {
        believed.apps.iter_mut().for_each(|app| app.next_by_rtt = false);
    }
    let make = |pop| -> Box<dyn Candidate + '_> { Box::new(Warped::new(kind, &believed, pop, wrong)) };
    let candidates = (0..world.pops.len()).map(make).collect();
    engine::play(world, kind.patience(world), kind.promises(), candidates).verdict
}

#[test]
fn the_oracle_notices_what_is_done_wrong() {
    let faults = |wrong: Wrong| {
        let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
        for seed in 0..30 {
            let kind = [Kind::CheckedEdgeproxy, Kind::Maglev, Kind::NearestRtt][seed as usize % 3];
            for (fault, times) in play_warped(seed, kind, wrong).faults {
                *faults.entry(fault).or_default() += times;
            }
        }
        faults
    };
    assert_eq!(faults(Wrong::Nothing), BTreeMap::new());
    for (wrong, expected) in [
        (
            Wrong::AnotherBackend,
            &[Fault::OverHard, Fault::Ineligible, Fault::OtherApp, Fault::Order, Fault::Binding, Fault::Count][..],
        ),
        (Wrong::AnotherReason, &[Fault::Binding]),
        (Wrong::Refuses, &[Fault::Refusal]),
        (Wrong::AnotherRefusal, &[Fault::Refusal]),
        (Wrong::Hides, &[Fault::Ejection]),
        (Wrong::Invents, &[Fault::Ejection]),
        (Wrong::Counts, &[Fault::Count]),
        (Wrong::Keeps, &[Fault::Count]),
        (Wrong::Sleeps, &[Fault::Ineligible, Fault::Order, Fault::OverHard]),
        (Wrong::IgnoresDrains, &[Fault::Ineligible]),
    ] {
        let found = faults(wrong);
        for fault in expected {
            assert!(found.contains_key(fault), "{wrong:?} gives {found:?} without {fault:?}");
        }
    }
}

/// In how many of some worlds the first words are these, about what was done and not about what came of it.
fn first_said(kind: Kind, wrong: Wrong, words: &str) -> (usize, Vec<String>) {
    let verdicts = (0..30).map(|seed| play_warped(seed, kind, wrong));
    let first: Vec<String> = verdicts.filter_map(|verdict| verdict.words.first().cloned()).collect();
    (first.iter().filter(|first| first.contains(words)).count(), first)
}

#[test]
fn the_oracle_notices_who_goes_wrong_by_measured_times() {
    for (wrong, words) in [
        (Wrong::GoesFar, "µs away, and the nearest"),
        (Wrong::MeasuresTheKnown, "need not be measured"),
        (Wrong::SaysRegion, "is chosen by region, and times are known"),
        (Wrong::SaysNearest, "is not measured"),
    ] {
        let (found, first) = first_said(Kind::NearestRtt, wrong, words);
        assert!(found >= 5, "{wrong:?} gives {first:#?}");
    }
}

#[test]
fn the_oracle_notices_who_takes_the_nearest_region_for_the_next() {
    let by_time = |said: &str| said.contains("Time(") && said.contains("although there was");
    let worlds = 0..60;
    let verdicts = worlds.map(|seed| play_warped(seed, Kind::Edgeproxy, Wrong::GoesByPosition));
    let first: Vec<String> = verdicts.filter_map(|verdict| verdict.words.first().cloned()).collect();
    assert!(first.iter().filter(|said| by_time(said)).count() >= 5, "{first:#?}");
}

#[test]
fn the_oracle_notices_trials_that_go_wrong() {
    for (wrong, words) in [
        (Wrong::TriesNobody, "should be tried"),
        (Wrong::TriesAnybody, "is tried, and should not be"),
        (Wrong::TrustsAll, "came back before it had accepted a connection"),
        (Wrong::ForgetsTrials, "should have"),
        (Wrong::TrustsTime, "came back before it had accepted a connection"),
    ] {
        let (found, first) = first_said(Kind::Edgeproxy, wrong, words);
        assert!(found >= 5, "{wrong:?} gives {first:#?}");
    }
}

/// And the oracle sees to that.
#[test]
fn an_ejection_ends_whose_backend_comes_back_when_too_many_are_out() {
    let maint = [Edit::State(State::Maint), Edit::State(State::Ready)];
    let drain = [true, false].map(Edit::Drained);
    let [maint, drain] =
        [maint, drain].map(|both| both.map(|edit| Happening::Edited(vec![Change { backend: 0, edit }])));
    // Its checks fail meanwhile.
    let refuses = [Condition::Refuses, Condition::Works].map(|condition| Happening::Turns(0, condition));
    for (kind, out_and_back) in [(Kind::Edgeproxy, maint), (Kind::Edgeproxy, drain), (Kind::CheckedEdgeproxy, refuses)]
    {
        let world = worlds::crowded_out(5, out_and_back);
        let well = warp(&world, kind, Wrong::Nothing);
        assert_eq!((well.faults, &well.words[..]), (BTreeMap::new(), &[][..]));
        assert_eq!(well.seen.get("back: surplus"), Some(&1), "{:?}", well.seen);
        for (wrong, words) in [
            (Wrong::HidesSurplus, "is ejected, and one too many"),
            (Wrong::SaysSurplus, "came back for another reason than it is said"),
            (Wrong::SaysAnew, "is said to begin anew"),
        ] {
            let ill = warp(&world, kind, wrong);
            assert!(ill.words[0].contains(words), "{:?}", ill.words);
        }
    }
}

/// And the oracle sees to that.
#[test]
fn a_check_that_passes_brings_back_whom_only_trials_kept_out() {
    for (ailment, seed) in [(Ailment::Refuses, 5), (Ailment::Silent, 5), (Ailment::Silent, 6)] {
        let mut world = scenes::illness(ailment, seed);
        // It would be down otherwise, and come back for that.
        world.rules.pace.fall = 1000;
        let well = warp(&world, Kind::CheckedEdgeproxy, Wrong::Nothing);
        assert_eq!((well.faults, &well.words[..]), (BTreeMap::new(), &[][..]));
        assert!(well.seen.contains_key("back: checked"), "{:?}", well.seen);
        for (kind, wrong, words) in [
            (Kind::CheckedEdgeproxy, Wrong::HidesChecked, "should have come back"),
            (Kind::Edgeproxy, Wrong::SaysChecked, "came back before it had accepted a connection"),
        ] {
            let ill = warp(&world, kind, wrong);
            assert!(ill.words[0].contains(words), "{:?}", ill.words);
        }
    }
}

/// Nobody finds out by a client's time whether one that was silent is still so, whatever its ejections.
#[test]
fn a_silent_backend_costs_clients_one_connect_limit_in_all() {
    let world = scenes::illness(Ailment::Silent, 5);
    let limit = world.rules.connect_timeout.as_secs_f64();
    let (from, until) = (scenes::FAILS_AT, scenes::FAILS_AT + scenes::FAILS_FOR);
    for kind in [Kind::Edgeproxy, Kind::Maglev, Kind::NearestRtt] {
        let Figures { met, to_first, .. } = engine::run(&world, kind).figures;
        let first = met.iter().position(|met| *met > 0).unwrap();
        let last = met.iter().rposition(|met| *met > 0).unwrap();
        assert!(first as f64 >= from && last <= first + limit.ceil() as usize, "{kind:?} met it at {first} and {last}");
        // It is back before the next ejection would have been over.
        let back = until as usize..until as usize + 75;
        assert!(to_first[back].iter().any(|connects| *connects > 0), "{kind:?}");
    }
}

#[test]
fn random_worlds_reach_every_corner() {
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..200 {
        let knobs = Knobs { backends: (seed % 13) as usize, ..busy_knobs(seed) };
        for kind in [Kind::Edgeproxy, Kind::CheckedEdgeproxy, Kind::NearestRtt] {
            for (what, times) in engine::run(&random(knobs), kind).verdict.seen {
                *seen.entry(what).or_default() += times;
            }
        }
    }
    let reasons = PickReason::ALL.map(PickReason::as_str);
    let refusals = NoBackend::ALL.map(NoBackend::as_str);
    let complaints = [Complaint::Refused, Complaint::TimedOut, Complaint::EarlyReset].map(Complaint::as_str);
    let yields = [Skip::Gone, Skip::Drain, Skip::Unhealthy, Skip::AtSoftLimit, Skip::AtHardLimit, Skip::Ejected];
    let yields = yields.map(Skip::as_str);
    let turns = ["recovered", "checked", "down", "up", "next region by time"];
    let returns = ["back: connected", "back: tried", "back: spared", "back: over", "back: untried"];
    let trials = ["trial accepted", "trial failed", "trial failed and too many are out", "tried in vain"];
    for what in
        reasons.iter().chain(&yields).chain(&refusals).chain(&complaints).chain(&turns).chain(&returns).chain(&trials)
    {
        assert!(seen.get(what).is_some_and(|times| *times >= 20), "{what} is seldom in {seen:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_page_and_another_seed_another() {
    let page = |seed| report::small_table(&report::play(scenes::busy(Size::Small, seed)));
    assert_eq!(page(3), page(3));
    assert_ne!(page(3), page(4));
}

/// The full page is checked by `cargo xtask simulate --check`.
#[test]
fn the_committed_page_has_the_figures_of_the_small_world() {
    let page = include_str!("../../../../docs/simulation.md");
    let part = report::small_table(&report::small());
    assert!(page.contains(&part), "run `cargo xtask simulate` and commit docs/; the small world gives\n{part}");
}

/// Nobody moves whose backend stays; when one joins, hardly more than its share.
#[test]
fn hashed_clients_stay_when_others_leave_or_join() {
    let moved = |leaves| {
        let world = scenes::change(leaves, 5);
        engine::run(&world, Kind::Maglev).figures.moved.value().unwrap()
    };
    let (leaves, joins) = (moved(true), moved(false));
    assert!(leaves < 0.02, "{leaves} moved though their backend stayed");
    assert!((0.03..0.15).contains(&joins), "{joins} moved when one of eleven joined");
}

/// By measured times; by region nobody notices.
#[test]
fn clients_leave_a_way_that_becomes_longer_and_come_back() {
    let (from, until) = (scenes::DETOUR_AT as usize, (scenes::DETOUR_AT + scenes::DETOUR_FOR) as usize);
    let shares = |kind| {
        let figures = engine::run(&scenes::detour(5), kind).figures;
        let sum = |list: &[u64], seconds: Range<usize>| list[seconds].iter().sum::<u64>() as f64;
        // Before it; when it is known; and when who was left has been measured again.
        [20..from, from + 5..until, until + 65..290]
            .map(|seconds| sum(&figures.to_first, seconds.clone()) / sum(&figures.connects, seconds))
    };
    let [before, meanwhile, after] = shares(Kind::NearestRtt);
    assert!(before > 0.1 && meanwhile < 0.01 && after > 0.1, "{before} {meanwhile} {after}");
    assert!(shares(Kind::Edgeproxy).into_iter().all(|share| share > 0.1));
}
