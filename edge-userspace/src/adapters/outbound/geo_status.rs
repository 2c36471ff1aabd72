//! What `status`, `check` and `--version` say about the geo data.

use super::geo::{EMBEDDED_LICENCE, GeoInfo};
use super::timestamp::date;
use crate::application::status::GeoStatus;

impl From<GeoInfo> for GeoStatus {
    /// The licence is known of the embedded database only.
    fn from(info: GeoInfo) -> Self {
        let build_date = info.built().map(date);
        let (source, licence) = match info.path {
            Some(path) => (path.display().to_string(), None),
            None => ("embedded".to_owned(), Some(EMBEDDED_LICENCE.to_owned())),
        };
        Self { source, build_date, licence }
    }
}
