//! How the text of a setting becomes a value, and back.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::domain::{AppName, Region};

/// The unit of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    None,
    Seconds,
    /// Seconds without a fraction, where the kernel takes no other.
    WholeSeconds,
    Milliseconds,
    KiB,
    MiB,
}

impl Unit {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds | Self::WholeSeconds => "s",
            Self::Milliseconds => "ms",
            Self::KiB => "KiB",
            Self::MiB => "MiB",
        }
    }
}

/// What a number may be; of no meaning to other kinds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    pub unit: Unit,
    /// Least and greatest value.
    pub range: Option<(f64, f64)>,
}

impl Rule {
    pub(super) const TEXT: Self = Self { unit: Unit::None, range: None };

    pub(super) const fn seconds(min: f64, max: f64) -> Self {
        Self { unit: Unit::Seconds, range: Some((min, max)) }
    }

    pub(super) const fn whole_seconds(min: u32, max: u32) -> Self {
        Self::whole(Unit::WholeSeconds, min, max)
    }

    pub(super) const fn millis(min: u32, max: u32) -> Self {
        Self::whole(Unit::Milliseconds, min, max)
    }

    pub(super) const fn count(min: u32, max: u32) -> Self {
        Self::whole(Unit::None, min, max)
    }

    pub(super) const fn kib(min: u32, max: u32) -> Self {
        Self::whole(Unit::KiB, min, max)
    }

    pub(super) const fn mib(min: u32, max: u32) -> Self {
        Self::whole(Unit::MiB, min, max)
    }

    const fn whole(unit: Unit, min: u32, max: u32) -> Self {
        Self { unit, range: Some((min as f64, max as f64)) }
    }

    fn number(&self, text: &str) -> Result<f64, String> {
        let value = match self.unit {
            Unit::Seconds => text.parse::<f64>().ok().filter(|v| v.is_finite()),
            _ => text.parse::<u32>().ok().map(f64::from),
        };
        match (value, self.range) {
            (Some(value), Some((min, max))) if (min..=max).contains(&value) => Ok(value),
            (Some(value), None) => Ok(value),
            _ => Err(format!("must be {}", self.words())),
        }
    }

    /// E.g. "a whole number from 1 to 16".
    fn words(&self) -> String {
        let number = if self.unit == Unit::Seconds { "a number" } else { "a whole number" };
        let unit = match self.unit {
            Unit::None => "",
            Unit::Seconds | Unit::WholeSeconds => " of seconds",
            Unit::Milliseconds => " of milliseconds",
            Unit::KiB => " of KiB",
            Unit::MiB => " of MiB",
        };
        match self.range {
            Some((min, max)) => format!("{number}{unit} from {min} to {max}"),
            None => format!("{number}{unit}"),
        }
    }
}

/// A type that a setting may have.
pub(super) trait Value: Sized {
    /// What it looks like, for the documentation.
    const KIND: &'static str;
    const LIST: bool = false;
    /// The error is a clause that follows the setting's name: "must be …".
    fn parse(text: &str, rule: &Rule) -> Result<Self, String>;
    fn show(&self, rule: &Rule) -> String;
}

impl<T: Value> Value for Option<T> {
    const KIND: &'static str = T::KIND;

    fn parse(text: &str, rule: &Rule) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::parse(text, rule).map(Some) }
    }

    fn show(&self, rule: &Rule) -> String {
        self.as_ref().map(|value| value.show(rule)).unwrap_or_default()
    }
}

impl Value for Duration {
    const KIND: &'static str = "duration";

    fn parse(text: &str, rule: &Rule) -> Result<Self, String> {
        let number = rule.number(text)?;
        let seconds = if rule.unit == Unit::Milliseconds { number / 1000.0 } else { number };
        Self::try_from_secs_f64(seconds).map_err(|_| format!("must be {}", rule.words()))
    }

    fn show(&self, rule: &Rule) -> String {
        match rule.unit {
            Unit::Milliseconds => self.as_millis().to_string(),
            _ => self.as_secs_f64().to_string(),
        }
    }
}

macro_rules! whole_number {
    ($($type:ty),+) => { $( impl Value for $type {
        const KIND: &'static str = "number";

        fn parse(text: &str, rule: &Rule) -> Result<Self, String> {
            rule.number(text)?;
            text.parse().map_err(|_| format!("must be {}", rule.words()))
        }

        fn show(&self, _: &Rule) -> String {
            self.to_string()
        }
    } )+ };
}
whole_number!(u8, u32, usize);

impl Value for bool {
    const KIND: &'static str = "true or false";

    fn parse(text: &str, _: &Rule) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err("must be true or false".to_owned()),
        }
    }

    fn show(&self, _: &Rule) -> String {
        self.to_string()
    }
}

impl Value for PathBuf {
    const KIND: &'static str = "path";

    fn parse(text: &str, _: &Rule) -> Result<Self, String> {
        match text {
            "" => Err("must not be empty".to_owned()),
            text if text.contains('\0') => Err("must not contain a NUL character".to_owned()),
            text => Ok(Self::from(text)),
        }
    }

    fn show(&self, _: &Rule) -> String {
        self.display().to_string()
    }
}

impl Value for AppName {
    const KIND: &'static str = "name";

    fn parse(text: &str, _: &Rule) -> Result<Self, String> {
        Self::parse(text).map_err(|why| format!("is not a name: {why}"))
    }

    fn show(&self, _: &Rule) -> String {
        self.to_string()
    }
}

impl Value for Region {
    const KIND: &'static str = "name";

    fn parse(text: &str, _: &Rule) -> Result<Self, String> {
        Self::parse(text).map_err(|why| format!("is not a name: {why}"))
    }

    fn show(&self, _: &Rule) -> String {
        self.to_string()
    }
}
