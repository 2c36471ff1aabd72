//! Where clients are accepted: from the settings, the routing database and the service manager to open sockets.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};

use aya::EbpfLoader;
use edgeproxy::adapters::inbound::listeners::Job;
use edgeproxy::adapters::inbound::listeners::handed::Handed;
use edgeproxy::adapters::inbound::listeners::manager::{Command, Manager, Parts, Steer, WAITING_COMMANDS};
use edgeproxy::adapters::inbound::listeners::steering::Steering;
use edgeproxy::cli::CliError;
use edgeproxy::config::Settings;
use edgeproxy::domain::{Endpoint, Endpoints, Place, Spot};
use tokio::sync::mpsc::Sender;

use super::{Shared, failed, limits};

/// The thread that opens and closes listening sockets.
#[derive(Debug, Clone)]
pub(crate) struct Listeners(SyncSender<Command>);

impl Listeners {
    /// Opens all listeners, and goes on to follow the routing database.
    pub(crate) fn start(
        shared: &Shared,
        steer: Steer,
        handed: Handed,
        workers: Vec<Sender<Job>>,
    ) -> Result<Self, CliError> {
        let manager = Manager::new(Parts {
            settings: Arc::clone(&shared.endpoints),
            routing: Arc::clone(&shared.routing),
            workers,
            steer,
            handed,
            backlog: shared.settings.backlog,
            listening: Arc::clone(&shared.listening),
            events: Arc::clone(&shared.events),
        });
        let (commands, inbox) = mpsc::sync_channel(WAITING_COMMANDS);
        let (started, outcome) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("edge-listeners".into());
        thread.spawn(move || manage(manager, &started, &inbox)).map_err(failed)?;
        outcome.recv().map_err(failed)?.map_err(failed)?;
        Ok(Self(commands))
    }

    /// Whether connections can be steered is known now.
    pub(crate) fn steer(&self, steer: Steer) {
        // It is at work, which never takes long; it is gone only once the daemon drains.
        let _ = self.0.send(Command::Steer(Box::new(steer)));
    }

    /// The routing table may have changed.
    pub(crate) fn look(&self) {
        // The thread is gone only once the daemon drains; one that is asked already will see this, too.
        let _ = self.0.try_send(Command::Look);
    }

    /// Nothing is opened any more. To be called once the workers have stopped accepting.
    pub(crate) fn stop(&self) {
        if let Err(TrySendError::Full(stop)) = self.0.try_send(Command::Stop) {
            // It is at work, which never takes long.
            let _ = self.0.send(stop);
        }
    }
}

fn manage(mut manager: Manager, started: &SyncSender<Result<(), String>>, inbox: &Receiver<Command>) {
    let outcome = manager.start();
    let go_on = outcome.is_ok();
    // Somebody waits for it.
    let _ = started.send(outcome);
    if go_on {
        limits::yield_to_workers();
        manager.run(inbox);
    }
}

/// Loads the program that steers connections. It is always loaded, where that is allowed: listeners that need it may
/// come at any time, and privileges are about to be given up.
pub(crate) fn load_steering(loader: &mut EbpfLoader<'_>) -> Steer {
    match Steering::load(loader) {
        Ok(steering) => Steer::On(Box::new(steering)),
        Err(why) => {
            tracing::info!(%why, "prefixes and ranges of ports are bound one by one, as far as they are few");
            Steer::Off(why.to_string())
        }
    }
}

/// Whether any of the listeners is for a prefix or a range of ports.
pub(crate) fn any_to_steer<'a>(mut endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) -> bool {
    endpoints.any(|endpoint| endpoint.spot.place().is_some_and(|place| place.socket_addr().is_none()))
}

/// The listeners of the settings.
pub(crate) fn endpoints(settings: &Settings) -> Result<Endpoints, CliError> {
    let mut endpoints = Endpoints::default();
    for spot in settings.listen_addr.as_slice() {
        let spec = settings.listener(with_port(spot)?).map_err(failed)?;
        endpoints.add(spec).map_err(failed)?;
    }
    Ok(endpoints)
}

/// Port 0 means any that is free: a listener must know which.
fn with_port(spot: &Spot) -> Result<Spot, CliError> {
    let addr = spot.place().and_then(Place::socket_addr).filter(|addr| addr.port() == 0);
    let Some(addr) = addr else { return Ok(spot.clone()) };
    let free = TcpListener::bind(addr).and_then(|listener| listener.local_addr()).map_err(failed)?;
    Ok(Place::of(SocketAddr::new(addr.ip(), free.port())).into())
}
