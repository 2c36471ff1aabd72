//! One cell: starts a candidate, loads it, measures a window of that, and ends everything again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::candidate::{Candidate, Running};
use super::carried::{Carried, Snapshot};
use super::generate::{Backend, Client, Control, Counts, Outcome};
use super::interrupt;
use super::place::Place;
use super::procfs::{self, Machine, Memory, Processes};
use super::sample::{Metric, Sample, Unit};
use super::workload::{Shape, Workload};
use crate::lab::Ns;

/// How long it may take until all connections stand.
const SETUP: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(2);
/// Until memory that was given back has been given back, and queues that fill have filled.
const SETTLE: Duration = Duration::from_millis(700);
/// Proxies may keep what was freed for a while, in case it is wanted again.
const GIVE_BACK: Duration = Duration::from_secs(2);
const GIGA: f64 = 1e9;

/// How long things take in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) warm_up: Duration,
    pub(super) window: Duration,
    /// The window of workloads at a fixed rate, which can't be hurried.
    pub(super) fixed_rate: Duration,
}

/// One candidate with one workload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) place: &'a Place,
    pub(super) workload: &'a Workload,
    pub(super) candidate: Candidate,
    /// Bytes a second for each stream; 0 for no limit.
    pub(super) pace: u64,
    pub(super) times: Times,
}

/// What was measured, before it is divided by the work.
#[derive(Debug, Default)]
struct Measured {
    values: BTreeMap<Metric, f64>,
    noise: f64,
    /// What our daemon had counted before the window and after it.
    window: Option<[Snapshot; 2]>,
    carried: Option<Carried>,
}

impl Cell<'_> {
    /// Never fails: what went wrong is in the sample.
    pub(super) fn run(&self, round: u32) -> Sample {
        let (measured, faults, words) = match self.measure() {
            Ok((measured, faults, words)) => (measured, faults, words),
            Err(error) => (Measured::default(), 1, vec![format!("{error:#}")]),
        };
        let Measured { values, noise, carried, .. } = measured;
        let (workload, candidate) = (self.workload.name, self.candidate.name());
        Sample { workload, candidate, round, values, carried, noise, faults, words }
    }

    fn measure(&self) -> Result<(Measured, u64, Vec<String>)> {
        let control = Arc::new(Control::new(!matches!(self.workload.shape, Shape::SlowReader { .. })));
        let lab = self.place.lab();
        let backend = Backend::start(lab.namespace(Ns::Backends), self.place.backend(), &control).context("backend")?;
        let measured = self.with_backend(&control);
        control.end();
        backend.join().context("backend")?;
        let (running, measured) = measured?;
        let (mut faults, mut words) = control.faults();
        let objection = measured.carried.as_ref().and_then(|it| it.objection(self.candidate, self.workload.shape));
        let unspliced = running.unspliced(self.candidate, self.workload.shape)?;
        for complaint in running.complaint().into_iter().chain(objection).chain(unspliced) {
            faults += 1;
            words.push(complaint);
        }
        Ok((measured, faults, words))
    }

    fn with_backend(&self, control: &Arc<Control>) -> Result<(Running, Measured)> {
        let running = self.candidate.start(self.place)?;
        let processes = running.pid().map(Processes::of);
        let before = self.workload.shape.is_memory().then(|| Footprint::settled(processes.as_ref())).transpose()?;
        let namespace = self.place.lab().namespace(Ns::Clients);
        let client = Client::start(namespace, self.workload.shape, running.addr, self.pace, control);
        let measured = self.wait_for_connections(&client, control).and_then(|()| match before {
            Some(before) => self.memory(processes.as_ref(), &before),
            None => self.work(&running, processes.as_ref(), control),
        });
        control.stop();
        let outcome = client.join().context("clients")?;
        let mut measured = measured?;
        add_latency(&mut measured, &outcome);
        if let Some(before) = before {
            interrupt::sleep(GIVE_BACK)?;
            let after = Footprint::settled(processes.as_ref())?;
            measured.values.insert(Metric::UserBefore, before.proxy as f64);
            measured.values.insert(Metric::UserAfter, after.proxy as f64);
        }
        if let Some(daemon) = running.daemon() {
            let end = Snapshot::at_the_end(daemon)?;
            let [before, after] = measured.window.take().unwrap_or_else(|| [Snapshot::default(), end.clone()]);
            measured.carried = Some(Carried::between(&before, &after, &end));
        }
        Ok((running, measured))
    }

    fn wait_for_connections(&self, client: &Client, control: &Control) -> Result<()> {
        let (deadline, wanted) = (Instant::now() + SETUP, self.workload.shape.connections());
        while control.established() < wanted {
            if client.is_finished() {
                bail!("the clients ended at once");
            }
            if Instant::now() > deadline {
                bail!("only {} of {wanted} connections were through after {SETUP:?}", control.established());
            }
            interrupt::sleep(STEP)?;
        }
        Ok(())
    }

    fn work(&self, running: &Running, processes: Option<&Processes>, control: &Control) -> Result<Measured> {
        interrupt::sleep(self.times.warm_up)?;
        let window = match self.workload.shape {
            Shape::Open { .. } => self.times.fixed_rate,
            _ => self.times.window,
        };
        let proxy = || processes.map(Processes::cpu).unwrap_or_default();
        let snapshot = || running.daemon().map(Snapshot::of).transpose();
        let before = snapshot()?;
        let (foreign, proxy_before, machine) = (procfs::foreign(), proxy(), Machine::now()?);
        control.record(true);
        let (began, counts) = (Instant::now(), control.counts());
        interrupt::sleep(window)?;
        let (done, took) = (control.counts().since(counts), began.elapsed());
        control.record(false);
        let machine_after = Machine::now()?;
        let proxy_time = proxy().saturating_sub(proxy_before);
        let foreign = procfs::foreign().saturating_sub(foreign);
        let after = snapshot()?;
        let busy = machine_after.busy_since(&machine);
        let capacity = took.as_secs_f64() * f64::from(machine.processors());
        let own = busy.saturating_sub(foreign);
        let (work, scale) = match Unit::of(self.workload.shape) {
            // Seconds for a byte are to become milliseconds for a GB; seconds for a request microseconds.
            Unit::Byte => (done.bytes as f64, GIGA * 1e3),
            _ => (done.units as f64, 1e6),
        };
        if work == 0.0 {
            return Err(anyhow!("nothing was done within {window:?}"));
        }
        let values = BTreeMap::from([
            (Metric::Rate, work / took.as_secs_f64()),
            (Metric::CpuSystem, own.as_secs_f64() / work * scale),
            (Metric::CpuProxy, proxy_time.as_secs_f64() / work * scale),
            (Metric::Busy, busy.as_secs_f64() / capacity),
        ]);
        let window = before.zip(after).map(|(before, after)| [before, after]);
        Ok(Measured { values, noise: foreign.as_secs_f64() / capacity, window, carried: None })
    }

    fn memory(&self, processes: Option<&Processes>, before: &Footprint) -> Result<Measured> {
        let with = Footprint::settled(processes)?;
        let each = |bytes: f64| bytes / self.workload.shape.connections() as f64;
        let more = |now: u64, then: u64| now as f64 - then as f64;
        let (proxy, own) = (more(with.proxy, before.proxy), more(with.own, before.own));
        let taken = more(before.machine.available, with.machine.available);
        let values = BTreeMap::from([
            (Metric::UserMemory, each(proxy)),
            (Metric::KernelMemory, each(taken - proxy - own)),
            (Metric::Slab, each(more(with.machine.slab, before.machine.slab))),
        ]);
        Ok(Measured { values, ..Measured::default() })
    }
}

impl Counts {
    fn since(self, earlier: Self) -> Self {
        Self { units: self.units - earlier.units, bytes: self.bytes - earlier.bytes }
    }
}

fn add_latency(measured: &mut Measured, outcome: &Outcome) {
    if outcome.latency.is_empty() {
        return;
    }
    for (metric, share) in [(Metric::P50, 0.5), (Metric::P99, 0.99), (Metric::P999, 0.999)] {
        measured.values.insert(metric, outcome.latency.value_at_quantile(share) as f64 / 1e3);
    }
}

/// Memory at a moment.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    machine: Memory,
    proxy: u64,
    /// Of this process, whose clients and backend need some, too.
    own: u64,
}

impl Footprint {
    fn settled(processes: Option<&Processes>) -> Result<Self> {
        thread::sleep(SETTLE);
        let own = Processes::of(std::process::id());
        let all = own.memory();
        let proxy = processes.map(Processes::memory).unwrap_or_default();
        Ok(Self { machine: Memory::now()?, proxy, own: all.saturating_sub(proxy) })
    }
}
