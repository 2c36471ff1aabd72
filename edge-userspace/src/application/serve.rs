//! The life of a connection, from accept to outcome. Read this first.
//!
//! admission → where it arrived → who is the client → may it → whom it asks for → app → where is it → plan → reserve
//! (or wait for a place), connect, next candidate → bind → forward → outcome, once.

mod announce;
mod listener;
mod look;
mod proxied;
mod record;
mod refusal;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpStream;

use self::announce::announce;
use self::proxied::identify;
use self::record::Record;
use self::refusal::Refusal;
use super::admission::{Admission, ListenerHeld, SourceHeld};
use super::arrival::Arrival;
use super::drain::{Connections, Held};
use super::flows::{Flow, Flows, Listed};
use super::health::{FailedConnect, Watch};
use super::locate::Locator;
use super::ports::{Bindings, Connector, Forwarder, GeoResolver, Greeter, Observer, Pair};
use super::queue::NoPlace;
use super::routing::RoutingTable;
use crate::domain::{
    AffinityPrefix, AppName, Attempt, Backend, BindingKey, ChosenBackend, ClientAddr, ConnectFailure, Endpoints,
    Instance, ListenerSpec, Overrides, Permit, Pick, RandomSource, Region, RejectReason, Request, Skip, Snapshot,
    Tried,
};

/// What serving a connection takes. One for each worker; the parts are shared.
pub struct Proxy<C, F> {
    pub routing: Arc<RoutingTable>,
    pub geo: Arc<dyn GeoResolver>,
    pub bindings: Arc<dyn Bindings>,
    pub greeter: Arc<dyn Greeter>,
    pub observer: Arc<dyn Observer>,
    pub connections: Arc<Connections>,
    pub admission: Arc<Admission>,
    pub flows: Arc<Flows>,
    pub health: Arc<Watch>,
    /// This life of the daemon, for those who see connections of several.
    pub instance: Instance,
    /// The last connection id given out.
    pub ids: Arc<AtomicU64>,
    pub random: fn() -> u64,
    pub connector: C,
    pub forwarder: F,
    pub rules: Rules,
}

/// The settings that shape a connection's way.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The listeners of the settings; those of the routing database come with each snapshot.
    pub listeners: Arc<Endpoints>,
    /// The app of listeners that name none; `None`: the only app of the database.
    pub app: Option<AppName>,
    pub pop_region: Region,
    /// The operator's word on where prefixes are; more of it comes with each snapshot.
    pub overrides: Arc<Overrides>,
    pub affinity: AffinityPrefix,
    /// Connections held at once; 0 is no limit.
    pub max_connections: usize,
    /// Until a PROXY header must be whole.
    pub proxy_header_timeout: Duration,
    /// Until the first byte of one that is optional.
    pub proxy_optional_wait: Duration,
    /// Of one connect.
    pub connect_timeout: Duration,
    /// Different backends tried for one connection.
    pub connect_attempts: usize,
    /// Of all connects for one connection together.
    pub connect_budget: Duration,
}

impl Rules {
    /// What a connect may take where none was before it.
    fn longest_connect(&self) -> Duration {
        self.connect_timeout.min(self.connect_budget)
    }

    /// Finds clients.
    pub fn locator<'a>(&'a self, geo: &'a dyn GeoResolver, snapshot: &'a Snapshot) -> Locator<'a> {
        Locator { geo, overrides: &self.overrides, snapshot, pop_region: &self.pop_region }
    }
}

impl<C, F> std::fmt::Debug for Proxy<C, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl<C: Connector, F: Forwarder> Proxy<C, F> {
    /// Serves one accepted connection to its end.
    // An `async fn` holds its arguments twice, and this is what each connection holds while it is quiet.
    #[allow(clippy::manual_async_fn)]
    pub fn serve(self: Arc<Self>, client: TcpStream, arrival: Arrival) -> impl Future<Output = ()> + Send {
        async move {
            let mut record = Record::start(&self, arrival.from, arrival.to);
            // On the heap for as long as it takes: it is larger than what may go on for days.
            let to = match Box::pin(self.establish(&client, &arrival, &mut record)).await {
                Ok(established) => established,
                Err(refusal) => return refusal.turn_away(&client, &mut record.outcome),
            };
            let same_host = to.target.same_host.then(|| to.target.id.clone());
            let since = Instant::now();
            let pair = Pair { client, backend: to.backend, same_host, header: to.header };
            let report = self.forwarder.forward(pair, &to.flow).await;
            self.health.ended(&to.target, report.termination, report.bytes.down, since.elapsed(), Instant::now());
            record.outcome.bytes = report.bytes;
            record.outcome.forwarders = to.flow.steps();
            record.outcome.fallback = report.fallback;
            record.outcome.termination = report.termination;
            self.renew(to.key, record.outcome.backend.as_ref(), to.clears);
            // The sockets are closed: only now may others have the place.
            drop((to.permit, to.admitted, to.held));
        }
    }

    /// Everything before the first byte is forwarded.
    async fn establish(
        &self,
        client: &TcpStream,
        arrival: &Arrival,
        record: &mut Record<'_>,
    ) -> Result<Established, Refusal> {
        let held =
            self.connections.hold(self.rules.max_connections).ok_or(Refusal::rule(RejectReason::MaxConnections))?;
        let endpoint = self.arrive(arrival, record)?;
        let header = identify(client, &endpoint, &self.rules, record).await?;
        let address = ClientAddr::new(record.outcome.client.ip());
        let source = self.admission.source(address, Instant::now()).map_err(Refusal::rule)?;
        let listener = self.ask_for(client, &endpoint, record).await?;
        let app = self.app(&listener, record)?;
        self.may_enter(address, &listener, &app, record)?;
        let admitted = (source, self.admission.listener(&listener).map_err(Refusal::rule)?);
        self.locate(address, record);
        let key = self.rules.affinity.key(&app, address);
        let clears = self.bindings.clears();
        let (backend, target, permit) = tokio::select! {
            connected = self.connect_best(&app, &key, record) => connected?,
            () = gone(client) => return Err(Refusal::client_gone(record.waits())),
        };
        let flow = Flow::new(record.outcome.id, record.outcome.client, app, target.id.clone());
        let flow = flow.measuring(&target);
        Ok(Established { backend, target, permit, held, admitted, key, clears, flow: self.flows.list(flow), header })
    }

    /// Asks the rules about who may connect.
    fn may_enter(
        &self,
        address: ClientAddr,
        listener: &ListenerSpec,
        app: &AppName,
        record: &mut Record<'_>,
    ) -> Result<(), Refusal> {
        record.outcome.denied_by = self.routing.load().access().denies(address, Some(&listener.id), app).cloned();
        if record.outcome.denied_by.is_some() { Err(Refusal::rule(RejectReason::Denied)) } else { Ok(()) }
    }

    /// Finds the client's country, region and position.
    fn locate(&self, address: ClientAddr, record: &mut Record<'_>) {
        let snapshot = self.routing.load();
        let found = self.rules.locator(&*self.geo, &snapshot).locate(address);
        self.observer.located(found.source);
        record.outcome.country = found.country;
        record.outcome.client_region = found.region;
        record.position = found.position;
    }

    /// Tries candidates, best first and each once, until one answers or the attempts or the time are used up.
    async fn connect_best(
        &self,
        app: &AppName,
        key: &BindingKey,
        record: &mut Record<'_>,
    ) -> Result<(TcpStream, Arc<Backend>, Permit), Refusal> {
        let binds = self.binds(app);
        let bound = binds.then(|| self.bindings.get(key)).flatten();
        let mut deadline = Instant::now() + self.rules.connect_budget;
        let mut tried = Tried::new();
        let client_region = record.outcome.client_region.clone();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !tried.is_empty() && (tried.len() >= self.rules.connect_attempts || left.is_zero()) {
                return Err(Refusal::after(&record.outcome.failed));
            }
            let request = Request {
                client_region: client_region.as_ref(),
                client_position: record.position,
                pop_region: &self.rules.pop_region,
                client: Some(&key.client),
                bound: bound.as_ref(),
            };
            let asked = Instant::now();
            let picked = self.place(app, request, &tried, record).await;
            // To wait for a place is not to connect.
            deadline += asked.elapsed();
            let Pick { backend, reason, permit, binding_yielded } = match picked {
                Ok(picked) => picked,
                Err(NoPlace::NoBackend(_)) if !tried.is_empty() => return Err(Refusal::after(&record.outcome.failed)),
                Err(why) => return Err(Refusal::no_place(why)),
            };
            tried.push(&backend);
            let started = Instant::now();
            let limit = self.rules.connect_timeout.min(left);
            if backend.same_host {
                self.forwarder.expect_same_host(backend.addr.socket_addr());
            }
            match self.reach(&backend, limit, record).await {
                Ok(stream) => {
                    self.health.connected(&backend, Instant::now());
                    // A binding that yields for a crowd stays: the crowd may be smaller the next time.
                    if binds && reason.binds() && binding_yielded != Some(Skip::AtSoftLimit) {
                        self.bindings.bind(key.clone(), &backend.id);
                    }
                    record.connected(ChosenBackend {
                        id: backend.id.clone(),
                        addr: backend.addr,
                        region: backend.region.clone(),
                        reason,
                        binding_yielded,
                    });
                    return Ok((stream, backend, permit));
                }
                Err(failure) => {
                    let took = started.elapsed();
                    // The first attempt has all the time that there is.
                    let shortened = tried.len() > 1 && limit < self.rules.longest_connect();
                    let failed = FailedConnect { failure, began: started, shortened };
                    self.health.connect_failed(&backend, failed, Instant::now());
                    tracing::debug!(backend = %backend.id, failure = failure.as_str(), "connect failed");
                    record.outcome.failed.push(Attempt { backend: backend.id.clone(), failure, took });
                    if failure == ConnectFailure::Exhausted {
                        return Err(Refusal::after(&record.outcome.failed));
                    }
                }
            }
        }
    }

    /// Connects, and tells the backend who the client is, where it wants to know.
    async fn reach(
        &self,
        backend: &Backend,
        limit: Duration,
        record: &mut Record<'_>,
    ) -> Result<TcpStream, ConnectFailure> {
        let started = Instant::now();
        let mut stream = self.connector.connect(backend.addr, backend.load.slot(), limit).await?;
        let now = Instant::now();
        // By our own clock it takes the time, too, until this task has its turn again.
        let took = || self.connector.round_trip(&stream).or_else(|| Some(now.duration_since(started)));
        backend.measure(now, took);
        announce(&mut stream, backend.send_proxy, limit, record).await?;
        Ok(stream)
    }

    /// The time to live of a binding counts from the end of the last connection: a client that was connected for
    /// longer still comes back to its backend. One that was bound elsewhere meanwhile stays there, and what an operator
    /// has ended since stays ended.
    fn renew(&self, key: BindingKey, backend: Option<&ChosenBackend>, clears: u64) {
        if !self.binds(&key.app) || self.bindings.clears() != clears {
            return;
        }
        let backend = backend.filter(|backend| backend.reason.binds());
        if let (None, Some(backend)) = (self.bindings.get(&key), backend) {
            self.bindings.bind(key, &backend.id);
        }
    }

    /// Whether clients of the app are bound to their backends.
    fn binds(&self, app: &AppName) -> bool {
        self.routing.load().app(app).is_none_or(|index| index.spec().affinity.binds())
    }
}

/// A connection that has a backend.
struct Established {
    backend: TcpStream,
    target: Arc<Backend>,
    permit: Permit,
    held: Held,
    /// Places among those of the client's source and of the listener.
    admitted: (Option<SourceHeld>, ListenerHeld),
    key: BindingKey,
    /// How often bindings were cleared before this one was made.
    clears: u64,
    flow: Listed,
    /// Bytes of the PROXY header that were read from the client.
    header: u64,
}

/// Returns when the client has reset the connection. A client that has only closed its sending side may wait for an
/// answer.
async fn gone(client: &TcpStream) {
    while client.ready(Interest::ERROR).await.is_ok_and(|ready| !ready.is_error()) {
        // An end of the stream shows as this, too, and would show again at once.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The random source of the port, as the domain wants it.
struct Random(fn() -> u64);

impl RandomSource for Random {
    fn next_u64(&mut self) -> u64 {
        (self.0)()
    }
}
