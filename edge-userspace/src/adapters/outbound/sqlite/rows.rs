//! Tables to raw rows. Columns are found by name: missing ones read as NULL, unknown ones are ignored, and a value of
//! the wrong type is left to the validation of its row.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::domain::{RawBackend, RawRegion, RawRouting, RawValue};

/// Why the tables can't be read as routing tables.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("it has no table `backends`: create one with `edgeproxy db init`")]
    NoTable,
    #[error("its table `backends` has no column `{0}`: compare with the schema `edgeproxy db init` creates")]
    NoColumn(&'static str),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

const BACKEND_COLUMNS: [&str; 13] = [
    "id",
    "app",
    "region",
    "wg_ip",
    "port",
    "healthy",
    "weight",
    "soft_limit",
    "hard_limit",
    "deleted",
    "country",
    "state",
    "same_host",
];

/// Without these no row could be a backend, so it isn't a matter of single rows.
const REQUIRED: usize = 5;

/// Columns that older databases lack, as the schema defines them.
const ADDED_COLUMNS: [(&str, &str); 4] = [
    ("deleted", "INTEGER DEFAULT 0"),
    ("country", "TEXT"),
    ("state", "TEXT DEFAULT 'ready' CHECK (state IN ('ready', 'drain', 'maint'))"),
    ("same_host", "INTEGER DEFAULT 0 CHECK (same_host IN (0, 1))"),
];

const REGION_COLUMNS: [&str; 5] = ["name", "latitude", "longitude", "countries", "deleted"];

/// All routing rows. The caller opens the transaction.
pub fn read_routing(connection: &Connection) -> Result<RawRouting, DatabaseError> {
    Ok(RawRouting { backends: backend_rows(connection)?, regions: region_rows(connection)? })
}

/// All rows of `backends`, deleted ones included, by id.
pub fn backend_rows(connection: &Connection) -> Result<Vec<RawBackend>, DatabaseError> {
    let present = columns(connection, "backends")?.ok_or(DatabaseError::NoTable)?;
    if let Some(missing) = BACKEND_COLUMNS.iter().take(REQUIRED).find(|name| !present.iter().any(|have| have == *name))
    {
        return Err(DatabaseError::NoColumn(missing));
    }
    select(connection, "backends", &BACKEND_COLUMNS, &present, |row| {
        Ok(RawBackend {
            id: value(row, 0)?,
            app: value(row, 1)?,
            region: value(row, 2)?,
            wg_ip: value(row, 3)?,
            port: value(row, 4)?,
            healthy: value(row, 5)?,
            weight: value(row, 6)?,
            soft_limit: value(row, 7)?,
            hard_limit: value(row, 8)?,
            deleted: value(row, 9)?,
            country: value(row, 10)?,
            state: value(row, 11)?,
            same_host: value(row, 12)?,
        })
    })
}

/// Completes an older table `backends`. Writes; for the commands that edit the database.
pub fn add_missing_columns(connection: &Connection) -> Result<(), DatabaseError> {
    let present = columns(connection, "backends")?.ok_or(DatabaseError::NoTable)?;
    for (name, definition) in ADDED_COLUMNS.iter().filter(|(name, _)| !present.iter().any(|have| have == name)) {
        connection.execute_batch(&format!("ALTER TABLE backends ADD COLUMN {name} {definition}"))?;
    }
    Ok(())
}

fn region_rows(connection: &Connection) -> Result<Vec<RawRegion>, DatabaseError> {
    let Some(present) = columns(connection, "regions")? else { return Ok(Vec::new()) };
    select(connection, "regions", &REGION_COLUMNS, &present, |row| {
        Ok(RawRegion {
            name: value(row, 0)?,
            latitude: value(row, 1)?,
            longitude: value(row, 2)?,
            countries: value(row, 3)?,
            deleted: value(row, 4)?,
        })
    })
}

/// The columns of a table in lower case, as SQLite compares them; `None` if there is no such table.
fn columns(connection: &Connection, table: &str) -> Result<Option<Vec<String>>, DatabaseError> {
    let exists = "SELECT 1 FROM sqlite_schema WHERE type IN ('table', 'view') AND lower(name) = ?1";
    if connection.query_row(exists, params![table], |_| Ok(())).optional()?.is_none() {
        return Ok(None);
    }
    let mut statement = connection.prepare("SELECT lower(name) FROM pragma_table_info(?1)")?;
    let names = statement.query_map(params![table], |row| row.get(0))?;
    Ok(Some(names.collect::<Result<_, _>>()?))
}

fn select<T>(
    connection: &Connection,
    table: &str,
    wanted: &[&str],
    present: &[String],
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, DatabaseError> {
    let has = |name: &str| present.iter().any(|have| have == name);
    let list: Vec<&str> = wanted.iter().map(|name| if has(name) { name } else { "NULL" }).collect();
    // The first wanted column is the table's key.
    let mut statement = connection.prepare(&format!("SELECT {} FROM {table} ORDER BY 1", list.join(", ")))?;
    let rows = statement.query_map([], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn value(row: &Row<'_>, at: usize) -> rusqlite::Result<RawValue> {
    Ok(match row.get_ref(at)? {
        ValueRef::Null => RawValue::Null,
        ValueRef::Integer(number) => RawValue::Integer(number),
        ValueRef::Real(number) => RawValue::Real(number),
        ValueRef::Text(text) => std::str::from_utf8(text).map_or(RawValue::Blob, RawValue::from),
        ValueRef::Blob(_) => RawValue::Blob,
    })
}
