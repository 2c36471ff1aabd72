//! `edgeproxy db …`: makes and edits the routing database. Every change is validated by the code that loads the table
//! and written in one transaction, so a running daemon sees all of it or nothing.

mod tables;
mod transfer;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use rusqlite::types::{ToSqlOutput, Value};
use rusqlite::{Connection, OpenFlags, ToSql, Transaction, TransactionBehavior, params_from_iter};
use serde_json::json;

use crate::adapters::outbound::sqlite::{self, add_missing_columns, backend_rows, has_journal, roll_back};
use crate::domain::{
    BackendSpec, BackendState, ProxyVersion, RawAcl, RawApp, RawBackend, RawGeoOverride, RawListener, RawRegion,
    RawRow as _, RawValue, Regions,
};

use self::tables::TableCommand;
use self::transfer::ImportArgs;

/// The tables `db init` creates.
pub const SCHEMA: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../sql/schema.sql"));

/// The rows `db init --example` adds.
pub const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../sql/example.sql"));

/// Another writer is waited for this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct DbArgs {
    #[command(subcommand)]
    pub command: DbCommand,
}

#[derive(Debug, Subcommand)]
pub enum DbCommand {
    /// Create the routing database
    Init {
        /// Add an example app with backends in three regions, all on this machine
        #[arg(long)]
        example: bool,
        /// Replace a database that exists
        #[arg(long)]
        force: bool,
    },
    /// List the backends
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a backend
    Add(AddArgs),
    /// Change columns of a backend
    Set {
        id: String,
        /// What to change: app, region, wg_ip, port, healthy, weight, soft_limit, hard_limit, country, state,
        /// same_host, send_proxy or health_check;
        /// an empty value restores the default
        #[arg(required = true, value_name = "COLUMN=VALUE")]
        changes: Vec<String>,
    },
    /// Give a backend no new connections; those it has live on
    Drain { id: String },
    /// Give a backend new connections again
    Ready { id: String },
    /// Take a backend out of service
    Maint { id: String },
    /// Remove a backend
    Rm { id: String },
    /// Edit listeners: where clients arrive
    Listener {
        #[command(subcommand)]
        command: TableCommand,
    },
    /// Edit how apps are served
    App {
        #[command(subcommand)]
        command: TableCommand,
    },
    /// Edit regions: their position and countries
    Region {
        #[command(subcommand)]
        command: TableCommand,
    },
    /// Edit who may connect
    Acl {
        #[command(subcommand)]
        command: TableCommand,
    },
    /// Edit where prefixes are: their country or region
    Geo {
        #[command(subcommand)]
        command: TableCommand,
    },
    /// Write all tables to standard output, as JSON
    Export,
    /// Take rows from a document that `export` wrote, all or none; rows of the same key are replaced
    Import(ImportArgs),
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// Name of the backend, unlike all others
    pub id: String,
    /// App it belongs to
    #[arg(long)]
    pub app: String,
    /// Region it is in: sa, us, eu, ap or one of your own
    #[arg(long)]
    pub region: String,
    /// Where it listens, such as 192.0.2.1:8080 or [2001:db8::1]:8080
    #[arg(long)]
    pub addr: SocketAddr,
    /// Share of new clients; 0 takes none
    #[arg(long, default_value_t = 1)]
    pub weight: u32,
    /// Connections from which on others are preferred; 0 for never [default: 100, or the hard limit if lower]
    #[arg(long)]
    pub soft_limit: Option<u32>,
    /// Connections it takes at most; 0 for unlimited
    #[arg(long, default_value_t = 0)]
    pub hard_limit: u32,
    /// Country it is in, two letters of ISO 3166-1
    #[arg(long)]
    pub country: Option<String>,
    /// It runs on this host, and what docs/same-host.md asks of it holds: local clients get their bytes to it without
    /// TCP
    #[arg(long)]
    pub same_host: bool,
    /// The PROXY header that begins its connections and names the client; v2 has the server name and the connection id
    #[arg(long, default_value = "off", value_parser = ["off", "v1", "v2"])]
    pub send_proxy: String,
}

/// Runs a `db` command on the database at `db_path`.
pub fn run(args: DbArgs, db_path: &Path) -> Result<()> {
    execute(args.command, db_path, &mut std::io::stdout().lock())
}

fn execute(command: DbCommand, path: &Path, out: &mut dyn Write) -> Result<()> {
    let done = carry_out(command, path, out);
    // Whichever statement met the lock: SQLite says it in three ways at once.
    let is_locked = |why: &anyhow::Error| why.chain().any(|cause| cause.downcast_ref().is_some_and(sqlite::is_locked));
    if done.as_ref().is_err_and(is_locked) {
        bail!("routing database {} is locked by another process", path.display());
    }
    done
}

fn carry_out(command: DbCommand, path: &Path, out: &mut dyn Write) -> Result<()> {
    match command {
        DbCommand::Init { example, force } => init(path, example, force, out),
        DbCommand::List { json } => list(path, json, out),
        DbCommand::Add(args) => add(path, &args, out),
        DbCommand::Set { id, changes } => set(path, &id, &parse_changes(&changes)?, out),
        DbCommand::Drain { id } => set_state(path, &id, BackendState::Drain, out),
        DbCommand::Ready { id } => set_state(path, &id, BackendState::Ready, out),
        DbCommand::Maint { id } => set_state(path, &id, BackendState::Maint, out),
        DbCommand::Rm { id } => set(path, &id, &[("deleted", RawValue::Integer(1))], out),
        DbCommand::Listener { command } => tables::execute::<RawListener>(command, path, out),
        DbCommand::App { command } => tables::execute::<RawApp>(command, path, out),
        DbCommand::Region { command } => tables::execute::<RawRegion>(command, path, out),
        DbCommand::Acl { command } => tables::execute::<RawAcl>(command, path, out),
        DbCommand::Geo { command } => tables::execute::<RawGeoOverride>(command, path, out),
        DbCommand::Export => transfer::export(path, out),
        DbCommand::Import(args) => transfer::import(path, &args, out),
    }
}

/// Makes the database beside its place and moves it there, so that nobody sees half of it.
fn init(path: &Path, example: bool, force: bool, out: &mut dyn Write) -> Result<()> {
    if path.exists() && !force {
        bail!("{} exists already: use --force to replace it and lose what it holds", path.display());
    }
    let draft = beside(path, "-draft");
    remove(&draft)?;
    let connection = Connection::open(&draft).with_context(|| {
        format!("{} can't be created: does its directory exist, and may you write it?", path.display())
    })?;
    connection.execute_batch(&format!("BEGIN; {SCHEMA} {}; COMMIT;", if example { EXAMPLE } else { "" }))?;
    connection.close().map_err(|(_, error)| error)?;
    // Journals of a replaced database must not be taken for the new one's.
    for suffix in ["-journal", "-wal", "-shm"] {
        remove(&beside(path, suffix))?;
    }
    if let Err(why) = std::fs::rename(&draft, path) {
        remove(&draft)?;
        return Err(why).with_context(|| format!("{} can't be put in place", path.display()));
    }
    writeln!(out, "created {}", path.display())?;
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}

fn open(path: &Path, flags: OpenFlags) -> Result<Connection> {
    if !path.exists() {
        bail!("routing database {} does not exist: create it with `edgeproxy db init`", path.display());
    }
    if has_journal(path) {
        // A writer that died left it, or one is at work, and then nothing happens. Where it can't be done, reading says why.
        let _ = roll_back(path);
    }
    let connection = Connection::open_with_flags(path, flags)
        .with_context(|| format!("routing database {} can't be opened", path.display()))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

fn rows(connection: &Connection, path: &Path) -> Result<Vec<RawBackend>> {
    backend_rows(connection).with_context(|| format!("routing database {} can't be read", path.display()))
}

fn list(path: &Path, as_json: bool, out: &mut dyn Write) -> Result<()> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let rows = rows(&connection, path)?;
    let live = rows.iter().filter(|row| !row.is_deleted());
    if as_json {
        let list: Vec<_> = live.map(as_object).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    let mut lines =
        vec![["ID", "APP", "REGION", "ADDRESS", "STATE", "HEALTHY", "WEIGHT", "SOFT", "HARD"].map(String::from)];
    let mut refused = Vec::new();
    for row in live {
        match row.parse() {
            Ok(backend) => lines.push(cells(&backend)),
            Err(why) => refused.push(format!("{} is refused: {why}", row.id)),
        }
    }
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..9).map(width).collect();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())?;
    }
    for line in refused {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn cells(backend: &BackendSpec) -> [String; 9] {
    [
        backend.id.to_string(),
        backend.app.to_string(),
        backend.region.to_string(),
        backend.addr.to_string(),
        backend.state.to_string(),
        if backend.healthy { "yes" } else { "no" }.to_owned(),
        backend.weight.0.to_string(),
        backend.limits.soft().to_string(),
        backend.limits.hard().to_string(),
    ]
}

fn as_object(row: &RawBackend) -> serde_json::Value {
    match row.parse() {
        Ok(backend) => json!({
            "id": backend.id, "app": backend.app, "region": backend.region, "addr": backend.addr,
            "country": backend.country, "healthy": backend.healthy, "state": backend.state, "weight": backend.weight,
            "soft_limit": backend.limits.soft(), "hard_limit": backend.limits.hard(),
            "same_host": backend.same_host,
            "send_proxy": ProxyVersion::shown(backend.send_proxy),
        }),
        Err(why) => json!({ "id": row.id.to_string(), "refused": why.to_string() }),
    }
}

fn add(path: &Path, args: &AddArgs, out: &mut dyn Write) -> Result<()> {
    let optional = |number: Option<u32>| number.map_or(RawValue::Null, |number| i64::from(number).into());
    let mut row = RawBackend {
        id: args.id.as_str().into(),
        app: args.app.as_str().into(),
        region: args.region.as_str().into(),
        wg_ip: args.addr.ip().to_string().as_str().into(),
        port: i64::from(args.addr.port()).into(),
        healthy: 1.into(),
        weight: i64::from(args.weight).into(),
        soft_limit: optional(args.soft_limit),
        hard_limit: i64::from(args.hard_limit).into(),
        deleted: 0.into(),
        country: args.country.as_deref().map_or(RawValue::Null, RawValue::from),
        state: BackendState::Ready.as_str().into(),
        same_host: i64::from(args.same_host).into(),
        send_proxy: args.send_proxy.as_str().into(),
        ..RawBackend::default()
    };
    let spec = row.parse()?;
    is_a_country(&spec)?;
    row.soft_limit = i64::from(spec.limits.soft()).into();
    row.country = spec.country.map_or(RawValue::Null, |country| country.as_str().into());
    change(path, |transaction| {
        let known = find(transaction, path, &args.id)?;
        if known.is_some_and(|known| !known.is_deleted()) {
            bail!("backend {} exists already: change it with `edgeproxy db set`", args.id);
        }
        transaction.execute("DELETE FROM backends WHERE id = ?1", [&args.id])?;
        let columns = row.columns();
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let places = vec!["?"; names.len()].join(", ");
        let insert = format!("INSERT INTO backends ({}) VALUES ({places})", names.join(", "));
        transaction.execute(&insert, params_from_iter(columns.iter().map(|(_, value)| *value)))?;
        Ok(())
    })?;
    writeln!(out, "added {}", args.id)?;
    Ok(())
}

/// `column=value` texts as columns and values; the row they make is validated later.
fn parse_changes(changes: &[String]) -> Result<Vec<(&str, RawValue)>> {
    changes.iter().map(|change| parse_change(change)).collect()
}

fn parse_change(change: &str) -> Result<(&str, RawValue)> {
    let Some((column, value)) = change.split_once('=') else {
        bail!("{change:?} is not a change: write COLUMN=VALUE, such as weight=2");
    };
    if matches!(column, "id" | "deleted") {
        bail!("{column} can't be set: use `edgeproxy db add` and `edgeproxy db rm`");
    }
    if column == "healthy" && !matches!(value, "0" | "1" | "") {
        bail!("healthy is {value:?}: it must be 0 or 1");
    }
    // Names may look like numbers.
    let number = value.parse().ok().filter(|_| !matches!(column, "app" | "region"));
    let value = match number {
        Some(number) => RawValue::Integer(number),
        None if value.is_empty() => RawValue::Null,
        None => value.into(),
    };
    Ok((column, value))
}

/// The loader takes any two letters, for geo data uses some that ISO has not assigned; whoever types them meant others.
fn is_a_country(spec: &BackendSpec) -> Result<()> {
    match spec.country {
        Some(country) if Regions::default().region_of(country).is_none() => {
            bail!("country {} is none of ISO 3166-1, such as BR or DE", country.as_str())
        }
        _ => Ok(()),
    }
}

fn set_state(path: &Path, id: &str, state: BackendState, out: &mut dyn Write) -> Result<()> {
    set(path, id, &[("state", state.as_str().into())], out)
}

fn set(path: &Path, id: &str, changes: &[(&str, RawValue)], out: &mut dyn Write) -> Result<()> {
    change(path, |transaction| {
        let Some(mut row) = find(transaction, path, id)?.filter(|row| !row.is_deleted()) else {
            bail!("there is no backend {id}: see `edgeproxy db list`");
        };
        for (column, value) in changes {
            let Some(field) = row.column_mut(column) else {
                bail!("there is no column {column:?} to set: see `edgeproxy db set --help`");
            };
            *field = value.clone();
        }
        if !row.is_deleted() {
            let spec = row.parse().with_context(|| format!("backend {id} would be refused"))?;
            if changes.iter().any(|(column, _)| *column == "country") {
                is_a_country(&spec)?;
            }
        }
        // One statement: the table's CHECKs look at several columns at once. The names were found among the known
        // columns above.
        let assignments: Vec<String> = changes.iter().map(|(column, _)| format!("{column} = ?")).collect();
        let update = format!("UPDATE backends SET {} WHERE id = ?", assignments.join(", "));
        let id = RawValue::from(id);
        transaction.execute(&update, params_from_iter(changes.iter().map(|(_, value)| value).chain([&id])))?;
        Ok(())
    })?;
    writeln!(out, "changed {id}")?;
    Ok(())
}

fn find(connection: &Connection, path: &Path, id: &str) -> Result<Option<RawBackend>> {
    Ok(rows(connection, path)?.into_iter().find(|row| row.id == RawValue::from(id)))
}

/// Runs `body` in one transaction on a table that has all columns this version knows.
fn change(path: &Path, body: impl FnOnce(&Transaction<'_>) -> Result<()>) -> Result<()> {
    let mut connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    add_missing_columns(&transaction)
        .with_context(|| format!("routing database {} can't be changed", path.display()))?;
    body(&transaction)?;
    transaction.commit()?;
    Ok(())
}

impl ToSql for RawValue {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            // A blob is never written: no validated row holds one.
            Self::Null | Self::Blob => ToSqlOutput::Owned(Value::Null),
            Self::Integer(number) => ToSqlOutput::Owned(Value::Integer(*number)),
            Self::Real(number) => ToSqlOutput::Owned(Value::Real(*number)),
            Self::Text(text) => ToSqlOutput::from(text.as_str()),
        })
    }
}

#[cfg(test)]
mod tests;
