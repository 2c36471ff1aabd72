//! The table `regions`.

use super::value::{flag, optional_text, text};
use super::{RawValue, RowError, raw_row};
use crate::domain::{CountryCode, Position, Region, RegionSpec};

raw_row! {
    /// A row of the table `regions`, not validated.
    RawRegion of "regions" {
        name, latitude, longitude,
        /// Country codes separated by commas or spaces.
        countries,
        deleted,
    }
}

impl RawRegion {
    /// The name, if it is one.
    pub fn name(&self) -> Option<Region> {
        Region::parse(text("name", &self.name).ok()?).ok()
    }

    pub fn parse(&self) -> Result<RegionSpec, RowError> {
        flag("deleted", &self.deleted)?;
        let countries = optional_text("countries", &self.countries)?.unwrap_or_default();
        let codes = countries.split([',', ' ']).filter(|code| !code.is_empty());
        Ok(RegionSpec {
            name: Region::parse(text("name", &self.name)?)?,
            position: self.position()?,
            countries: codes.map(CountryCode::parse).collect::<Result<_, _>>()?,
        })
    }

    fn position(&self) -> Result<Option<Position>, RowError> {
        match (degrees(&self.latitude)?, degrees(&self.longitude)?) {
            (None, None) => Ok(None),
            (Some(latitude), Some(longitude)) => Position::new(latitude, longitude).map(Some).ok_or(RowError::Position),
            _ => Err(RowError::Position),
        }
    }
}

fn degrees(value: &RawValue) -> Result<Option<f64>, RowError> {
    match value {
        RawValue::Null => Ok(None),
        RawValue::Real(degrees) => Ok(Some(*degrees)),
        // 53 bits are plenty: the range is checked later.
        RawValue::Integer(degrees) => i32::try_from(*degrees).map(|n| Some(n.into())).map_err(|_| RowError::Position),
        _ => Err(RowError::Position),
    }
}
