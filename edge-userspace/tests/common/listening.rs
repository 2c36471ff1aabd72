//! Listeners of the database, and the apps that they lead to.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use xtask::lab::{Daemon, Ns};
use xtask::load::{Manner, NamedBackend, connect_from};

use super::{SOON, World};

/// Adds or changes a row of `listeners`; address, port and last port as in SQL.
pub fn listen(world: &World, id: &str, app: &str, place: &str) {
    world.database.execute(&format!(
        "INSERT OR REPLACE INTO listeners (id, app, address, port, last_port) VALUES ('{id}', '{app}', {place})"
    ));
}

pub fn unlisten(world: &World, id: &str) {
    world.database.execute(&format!("UPDATE listeners SET deleted = 1 WHERE id = '{id}'"));
}

/// Backend `b<n>` of an app of its own, `app<n>`.
pub fn app(world: &World, n: u8) -> NamedBackend {
    let backend = world.backend(n, Manner::Echo, |row| row);
    world.database.execute(&format!("UPDATE backends SET app = 'app{n}' WHERE id = 'b{n}'"));
    backend
}

/// The status of one listener.
pub fn listener(daemon: &Daemon, id: &str) -> Value {
    let status = daemon.status().unwrap();
    let all = status.0["listeners"].as_array().unwrap().clone();
    all.into_iter().find(|listener| listener["id"] == id).unwrap_or(Value::Null)
}

/// Clients whom the kernel has connected, be they accepted or not.
pub fn connected(world: &World, count: u16, to: SocketAddr) -> Vec<TcpStream> {
    world.lab.run_in(Ns::Clients, || (0..count).map(|n| connect_from(world.lab.client(n), to).unwrap()).collect())
}

/// How many of them hear from backend `b1`.
pub fn served(clients: Vec<TcpStream>) -> usize {
    let hears = |mut client: TcpStream| {
        let mut heard = [0; 3];
        client.set_read_timeout(Some(SOON)).unwrap();
        client.read_exact(&mut heard).is_ok_and(|()| &heard == b"b1\n")
    };
    clients.into_iter().filter_map(|client| hears(client).then_some(())).count()
}
