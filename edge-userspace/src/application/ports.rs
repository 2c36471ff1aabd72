//! What the use cases need from the world. Adapters implement these; `main` chooses which.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use tokio::net::TcpStream;

use super::flows::Flow;
use crate::domain::row::{RawBackend, RawRouting};
use crate::domain::{
    AppName, Backend, BackendAddr, BackendId, BindingKey, ByteCounts, CheckReport, CheckSpec, ConnectFailure,
    CountryCode, Fallback, Greeting, Outcome, Position, Termination, Transition,
};

/// Knows where addresses are.
pub trait GeoResolver: Send + Sync {
    /// Asked for public addresses only.
    fn locate(&self, ip: IpAddr) -> GeoAnswer;
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct GeoAnswer {
    pub country: Option<CountryCode>,
    /// Of the client's city, where the data knows it.
    pub position: Option<Position>,
}

/// Where a client's place came from. A bounded set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GeoSource {
    /// The operator mapped the prefix.
    Override,
    Database,
    /// Private, loopback and link-local addresses count as this POP's own.
    Private,
    /// Ranges for documents, tests and the like: nobody on the Internet has them.
    Reserved,
    Unknown,
}

impl GeoSource {
    pub const ALL: [Self; 5] = [Self::Override, Self::Database, Self::Private, Self::Reserved, Self::Unknown];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::Database => "database",
            Self::Private => "private",
            Self::Reserved => "reserved",
            Self::Unknown => "unknown",
        }
    }
}

/// Finds out whom a client asks for, where that can be seen in what it says first. Takes nothing of it.
pub trait Greeter: Send + Sync {
    /// Within a time limit of its own.
    fn greeting<'a>(&'a self, client: &'a TcpStream) -> Pin<Box<dyn Future<Output = Greeting> + Send + 'a>>;
}

/// Remembers which backend a client was given. Entries end by time, enforced when they are looked up.
pub trait Bindings: Send + Sync {
    /// The live binding of `key`; a hit renews its time to live.
    fn get(&self, key: &BindingKey) -> Option<BackendId>;
    /// The live binding of `key`, its time to live left as it is.
    fn peek(&self, key: &BindingKey) -> Option<BackendId>;
    fn bind(&self, key: BindingKey, backend: &BackendId);
    /// How often an operator has ended bindings. A connection from before must not bring its own back.
    fn clears(&self) -> u64;
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Opens connections to backends.
pub trait Connector: Send + Sync {
    /// Connects within `limit`. `slot` is the backend's place in the kernel's count of connections.
    fn connect(
        &self,
        backend: BackendAddr,
        slot: u32,
        limit: Duration,
    ) -> impl Future<Output = Result<TcpStream, ConnectFailure>> + Send;
    /// The round-trip time to the peer as the kernel knows it, if it does.
    fn round_trip(&self, _stream: &TcpStream) -> Option<Duration> {
        None
    }
}

/// Asks a backend whether it is well.
pub trait Prober: Send + Sync + 'static {
    /// Makes the check of `backend` that `spec` describes, within `limit`.
    fn probe(&self, backend: &Backend, spec: &CheckSpec, limit: Duration) -> impl Future<Output = CheckReport> + Send;
}

/// Moves the bytes of an established pair until it ends, in both directions, and closes both sockets. Tells `flow`
/// who does it, and how far it is.
pub trait Forwarder: Send + Sync {
    /// A connection to a backend that the operator marked as one of this host is about to be opened.
    fn expect_same_host(&self, backend: SocketAddr);
    fn forward(&self, pair: Pair, flow: &Flow) -> impl Future<Output = ForwardReport> + Send;
}

/// An established pair of sockets.
#[derive(Debug)]
pub struct Pair {
    pub client: TcpStream,
    pub backend: TcpStream,
    /// The backend, if the operator marked it as one of this host. Then nothing was written to either socket.
    pub same_host: Option<BackendId>,
    /// Bytes that were read from the client, a PROXY header: no payload, but TCP counts them. What was written to the
    /// backend before is no matter: its counts begin with the forwarding.
    pub header: u64,
}

/// How forwarding went.
#[derive(Debug, Clone)]
pub struct ForwardReport {
    pub bytes: ByteCounts,
    pub fallback: Option<Fallback>,
    pub termination: Termination,
}

/// Is told of every connection, exactly once at each point. Must not block.
pub trait Observer: Send + Sync {
    fn accepted(&self);
    fn located(&self, source: GeoSource);
    fn closed(&self, outcome: &Outcome);
    /// Connections have shown a backend to be ill, or well again.
    fn health_changed(&self, backend: &Backend, transition: Transition);
    /// A check was made.
    fn checked(&self, report: &CheckReport);
    /// All backends of an app are out by their checks, and are asked all the same; or no longer so.
    fn fail_open(&self, app: &AppName, begins: bool);
    /// `accept(2)` failed; `kind` is a bounded set (`emfile`, `enfile`, `nomem`, `other`).
    fn accept_failed(&self, listener: SocketAddr, kind: &'static str);
}

/// Where routing rows come from.
pub trait RoutingSource: Send {
    /// Whether the rows may differ from those that were read last. Cheap.
    fn changed(&mut self) -> Result<bool, SourceError>;
    /// All rows, of one moment. The backends, which may be many, go to `backends` in batches as they are read; when that
    /// ends in an error, what it was given is void.
    fn read(&mut self, backends: &mut dyn FnMut(Vec<RawBackend>)) -> Result<RawRouting, SourceError>;

    /// All rows at once.
    fn read_whole(&mut self) -> Result<RawRouting, SourceError> {
        let mut backends = Vec::new();
        let others = self.read(&mut |batch| backends.extend(batch))?;
        Ok(RawRouting { backends, ..others })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "routing database {path} does not exist: create it with `edgeproxy db init --example` or set EDGEPROXY_DB_PATH"
    )]
    Missing { path: String },
    #[error(
        "a writer of the routing database {path} died in the middle of a transaction, and who may write the file has to roll \
         back what it left in {path}-journal: `edgeproxy db list` does"
    )]
    Unfinished { path: String },
    #[error("routing database {path} is locked by another process")]
    Locked { path: String },
    #[error("routing database {path} could not be read: {why}")]
    Unreadable { path: String, why: String },
    #[error("the thread that reads the routing database could not do its work: {why}")]
    Thread { why: String },
}
