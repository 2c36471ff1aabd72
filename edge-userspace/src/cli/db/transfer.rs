//! `edgeproxy db export` and `import`: all tables as one JSON document.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use rusqlite::{Connection, OpenFlags, Transaction, params_from_iter};
use serde_json::{Map, Value, json};

use super::open;
use super::tables::{change, key_column, key_of, new_refusals, object};
use crate::adapters::outbound::sqlite::table_rows;
use crate::domain::{RawAcl, RawApp, RawBackend, RawGeoOverride, RawListener, RawRegion, RawRow, RawValue};

/// Of the document.
const VERSION: u64 = 1;
/// At most so many reasons are listed.
const LISTED: usize = 20;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A document that `edgeproxy db export` wrote; - for standard input
    pub file: std::path::PathBuf,
    /// Remove rows that are not in the document
    #[arg(long)]
    pub replace: bool,
}

/// Writes every row that isn't removed.
pub(super) fn export(path: &Path, out: &mut dyn Write) -> Result<()> {
    let mut connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // All tables of one moment.
    let transaction = connection.transaction()?;
    let mut tables = Map::new();
    read::<RawBackend>(&transaction, &mut tables)?;
    read::<RawRegion>(&transaction, &mut tables)?;
    read::<RawApp>(&transaction, &mut tables)?;
    read::<RawListener>(&transaction, &mut tables)?;
    read::<RawAcl>(&transaction, &mut tables)?;
    read::<RawGeoOverride>(&transaction, &mut tables)?;
    serde_json::to_writer_pretty(&mut *out, &json!({ "version": VERSION, "tables": tables }))?;
    writeln!(out)?;
    Ok(())
}

fn read<R: RawRow>(transaction: &Transaction<'_>, tables: &mut Map<String, Value>) -> Result<()> {
    let rows: Vec<R> = table_rows(transaction)?;
    let live = rows.iter().filter(|row| !row.is_deleted()).map(object);
    tables.insert(R::TABLE.to_owned(), Value::Array(live.collect::<Result<_>>()?));
    Ok(())
}

/// Adds and replaces rows by key, all or none.
pub(super) fn import(path: &Path, args: &ImportArgs, out: &mut dyn Write) -> Result<()> {
    let shown = args.file.display();
    let text = if args.file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input can't be read")?;
        text
    } else {
        std::fs::read_to_string(&args.file).with_context(|| format!("{shown} can't be read"))?
    };
    let mut document: Value = serde_json::from_str(&text).with_context(|| format!("{shown} is not JSON"))?;
    if document.get("version").and_then(Value::as_u64) != Some(VERSION) {
        bail!("{shown} is not a document of `edgeproxy db export` of version {VERSION}");
    }
    let Some(Value::Object(tables)) = document.get_mut("tables").map(Value::take) else {
        bail!("{shown} has no tables");
    };
    let mut count = 0;
    change(path, |transaction| {
        let new = new_refusals(transaction, |connection| fill(connection, &tables, args.replace).map(drop))?;
        if !new.is_empty() {
            let list: Vec<String> = new.iter().take(LISTED).map(|(row, why)| format!("\n  {row}: {why}")).collect();
            bail!("{} rows would be refused, nothing was changed:{}", new.len(), list.concat());
        }
        count = fill(transaction, &tables, args.replace)?;
        Ok(())
    })?;
    writeln!(out, "imported {count} rows")?;
    Ok(())
}

fn fill(connection: &Connection, tables: &Map<String, Value>, replace: bool) -> Result<usize> {
    let known =
        [RawBackend::TABLE, RawRegion::TABLE, RawApp::TABLE, RawListener::TABLE, RawAcl::TABLE, RawGeoOverride::TABLE];
    if let Some(unknown) = tables.keys().find(|table| !known.contains(&table.as_str())) {
        bail!("the document has a table {unknown} that this version doesn't know");
    }
    Ok(write::<RawBackend>(connection, tables, replace)?
        + write::<RawRegion>(connection, tables, replace)?
        + write::<RawApp>(connection, tables, replace)?
        + write::<RawListener>(connection, tables, replace)?
        + write::<RawAcl>(connection, tables, replace)?
        + write::<RawGeoOverride>(connection, tables, replace)?)
}

fn write<R: RawRow>(connection: &Connection, tables: &Map<String, Value>, replace: bool) -> Result<usize> {
    let (table, id) = (R::TABLE, key_column::<R>());
    if replace {
        connection.execute(&format!("UPDATE {table} SET deleted = 1"), [])?;
    }
    let Some(rows) = tables.get(table) else { return Ok(0) };
    let Value::Array(rows) = rows else { bail!("table {table} is not a list of rows") };
    let mut delete = connection.prepare(&format!("DELETE FROM {table} WHERE {id} = ?1"))?;
    for value in rows {
        let row: R = row(value).with_context(|| format!("table {table}"))?;
        let given: Vec<_> = row.columns().into_iter().filter(|(_, value)| **value != RawValue::Null).collect();
        let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
        let places = vec!["?"; names.len()].join(", ");
        let insert = format!("INSERT INTO {table} ({}) VALUES ({places})", names.join(", "));
        delete.execute([key_of(&row)])?;
        connection
            .prepare_cached(&insert)?
            .execute(params_from_iter(given.iter().map(|(_, value)| *value)))
            .with_context(|| format!("table {table}, row {}", key_of(&row)))?;
    }
    Ok(rows.len())
}

fn row<R: RawRow>(value: &Value) -> Result<R> {
    let Value::Object(object) = value else { bail!("a row is not an object") };
    let mut row = R::default();
    for (name, value) in object {
        let value = match value {
            Value::Null => RawValue::Null,
            Value::Bool(flag) => i64::from(*flag).into(),
            Value::Number(number) => match number.as_i64() {
                Some(number) => number.into(),
                None => RawValue::Real(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => text.as_str().into(),
            Value::Array(_) | Value::Object(_) => bail!("{name} is neither a number nor text"),
        };
        match row.column_mut(name) {
            Some(column) => *column = value,
            None => bail!("there is no column {name:?} in this version"),
        }
    }
    Ok(row)
}
