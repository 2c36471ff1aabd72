//! Runs the health checks on a thread of their own: a TLS handshake holds up nobody else.

use std::io;
use std::sync::Arc;

use edgeproxy::adapters::outbound::prober::TcpProber;
use edgeproxy::application::checks::Checker;
use edgeproxy::config::Settings;
use edgeproxy::domain::CheckDefaults;

use super::{Shared, limits};

/// The thread ends with the process: checks go on while connections drain.
pub(crate) fn spawn(shared: &Shared) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let checker = Checker::new(
        TcpProber::default(),
        Arc::clone(&shared.routing),
        Arc::clone(&shared.health),
        defaults(&shared.settings),
        limits::checks(&shared.settings),
        shared.settings.connect_timeout,
        || fastrand::u64(..),
    );
    let thread = std::thread::Builder::new().name("edge-checks".to_owned());
    thread.spawn(move || runtime.block_on(checker.run())).map(drop)
}

fn defaults(settings: &Settings) -> CheckDefaults {
    CheckDefaults {
        interval: settings.health_interval,
        timeout: settings.health_timeout,
        rise: settings.health_rise,
        fall: settings.health_fall,
    }
}
