//! Medians and spreads.

use serde::Serialize;

/// Median and quartiles of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) median: f64,
    /// First and third quartile.
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) count: usize,
}

impl Summary {
    /// `None` of no numbers.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().filter(|number| number.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&sorted, share);
        Some(Self { median: at(0.5)?, low: at(0.25)?, high: at(0.75)?, count: sorted.len() })
    }
}

/// Between two neighbours the value is on the line that joins them.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let low = *sorted.get(below)?;
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    Some(low + (high - low) * part)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 2.5, low: 1.75, high: 3.25, count: 4 });
    }

    #[test]
    fn one_number_is_its_own_median_and_none_has_none() {
        assert_eq!(Summary::of([7.0]), Some(Summary { median: 7.0, low: 7.0, high: 7.0, count: 1 }));
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([f64::NAN]), None);
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        let summary = Summary::of([10.0, 11.0, 900.0, 9.0, 10.0]).unwrap();
        assert_eq!((summary.median, summary.low, summary.high), (10.0, 10.0, 11.0));
    }
}
