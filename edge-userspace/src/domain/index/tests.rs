#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use crate::domain::testing::{app_name, id, row, snapshot};
use crate::domain::{RawBackend, Snapshot};

#[test]
fn the_sole_app_is_known_only_if_there_is_one() {
    assert_eq!(Snapshot::empty().sole_app(), None);
    let one = snapshot(&[row("a", "sa"), row("b", "us")]);
    assert_eq!(one.sole_app(), Some(&app_name("web")));
    let two = snapshot(&[row("a", "sa"), RawBackend { app: "db".into(), ..row("b", "us") }]);
    assert_eq!(two.sole_app(), None);
    assert_eq!(two.apps().map(|app| app.name().as_str()).collect::<Vec<_>>(), ["db", "web"]);
}

#[test]
fn backends_are_found_by_id_in_their_app_only() {
    let table = snapshot(&[row("a", "sa"), RawBackend { app: "db".into(), ..row("b", "us") }]);
    assert_eq!(table.backends().count(), 2);
    assert_eq!(table.backend(&id("b")).unwrap().app, app_name("db"));
    assert!(table.app(&app_name("web")).unwrap().backend(&id("b")).is_none());
    assert!(table.backend(&id("c")).is_none());
}
