//! Listeners of the database, and the apps that they lead to.

use serde_json::Value;
use xtask::lab::Daemon;
use xtask::load::{Manner, NamedBackend};

use super::World;

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
