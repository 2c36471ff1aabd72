//! Regions that somebody names and nobody knows: slips of the keyboard, mostly. They are no errors. A region needs no row
//! of its own as long as this POP is in it, and backends may be entered before it has one; but until then nobody is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::events::{EventKind, Events, Subject};
use crate::domain::{Overrides, Region, Snapshot};

/// At most this many are told at a time.
const TOLD: usize = 20;

/// Where regions are known from, besides the routing database.
#[derive(Debug, Clone)]
pub struct UnknownRegions {
    pub pop_region: Region,
    /// Of the settings.
    pub overrides: Arc<Overrides>,
}

impl UnknownRegions {
    /// The regions that are named and unknown, and what that means, in words.
    pub fn of(&self, snapshot: &Snapshot) -> BTreeMap<Region, String> {
        let regions = snapshot.regions();
        let unknown = |region: &Region| !regions.knows(region) && *region != self.pop_region;
        let led_to: BTreeSet<&Region> = self.overrides.regions().chain(snapshot.overrides().regions()).collect();
        let mut stocked: BTreeMap<&Region, (String, usize)> = BTreeMap::new();
        for (region, backend, count) in snapshot.stock().filter(|(region, ..)| unknown(region)) {
            stocked.entry(region).or_insert_with(|| (backend.id.to_string(), 0)).1 += count;
        }
        let empty = led_to.iter().filter(|region| unknown(region) && !stocked.contains_key(*region)).map(|region| {
            (
                (*region).clone(),
                "prefixes are said to be there (geo_overrides, geo_override), and no backend is".to_owned(),
            )
        });
        let deserted =
            stocked.iter().filter(|(region, _)| !led_to.contains(*region)).map(|(region, (first, count))| {
                let who = match count {
                    1 => format!("backend {first} is"),
                    more => format!("{more} backends are ({first}, …)"),
                };
                ((*region).clone(), format!("{who} there, and no client can be"))
            });
        let with_remedy = |(region, why)| {
            let remedy = "if it is no misspelling, insert it into the table regions, with its position and countries";
            (region, format!("{why}: {remedy}"))
        };
        empty.chain(deserted).map(with_remedy).collect()
    }
}

/// Tells of them once.
#[derive(Debug)]
pub struct RegionWatch {
    regions: UnknownRegions,
    events: Arc<Events>,
    told: BTreeSet<Region>,
}

impl RegionWatch {
    pub fn new(regions: UnknownRegions, events: Arc<Events>) -> Self {
        Self { regions, events, told: BTreeSet::new() }
    }

    /// To be called with each new snapshot.
    pub fn look_at(&mut self, snapshot: &Snapshot) {
        let unknown = self.regions.of(snapshot);
        self.told.retain(|region| unknown.contains_key(region));
        let news: Vec<_> = unknown.into_iter().filter(|(region, _)| !self.told.contains(region)).take(TOLD).collect();
        for (region, why) in news {
            self.events.emit(EventKind::RegionUnknown, Subject::region(&region), why);
            self.told.insert(region);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::application::events::EventsQuery;
    use crate::domain::testing::{backends, region, row};
    use crate::domain::{GeoOverride, GeoPlace, RegionSpec, Regions, World, parse_client_prefix};

    fn overrides(places: &[(&str, &str)]) -> Overrides {
        Overrides::new(places.iter().map(|(prefix, place)| GeoOverride {
            prefix: parse_client_prefix(prefix).unwrap(),
            place: GeoPlace::parse(place).unwrap(),
        }))
    }

    fn watch(here: &[(&str, &str)]) -> RegionWatch {
        let regions = UnknownRegions { pop_region: region("lab"), overrides: Arc::new(overrides(here)) };
        RegionWatch::new(regions, Arc::default())
    }

    fn snapshot(stock: &[(&str, &str)], table: &[&str], there: &[(&str, &str)]) -> Snapshot {
        let specs: Vec<_> =
            table.iter().map(|name| RegionSpec { name: region(name), position: None, countries: Vec::new() }).collect();
        let world = World { regions: Arc::new(Regions::new(&specs)), overrides: overrides(there), ..World::default() };
        let rows: Vec<_> = stock.iter().map(|(id, region)| row(id, region)).collect();
        Snapshot::new(1, backends(&rows), world)
    }

    fn unknown(watch: &RegionWatch, snapshot: &Snapshot) -> Vec<String> {
        watch.regions.of(snapshot).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn regions_are_known_by_default_by_the_table_as_the_pops_own_and_by_overrides_with_backends() {
        let stock = [("a", "sa"), ("b", "lab"), ("c", "af"), ("d", "office"), ("e", "home")];
        let good = snapshot(&stock, &["af"], &[("198.51.100.0/24", "region:home")]);
        assert!(unknown(&watch(&[("192.0.2.0/24", "region:office")]), &good).is_empty());
        assert_eq!(unknown(&watch(&[]), &snapshot(&stock, &[], &[])), ["af", "home", "office"]);
        let led = snapshot(&stock[..2], &[], &[("198.51.100.0/24", "region:hme"), ("192.0.2.0/24", "BR")]);
        assert_eq!(unknown(&watch(&[("203.0.113.0/24", "region:ofice")]), &led), ["hme", "ofice"]);
    }

    #[tokio::test]
    async fn each_is_told_once_and_again_when_it_comes_back() {
        let mut watch = watch(&[]);
        let (bad, good) = (snapshot(&[("a", "eeu"), ("b", "eeu")], &[], &[]), snapshot(&[("a", "eu")], &[], &[]));
        for snapshot in [&bad, &bad, &good, &bad] {
            watch.look_at(snapshot);
        }
        let told = watch.events.answer(EventsQuery::default()).await.events;
        assert_eq!(told.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["eeu", "eeu"]);
        assert!(told[0].reason.starts_with("2 backends are (a, …) there, and no client"), "{}", told[0].reason);
    }
}
