//! Backends that verify every byte, the daemon in front of them, and what must hold afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use xtask::lab::requirements::Need;
use xtask::lab::{Daemon, Lab, Ns, Record, memory_available};
use xtask::load::{Behaviour, Checked, CheckedBackend, Ledger, Load, LoadReport};

use super::{PORT, Row, SOON, World};

/// By how many bytes MemAvailable fell at most while `work` ran.
pub fn memory_fall(work: impl FnOnce()) -> u64 {
    let (before, done) = (memory_available().unwrap(), AtomicBool::new(false));
    let least = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut least = before;
            while !done.load(Ordering::SeqCst) {
                least = least.min(memory_available().unwrap());
                thread::sleep(Duration::from_millis(20));
            }
            least
        });
        work();
        done.store(true, Ordering::SeqCst);
        watch.join().unwrap()
    });
    before - least
}

/// Two IPv4 and two IPv6 backends that verify what they get, and the daemon in front of them.
#[derive(Debug)]
pub struct Bench {
    pub world: World,
    ledger: Ledger,
    forwarder: String,
    pub daemon: Daemon,
    _backends: Vec<CheckedBackend>,
}

impl Bench {
    pub fn new(forwarder: &str, needs: &[Need], test: &str, settings: &[(&str, &str)]) -> Option<Self> {
        Some(Self::of(World::new(needs, test)?, forwarder, |world| {
            world.daemon(&[&[("forwarder", forwarder)], settings].concat())
        }))
    }

    /// With a daemon of another kind than the ordinary one; `forwarder` is what its records must tell.
    pub fn of(world: World, forwarder: &str, start_daemon: impl FnOnce(&World) -> Daemon) -> Self {
        let ledger = Ledger::new();
        let start = |name: &str, ip: IpAddr| {
            let addr = SocketAddr::new(ip, PORT);
            world.database.add(&Row::new(name, addr));
            CheckedBackend::start(world.lab.namespace(Ns::Backends), name, addr, &ledger).unwrap()
        };
        let backends = (1..=2)
            .flat_map(|n| {
                [start(&format!("v4-{n}"), world.lab.backend(n)), start(&format!("v6-{n}"), world.lab.backend_v6(n))]
            })
            .collect();
        let daemon = start_daemon(&world);
        if forwarder == "sockmap" {
            let status = daemon.status().unwrap();
            assert_eq!(status.text("/forwarder/active"), Some("sockmap"), "{:?}", status.text("/forwarder/why"));
        }
        Self { world, ledger, forwarder: forwarder.to_owned(), daemon, _backends: backends }
    }

    /// IPv4 and IPv6 clients take turns.
    pub fn run(&self, load: &Load) -> LoadReport {
        let lab: &Lab = &self.world.lab;
        load.run(lab.namespace(Ns::Clients), &self.ledger, |id| match u16::try_from(id).unwrap() {
            n if n % 2 == 0 => (lab.client(n), self.daemon.addr()),
            n => (lab.client_v6(n), self.daemon.addr_v6()),
        })
    }

    /// Runs the load, and `meanwhile` again and again until it is done.
    pub fn run_while(&self, load: &Load, meanwhile: impl Fn(usize)) -> LoadReport {
        thread::scope(|scope| {
            let load = scope.spawn(|| self.run(load));
            // A load that hangs ends by its own time limits.
            (0..).take_while(|_| !load.is_finished()).for_each(meanwhile);
            load.join().unwrap()
        })
    }

    /// Every byte was right and every end as it had to be; what the daemon says of those that were not is shown.
    pub fn assert_clean(&self, report: &LoadReport) {
        let failed: Vec<_> = report.connections.iter().filter(|checked| checked.fault().is_some()).collect();
        for client in failed.iter().take(5).filter_map(|checked| checked.client_addr) {
            eprintln!("{client}: {:?}", self.daemon.record_of(client, SOON));
        }
        if !report.faults().is_empty() {
            eprintln!("{}", self.daemon.messages());
        }
        report.assert_clean();
    }

    /// No connection is left, in the daemon's eyes and in the kernel's. The kernel may take longer: where packets are
    /// lost, a socket that the daemon has closed waits for the acknowledgement of its FIN.
    pub fn assert_at_rest(&self) {
        let counts = |status: &xtask::lab::Status| {
            let backends = status.backends();
            let left = backends.iter().map(|(_, connections, kernel)| connections + kernel.unwrap_or(0)).sum::<u64>();
            left + status.active() + status.number("/forwarder/flows_in_kernel")
        };
        let status = self.daemon.wait_status(SOON, |status| counts(status) == 0).unwrap();
        assert_eq!(counts(&status), 0, "connections are left:\n{:#}", status.0);
        assert_eq!(status.number("/forwarder/byte_mismatches"), 0, "{:#}", status.0);
    }

    /// The access log tells the bytes that clients and backends counted, and who forwarded them.
    pub fn assert_log_agrees(&self, report: &LoadReport) {
        let expected = report.connections.len();
        let records = self.daemon.access_log(SOON, |records| records.len() >= expected);
        assert_eq!(records.len(), expected);
        let by_client: HashMap<SocketAddr, &Record> = records.iter().map(|record| (record.client(), record)).collect();
        for checked in &report.connections {
            let client = checked.client_addr.unwrap();
            agree(checked, by_client.get(&client).unwrap_or_else(|| panic!("no access record of {client}")));
        }
        let kernel: u64 = records.iter().map(|record| record.kernel_up + record.kernel_down).sum();
        match self.forwarder.as_str() {
            "copy" => assert_eq!(kernel, 0),
            "splice" => assert!(kernel > 0, "nothing was spliced"),
            "sockmap" | "sk_msg" => assert!(kernel > 0, "the kernel forwarded nothing"),
            // `auto` is seen by `assert_auto_chose`: while an operator switches there is no telling.
            "auto" | "chaos" => {}
            other => panic!("nothing is known of {other}"),
        }
    }

    /// Of connections that may fail at any moment: those that were recorded as ended by a reset were cut short or whole,
    /// with every byte right so far; all others were whole.
    pub fn assert_cut_or_whole(&self, report: &LoadReport) {
        let expected = report.connections.len();
        let records = self.daemon.access_log(SOON, |records| records.len() >= expected);
        let by_client: HashMap<SocketAddr, &Record> = records.iter().map(|record| (record.client(), record)).collect();
        let mut cut = 0;
        for checked in &report.connections {
            // One that was cut before it could say what it is has no address.
            let Some(client) = checked.client_addr else {
                assert!(checked.client.fault.as_ref().is_some_and(|fault| fault.contains("reset")), "{checked:?}");
                continue;
            };
            let record = by_client.get(&client).unwrap_or_else(|| panic!("no access record of {client}"));
            if record.termination == "--" {
                assert_eq!(checked.fault(), None, "{record:?}");
                agree(checked, record);
            } else {
                assert!(["CD", "SD"].contains(&record.termination.as_str()), "{record:?}");
                let of_backend = checked.backend.as_ref().and_then(|report| report.end.fault.as_ref());
                for fault in [checked.client.fault.as_ref(), of_backend].into_iter().flatten() {
                    assert!(fault.starts_with("reset: "), "{fault}: {record:?}");
                }
                cut += 1;
            }
        }
        eprintln!("{cut} of {expected} connections were cut");
        assert!(cut > 0 && cut < expected, "{cut} of {expected} were cut");
        // Likewise at the backend.
        assert!(report.strays.iter().all(|stray| stray.contains("of header: Connection reset")), "{:?}", report.strays);
    }

    /// `auto` gave some connections to the kernel, which forwarded bytes of theirs, and spliced others.
    pub fn assert_auto_chose(&self) {
        let records = self.daemon.access_log(Duration::ZERO, |_| true);
        let carried =
            |record: &&Record, forwarder: &str| record.forwarders.iter().any(|step| step.forwarder == forwarder);
        let by_kernel = |record: &&Record| record.kernel_up + record.kernel_down > 0;
        // Spliced bytes are counted as the kernel's, too.
        let sockmap = records.iter().filter(|r| carried(r, "sockmap") && !carried(r, "splice") && by_kernel(r)).count();
        let spliced = records.iter().filter(|r| carried(r, "splice") && !carried(r, "sockmap") && by_kernel(r)).count();
        eprintln!("auto: {sockmap} of {} connections by the kernel path, {spliced} spliced", records.len());
        assert!(sockmap > 0, "nothing was given to the kernel");
        assert!(spliced > 0, "nothing was spliced");
    }
}

fn agree(checked: &Checked, record: &Record) {
    let (counted, logged) = ((checked.bytes_up(), checked.bytes_down()), (record.bytes_up, record.bytes_down));
    let behaviour = checked.scenario.behaviour;
    if behaviour.is_complete() {
        assert_eq!(logged, counted, "{behaviour:?}: {record:?}");
    } else {
        // What was under way at the abort was forwarded, but not read.
        assert!(logged.0 >= counted.0 && logged.1 >= counted.1, "{behaviour:?}: counted {counted:?}, {record:?}");
    }
    assert!(record.kernel_up <= record.bytes_up && record.kernel_down <= record.bytes_down, "{record:?}");
    let reset = match behaviour {
        Behaviour::ClientResets | Behaviour::ClientAborts => "CD",
        Behaviour::BackendResets | Behaviour::BackendAborts => "SD",
        _ => "--",
    };
    assert_eq!(record.termination, reset, "{behaviour:?}: {record:?}");
}
