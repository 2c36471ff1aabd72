//! What all tables have in common: columns by name, a key in the first one, and a tombstone.

use super::RawValue;

/// A row of one table, not validated.
pub trait RawRow: Default {
    /// Name of the table.
    const TABLE: &'static str;
    /// Names of the columns; the first is the key.
    const COLUMNS: &'static [&'static str];

    /// Makes a row of its values, asked for in the order of [`RawRow::COLUMNS`].
    fn from_values<E>(next: impl FnMut() -> Result<RawValue, E>) -> Result<Self, E>;
    /// All columns by name.
    fn columns(&self) -> Vec<(&'static str, &RawValue)>;
    /// One column by name.
    fn column_mut(&mut self, name: &str) -> Option<&mut RawValue>;
    fn deleted(&self) -> &RawValue;

    /// A tombstone: the row counts as absent, whatever else it holds. NULL means not deleted; a row that says anything
    /// but 0 or 1 is refused when it is parsed.
    fn is_deleted(&self) -> bool {
        *self.deleted() == RawValue::Integer(1)
    }
}

/// Makes of one list of columns the struct and its [`RawRow`], so that they can't drift apart.
macro_rules! raw_row {
    ($(#[$doc:meta])+ $type:ident of $table:literal { $( $(#[$column_doc:meta])* $column:ident ),+ $(,)? }) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Default, PartialEq, Hash)]
        pub struct $type { $( $(#[$column_doc])* pub $column: $crate::domain::RawValue ),+ }

        impl $crate::domain::RawRow for $type {
            const TABLE: &'static str = $table;
            const COLUMNS: &'static [&'static str] = &[$(stringify!($column)),+];

            fn from_values<E>(mut next: impl FnMut() -> Result<$crate::domain::RawValue, E>) -> Result<Self, E> {
                Ok(Self { $($column: next()?),+ })
            }

            fn columns(&self) -> Vec<(&'static str, &$crate::domain::RawValue)> {
                vec![$((stringify!($column), &self.$column)),+]
            }

            fn column_mut(&mut self, name: &str) -> Option<&mut $crate::domain::RawValue> {
                match name {
                    $(stringify!($column) => Some(&mut self.$column),)+
                    _ => None,
                }
            }

            fn deleted(&self) -> &$crate::domain::RawValue {
                &self.deleted
            }
        }
    };
}
pub(super) use raw_row;
