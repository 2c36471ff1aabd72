//! Who has to give way where rows contradict each other.

use std::collections::HashMap;
use std::hash::Hash;

use super::table::{Refusal, Version};
use super::together::Together;

/// Rows on their way to be together. A row that can't change stays as it is, and those that counted on its place stay, too,
/// however many they are: each is looked at a few times at most.
pub(super) struct Settling<'a, K, S, T> {
    last: &'a HashMap<K, S>,
    refusals: &'a mut Vec<Refusal<K>>,
    /// What those are together that are `held` or have `changed`.
    together: T,
    /// They stay, whoever comes.
    held: Vec<Version<K, S>>,
    /// They are known, and as they are now as long as they are in the way of nobody who stays.
    changed: HashMap<K, Version<K, S>>,
}

impl<'a, K: Clone + Eq + Hash, S: Clone, T: Together<K, S>> Settling<'a, K, S, T> {
    /// Before the first of them. `last` are those in force.
    pub(super) fn new(last: &'a HashMap<K, S>, refusals: &'a mut Vec<Refusal<K>>) -> Self {
        Self { last, refusals, together: T::default(), held: Vec::new(), changed: HashMap::new() }
    }

    /// Keeps a version that is in force. Those that have to give way to it are taken out.
    pub(super) fn hold(&mut self, version: Version<K, S>) -> Vec<Version<K, S>> {
        let mut displaced = Vec::new();
        while let Err(error) = self.together.add(&version.spec) {
            // All that is in force fits together: it can only be one that has changed.
            let Some(other) = T::rival(&error).and_then(|key| self.changed.remove(&key)) else { return displaced };
            self.together.remove(&other.spec);
            displaced.push(other);
        }
        self.held.push(version);
        displaced
    }

    /// Takes in the new version of a row that is in force.
    pub(super) fn change(&mut self, version: Version<K, S>) {
        let mut changing = vec![version];
        while let Some(version) = changing.pop() {
            match self.together.add(&version.spec) {
                Ok(()) => _ = self.changed.insert(version.key.clone(), version),
                // Those that were displaced by it fail in their turn, which tells why.
                Err(error) => {
                    let Version { at, key, spec } = version;
                    let spec = self.last.get(&key).cloned().unwrap_or(spec);
                    self.refusals.push(Refusal { at, key: Some(key.clone()), error });
                    changing.extend(self.hold(Version { at, key, spec }));
                }
            }
        }
    }

    /// Takes in a row that is new.
    pub(super) fn join(&mut self, version: Version<K, S>) {
        match self.together.add(&version.spec) {
            Ok(()) => self.held.push(version),
            Err(error) => self.refusals.push(Refusal { at: version.at, key: Some(version.key), error }),
        }
    }

    /// All that count, and what they are together.
    pub(super) fn settled(mut self) -> (Vec<Version<K, S>>, T) {
        self.held.extend(self.changed.into_values());
        (self.held, self.together)
    }
}
