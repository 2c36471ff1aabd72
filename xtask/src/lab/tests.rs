//! The lab itself: addresses, isolation, silence and loss.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use super::requirements::{Need, require};
use super::*;
use crate::load::{Behaviour, CheckedBackend, Ledger, Load, Manner, NamedBackend, Visit, connect_from};

const PORT: u16 = 7000;

#[test]
fn any_client_address_reaches_the_pop() {
    let Some(_met) = require(&[Need::Root, Need::Namespaces], "any_client_address_reaches_the_pop") else { return };
    let lab = Lab::new().unwrap();
    let server = |addr: IpAddr| {
        let pop = lab.namespace(Ns::Pop);
        NamedBackend::start(pop, "pop", (addr, PORT).into(), Manner::Close).unwrap()
    };
    let (_v4, _v6) = (server(lab.pop()), server(lab.pop_v6()));
    let mut clients = vec![(lab.client(0), lab.pop()), (lab.client(65_000), lab.pop())];
    clients.extend(COUNTRIES.iter().map(|country| (lab.client_of(*country, 9), lab.pop())));
    clients.extend(COUNTRIES.iter().map(|country| (country.v6(9), lab.pop_v6())));
    clients.push((lab.client_v6(3_000), lab.pop_v6()));
    lab.run_in(Ns::Clients, || {
        for (from, to) in clients {
            let visit = Visit::start(from, (to, PORT).into()).unwrap();
            assert_eq!((visit.backend.as_str(), visit.local.ip()), ("pop", from));
        }
    });
}

#[test]
fn the_pop_reaches_backends_and_nobody_else_does() {
    let name = "the_pop_reaches_backends_and_nobody_else_does";
    let Some(_met) = require(&[Need::Root, Need::Namespaces], name) else { return };
    let lab = Lab::new().unwrap();
    let everywhere: SocketAddr = ([0, 0, 0, 0], PORT).into();
    let _backend = NamedBackend::start(lab.namespace(Ns::Backends), "b", everywhere, Manner::Close).unwrap();
    let to = (lab.backend(7), PORT).into();
    lab.run_in(Ns::Pop, || connect_from([0, 0, 0, 0].into(), to).unwrap());
    assert!(lab.run_in(Ns::Clients, || {
        let started = Instant::now();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let answer = socket.connect_timeout(&to.into(), Duration::from_millis(300));
        answer.is_err() && started.elapsed() < Duration::from_secs(2)
    }));
}

#[test]
fn a_muted_backend_answers_once_it_is_unmuted() {
    let name = "a_muted_backend_answers_once_it_is_unmuted";
    let Some(_met) = require(&[Need::Root, Need::Namespaces], name) else { return };
    let lab = Lab::new().unwrap();
    let everywhere: SocketAddr = ([0, 0, 0, 0], PORT).into();
    let _backend = NamedBackend::start(lab.namespace(Ns::Backends), "b", everywhere, Manner::Close).unwrap();
    let to = SocketAddr::from((lab.backend(1), PORT));
    lab.mute(to.ip()).unwrap();
    let started = Instant::now();
    let visit = lab.thread_in(Ns::Pop, move || Visit::start([0, 0, 0, 0].into(), to).map(|visit| visit.backend));
    std::thread::sleep(Duration::from_millis(300));
    lab.unmute(to.ip()).unwrap();
    assert_eq!(visit.join().unwrap().unwrap(), "b");
    assert!(started.elapsed() > Duration::from_millis(900), "the first SYN was answered");
}

#[test]
fn commands_and_threads_run_in_their_place() {
    let Some(_met) = require(&[Need::Root, Need::Namespaces], "commands_and_threads_run_in_their_place") else {
        return;
    };
    let lab = Lab::new().unwrap();
    let listener = lab.thread_in(Ns::Pop, || TcpListener::bind(("10.63.0.1", PORT))).join().unwrap().unwrap();
    let links = lab.command_in(Ns::Backends, Command::new("ip").args(["-brief", "link"])).output().unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(links.contains("pop") && links.lines().count() == 2, "{links}");
    let mut client = lab.run_in(Ns::Clients, || connect_from(lab.client(1), (lab.pop(), PORT).into())).unwrap();
    client.write_all(b"x").unwrap();
    listener.accept().unwrap().0.read_exact(&mut [0]).unwrap();
}

#[test]
fn loss_slows_down_but_damages_nothing() {
    let name = "loss_slows_down_but_damages_nothing";
    let Some(_met) = require(&[Need::Root, Need::Namespaces, Need::Bpf], name) else { return };
    let (lab, ledger) = (Lab::new().unwrap(), Ledger::new());
    let to = SocketAddr::from((lab.pop(), PORT));
    let _backend = CheckedBackend::start(lab.namespace(Ns::Pop), "pop", to, &ledger).unwrap();
    let _loss = lab.lose(Ns::Clients, Where::OnTheWay, 50).unwrap();
    let behaviours = vec![Behaviour::Duplex, Behaviour::PingPong, Behaviour::ClientCloses, Behaviour::SlowClient];
    let load = Load { at_once: 26, behaviours, ..Load::mixed(120, 5) };
    let report = load.run(lab.namespace(Ns::Clients), &ledger, |id| (lab.client(id as u16), to));
    report.assert_clean();
    assert!(retransmitted(&lab) > 5, "{} segments retransmitted", retransmitted(&lab));
}

/// Segments the POP sent again.
fn retransmitted(lab: &Lab) -> u64 {
    let snmp = lab.run_in(Ns::Pop, || std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(|line| line.split(' '));
    let mut fields = tcp.next().unwrap().zip(tcp.next().unwrap());
    fields.find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
}
