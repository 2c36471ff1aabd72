//! `cargo xtask check-ebpf`: do the committed objects belong to the sources?

use std::path::Path;

use anyhow::{Result, anyhow, bail};

use crate::{
    build_ebpf::{self, Built},
    manifest::{self, Manifest},
    object_diff::Difference,
    toolchain::Choice,
    workspace::{self, OBJECTS},
};

/// What to run when they don't.
const REMEDY: &str = "run `cargo xtask build-ebpf` and commit what it writes";

/// Options of `check-ebpf`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Also compile the programs, into target/bpf-fresh/, and compare the objects.
    #[arg(long)]
    pub rebuild: bool,
    /// Which compiler to rebuild with.
    #[arg(long, value_enum, default_value_t, requires = "rebuild")]
    pub toolchain: Choice,
}

/// Checks the manifest, and the programs too if asked.
///
/// # Errors
/// When the objects don't belong to the sources; the message names the files and the remedy.
pub fn run(args: &Args) -> Result<()> {
    let root = workspace::root();
    let committed = check(&root)?;
    println!("the BPF objects belong to their sources ({})", committed.combined);
    if args.rebuild {
        rebuild(&root, &committed, args.toolchain)?;
    }
    Ok(())
}

/// The cheap check, without a compiler.
///
/// # Errors
/// As [`run`].
pub fn check(root: &Path) -> Result<Manifest> {
    let committed = Manifest::load(root)?;
    let (sources, objects) = (manifest::hash_sources(root)?, manifest::hash_objects(root)?);
    committed.verify(&sources, &build_ebpf::flags(), &objects).map_err(|stale| anyhow!("{stale}; {REMEDY}"))?;
    Ok(committed)
}

/// Compiles into `target/bpf-fresh/`; the same tools must give the same programs.
fn rebuild(root: &Path, committed: &Manifest, choice: Choice) -> Result<()> {
    let built = build_ebpf::build(choice)?;
    let same_tools = built.tools == committed.tools;
    let mut different = Vec::new();
    for object in OBJECTS {
        let fresh = workspace::fresh_dir().join(object.fresh);
        build_ebpf::copy(&built.dir.join(object.bin), &fresh)?;
        let difference = Difference::of(&fresh, &root.join(object.committed))?;
        let verdict = match &difference {
            Difference::None => "identical to".to_owned(),
            Difference::TypeOrder => "identical, but for the order of its type information, to".to_owned(),
            Difference::Sections(sections) => format!("different (in {}) from", sections.join(", ")),
        };
        println!("{}: {verdict} {}", fresh.display(), object.committed);
        if matches!(difference, Difference::Sections(_)) {
            different.push(object.committed);
        }
    }
    if !different.is_empty() && same_tools {
        bail!("the same sources and tools gave other programs in {}; {REMEDY}", different.join(", "));
    }
    if !same_tools {
        explain_tools(committed, &built);
    }
    Ok(())
}

fn explain_tools(committed: &Manifest, built: &Built) {
    println!("note: other tools than those of the committed objects, so other programs are no error:");
    println!("  committed: {:?}", committed.tools);
    println!("  here:      {:?}", built.tools);
}
