//! The table `acl`.

use super::value::{flag, optional_text, text};
use super::{RowError, raw_row};
use crate::domain::{Access, AccessError, AccessRule, AppName, ListenerId, RuleId, parse_client_prefix};

raw_row! {
    /// A row of the table `acl`, not validated.
    RawAcl of "acl" {
        id,
        /// NULL: all listeners, all apps.
        listener, app,
        /// An address, or a prefix such as `203.0.113.0/24`.
        prefix,
        action, deleted,
    }
}

impl RawAcl {
    /// The id, if it is one.
    pub fn id(&self) -> Result<RuleId, RowError> {
        Ok(RuleId::parse(text("id", &self.id)?)?)
    }

    /// The rule the row describes.
    pub fn parse(&self) -> Result<AccessRule, RowError> {
        flag("deleted", &self.deleted)?;
        Ok(AccessRule {
            id: self.id()?,
            listener: optional_text("listener", &self.listener)?.map(ListenerId::parse).transpose()?,
            app: optional_text("app", &self.app)?.map(AppName::parse).transpose()?,
            prefix: parse_client_prefix(text("prefix", &self.prefix)?).map_err(AccessError::from)?,
            access: Access::parse(text("action", &self.action)?)?,
        })
    }
}
