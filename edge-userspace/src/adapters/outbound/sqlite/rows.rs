//! Tables to raw rows. Columns are found by name: missing ones read as NULL, unknown ones are ignored, and a value of
//! the wrong type is left to the validation of its row.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use crate::domain::{Courtesy, RawBackend, RawRouting, RawRow, RawValue};

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

/// Somebody else holds the file.
pub fn is_locked(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Without these no row could be a backend, so it isn't a matter of single rows.
const REQUIRED: usize = 5;

/// Columns that older databases lack, as the schema defines them.
const ADDED_COLUMNS: [(&str, &str); 6] = [
    ("deleted", "INTEGER DEFAULT 0"),
    ("country", "TEXT"),
    ("state", "TEXT DEFAULT 'ready' CHECK (state IN ('ready', 'drain', 'maint'))"),
    ("same_host", "INTEGER DEFAULT 0 CHECK (same_host IN (0, 1))"),
    ("health_check", "TEXT"),
    ("send_proxy", "TEXT DEFAULT 'off' CHECK (send_proxy IN ('off', 'v1', 'v2'))"),
];

/// So many rows of backends are handed on at once: few enough to be in the processor's cache when they are looked at.
const BATCH: usize = 256;

/// All routing rows. The caller opens the transaction.
pub fn read_routing(connection: &Connection) -> Result<RawRouting, DatabaseError> {
    Ok(RawRouting { backends: backend_rows(connection)?, ..read_others(connection)? })
}

/// All routing rows but the backends.
pub(super) fn read_others(connection: &Connection) -> Result<RawRouting, DatabaseError> {
    let mut missing = Vec::new();
    Ok(RawRouting {
        backends: Vec::new(),
        regions: rows_or_note(connection, &mut missing)?,
        apps: rows_or_note(connection, &mut missing)?,
        listeners: rows_or_note(connection, &mut missing)?,
        geo_overrides: rows_or_note(connection, &mut missing)?,
        acl: rows_or_note(connection, &mut missing)?,
        missing,
    })
}

/// All rows of `backends`, deleted ones included, by id.
pub fn backend_rows(connection: &Connection) -> Result<Vec<RawBackend>, DatabaseError> {
    let mut backends = Vec::new();
    backend_batches(connection, &mut |batch| backends.extend(batch))?;
    Ok(backends)
}

/// Likewise, a batch at a time.
pub(super) fn backend_batches(
    connection: &Connection,
    take: &mut dyn FnMut(Vec<RawBackend>),
) -> Result<(), DatabaseError> {
    let present = columns(connection, RawBackend::TABLE)?.ok_or(DatabaseError::NoTable)?;
    let required = RawBackend::COLUMNS.iter().take(REQUIRED);
    if let Some(missing) = required.into_iter().find(|name| !present.iter().any(|have| have == *name)) {
        return Err(DatabaseError::NoColumn(missing));
    }
    let mut batch = Vec::with_capacity(BATCH);
    select(connection, &present, |row| {
        batch.push(row);
        if batch.len() == BATCH {
            take(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
        }
    })?;
    take(batch);
    Ok(())
}

/// All rows of a table that a database need not have.
pub fn optional_rows<R: RawRow>(connection: &Connection) -> Result<Vec<R>, DatabaseError> {
    rows_or_note(connection, &mut Vec::new())
}

/// Likewise; notes that it is missing.
fn rows_or_note<R: RawRow>(connection: &Connection, missing: &mut Vec<&'static str>) -> Result<Vec<R>, DatabaseError> {
    match columns(connection, R::TABLE)? {
        Some(present) => {
            let mut rows = Vec::new();
            select(connection, &present, |row| rows.push(row))?;
            Ok(rows)
        }
        None => {
            missing.push(R::TABLE);
            Ok(Vec::new())
        }
    }
}

/// Completes an older table `backends`. Writes; for the commands that edit the database.
pub fn add_missing_columns(connection: &Connection) -> Result<(), DatabaseError> {
    let present = columns(connection, "backends")?.ok_or(DatabaseError::NoTable)?;
    for (name, definition) in ADDED_COLUMNS.iter().filter(|(name, _)| !present.iter().any(|have| have == name)) {
        connection.execute_batch(&format!("ALTER TABLE backends ADD COLUMN {name} {definition}"))?;
    }
    Ok(())
}

/// The columns of a table in lower case, as SQLite compares them; `None` if there is no such table.
pub fn columns(connection: &Connection, table: &str) -> Result<Option<Vec<String>>, DatabaseError> {
    let exists = "SELECT 1 FROM sqlite_schema WHERE type IN ('table', 'view') AND lower(name) = ?1";
    if connection.query_row(exists, params![table], |_| Ok(())).optional()?.is_none() {
        return Ok(None);
    }
    let mut statement = connection.prepare("SELECT lower(name) FROM pragma_table_info(?1)")?;
    let names = statement.query_map(params![table], |row| row.get(0))?;
    Ok(Some(names.collect::<Result<_, _>>()?))
}

fn select<R: RawRow>(
    connection: &Connection,
    present: &[String],
    mut take: impl FnMut(R),
) -> Result<(), DatabaseError> {
    let has = |name: &str| present.iter().any(|have| have == name);
    let list: Vec<&str> = R::COLUMNS.iter().map(|name| if has(name) { name } else { "NULL" }).collect();
    // The first column is the table's key.
    let mut statement = connection.prepare(&format!("SELECT {} FROM {} ORDER BY 1", list.join(", "), R::TABLE))?;
    let mut rows = statement.query([])?;
    let mut courtesy = Courtesy::among_many();
    while let Some(row) = rows.next()? {
        courtesy.pass();
        let mut at = 0..;
        take(R::from_values(|| value(row, at.next().unwrap_or_default()))?);
    }
    Ok(())
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
