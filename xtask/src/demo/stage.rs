//! The parts of the demo: backends in three regions, the daemon, and clients from five countries.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tempfile::TempDir;

use crate::lab::{
    BRAZIL, Config, Country, Daemon, GERMANY, JAPAN, Lab, Ns, Record, SOUTH_AFRICA, Status, UNITED_STATES, daemon,
};
use crate::load::{Behaviour, Checked, CheckedBackend, Ledger, Scenario};
use crate::process;

/// Region of the POP.
pub(super) const POP_REGION: &str = "sa";
/// Name and region of each backend, and its weight.
const BACKENDS: [(&str, &str, u32); 6] = [
    ("sao-1", "sa", 2),
    ("sao-2", "sa", 1),
    ("fra-1", "eu", 1),
    ("fra-2", "eu", 1),
    ("iad-1", "us", 1),
    ("iad-2", "us", 1),
];
/// Where clients of each country belong, and why: Japan's own region has no backend, so the POP's is next.
const CAST: [(Country, &str, &str); 5] = [
    (BRAZIL, "sa", "client_region"),
    (GERMANY, "eu", "client_region"),
    (UNITED_STATES, "us", "client_region"),
    (JAPAN, "sa", "pop_region"),
    (SOUTH_AFRICA, "eu", "client_region"),
];
/// What the clients of each country do, and how many bytes each way: a lively conversation, which `auto` gives to the kernel
/// path, and a transfer, which it splices.
const ACTS: [(Behaviour, u64, u64); 2] = [(Behaviour::Chat, 1 << 20, 2 << 20), (Behaviour::Duplex, 4 << 20, 8 << 20)];
/// How long the daemon may take to write what it knows.
const SOON: Duration = Duration::from_secs(5);

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Stage {
    // Fields are dropped in this order: the daemon before what it talks to.
    daemon: Daemon,
    _backends: Vec<CheckedBackend>,
    ledger: Ledger,
    lab: Lab,
    _directory: TempDir,
}

/// One connection and all that is known about it.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) country: Country,
    pub(super) expected_region: &'static str,
    pub(super) expected_why: &'static str,
    /// As client and backend saw it.
    pub(super) checked: Checked,
    /// As the daemon recorded it.
    pub(super) record: Record,
    /// Processor time the daemon used meanwhile.
    pub(super) cpu: Duration,
}

impl Stage {
    pub(super) fn set(binary: &Path, lab: Lab) -> Result<Self> {
        let (directory, ledger) = (TempDir::new()?, Ledger::new());
        let database = directory.path().join("routing.db");
        db(binary, &database, &["init"])?;
        let mut backends = Vec::new();
        for (n, (name, region, weight)) in (1..).zip(BACKENDS) {
            let backend =
                CheckedBackend::start(lab.namespace(Ns::Backends), name, (lab.backend(n), 0).into(), &ledger)?;
            let (addr, weight) = (backend.addr().to_string(), weight.to_string());
            let add = ["add", name, "--app", "web", "--region", region, "--addr", &addr, "--weight", &weight];
            db(binary, &database, &add)?;
            backends.push(backend);
        }
        let daemon = Daemon::start(&lab, &Config::new(binary, &database).set("region", POP_REGION))?;
        Ok(Self { daemon, _backends: backends, ledger, lab, _directory: directory })
    }

    pub(super) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Plays every act with a client of every country, one after the other, so that processor time can be told apart.
    pub(super) fn play(&self) -> Result<Vec<Scene>> {
        let mut scenes = Vec::new();
        for (country, region, why) in CAST {
            for (host, act) in (1..).zip(ACTS) {
                super::go_on()?;
                let (checked, record, cpu) = self.act(scenes.len() as u64, country, host, act)?;
                scenes.push(Scene { country, expected_region: region, expected_why: why, checked, record, cpu });
            }
        }
        Ok(scenes)
    }

    fn act(
        &self,
        id: u64,
        country: Country,
        host: u8,
        (behaviour, up, down): (Behaviour, u64, u64),
    ) -> Result<(Checked, Record, Duration)> {
        let scenario = Scenario { id, behaviour, up, down, seed: id };
        let (from, to): (_, SocketAddr) = (self.lab.client_of(country, host), self.daemon.addr());
        let before = self.daemon.cpu();
        let checked = self.lab.run_in(Ns::Clients, || Checked::run(scenario, from, to, None, &self.ledger));
        let client = checked.client_addr.ok_or_else(|| anyhow!("{:?}", checked.fault()))?;
        let record = self.daemon.record_of(client, SOON);
        let record = record.with_context(|| format!("the access log has no record of {client}"))?;
        // A daemon that is gone has used none.
        Ok((checked, record, self.daemon.cpu().saturating_sub(before)))
    }

    /// Bytes of connections that the BPF maps count as forwarded in the kernel.
    pub(super) fn kernel_bytes(status: &Status) -> u64 {
        status.number("/forwarder/kernel_bytes")
    }

    /// The daemon's status once all connections have ended.
    pub(super) fn status_at_rest(&self) -> Result<Status> {
        // The kernel's bytes are read first: without flows they are those of all connections.
        self.daemon.wait_status(SOON, |s| s.active() == 0 && s.number("/forwarder/flows_in_kernel") == 0)
    }
}

/// Runs `edgeproxy db …`, as an operator would.
fn db(binary: &Path, database: &Path, arguments: &[&str]) -> Result<()> {
    process::output(daemon::edgeproxy(binary, database).arg("db").args(arguments)).map(|_| ())
}
