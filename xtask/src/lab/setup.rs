//! Links, addresses and routes of the three namespaces, made with `ip -batch`.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::address::{BACKEND_LINK, BACKEND_LINK_V6, CLIENT_LINK, CLIENT_LINK_V6, backend_prefixes, client_prefixes};
use super::{Lab, Namespace, Ns};

/// Names of the POP's interfaces; the other end of each link is called `pop`.
const TO_CLIENTS: &str = "clients";
const TO_BACKENDS: &str = "backends";
const TO_POP: &str = "pop";

pub(super) fn interfaces(place: Ns) -> &'static [&'static str] {
    match place {
        Ns::Pop => &[TO_CLIENTS, TO_BACKENDS],
        Ns::Clients | Ns::Backends => &[TO_POP],
    }
}

pub(super) fn links(lab: &Lab) -> io::Result<()> {
    let (clients, backends) = (lab.namespace(Ns::Clients), lab.namespace(Ns::Backends));
    let pop = lab.namespace(Ns::Pop);
    let mut script = String::from("link set lo up\n");
    script += &link(TO_CLIENTS, clients, CLIENT_LINK[0], CLIENT_LINK_V6[0]);
    script += &link(TO_BACKENDS, backends, BACKEND_LINK[0], BACKEND_LINK_V6[0]);
    ip(pop, &script)?;
    ip(clients, &far_end(CLIENT_LINK[1], CLIENT_LINK_V6[1], &client_prefixes()))?;
    ip(backends, &far_end(BACKEND_LINK[1], BACKEND_LINK_V6[1], &backend_prefixes()))?;
    let everything = ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    // Routes last: an IPv6 gateway is accepted only once its link is up at both ends.
    ip(clients, &via(&everything, CLIENT_LINK[0], CLIENT_LINK_V6[0], TO_POP))?;
    ip(backends, &via(&everything, BACKEND_LINK[0], BACKEND_LINK_V6[0], TO_POP))?;
    ip(pop, &via(&client_prefixes(), CLIENT_LINK[1], CLIENT_LINK_V6[1], TO_CLIENTS))?;
    ip(pop, &via(&backend_prefixes(), BACKEND_LINK[1], BACKEND_LINK_V6[1], TO_BACKENDS))?;
    allow_any_source(clients)?;
    allow_any_source(backends)
}

/// The POP's end of a link.
fn link(name: &str, far: &Namespace, v4: &str, v6: &str) -> String {
    format!(
        "link add {name} type veth peer name {TO_POP} netns {}\n\
         addr add {v4}/30 dev {name}\naddr add {v6}/64 dev {name} nodad\nlink set {name} up\n",
        far.path()
    )
}

/// The other end: its address, and whole prefixes that count as its own.
fn far_end(v4: &str, v6: &str, own: &[String]) -> String {
    let mut script = format!(
        "link set lo up\naddr add {v4}/30 dev {TO_POP}\naddr add {v6}/64 dev {TO_POP} nodad\nlink set {TO_POP} up\n"
    );
    for prefix in own {
        script += &format!("route add local {prefix} dev lo\n");
    }
    script
}

/// Routes to `prefixes` over one link.
fn via(prefixes: &[String], v4: &str, v6: &str, dev: &str) -> String {
    prefixes
        .iter()
        .map(|prefix| {
            let gateway = if prefix.contains(':') { v6 } else { v4 };
            format!("route add {prefix} via {gateway} dev {dev}\n")
        })
        .collect()
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
