//! The documentation names what is there: settings, files, tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Files with that extension below `dir`, as far as they are ours.
fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
}

fn ours(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root(), extension, &mut found);
    assert!(!found.is_empty());
    found
}

/// What stands between two marks, for all pairs of them.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split_once(close).map(|(inside, _)| inside))
}

#[test]
fn the_readme_has_the_settings() {
    let (readme, settings) = (read("README.md"), read("docs/settings.md"));
    let table: Vec<_> = settings.lines().filter(|line| line.starts_with('|')).collect();
    assert!(table.len() > 20);
    let place = between(&readme, "<!-- settings", "<!-- end of settings -->").next().unwrap();
    let copy: Vec<_> = place.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(copy, table, "copy the table of docs/settings.md into README.md");
}

#[test]
fn links_lead_somewhere() {
    for page in ours("md") {
        let text = fs::read_to_string(&page).unwrap();
        let pictures = between(&text, "src=\"", "\"").chain(between(&text, "srcset=\"", "\""));
        for link in between(&text, "](", ")").chain(pictures) {
            let target = link.split('#').next().unwrap();
            let elsewhere = target.contains("://") || target.is_empty();
            assert!(elsewhere || page.parent().unwrap().join(target).exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn pages_that_the_code_mentions_exist() {
    for source in ours("rs") {
        let text = fs::read_to_string(&source).unwrap();
        let page = |mention: &&str| mention.ends_with(".md") && !mention.contains(char::is_whitespace);
        for mention in between(&text, "`docs/", "`").filter(page) {
            assert!(root().join("docs").join(mention).exists(), "{}: docs/{mention}", source.display());
        }
    }
}

#[test]
fn every_decision_is_listed() {
    let list = read("docs/adr/README.md");
    for entry in fs::read_dir(root().join("docs/adr")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || list.contains(&format!("({name})")), "{name}");
    }
}

/// Names in backquotes with an underscore in the last column of the specification's tables are tests.
#[test]
fn tests_that_the_specification_names_exist() {
    let sources: String = ours("rs").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let functions: HashSet<_> = between(&sources, "fn ", "(").collect();
    let text = read("SPECIFICATION.md");
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let held_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let quoted = held_by.split('`').skip(1).step_by(2);
        for name in quoted.filter(|name| name.contains('_') && !name.contains(['/', ' '])) {
            assert!(functions.contains(name), "{name}");
            named += 1;
        }
    }
    assert!(named > 40, "only {named} tests were found in the specification");
}
