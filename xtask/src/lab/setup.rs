//! Links, addresses and routes of the three namespaces, made with `ip -batch`.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::address::{Link, TO_BACKENDS, TO_CLIENTS, backend_prefixes, client_prefixes};
use super::{Lab, Namespace, Ns};

/// Names of the POP's interfaces; the other end of each link is called `pop`.
const CLIENTS: &str = "clients";
const BACKENDS: &str = "backends";
const POP: &str = "pop";

pub(super) fn interfaces(place: Ns) -> &'static [&'static str] {
    match place {
        Ns::Pop => &[CLIENTS, BACKENDS],
        Ns::Clients | Ns::Backends => &[POP],
    }
}

pub(super) fn links(lab: &Lab) -> io::Result<()> {
    let pop = lab.namespace(Ns::Pop);
    let ends = [
        (lab.namespace(Ns::Clients), CLIENTS, TO_CLIENTS, client_prefixes()),
        (lab.namespace(Ns::Backends), BACKENDS, TO_BACKENDS, backend_prefixes()),
    ];
    ip(pop, "link set lo up")?;
    for (far, name, link, prefixes) in ends {
        let (near_mac, far_mac, path) = (link.mac[0], link.mac[1], far.path());
        ip(
            pop,
            &format!("link add {name} address {near_mac} type veth peer name {POP} address {far_mac} netns {path}"),
        )?;
        ip(pop, &end(name, &link, 0))?;
        ip(far, &(end(POP, &link, 1) + &own(&prefixes)))?;
        // Routes last: an IPv6 gateway is accepted only once its link is up at both ends.
        ip(pop, &via(&prefixes, &link, 1, name))?;
        ip(far, &via(&["0.0.0.0/0".to_owned(), "::/0".to_owned()], &link, 0, POP))?;
        allow_any_source(far)?;
    }
    Ok(())
}

/// One end of a link, up, with its addresses and its neighbour.
fn end(dev: &str, link: &Link, which: usize) -> String {
    let other = 1 - which;
    format!(
        "addr add {}/30 dev {dev}\naddr add {}/64 dev {dev} nodad\nlink set {dev} up\n\
         neigh add {} lladdr {mac} dev {dev} nud permanent\nneigh add {} lladdr {mac} dev {dev} nud permanent\n",
        link.v4[which],
        link.v6[which],
        link.v4[other],
        link.v6[other],
        mac = link.mac[other],
    )
}

/// Whole prefixes that a namespace counts as its own.
fn own(prefixes: &[String]) -> String {
    let routes = prefixes.iter().map(|prefix| format!("route add local {prefix} dev lo\n"));
    "link set lo up\n".to_owned() + &routes.collect::<String>()
}

/// Routes to `prefixes` by way of one end of a link.
fn via(prefixes: &[String], link: &Link, end: usize, dev: &str) -> String {
    let route = |prefix: &String| {
        let gateway = if prefix.contains(':') { link.v6[end] } else { link.v4[end] };
        format!("route add {prefix} via {gateway} dev {dev}\n")
    };
    prefixes.iter().map(route).collect()
}

/// Lets sockets bind to IPv6 addresses that are local by route only; IPv4 allows it anyway.
fn allow_any_source(namespace: &Namespace) -> io::Result<()> {
    namespace.run(|| fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1"))
}

/// Runs lines of `ip -batch` inside a namespace.
pub(super) fn ip(namespace: &Namespace, script: &str) -> io::Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = namespace.place(&mut command).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes())?;
        input.write_all(b"\n")?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("`ip -batch` failed: {}\n{script}", said.trim())))
}
