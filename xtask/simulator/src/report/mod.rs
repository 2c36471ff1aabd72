//! The results as a page with tables and plots. The same seed gives the same bytes.

mod detour;
mod failover;
mod markdown;
mod plot;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};

use crate::candidate::Kind;
use crate::engine::{self, Run};
use crate::scenes::{self, Ailment, Size};
use crate::world::World;

/// The seed of the committed page.
pub const SEED: u64 = 1;

/// One world and what came of it with each candidate.
#[derive(Debug)]
pub struct Outcome {
    pub world: World,
    pub runs: Vec<(Kind, Run)>,
}

/// Everything that is on the page.
#[derive(Debug)]
pub struct Results {
    pub seed: u64,
    pub busy: Outcome,
    pub ill: Vec<(Ailment, Outcome)>,
    pub detour: Outcome,
    pub changes: Vec<Outcome>,
    pub small: Outcome,
}

impl Results {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            busy: play(scenes::busy(Size::Full, seed)),
            ill: Ailment::ALL.map(|ailment| (ailment, play(scenes::illness(ailment, seed)))).into(),
            detour: play(scenes::detour(seed)),
            changes: [true, false].map(|leaves| play(scenes::change(leaves, seed))).into(),
            small: small(),
        }
    }

    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        let ill = self.ill.iter().map(|(_, outcome)| outcome);
        [&self.busy, &self.detour, &self.small].into_iter().chain(ill).chain(&self.changes)
    }

    /// Decisions of edgeproxy, and what the oracle has to say against them.
    pub fn judged(&self) -> (u64, Vec<&str>) {
        let verdicts = self.outcomes().flat_map(|outcome| &outcome.runs);
        let ours = verdicts.filter(|(kind, _)| kind.promises().order).map(|(_, run)| &run.verdict);
        let ours: Vec<_> = ours.collect();
        let words = ours.iter().flat_map(|verdict| verdict.words.iter().map(String::as_str)).collect();
        (ours.iter().map(|verdict| verdict.decisions).sum(), words)
    }
}

/// The world that a test plays again: its part of the page is the same whatever the seed.
pub fn small() -> Outcome {
    play(scenes::busy(Size::Small, SEED))
}

/// Plays a world with every candidate, as many at a time as there are processors.
pub fn play(world: World) -> Outcome {
    let next = AtomicUsize::new(0);
    let runs = Mutex::new(Vec::new());
    let work = || {
        while let Some(kind) = Kind::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            let run = engine::run(&world, *kind);
            if let Ok(mut runs) = runs.lock() {
                runs.push((*kind, run));
            }
        }
    };
    thread::scope(|scope| {
        (0..thread::available_parallelism().map_or(1, usize::from)).for_each(|_| _ = scope.spawn(work));
    });
    let mut runs = runs.into_inner().unwrap_or_default();
    runs.sort_by_key(|(kind, _)| *kind);
    Outcome { world, runs }
}

/// The page between whose marks the results go, and where its pictures are.
const PAGE: &str = "simulation.md";
const PICTURES: &str = "images";
const OPEN: &str = "<!-- results: written by cargo xtask simulate -->";
const CLOSE: &str = "<!-- end of results -->";

/// Everything between the marks.
pub fn tables(results: &Results) -> String {
    markdown::results(results)
}

/// The part of it that a test compares.
pub fn small_table(outcome: &Outcome) -> String {
    markdown::small(outcome)
}

/// The files of the page with these results, as they should be in `directory`.
fn files(results: &Results, directory: &Path) -> Result<Vec<(std::path::PathBuf, String)>> {
    let path = directory.join(PAGE);
    let old = fs::read_to_string(&path).unwrap_or_else(|_| format!("# Simulation\n\n{OPEN}\n{CLOSE}\n"));
    let parts = old.split_once(OPEN).and_then(|(before, rest)| Some((before, rest.split_once(CLOSE)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no marks `{OPEN}` and `{CLOSE}`", path.display()))?;
    let mut files = vec![(path, format!("{before}{OPEN}\n{}{CLOSE}{after}", tables(results)))];
    for (name, picture) in plot::pictures(results) {
        files.push((directory.join(PICTURES).join(name), picture));
    }
    Ok(files)
}

/// Writes the page and its pictures into `directory`. What people wrote on the page stays.
///
/// # Errors
/// Where the page has no marks, or something can't be written.
pub fn publish(results: &Results, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory.join(PICTURES)).with_context(|| format!("make {}", directory.display()))?;
    for (path, text) in files(results, directory)? {
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Compares the page and its pictures with these results.
///
/// # Errors
/// Where a file differs.
pub fn compare(results: &Results, directory: &Path) -> Result<()> {
    for (path, text) in files(results, directory)? {
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            bail!("{} is not what the simulation gives: run `cargo xtask simulate` and commit it", path.display());
        }
    }
    Ok(())
}
