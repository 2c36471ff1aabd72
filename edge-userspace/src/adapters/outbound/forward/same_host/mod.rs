//! The path between two applications of this host: what a local client sends is handed straight to a local backend,
//! and back. For backends with the mark `same_host` only. The rules are in `docs/same-host.md`.

mod audit;
mod late;
mod marks;
mod pair;
mod ports;
mod self_test;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use edge_common::{LocalSocket, OwnSocket};
use tokio::net::TcpStream;

use self::late::Late;
use self::marks::Marks;
pub(super) use self::pair::Report;
use self::pair::{LocalPair, find_backend};
use self::ports::Ports;
use super::TimeLimits;
use super::kernel::{CgroupNews, LocalPrograms, SameHostError};
use super::lane::Both;
use crate::adapters::outbound::privileges;
use crate::application::drain::Cut;
use crate::application::flows::Flow;
use crate::domain::{BackendId, Fallback, ForwarderKind, Snapshot, Why};

/// So many backends are named in one line of the log.
const TOLD: usize = 10;

/// Bounds on what the path may take.
#[derive(Debug, Clone)]
pub struct SameHostLimits {
    /// Directories of cgroup v2 whose applications take part.
    pub cgroups: Vec<PathBuf>,
    /// Pairs at once.
    pub pairs: u32,
    /// Bytes that may wait for one application, the cost of their messages included.
    pub budget: u32,
}

/// The path, where there is one.
#[derive(Debug)]
pub struct SameHost {
    programs: Option<Arc<LocalPrograms>>,
    budget: u32,
    ports: Ports,
    late: Late,
    /// Why there is none.
    why_not: Option<String>,
    /// Marked backends of which it was said that their mark has no effect.
    told: Mutex<BTreeSet<BackendId>>,
    marks: Arc<Marks>,
}

impl SameHost {
    /// Loads the programs and tries them. Where no cgroup is named, or something is missing, there is no path and the
    /// mark has no effect.
    pub async fn open(limits: &SameHostLimits) -> Self {
        if limits.cgroups.is_empty() {
            return Self::closed("same_host_cgroup names no cgroup".to_owned());
        }
        match Self::load(limits).await {
            Ok(programs) => {
                tracing::info!(cgroups = ?limits.cgroups, "the same-host path passed its self-test");
                Self::new(Some(programs), limits.budget, None)
            }
            Err(why) => Self::closed(why),
        }
    }

    async fn load(limits: &SameHostLimits) -> Result<Arc<LocalPrograms>, String> {
        let loaded = LocalPrograms::load(&limits.cgroups, limits.pairs, limits.budget);
        let programs = loaded.map_err(explained)?;
        self_test::run(&programs, limits.budget).await.map_err(|why| format!("the self-test failed: {why}"))?;
        programs.restart_count();
        Ok(programs)
    }

    /// There is no path, for the reason given.
    pub fn closed(why: String) -> Self {
        Self::new(None, 0, Some(why))
    }

    fn new(programs: Option<Arc<LocalPrograms>>, budget: u32, why_not: Option<String>) -> Self {
        let (ports, late, told, marks) = (Ports::default(), Late::default(), Mutex::default(), Arc::default());
        Self { programs, budget, ports, late, why_not, told, marks }
    }

    /// A connection to a marked backend is about to be opened.
    pub(super) fn expect(&self, port: u16) {
        if let Some(programs) = &self.programs {
            self.ports.expect(port, || programs.expect(port));
        }
    }

    /// The kill switch: with `gate` everything takes the way through TCP, without losing a byte.
    pub fn gate_all(&self, gate: bool) {
        if let Some(programs) = &self.programs {
            programs.gate_all(gate);
        }
    }

    /// Why the mark has no effect; `None` while it has.
    pub fn why_not(&self) -> Option<String> {
        let programs = self.programs.as_ref().filter(|programs| !programs.has_applications());
        let none = programs.map(|programs| join(programs.missing_cgroups().values()));
        self.why_not.clone().or(none)
    }

    /// The named cgroups whose applications don't take part, and why.
    pub fn missing_cgroups(&self) -> BTreeMap<PathBuf, String> {
        self.programs.as_ref().map(|programs| programs.missing_cgroups()).unwrap_or_default()
    }

    /// Does what nobody waits for: takes in cgroups that have come (back), and says which have or are gone. To be called
    /// some times a second.
    pub fn tick(&self) -> Vec<CgroupNews> {
        let Some(programs) = &self.programs else { return Vec::new() };
        for own in self.late.take_due() {
            if let Some(end) = programs.application(own) {
                programs.release(end.cookie);
            }
        }
        programs.look_for_cgroups()
    }

    /// The routing database has changed: what was there for its former backends can go.
    pub fn look_at(&self, snapshot: &Snapshot) {
        if let Some(programs) = &self.programs {
            let marked = snapshot.same_host().map(|backend| backend.addr.socket_addr().port()).collect();
            self.ports.retain(&marked, |port| programs.expect_no_more(port));
        }
        self.marks.forget_ended();
        self.tell_in_vain(snapshot);
    }

    /// Says which backends are marked in vain, once, when the routing database or the daemon begins to say so and not
    /// only when a client comes.
    fn tell_in_vain(&self, snapshot: &Snapshot) {
        let Some(why) = self.why_not() else { return };
        let marked: BTreeSet<BackendId> = snapshot.same_host().map(|backend| backend.id.clone()).collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let news: Vec<String> = marked.difference(&told).map(ToString::to_string).collect();
        if !news.is_empty() {
            let backends = news.get(..TOLD).unwrap_or(&news);
            tracing::warn!(count = news.len(), ?backends, why, "the mark same_host of backends has no effect");
        }
        *told = marked;
    }

    /// Pairs at this moment.
    pub fn pairs_in_use(&self) -> u32 {
        self.programs.as_ref().map_or(0, |programs| programs.pairs_in_use())
    }

    /// Bytes handed over by pairs that have ended.
    pub fn forwarded(&self) -> u64 {
        self.programs.as_ref().map_or(0, |programs| programs.forwarded())
    }

    /// Backends that lost the mark, and why.
    pub fn withdrawn(&self) -> BTreeMap<BackendId, String> {
        self.marks.withdrawn()
    }

    /// Those of them that were not asked for yet.
    pub fn newly_withdrawn(&self) -> BTreeMap<BackendId, String> {
        self.marks.take_news()
    }

    /// Forwards a connection to a marked backend, or says why the ordinary way is to be taken: nothing, if the client
    /// is not one of the named applications. An `untouched` client is one of which nothing was read: the programs count
    /// its bytes from the first one.
    pub(super) async fn forward(
        &self,
        sockets: Both<TcpStream>,
        backend: &BackendId,
        untouched: bool,
        flow: &Flow,
        limits: &TimeLimits,
        cut: &Cut,
    ) -> Result<Report, Instead> {
        let Some(programs) = &self.programs else { return Err(Instead { sockets, why: None }) };
        let pair = match self.pair(programs, sockets, backend, untouched).await {
            Ok(pair) => pair,
            Err(instead) => return Err(instead),
        };
        flow.step(ForwarderKind::SkMsg, Why::SameHost);
        Ok(Box::pin(pair.run(flow, limits, cut)).await)
    }

    /// Finds both applications and makes them a pair, before a byte was written to either. If that can't be, neither
    /// stays under the verdict.
    async fn pair(
        &self,
        programs: &Arc<LocalPrograms>,
        sockets: Both<TcpStream>,
        backend: &BackendId,
        untouched: bool,
    ) -> Result<LocalPair, Instead> {
        let (Some(client_own), Some(own)) =
            (programs.own(sockets.client.as_fd()), programs.own(sockets.backend.as_fd()))
        else {
            return Err(Instead { sockets, why: Some(Fallback::NotLocal) });
        };
        let client = programs.application(client_own);
        let admitted = self.admit(programs, client, backend, untouched);
        let found = if admitted.is_ok() { find_backend(programs, own).await } else { None };
        // One that comes later than this, as with TCP_DEFER_ACCEPT, stays an ordinary socket.
        programs.forget(own);
        let found = found.or_else(|| programs.application(own));
        let why = match (admitted, found) {
            (Err(why), _) => why,
            (Ok(_), None) => Some(Fallback::NotLocal),
            (Ok(client), Some(found)) => {
                let ends = Both { client, backend: found };
                let own = Both { client: client_own, backend: own };
                return self.prepare(programs, sockets, own, ends, backend).await;
            }
        };
        [client, found].into_iter().flatten().for_each(|end| programs.release(end.cookie));
        if found.is_none() {
            self.late.push(own);
        }
        Err(Instead { sockets, why })
    }

    /// The client's end, if the connection may go this way for all that is known without the backend's, which can take
    /// its time to be seen. Else the fallback: none for clients from elsewhere, and while the operator wants userspace
    /// only.
    fn admit(
        &self,
        programs: &LocalPrograms,
        client: Option<LocalSocket>,
        backend: &BackendId,
        untouched: bool,
    ) -> Result<LocalSocket, Option<Fallback>> {
        match client.filter(|_| !programs.is_gated()) {
            None => Err(None),
            Some(_) if !untouched => Err(Some(Fallback::ProxyHeader)),
            Some(_) if self.marks.is_withdrawn(backend) => Err(Some(Fallback::Withdrawn)),
            Some(client) => Ok(client),
        }
    }

    async fn prepare(
        &self,
        programs: &Arc<LocalPrograms>,
        sockets: Both<TcpStream>,
        own: Both<OwnSocket>,
        ends: Both<LocalSocket>,
        backend: &BackendId,
    ) -> Result<LocalPair, Instead> {
        let relays = (programs.adopt(sockets.client.as_fd()), programs.adopt(sockets.backend.as_fd()));
        let release = || {
            for end in ends.iter() {
                programs.release(end.cookie);
            }
            for socket in sockets_of(&relays) {
                programs.release(socket.cookie);
            }
        };
        let (Ok(client_relay), Ok(backend_relay)) = &relays else {
            release();
            return Err(Instead { sockets, why: Some(Fallback::InsertRefused) });
        };
        let Some(slot) = programs.pair(own, Both { client: *client_relay, backend: *backend_relay }, ends) else {
            release();
            return Err(Instead { sockets, why: Some(Fallback::NoFreeRecord) });
        };
        let slot = Arc::new(slot);
        let mark = self.marks.enter(backend, &slot);
        let pair = LocalPair::new(sockets, slot, mark, self.budget);
        if pair.is_suited().await {
            return Ok(pair);
        }
        let sockets = pair.into_sockets();
        release();
        Err(Instead { sockets, why: Some(Fallback::Blocking) })
    }

    /// A connection to a backend without the mark: a client on this host need not bear with the verdict.
    pub(super) fn release_client(&self, socket: &TcpStream) {
        if let Some(programs) = &self.programs
            && let Some(client) = programs.own(socket.as_fd()).and_then(|own| programs.application(own))
        {
            programs.release(client.cookie);
        }
    }
}

/// The ordinary way is to be taken. The sockets are as they were.
#[derive(Debug)]
pub(super) struct Instead {
    pub(super) sockets: Both<TcpStream>,
    pub(super) why: Option<Fallback>,
}

/// What the kernel says where a capability is missing is "operation not permitted", or a page of the verifier's.
fn explained(why: SameHostError) -> String {
    let refused = matches!(why, SameHostError::Kernel(_) | SameHostError::Attach(..));
    let Some(lacking) = privileges::lacking().filter(|_| refused) else { return why.to_string() };
    tracing::debug!(%why, "loading the BPF programs of the same-host path failed");
    format!("{lacking}: the same-host path needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
}

/// Several reasons in one line.
fn join<'a>(reasons: impl IntoIterator<Item = &'a String>) -> String {
    reasons.into_iter().map(String::as_str).collect::<Vec<_>>().join("; ")
}

fn sockets_of<E>(relays: &(Result<LocalSocket, E>, Result<LocalSocket, E>)) -> impl Iterator<Item = &LocalSocket> {
    relays.0.iter().chain(relays.1.iter())
}
