//! A table in which each row stands for itself, by its key.
//!
//! Rows may contradict each other: two listeners at one place, two rules about the same clients. It is the newcomer that
//! is refused: what is in force goes first, then new versions of it, then rows that are new; each in the order of the
//! rows, in which alone they come at the first load. A row that can't change stays as it is, and nobody gets its place.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use super::ReloadReport;
use super::settling::Settling;
use super::together::Together;
use crate::domain::{RawRow, RowError};

pub(super) struct Table<'a, R, K, S> {
    pub(super) kind: &'static str,
    /// What is said of the second row with a key.
    pub(super) duplicate: RowError,
    /// The key, if it is one.
    pub(super) key: fn(&R) -> Option<K>,
    pub(super) parse: fn(&R) -> Result<S, RowError>,
    /// What was accepted last: rows that don't contradict each other.
    pub(super) last: &'a HashMap<K, S>,
}

/// What a row may count as.
pub(super) struct Version<K, S> {
    /// The row's place in the table.
    pub(super) at: usize,
    pub(super) key: K,
    pub(super) spec: S,
}

/// Why a row does not count as it is.
pub(super) struct Refusal<K> {
    pub(super) at: usize,
    pub(super) key: Option<K>,
    pub(super) error: RowError,
}

impl<R: RawRow, K: Clone + Eq + Hash + ToString, S: Clone + PartialEq> Table<'_, R, K, S> {
    /// What counts, in the order of the rows, and what it is together. Of a row that is refused its last good version
    /// counts.
    pub(super) fn take_in<T: Together<K, S>>(&self, rows: &[R], report: &mut ReloadReport) -> (Vec<(K, S)>, T) {
        let mut refusals = Vec::new();
        let versions = self.versions(rows, &mut refusals);
        let mut together = T::default();
        // Mostly they do, and it doesn't matter who goes first.
        let (versions, together) = if versions.iter().all(|version| together.add(&version.spec).is_ok()) {
            (versions, together)
        } else {
            self.settle(versions, &mut refusals)
        };
        refusals.sort_by_key(|refusal| refusal.at);
        for Refusal { at, key, error } in refusals {
            report.reject(self.kind, key.as_ref().map(ToString::to_string), at, &error);
        }
        (versions.into_iter().map(|version| (version.key, version.spec)).collect(), together)
    }

    /// One version for each key, in the order of the rows: of several good rows that in force, or else the first; of bad
    /// ones the last good version, if there is one.
    fn versions(&self, rows: &[R], refusals: &mut Vec<Refusal<K>>) -> Vec<Version<K, S>> {
        let mut chosen: HashMap<K, Version<K, S>> = HashMap::with_capacity(rows.len());
        let mut twins = Vec::new();
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_deleted()) {
            match ((self.parse)(row), (self.key)(row)) {
                (Ok(spec), Some(key)) => {
                    let version = Version { at, key: key.clone(), spec };
                    twins.extend(self.choose(chosen.entry(key), version));
                }
                // What can be parsed has a key.
                (Ok(_), None) => {}
                (Err(error), key) => refusals.push(Refusal { at, key, error }),
            }
        }
        for Refusal { at, key, .. } in &*refusals {
            if let Some((key, spec)) = key.as_ref().and_then(|key| self.last.get_key_value(key)) {
                let kept = || Version { at: *at, key: key.clone(), spec: spec.clone() };
                chosen.entry(key.clone()).or_insert_with(kept);
            }
        }
        let refuse = |twin: Version<K, S>| Refusal { at: twin.at, key: Some(twin.key), error: self.duplicate.clone() };
        refusals.extend(twins.into_iter().map(refuse));
        let mut versions: Vec<_> = chosen.into_values().collect();
        versions.sort_by_key(|version| version.at);
        versions
    }

    /// Returns the one of two with the same key that does not count.
    fn choose(&self, entry: Entry<'_, K, Version<K, S>>, mut version: Version<K, S>) -> Option<Version<K, S>> {
        match entry {
            Entry::Vacant(free) => {
                free.insert(version);
                None
            }
            Entry::Occupied(mut first) => {
                if self.is_in_force(&version) {
                    std::mem::swap(first.get_mut(), &mut version);
                }
                Some(version)
            }
        }
    }

    fn is_in_force(&self, version: &Version<K, S>) -> bool {
        self.last.get(&version.key) == Some(&version.spec)
    }

    /// Those that don't contradict each other, in the order of the rows. All that is in force has a version among them,
    /// unless its row is gone.
    fn settle<T: Together<K, S>>(
        &self,
        versions: Vec<Version<K, S>>,
        refusals: &mut Vec<Refusal<K>>,
    ) -> (Vec<Version<K, S>>, T) {
        let (known, new): (Vec<_>, Vec<_>) =
            versions.into_iter().partition(|version| self.last.contains_key(&version.key));
        let (held, changed): (Vec<_>, Vec<_>) = known.into_iter().partition(|version| self.is_in_force(version));
        let mut settling = Settling::new(self.last, refusals);
        for version in held {
            // Nobody is there yet who would have to give way.
            settling.hold(version);
        }
        changed.into_iter().for_each(|version| settling.change(version));
        new.into_iter().for_each(|version| settling.join(version));
        let (mut versions, together) = settling.settled();
        versions.sort_by_key(|version| version.at);
        (versions, together)
    }
}
