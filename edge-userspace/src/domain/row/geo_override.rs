//! The table `geo_overrides`.

use super::value::{flag, optional_text, text};
use super::{RowError, raw_row};
use crate::domain::{CountryCode, GeoOverride, GeoPlace, OverrideError, Region, parse_client_prefix};

raw_row! {
    /// A row of the table `geo_overrides`, not validated.
    RawGeoOverride of "geo_overrides" {
        /// An address, or a prefix such as `203.0.113.0/24`.
        prefix,
        country, region, deleted,
    }
}

impl RawGeoOverride {
    /// Where the row says the prefix is. At least one of country and region is needed; with both, the region routes.
    pub fn parse(&self) -> Result<GeoOverride, RowError> {
        flag("deleted", &self.deleted)?;
        let prefix = parse_client_prefix(text("prefix", &self.prefix)?).map_err(OverrideError::from)?;
        let place = GeoPlace {
            country: optional_text("country", &self.country)?.map(CountryCode::parse).transpose()?,
            region: optional_text("region", &self.region)?.map(Region::parse).transpose()?,
        };
        if place.country.is_none() && place.region.is_none() {
            return Err(OverrideError::Nowhere { prefix: prefix.to_string() }.into());
        }
        Ok(GeoOverride { prefix, place })
    }

    /// The prefix, if it is one.
    pub fn key(&self) -> Option<ipnet::IpNet> {
        parse_client_prefix(text("prefix", &self.prefix).ok()?).ok()
    }
}
