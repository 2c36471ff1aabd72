//! Opens and closes listening sockets so that they are what the settings and the routing database ask for.
//!
//! It has a thread of its own. What can't be opened is told and tried again; it never ends the daemon and never touches
//! another listener.

mod open;
mod plan;
mod steered;
mod taken;

use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tokio::sync::mpsc::Sender;

use self::open::Open;
pub use self::plan::MOST_BINDS;
use self::plan::{Plan, plan};
pub use self::steered::Steer;
use self::steered::Steered;
use self::taken::Taken;
use super::Job;
use super::bind::{ListenError, Manner};
use super::handed::Handed;
use super::others::HostSockets;
use crate::application::events::{EventKind, Events, Subject};
use crate::application::listening::{How, Listening, SpotState};
use crate::application::routing::RoutingTable;
use crate::domain::{Endpoints, Place, SocketName, Spot};

/// How often what could not be opened is tried again, and sockets of other programs are looked for.
const RETRY: Duration = Duration::from_secs(1);

/// What is asked of the manager's thread.
#[derive(Debug)]
pub enum Command {
    /// The routing table may have changed.
    Look,
    /// Whether connections can be steered, once that is known.
    Steer(Box<Steer>),
    /// The daemon drains: nothing is opened any more.
    Stop,
}

/// Questions that may wait: one more would tell nothing new.
pub const WAITING_COMMANDS: usize = 4;

/// What the manager works with.
#[derive(Debug)]
pub struct Parts {
    /// The listeners of the settings.
    pub settings: Arc<Endpoints>,
    pub routing: Arc<RoutingTable>,
    /// One for each worker.
    pub workers: Vec<Sender<Job>>,
    pub steer: Steer,
    pub handed: Handed,
    pub backlog: u32,
    pub listening: Arc<Listening>,
    pub events: Arc<Events>,
}

#[derive(Debug)]
pub struct Manager {
    parts: Parts,
    /// What is open, by spot; what is steered is elsewhere.
    open: HashMap<Spot, Open>,
    steered: Steered,
    /// What listens on this host.
    sockets: HostSockets,
    states: HashMap<Spot, SpotState>,
    /// The next worker of those that get one socket after the other.
    turn: usize,
    /// Whether listeners that are opened are news.
    started: bool,
    /// Generation of the routing table that was last followed.
    generation: u64,
}

impl Manager {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            open: HashMap::new(),
            steered: Steered::default(),
            sockets: HostSockets::new(),
            states: HashMap::new(),
            turn: 0,
            started: false,
            generation: 0,
        }
    }

    /// Opens everything. To be called on a thread of its own, like [`Manager::run`]. The error names an address of the
    /// settings that can't be had: who starts a daemon wants to know at once.
    pub fn start(&mut self) -> Result<(), String> {
        self.tell_unused();
        self.reconcile();
        let vital = self.states.iter().filter(|(spot, _)| self.is_vital(spot));
        let failed = vital.filter(|(_, state)| !state.open).find_map(|(_, state)| state.why.clone());
        self.started = true;
        match failed {
            Some(why) => Err(format!("listen_addr (EDGEPROXY_LISTEN_ADDR): {why}")),
            None => Ok(()),
        }
    }

    /// Whether the settings name this very address: one that can't be had keeps the daemon from starting.
    fn is_vital(&self, spot: &Spot) -> bool {
        let is_one = spot.place().is_some_and(|place| place.socket_addr().is_some());
        is_one && self.parts.settings.of(spot).is_some()
    }

    /// Follows the routing table until told to stop, or nobody can tell it any more.
    pub fn run(mut self, commands: &Receiver<Command>) {
        loop {
            match commands.recv_timeout(RETRY) {
                Ok(Command::Look) => self.reconcile(),
                Ok(Command::Steer(steer)) => {
                    self.parts.steer = *steer;
                    self.reconcile();
                }
                Err(RecvTimeoutError::Timeout) if self.is_settled() => {}
                Err(RecvTimeoutError::Timeout) => self.reconcile(),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Nothing is new, nothing is lacking, and other programs' sockets are of no concern.
    fn is_settled(&self) -> bool {
        let new = self.parts.routing.load().generation() != self.generation;
        !new && self.steered.is_idle() && self.states.values().all(|state| state.open && state.why.is_none())
    }

    fn reconcile(&mut self) {
        self.generation = self.parts.routing.load().generation();
        let wanted = self.wanted();
        let plan = plan(wanted.keys(), self.steered.why_not(&self.parts.steer));
        self.close_unwanted(&plan);
        self.sockets.look();
        let mut taken = None;
        for (spot, expected) in &wanted {
            let state = match plan.get(spot) {
                Some(Plan::Bind) => self.bind(spot, expected, &mut taken),
                Some(Plan::Handed(name)) => self.take_over(spot, name, expected),
                Some(Plan::Refused(why)) => SpotState { how: How::Bind, open: false, why: Some(why.clone()) },
                // All at once, below.
                Some(Plan::Steer) | None => continue,
            };
            self.note(spot, state);
        }
        self.steer(&wanted, &plan);
        self.publish(&wanted);
    }

    /// What is expected where: a spot that both name is the database's.
    fn wanted(&self) -> BTreeMap<Spot, Endpoints> {
        let snapshot = self.parts.routing.snapshot();
        let mut wanted: BTreeMap<Spot, Endpoints> = BTreeMap::new();
        for endpoint in self.parts.settings.iter().chain(snapshot.endpoints().iter()) {
            wanted.entry(endpoint.spot.clone()).or_default().put(Arc::clone(endpoint));
        }
        wanted
    }

    fn close_unwanted(&mut self, plan: &HashMap<Spot, Plan>) {
        self.open.retain(|spot, open| match plan.get(spot) {
            Some(Plan::Bind | Plan::Handed(_)) => true,
            _ => {
                // The workers serve who is in the queues, and close the sockets.
                open.close();
                self.parts.events.emit(EventKind::ListenerClosed, Subject::listener(spot), "no longer configured");
                false
            }
        });
        self.states.retain(|spot, _| plan.contains_key(spot));
    }

    /// `taken` is made when something has to be opened, once for all spots: mostly nothing has.
    fn bind(&mut self, spot: &Spot, expected: &Endpoints, taken: &mut Option<Taken>) -> SpotState {
        let open = self.open.entry(spot.clone()).or_insert_with(|| Open::new(Endpoints::default()));
        open.door.expect(expected.clone());
        let Some(place) = spot.place() else { return open.state(How::Bind) };
        let missing: Vec<SocketAddr> = place.addresses().filter(|addr| !open.bound.contains(addr)).collect();
        if missing.is_empty() {
            open.why = None;
            return open.state(How::Bind);
        }
        let taken = match taken {
            Some(taken) => taken,
            None => taken.insert(Taken::new(&self.sockets, self.open.values().flat_map(|open| &open.bound).copied())),
        };
        self.bind_missing(spot, place, missing, taken)
    }

    fn bind_missing(&mut self, spot: &Spot, place: &Place, missing: Vec<SocketAddr>, taken: &mut Taken) -> SpotState {
        let Some(open) = self.open.get_mut(spot) else { return SpotState { how: How::Bind, open: false, why: None } };
        let workers = self.parts.workers.len();
        let single = place.socket_addr();
        let mut failed = Vec::new();
        for addr in missing {
            let manner = Manner {
                // Of many addresses each gets one socket, so that descriptors suffice.
                count: if single.is_some() { workers } else { 1 },
                backlog: self.parts.backlog,
                own_overlap: taken.by_us_alone(addr),
                free: place.prefix.prefix_len() > 0 && place.prefix.prefix_len() < place.prefix.max_prefix_len(),
            };
            match super::bind::open(addr, manner) {
                Ok(listeners) => {
                    open.bound.insert(addr);
                    taken.add_own(addr);
                    let address = Some(addr).filter(|addr| !addr.ip().is_unspecified());
                    let jobs = listeners.into_iter().map(|listener| open.job(listener, address));
                    hand_out(jobs, &self.parts.workers, &mut self.turn, &mut self.sockets);
                }
                Err(why) => failed.push(why),
            }
        }
        open.why = failed.first().map(|why: &ListenError| match single {
            Some(_) => why.to_string(),
            None => format!("{} of {} sockets could not be opened: {why}", failed.len(), place.count()),
        });
        open.state(How::Bind)
    }

    fn take_over(&mut self, spot: &Spot, name: &SocketName, expected: &Endpoints) -> SpotState {
        if let Some(open) = self.open.get(spot) {
            open.door.expect(expected.clone());
            return open.state(How::Fd);
        }
        let mut open = Open::handed(name.clone(), expected.clone());
        let sockets: Vec<_> = self.parts.handed.named(name).collect();
        if sockets.is_empty() {
            let names: Vec<_> = self.parts.handed.names().into_iter().map(SocketName::as_str).collect();
            let have = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let why = format!("the service manager has handed over no socket named {name} (there: {have})");
            return SpotState { how: How::Fd, open: false, why: Some(why) };
        }
        for socket in sockets {
            let Ok(addr) = socket.local_addr() else { continue };
            let address = Some(addr).filter(|addr| !addr.ip().is_unspecified());
            // One queue for all workers: who accepts first has the client.
            let copies = self.parts.workers.iter().filter_map(|_| socket.try_clone().ok());
            let jobs: Vec<_> = copies.map(|listener| open.job(listener, address)).collect();
            hand_out(jobs.into_iter(), &self.parts.workers, &mut self.turn, &mut self.sockets);
            open.bound.insert(addr);
        }
        let state = open.state(How::Fd);
        self.open.insert(spot.clone(), open);
        state
    }

    fn steer(&mut self, wanted: &BTreeMap<Spot, Endpoints>, plan: &HashMap<Spot, Plan>) {
        let is = |spot: &Spot| matches!(plan.get(spot), Some(Plan::Steer));
        let (steered, bound): (Vec<_>, Vec<_>) = wanted.iter().partition(|(spot, _)| is(spot));
        if let Steer::Loading = self.parts.steer {
            // A moment's matter, and no event.
            let why = "the BPF programs are being loaded";
            let state = SpotState { how: How::SkLookup, open: false, why: Some(why.to_owned()) };
            return self.states.extend(steered.into_iter().map(|(spot, _)| (spot.clone(), state.clone())));
        }
        let foreign = match self.sockets.foreign() {
            Ok(foreign) => foreign,
            // Their clients would be taken from other programs.
            Err(why) => {
                let state = SpotState { how: How::SkLookup, open: false, why: Some(why.to_owned()) };
                return steered.into_iter().for_each(|(spot, _)| self.note(spot, state.clone()));
            }
        };
        let foreign: Vec<SocketAddr> = foreign.into_iter().chain(self.parts.handed.addresses()).collect();
        let bound = bound.into_iter().filter_map(|(spot, _)| spot.place().copied()).collect();
        let jobs = self.steered.reconcile(&mut self.parts, &steered, bound, &foreign);
        hand_out(jobs.into_iter(), &self.parts.workers, &mut self.turn, &mut self.sockets);
        for (spot, _) in steered {
            let why = self.steered.failure(spot);
            self.note(spot, SpotState { how: How::SkLookup, open: why.is_none(), why });
        }
    }

    /// Tells of what has changed.
    fn note(&mut self, spot: &Spot, state: SpotState) {
        let known = self.states.insert(spot.clone(), state.clone());
        if known.as_ref() == Some(&state) {
            return;
        }
        match (&state.why, state.open) {
            (Some(why), _) => {
                // Without an address of the settings the daemon does not even start.
                let again = if self.started || !self.is_vital(spot) { "; it is tried again" } else { "" };
                let reason = format!("{why}{again}");
                self.parts.events.emit(EventKind::ListenerFailed, Subject::listener(spot), reason);
            }
            (None, true) if self.started => {
                let reason = format!("accepts connections ({})", state.how.as_str());
                self.parts.events.emit(EventKind::ListenerOpened, Subject::listener(spot), reason);
            }
            _ => {}
        }
    }

    fn publish(&self, wanted: &BTreeMap<Spot, Endpoints>) {
        let known = self.states.iter().filter(|(spot, _)| wanted.contains_key(spot));
        let states = known.map(|(spot, state)| (spot.clone(), state.clone())).collect();
        self.parts.listening.set(states, self.steered.status(&self.parts.steer));
    }

    /// A socket that nobody asks for: its clients would wait for ever.
    fn tell_unused(&self) {
        let snapshot = self.parts.routing.snapshot();
        for name in self.parts.handed.names() {
            if self.parts.settings.handed(name).is_none() && snapshot.endpoints().handed(name).is_none() {
                tracing::warn!(%name, "the service manager hands over a socket that no listener names (fd:{name})");
            }
        }
    }
}

/// Gives sockets to the workers in turn.
fn hand_out(jobs: impl Iterator<Item = Job>, workers: &[Sender<Job>], turn: &mut usize, sockets: &mut HostSockets) {
    for job in jobs {
        inode(&job.listener).into_iter().for_each(|inode| sockets.add_own(inode));
        *turn = turn.wrapping_add(1);
        if let Some(worker) = workers.get(*turn % workers.len().max(1)) {
            // A worker ends only with the daemon.
            let _ = worker.blocking_send(job);
        }
    }
}

fn inode(socket: &TcpListener) -> Option<u64> {
    rustix::fs::fstat(socket.as_fd()).ok().map(|stat| stat.st_ino)
}
