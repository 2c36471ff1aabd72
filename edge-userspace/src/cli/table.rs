//! Tables on a terminal.

use std::fmt::Write as _;

/// Writes rows as a table after an empty line; the first `left` columns are aligned left, the others right.
pub(super) fn write<const COLUMNS: usize>(rows: &[[String; COLUMNS]], left: usize, out: &mut String) {
    let mut widths = [0; COLUMNS];
    for row in rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = cell.chars().count().max(*width));
    }
    out.push('\n');
    for row in rows {
        let cells = row.iter().zip(widths).enumerate();
        let cells =
            cells.map(|(n, (cell, width))| if n < left { format!("{cell:width$}") } else { format!("{cell:>width$}") });
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
