//! The routing table as the operator means it, read in the most obvious way.

/// A row of the table `backends`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: String,
    pub app: usize,
    pub region: usize,
    pub weight: u32,
    /// 0: never over it.
    pub soft: u32,
    /// 0: unlimited.
    pub hard: u32,
    pub state: State,
    pub healthy: bool,
    /// Not of the row: the operator has told the daemons to give it no new clients.
    pub drained: bool,
    /// Not present: there is no such row.
    pub present: bool,
    /// A tombstone.
    pub deleted: bool,
    /// The row holds nonsense.
    pub broken: bool,
    /// What the backend adds to the round trip of its region: another hall, a slower path.
    pub aside: std::time::Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Ready,
    Drain,
    Maint,
}

impl Default for Row {
    fn default() -> Self {
        Self {
            id: String::new(),
            app: 0,
            region: 0,
            weight: 1,
            soft: 0,
            hard: 0,
            state: State::Ready,
            healthy: true,
            drained: false,
            present: true,
            deleted: false,
            broken: false,
            aside: std::time::Duration::ZERO,
        }
    }
}

impl Row {
    /// Takes clients that are bound to it.
    pub fn is_in_service(&self) -> bool {
        self.state == State::Ready && self.healthy && !self.drained
    }

    /// Takes new clients.
    pub fn is_open(&self) -> bool {
        self.is_in_service() && self.weight > 0
    }

    /// Would take new clients, if the operator let it.
    pub fn is_listed(&self) -> bool {
        self.undrained().is_open()
    }

    /// The row, whatever the operator has told the daemons.
    pub fn undrained(&self) -> Self {
        Self { drained: false, ..self.clone() }
    }

    pub fn is_full(&self, connections: u32) -> bool {
        self.hard > 0 && connections >= self.hard
    }

    pub fn is_over_soft(&self, connections: u32) -> bool {
        self.soft > 0 && connections >= self.soft
    }

    /// Connections ÷ soft limit.
    pub fn load_factor(&self, connections: u32) -> f64 {
        f64::from(connections) / f64::from(if self.soft == 0 { 100 } else { self.soft })
    }
}

/// One cell of the table changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub backend: usize,
    pub edit: Edit,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Edit {
    Weight(u32),
    Limits { soft: u32, hard: u32 },
    State(State),
    Healthy(bool),
    Drained(bool),
    Present(bool),
    Deleted(bool),
    Broken(bool),
}

/// The rows as they are in the database, and what holds of them: a broken row keeps its last good version.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub rows: Vec<Row>,
    holds: Vec<Option<Row>>,
}

impl Table {
    pub fn new(rows: &[Row]) -> Self {
        let mut table = Self { rows: rows.to_vec(), holds: vec![None; rows.len()] };
        table.read();
        table
    }

    pub fn edit(&mut self, changes: &[Change]) {
        for Change { backend, edit } in changes {
            let row = &mut self.rows[*backend];
            match *edit {
                Edit::Weight(weight) => row.weight = weight,
                Edit::Limits { soft, hard } => (row.soft, row.hard) = (soft, hard),
                Edit::State(state) => row.state = state,
                Edit::Healthy(healthy) => row.healthy = healthy,
                Edit::Drained(drained) => row.drained = drained,
                Edit::Present(present) => row.present = present,
                Edit::Deleted(deleted) => row.deleted = deleted,
                Edit::Broken(broken) => row.broken = broken,
            }
        }
        self.read();
    }

    fn read(&mut self) {
        for (row, holds) in self.rows.iter().zip(&mut self.holds) {
            if !row.present || row.deleted {
                *holds = None;
            } else if !row.broken {
                *holds = Some(row.clone());
            } else if let Some(holds) = holds {
                // What the operator tells the daemons they need not read.
                holds.drained = row.drained;
            }
        }
    }

    /// What holds of a backend; `None` if there is none.
    pub fn get(&self, backend: usize) -> Option<&Row> {
        self.holds.get(backend)?.as_ref()
    }

    /// The backends of an app, whatever their state.
    pub fn of_app(&self, app: usize) -> impl Iterator<Item = (usize, &Row)> {
        let all = self.holds.iter().enumerate().filter_map(|(at, row)| Some((at, row.as_ref()?)));
        all.filter(move |(_, row)| row.app == app)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_row_keeps_its_last_good_version_and_a_removed_one_is_gone() {
        let mut table = Table::new(&[Row::default(), Row { broken: true, ..Row::default() }]);
        assert!(table.get(0).is_some() && table.get(1).is_none());
        let change = |edit| Change { backend: 0, edit };
        table.edit(&[change(Edit::Broken(true)), change(Edit::Weight(7))]);
        assert_eq!(table.get(0).map(|row| row.weight), Some(1));
        table.edit(&[change(Edit::Broken(false))]);
        assert_eq!(table.get(0).map(|row| row.weight), Some(7));
        table.edit(&[change(Edit::Broken(true)), change(Edit::Weight(9)), change(Edit::Drained(true))]);
        assert_eq!(table.get(0).map(|row| (row.weight, row.drained)), Some((7, true)));
        table.edit(&[change(Edit::Deleted(true))]);
        assert_eq!(table.get(0), None);
        table.edit(&[change(Edit::Deleted(false))]);
        assert_eq!(table.get(0), None, "the last good version is gone with the row");
    }
}
