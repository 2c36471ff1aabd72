#![allow(clippy::unwrap_used)]

use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn the_first_sample_is_the_estimate_and_later_ones_count_by_the_time_between_them() {
    let (rtt, start) = (Rtt::default(), Instant::now());
    assert_eq!(rtt.estimate(start), None);
    rtt.sample(10 * MS, start);
    assert_eq!(rtt.estimate(start), Some(10 * MS));
    // A thousand connections of one moment are not more than one.
    (0..1_000).for_each(|_| rtt.sample(500 * MS, start));
    assert_eq!(rtt.estimate(start), Some(10 * MS));
    rtt.sample(110 * MS, start + RTT_MEMORY);
    let estimate = rtt.estimate(start + RTT_MEMORY).unwrap().as_secs_f64();
    let expected = 0.11 - 0.1 * (-1f64).exp();
    assert!((estimate - expected).abs() < 1e-4, "{estimate} instead of {expected}");
}

#[test]
fn what_would_count_for_nothing_is_not_wanted() {
    let (rtt, start) = (Rtt::default(), Instant::now());
    let asks_at = |after: Duration| {
        let mut asked = false;
        rtt.measure(start + after, || {
            asked = true;
            None
        });
        asked
    };
    assert!(asks_at(Duration::ZERO));
    rtt.measure(start, || Some(10 * MS));
    assert_eq!(rtt.last(), Some(10 * MS));
    assert!(!asks_at(8 * MS));
    assert!(asks_at(11 * MS));
    rtt.forget();
    assert!(asks_at(Duration::ZERO));
}

#[test]
fn many_small_steps_come_to_the_same_as_a_large_one() {
    let (often, once, start) = (Rtt::default(), Rtt::default(), Instant::now());
    [&often, &once].into_iter().for_each(|rtt| rtt.sample(100 * MS, start));
    (1..=500).for_each(|step| often.sample(MS, start + step * 20 * MS));
    once.sample(MS, start + 10_000 * MS);
    let [often, once] = [often, once].map(|rtt| rtt.last().unwrap().as_secs_f64());
    assert!((often - once).abs() < 0.001, "{often} and {once}");
}

#[test]
fn a_crowd_of_samples_moves_the_estimate_as_few_do() {
    let (rtt, start) = (Rtt::default(), Instant::now());
    rtt.sample(10 * MS, start);
    // Four a millisecond, for half a minute: the way has become 2 ms longer.
    (1..=120_000).for_each(|step| rtt.sample(12 * MS, start + step * MS / 4));
    let estimate = rtt.last().unwrap();
    assert!(estimate > Duration::from_micros(11_750), "{estimate:?} after 30 s of 12 ms");
}

#[test]
fn what_nobody_measures_is_forgotten() {
    let (rtt, start) = (Rtt::default(), Instant::now());
    rtt.sample(30 * MS, start);
    rtt.expire(start + RTT_FORGOTTEN - 5 * MS);
    assert_eq!(rtt.estimate(start + RTT_FORGOTTEN - 5 * MS), Some(30 * MS));
    assert_eq!(rtt.estimate(start + RTT_FORGOTTEN + 5 * MS), None);
    assert_eq!(rtt.last(), Some(30 * MS));
    rtt.expire(start + RTT_FORGOTTEN + 5 * MS);
    assert_eq!(rtt.last(), None);
    rtt.sample(Duration::from_secs(100_000), start);
    assert_eq!(rtt.last(), Some(Duration::from_micros(LONGEST / STEPS)), "the longest that fits");
    rtt.forget();
    assert_eq!(rtt.last(), None);
}
