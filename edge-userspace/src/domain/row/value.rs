//! Values as SQLite has them, and what a column makes of them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;

use compact_str::CompactString;

use super::RowError;

/// A value as SQLite stores it: any column may hold any of these.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RawValue {
    /// NULL, or a column the table doesn't have.
    #[default]
    Null,
    Integer(i64),
    Real(f64),
    /// Short ones, as nearly all are, take no memory of their own: a hundred thousand rows have most of a million.
    Text(CompactString),
    /// Bytes, or text that isn't UTF-8.
    Blob,
}

impl Hash for RawValue {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Self::Null | Self::Blob => {}
            Self::Integer(number) => number.hash(state),
            Self::Real(number) => number.to_bits().hash(state),
            Self::Text(text) => text.hash(state),
        }
    }
}

impl fmt::Display for RawValue {
    /// Enough to recognise the value; a row may hold megabytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.pad("NULL"),
            Self::Integer(number) => number.fmt(f),
            Self::Real(number) => number.fmt(f),
            Self::Text(text) => f.pad(&format!("{:?}", text.chars().take(40).collect::<String>())),
            Self::Blob => f.pad("a blob"),
        }
    }
}

impl From<&str> for RawValue {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for RawValue {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

pub(super) fn optional_text<'a>(column: &'static str, value: &'a RawValue) -> Result<Option<&'a str>, RowError> {
    match value {
        RawValue::Null => Ok(None),
        RawValue::Text(text) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
        other => Err(RowError::Type { column, found: other.to_string(), expected: "text" }),
    }
}

pub(super) fn text<'a>(column: &'static str, value: &'a RawValue) -> Result<&'a str, RowError> {
    optional_text(column, value)?.ok_or(RowError::Missing { column })
}

pub(super) fn count(column: &'static str, value: &RawValue) -> Result<Option<u32>, RowError> {
    count_in(column, value, 0..=u32::MAX)
}

/// A count for which less is allowed than fits.
pub(super) fn count_in(
    column: &'static str,
    value: &RawValue,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, RowError> {
    let counted = match value {
        RawValue::Null => return Ok(None),
        RawValue::Integer(n) => u32::try_from(*n).ok().filter(|n| range.contains(n)),
        _ => None,
    };
    let (least, most) = range.into_inner();
    counted.map(Some).ok_or_else(|| RowError::Range { column, found: value.to_string(), least, most })
}

pub(super) fn port(column: &'static str, value: &RawValue) -> Result<Option<u16>, RowError> {
    let port = count_in(column, value, 1..=u16::MAX.into())?;
    Ok(port.and_then(|port| port.try_into().ok()))
}

pub(super) fn flag(column: &'static str, value: &RawValue) -> Result<Option<bool>, RowError> {
    match value {
        RawValue::Null => Ok(None),
        RawValue::Integer(n @ (0 | 1)) => Ok(Some(*n == 1)),
        other => Err(RowError::Type { column, found: other.to_string(), expected: "0 or 1" }),
    }
}
