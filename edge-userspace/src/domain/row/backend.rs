//! The table `backends`.

use std::net::IpAddr;

use super::value::{count, flag, optional_text, port, text};
use super::{RowError, raw_row};
use crate::domain::{
    AppName, BackendAddr, BackendId, BackendSpec, BackendState, CountryCode, DEFAULT_SOFT_LIMIT, HealthCheck, Limits,
    ProxyVersion, Region, Weight,
};

raw_row! {
    /// A row of the table `backends`, not validated.
    RawBackend of "backends" {
        id, app, region,
        /// Address of the backend; the seed's name for it.
        wg_ip,
        port, healthy, weight, soft_limit, hard_limit, deleted, country, state, same_host, health_check, send_proxy,
    }
}

impl RawBackend {
    /// The id, if it is one.
    pub fn id(&self) -> Result<BackendId, RowError> {
        Ok(BackendId::parse(text("id", &self.id)?)?)
    }

    /// The backend the row describes. NULL or absent columns mean: healthy 1, weight 1, soft_limit 100 (or
    /// hard_limit, if that is lower), hard_limit 0 (unlimited), state `ready`, no country, same_host 0,
    /// send_proxy `off`, health_check as the app says.
    pub fn parse(&self) -> Result<BackendSpec, RowError> {
        flag("deleted", &self.deleted)?;
        let same_host = flag("same_host", &self.same_host)?.unwrap_or(false);
        let send_proxy = optional_text("send_proxy", &self.send_proxy)?.unwrap_or("off");
        let send_proxy = ProxyVersion::parse_sent(send_proxy)?;
        if same_host && send_proxy.is_some() {
            return Err(RowError::HeaderWithoutTcp);
        }
        Ok(BackendSpec {
            id: self.id()?,
            app: AppName::parse(text("app", &self.app)?)?,
            region: Region::parse(text("region", &self.region)?)?,
            addr: BackendAddr::new(
                address(text("wg_ip", &self.wg_ip)?)?,
                port("port", &self.port)?.ok_or(RowError::Missing { column: "port" })?,
            )?,
            country: optional_text("country", &self.country)?.map(CountryCode::parse).transpose()?,
            healthy: flag("healthy", &self.healthy)?.unwrap_or(true),
            state: optional_text("state", &self.state)?.map_or(Ok(BackendState::Ready), BackendState::parse)?,
            weight: Weight(count("weight", &self.weight)?.unwrap_or(1)),
            limits: self.limits()?,
            same_host,
            send_proxy,
            health_check: optional_text("health_check", &self.health_check)?.map(HealthCheck::parse).transpose()?,
        })
    }

    fn limits(&self) -> Result<Limits, RowError> {
        let hard = count("hard_limit", &self.hard_limit)?.unwrap_or(0);
        let default = if hard == 0 { DEFAULT_SOFT_LIMIT } else { DEFAULT_SOFT_LIMIT.min(hard) };
        Ok(Limits::new(count("soft_limit", &self.soft_limit)?.unwrap_or(default), hard)?)
    }
}

pub(super) fn address(text: &str) -> Result<IpAddr, RowError> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| RowError::Address(text.chars().take(60).collect()))
}
