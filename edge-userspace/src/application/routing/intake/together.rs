//! Which rows contradict each other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::domain::{
    AccessError, AccessList, AccessRule, Endpoint, Endpoints, ListenerError, ListenerId, ListenerSpec, MAX_REGIONS,
    Region, RegionSpec, RowError, RuleId, Spot,
};

/// Rows of a table that don't contradict each other, found by what they could contradict each other in.
pub(super) trait Together<K, S>: Default {
    /// Adds a row, unless it contradicts one that is there.
    fn add(&mut self, spec: &S) -> Result<(), RowError>;

    /// Takes out a row that was added.
    fn remove(&mut self, spec: &S);

    /// Which one it was that a row contradicts.
    fn rival(error: &RowError) -> Option<K>;
}

/// Rows that can't contradict each other.
#[derive(Default)]
pub(super) struct Apart;

impl<K, S> Together<K, S> for Apart {
    fn add(&mut self, _: &S) -> Result<(), RowError> {
        Ok(())
    }

    fn remove(&mut self, _: &S) {}

    fn rival(_: &RowError) -> Option<K> {
        None
    }
}

/// Regions are in each other's way only by their number.
#[derive(Default)]
pub(super) struct Count(usize);

impl Together<Region, RegionSpec> for Count {
    fn add(&mut self, _: &RegionSpec) -> Result<(), RowError> {
        if self.0 >= MAX_REGIONS {
            return Err(RowError::TooManyRegions { most: MAX_REGIONS });
        }
        self.0 += 1;
        Ok(())
    }

    fn remove(&mut self, _: &RegionSpec) {
        self.0 = self.0.saturating_sub(1);
    }

    fn rival(_: &RowError) -> Option<Region> {
        None
    }
}

impl Together<RuleId, AccessRule> for AccessList {
    fn add(&mut self, rule: &AccessRule) -> Result<(), RowError> {
        Ok(Self::add(self, rule.clone())?)
    }

    fn remove(&mut self, rule: &AccessRule) {
        Self::remove(self, rule);
    }

    fn rival(error: &RowError) -> Option<RuleId> {
        match error {
            RowError::Access(AccessError::Twice { other }) => Some(other.clone()),
            _ => None,
        }
    }
}

/// Listeners, by the spot that they share.
#[derive(Default)]
pub(super) struct Spots(HashMap<Spot, Endpoint>);

impl Spots {
    /// In the order of the rows.
    pub(super) fn endpoints<'a>(mut self, rows: impl Iterator<Item = &'a ListenerSpec>) -> Endpoints {
        let mut endpoints = Endpoints::default();
        let in_order = rows.filter_map(|spec| self.0.remove(&spec.spot));
        in_order.for_each(|endpoint| endpoints.put(Arc::new(endpoint)));
        endpoints
    }
}

impl Together<ListenerId, ListenerSpec> for Spots {
    fn add(&mut self, spec: &ListenerSpec) -> Result<(), RowError> {
        match self.0.entry(spec.spot.clone()) {
            Entry::Occupied(mut shared) => shared.get_mut().add(spec.clone())?,
            Entry::Vacant(free) => _ = free.insert(Endpoint::of(spec.clone())?),
        }
        Ok(())
    }

    fn remove(&mut self, spec: &ListenerSpec) {
        if let Entry::Occupied(mut shared) = self.0.entry(spec.spot.clone())
            && !shared.get_mut().remove(spec)
        {
            shared.remove();
        }
    }

    fn rival(error: &RowError) -> Option<ListenerId> {
        match error {
            RowError::Listener(
                ListenerError::ProxyDisagrees { other }
                | ListenerError::NameTaken { other, .. }
                | ListenerError::PlaceTaken { other },
            ) => Some(other.clone()),
            _ => None,
        }
    }
}
