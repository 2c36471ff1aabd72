//! `edgeproxy db listener|app|region|geo …`: edits the tables besides `backends`. They are alike: rows by key, columns
//! by name, and the loader says whether a row would be refused.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use rusqlite::{Connection, OpenFlags, Transaction, params_from_iter};

use super::{SCHEMA, open};
use crate::adapters::outbound::sqlite::{add_missing_columns, columns, read_routing, table_rows};
use crate::application::routing::RoutingTable;
use crate::domain::{CountryCode, RawAcl, RawApp, RawGeoOverride, RawListener, RawRegion, RawRow, RawValue, Regions};

#[derive(Debug, Subcommand)]
pub enum TableCommand {
    /// Add a row or change columns of it
    Set {
        /// The row's key
        key: String,
        /// What to set; an empty value restores the default. The columns are described in docs/routing-database.md
        #[arg(value_name = "COLUMN=VALUE")]
        changes: Vec<String>,
    },
    /// Remove a row
    Rm {
        /// The row's key
        key: String,
    },
    /// List the rows
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A table with commands of its own.
pub(super) trait Editable: RawRow {
    /// What one row is called.
    const WHAT: &'static str;
    /// The command that edits it.
    const COMMAND: &'static str;

    /// Countries that the row names: whoever types a code that ISO has not assigned meant another.
    fn countries(&self) -> Vec<CountryCode> {
        Vec::new()
    }
}

impl Editable for RawListener {
    const WHAT: &'static str = "listener";
    const COMMAND: &'static str = "listener";
}

impl Editable for RawApp {
    const WHAT: &'static str = "app";
    const COMMAND: &'static str = "app";
}

impl Editable for RawRegion {
    const WHAT: &'static str = "region";
    const COMMAND: &'static str = "region";

    fn countries(&self) -> Vec<CountryCode> {
        self.parse().map(|spec| spec.countries).unwrap_or_default()
    }
}

impl Editable for RawAcl {
    const WHAT: &'static str = "rule";
    const COMMAND: &'static str = "acl";
}

impl Editable for RawGeoOverride {
    const WHAT: &'static str = "geo override";
    const COMMAND: &'static str = "geo";

    fn countries(&self) -> Vec<CountryCode> {
        self.parse().ok().and_then(|over| over.place.country).into_iter().collect()
    }
}

/// Runs a command on one table.
pub(super) fn execute<R: Editable>(command: TableCommand, path: &Path, out: &mut dyn Write) -> Result<()> {
    match command {
        TableCommand::Set { key, changes } => set::<R>(path, &key, &changes, out),
        TableCommand::Rm { key } => rm::<R>(path, &key, out),
        TableCommand::List { json } => list::<R>(path, json, out),
    }
}

fn set<R: Editable>(path: &Path, key: &str, changes: &[String], out: &mut dyn Write) -> Result<()> {
    let changes = changes.iter().map(|change| parse_change::<R>(change)).collect::<Result<Vec<_>>>()?;
    change(path, |transaction| {
        checked(transaction, R::WHAT, key, |transaction| upsert::<R>(transaction, key, &changes))?;
        let row = table_rows::<R>(transaction)?.into_iter().find(|row| key_of(row) == key);
        let unknown = |country: &CountryCode| Regions::default().region_of(*country).is_none();
        if let Some(country) = row.iter().flat_map(R::countries).find(unknown) {
            bail!("country {country} is none of ISO 3166-1, such as BR or DE");
        }
        Ok(())
    })?;
    writeln!(out, "set {} {key}", R::WHAT)?;
    Ok(())
}

fn parse_change<R: RawRow>(change: &str) -> Result<(&'static str, Option<&str>)> {
    let Some((name, value)) = change.split_once('=') else {
        bail!("{change:?} is not a change: write COLUMN=VALUE");
    };
    let settable = R::COLUMNS.iter().skip(1).filter(|column| **column != "deleted");
    let Some(column) = settable.clone().find(|column| **column == name) else {
        let list: Vec<&str> = settable.copied().collect();
        bail!("there is no column {name:?} to set: {}", list.join(", "));
    };
    Ok((column, Some(value).filter(|value| !value.is_empty())))
}

/// The column's type makes numbers of texts where it wants numbers. A row that was removed begins afresh.
fn upsert<R: RawRow>(transaction: &Connection, key: &str, changes: &[(&str, Option<&str>)]) -> Result<()> {
    let (table, id) = (R::TABLE, key_column::<R>());
    transaction.execute(&format!("DELETE FROM {table} WHERE {id} = ?1 AND deleted <> 0"), [key])?;
    let known = format!("SELECT 1 FROM {table} WHERE {id} = ?1");
    if transaction.prepare(&known)?.exists([key])? {
        // One statement: the table's CHECKs look at several columns at once. The names are the known ones.
        let assignments: Vec<String> = changes.iter().map(|(column, _)| format!("{column} = ?")).collect();
        if assignments.is_empty() {
            return Ok(());
        }
        let update = format!("UPDATE {table} SET {} WHERE {id} = ?", assignments.join(", "));
        let values = changes.iter().map(|(_, value)| *value).chain([Some(key)]);
        transaction.execute(&update, params_from_iter(values))?;
    } else {
        let given: Vec<_> = changes.iter().filter(|(_, value)| value.is_some()).collect();
        let names: Vec<&str> = [id].into_iter().chain(given.iter().map(|(column, _)| *column)).collect();
        let places = vec!["?"; names.len()].join(", ");
        let insert = format!("INSERT INTO {table} ({}) VALUES ({places})", names.join(", "));
        let values = [Some(key)].into_iter().chain(given.iter().map(|(_, value)| *value));
        transaction.execute(&insert, params_from_iter(values))?;
    }
    Ok(())
}

/// Does `work` unless the loader would refuse a row then that it takes now, be it this one or another that contradicts
/// it.
fn checked(
    transaction: &mut Transaction<'_>,
    what: &str,
    key: &str,
    work: impl Fn(&Connection) -> Result<()>,
) -> Result<()> {
    if let Some((row, why)) = new_refusals(transaction, &work)?.into_iter().next() {
        bail!("{what} {key} can't be so: {row} would be refused: {why}");
    }
    work(transaction).with_context(|| format!("{what} {key} can't be so"))
}

/// What the loader would refuse after `work` that it takes now. Nothing is changed. The loader's words are better than
/// the tables' CHECKs', so these are to look when it is content.
pub(super) fn new_refusals(
    transaction: &mut Transaction<'_>,
    work: impl Fn(&Connection) -> Result<()>,
) -> Result<Vec<(String, String)>> {
    // One after the other into the same table, as a daemon reads them: what was there has its place.
    let table = RoutingTable::new();
    let before: HashSet<_> = refusals(&table, transaction)?.into_iter().collect();
    let savepoint = transaction.savepoint()?;
    ignore_checks(&savepoint, true)?;
    let tried = work(&savepoint).and_then(|()| refusals(&table, &savepoint));
    ignore_checks(&savepoint, false)?;
    // Rolls back.
    drop(savepoint);
    Ok(tried?.into_iter().filter(|refusal| !before.contains(refusal)).collect())
}

fn rm<R: Editable>(path: &Path, key: &str, out: &mut dyn Write) -> Result<()> {
    change(path, |transaction| {
        let (table, id) = (R::TABLE, key_column::<R>());
        let remove = format!("UPDATE {table} SET deleted = 1 WHERE {id} = ?1 AND coalesce(deleted, 0) = 0");
        if transaction.execute(&remove, [key])? == 0 {
            bail!("there is no {} {key}: see `edgeproxy db {} list`", R::WHAT, R::COMMAND);
        }
        Ok(())
    })?;
    writeln!(out, "removed {} {key}", R::WHAT)?;
    Ok(())
}

fn list<R: Editable>(path: &Path, json: bool, out: &mut dyn Write) -> Result<()> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let rows: Vec<R> = table_rows(&connection)?;
    let live = rows.iter().filter(|row| !row.is_deleted());
    if json {
        let list = live.map(object).collect::<Result<Vec<_>>>()?;
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    let names = R::COLUMNS.iter().filter(|name| **name != "deleted");
    let mut lines = vec![names.map(|name| name.to_uppercase()).collect::<Vec<_>>()];
    lines.extend(live.map(|row| {
        let columns = row.columns().into_iter().filter(|(name, _)| *name != "deleted");
        columns.map(|(_, value)| plain(value)).collect()
    }));
    let width = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..R::COLUMNS.len()).map(|at| width(at).unwrap_or(0)).collect();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())?;
    }
    for (row, why) in refusals(&RoutingTable::new(), &connection)?.iter().filter(|(row, _)| row.starts_with(R::WHAT)) {
        writeln!(out, "{row} is refused: {why}")?;
    }
    Ok(())
}

fn plain(value: &RawValue) -> String {
    match value {
        RawValue::Null => "-".to_owned(),
        RawValue::Text(text) => text.to_string(),
        other => other.to_string(),
    }
}

/// A row as JSON; columns without a value are left out.
pub(super) fn object<R: RawRow>(row: &R) -> Result<serde_json::Value> {
    let mut object = serde_json::Map::new();
    for (name, value) in row.columns().into_iter().filter(|(name, _)| *name != "deleted") {
        let value = match value {
            RawValue::Null => continue,
            RawValue::Integer(number) => (*number).into(),
            RawValue::Real(number) => (*number).into(),
            RawValue::Text(text) => text.as_str().into(),
            RawValue::Blob => bail!("row {} of {} holds bytes in {name} that are no text", key_of(row), R::TABLE),
        };
        object.insert(name.to_owned(), value);
    }
    Ok(object.into())
}

pub(super) fn key_column<R: RawRow>() -> &'static str {
    R::COLUMNS.first().copied().unwrap_or_default()
}

pub(super) fn key_of<R: RawRow>(row: &R) -> String {
    row.columns().first().map(|(_, key)| plain(key)).unwrap_or_default()
}

/// What the loader would refuse.
fn refusals(table: &RoutingTable, connection: &Connection) -> Result<Vec<(String, String)>> {
    Ok(table.apply(&read_routing(connection)?, true)?.rejected)
}

fn ignore_checks(connection: &Connection, yes: bool) -> Result<()> {
    Ok(connection.pragma_update(None, "ignore_check_constraints", yes)?)
}

/// Runs `body` in one transaction on a database that has all tables and columns this version knows.
pub(super) fn change(path: &Path, body: impl FnOnce(&mut Transaction<'_>) -> Result<()>) -> Result<()> {
    let mut connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    complete(&transaction).with_context(|| format!("routing database {} can't be changed", path.display()))?;
    body(&mut transaction)?;
    transaction.commit()?;
    Ok(())
}

/// Older databases lack tables, and columns of those they have.
fn complete(transaction: &Transaction<'_>) -> Result<()> {
    add_missing_columns(transaction)?;
    transaction.execute_batch(&SCHEMA.replace("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS "))?;
    add_columns::<RawListener>(transaction)?;
    add_columns::<RawApp>(transaction)?;
    add_columns::<RawRegion>(transaction)?;
    add_columns::<RawAcl>(transaction)?;
    add_columns::<RawGeoOverride>(transaction)
}

/// NULL means the default in all of them.
fn add_columns<R: RawRow>(transaction: &Transaction<'_>) -> Result<()> {
    let present = columns(transaction, R::TABLE)?.unwrap_or_default();
    for name in R::COLUMNS.iter().filter(|name| !present.iter().any(|have| have == *name)) {
        transaction.execute_batch(&format!(
            "ALTER TABLE {} ADD COLUMN {name} {}",
            R::TABLE,
            declared(R::TABLE, name)
        ))?;
    }
    Ok(())
}

/// The type of a column, as the schema has it.
fn declared(table: &str, column: &str) -> &'static str {
    let (_, body) = SCHEMA.split_once(&format!("CREATE TABLE {table} (")).unwrap_or_default();
    let words = body.lines().map(|line| line.split_whitespace());
    let found = words.map(|mut words| (words.next(), words.next())).find(|(name, _)| *name == Some(column));
    let declared = found.and_then(|(_, declared)| declared).map(|word| word.trim_end_matches(','));
    declared.filter(|word| matches!(*word, "INTEGER" | "REAL")).unwrap_or("TEXT")
}
