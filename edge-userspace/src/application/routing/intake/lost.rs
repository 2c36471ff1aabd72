//! Tables that had rows when they were accepted last, and now have none, or are not there.
//!
//! That is what a half-restored file looks like. Without the guard it would drop all rules of `acl`, or close all
//! listeners. A row that is marked `deleted` was taken out on purpose, so the last one may go that way.

use std::collections::HashSet;
use std::hash::Hash;

use super::Memory;
use crate::domain::{RawAcl, RawApp, RawBackend, RawGeoOverride, RawListener, RawRegion, RawRouting, RawRow, RowError};

/// Where rows were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostTable {
    pub name: &'static str,
    /// Rows that were accepted last.
    pub had: usize,
    /// The table itself is gone.
    pub missing: bool,
}

impl LostTable {
    /// Without the table `backends` nothing is even read.
    pub(in super::super) fn backends(had: usize) -> Self {
        Self { name: RawBackend::TABLE, had, missing: false }
    }
}

impl std::fmt::Display for LostTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, had, missing } = self;
        match (missing, *name) {
            (true, _) => write!(f, "no table `{name}` where there was one with {had} rows"),
            (false, RawBackend::TABLE) => write!(f, "no backends where there were {had}"),
            (false, _) => write!(f, "no rows in `{name}` where there were {had}"),
        }
    }
}

impl Memory {
    /// Tables whose rows are lost in `others`, or those of the backends if there are `none_left`. Of these every row
    /// counts that is no longer there, be it marked or not: without any the POP serves nobody.
    pub(super) fn lost(&self, none_left: bool, others: &RawRouting) -> Vec<LostTable> {
        let backends = self.backends.values().filter(|known| known.current.is_some()).count();
        let backends = (backends > 0 && none_left).then(|| LostTable::backends(backends));
        let raw = others;
        let regions = self.region_specs.keys();
        let lost = [
            backends,
            lost(raw, &raw.acl, self.rules.keys(), |row| row.id().ok(), RawAcl::parse),
            lost(raw, &raw.listeners, self.listeners.keys(), |row| row.id().ok(), RawListener::parse),
            lost(raw, &raw.apps, self.apps.keys(), |row| row.name().ok(), RawApp::parse),
            lost(raw, &raw.regions, regions, RawRegion::name, RawRegion::parse),
            lost(raw, &raw.geo_overrides, self.overrides.keys(), RawGeoOverride::key, RawGeoOverride::parse),
        ];
        lost.into_iter().flatten().collect()
    }
}

/// `known` are the keys that were accepted last.
fn lost<'a, R: RawRow, K: Eq + Hash + 'a, S>(
    raw: &RawRouting,
    rows: &[R],
    known: impl Iterator<Item = &'a K>,
    key: fn(&R) -> Option<K>,
    parse: fn(&R) -> Result<S, RowError>,
) -> Option<LostTable> {
    // Most tables have a row that is good, and it is the first one.
    if rows.iter().any(|row| !row.is_deleted() && parse(row).is_ok()) {
        return None;
    }
    let keys = |all: bool| rows.iter().filter(|row| all || !row.is_deleted()).filter_map(key).collect::<HashSet<K>>();
    let (here, alive) = (keys(true), keys(false));
    let (mut had, mut gone, mut kept) = (0, false, false);
    for known in known {
        had += 1;
        gone |= !here.contains(known);
        // A bad row keeps its last good version.
        kept |= alive.contains(known);
    }
    (gone && !kept).then(|| LostTable { name: R::TABLE, had, missing: raw.missing.contains(&R::TABLE) })
}
