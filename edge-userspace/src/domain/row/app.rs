//! The table `apps`.

use std::time::Duration;

use super::value::{count_in, flag, optional_text, text};
use super::{RawValue, RowError, raw_row};
use crate::domain::{Affinity, AppName, AppSpec, HealthCheck, NextRegion, QueueRules, Selection};

raw_row! {
    /// A row of the table `apps`, not validated.
    RawApp of "apps" {
        name, selection, next_region, affinity, queue_length, queue_timeout_ms, health_check, deleted,
    }
}

impl RawApp {
    /// The name, if it is one.
    pub fn name(&self) -> Result<AppName, RowError> {
        Ok(AppName::parse(text("name", &self.name)?)?)
    }

    /// How the app is to be served. NULL or absent columns mean: selection `least_load`, next region by position, affinity `strict`
    /// (`none` where clients are hashed: a binding would hold them where they were sent when their backend was out),
    /// no queue, no health check.
    pub fn parse(&self) -> Result<AppSpec, RowError> {
        flag("deleted", &self.deleted)?;
        let default = AppSpec::new(self.name()?);
        let selection = optional_text("selection", &self.selection)?.map_or(Ok(default.selection), Selection::parse)?;
        let unsaid = Affinity::default_for(selection);
        Ok(AppSpec {
            selection,
            next_region: optional_text("next_region", &self.next_region)?
                .map_or(Ok(default.next_region), NextRegion::parse)?,
            affinity: optional_text("affinity", &self.affinity)?.map_or(Ok(unsaid), Affinity::parse)?,
            queue: self.queue(default.queue)?,
            health_check: optional_text("health_check", &self.health_check)?.map(HealthCheck::parse).transpose()?,
            name: default.name,
        })
    }

    fn queue(&self, default: QueueRules) -> Result<QueueRules, RowError> {
        let length = count_in("queue_length", &self.queue_length, 0..=1_000_000)?;
        let timeout = count_in("queue_timeout_ms", &self.queue_timeout_ms, 1..=600_000)?;
        Ok(QueueRules {
            length: length.unwrap_or(default.length),
            timeout: timeout.map_or(default.timeout, |ms| Duration::from_millis(ms.into())),
        })
    }
}

impl RawApp {
    /// A row that names an app and leaves everything else as it is by default.
    pub fn named(name: &str) -> Self {
        Self { name: RawValue::from(name), ..Self::default() }
    }
}
