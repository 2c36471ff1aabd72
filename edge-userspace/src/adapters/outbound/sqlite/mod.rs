//! The routing database: one SQLite file, opened read-only.

mod rows;
mod source;

pub use rows::{
    DatabaseError, add_missing_columns, backend_rows, columns, is_locked, optional_rows as table_rows, read_routing,
};
pub use source::{SqliteSource, has_journal, roll_back};

#[cfg(test)]
mod tests;
