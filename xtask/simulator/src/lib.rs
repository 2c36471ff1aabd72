//! edgeproxy's selection over simulated worlds, beside other ways to choose a backend, with an oracle that checks every
//! decision. `cargo xtask simulate` runs it; `docs/simulation.md` has the results.
//!
//! A [`World`](world::World) is made from a seed: POPs, apps, backends, clients, when they come and for how long, what
//! fails and what the operator changes. The [`engine`] plays it in simulated time. A [`Candidate`](candidate::Candidate)
//! chooses; edgeproxy is one of them and uses the very code that routes. The [`oracle`] keeps books of its own and knows
//! nothing of that code. [`measure`] counts what came of it.
//!
//! It is a package of its own rather than a part of xtask: xtask is the first thing that is compiled in a new clone,
//! must not wait for the whole daemon, and must build where the BPF object that the daemon embeds is missing, because
//! it makes that object.

// A command-line tool talks to its user on standard output.
#![allow(clippy::print_stdout)]
#![allow(clippy::indexing_slicing, reason = "indices are places in the world's own lists; a panic is a failed test")]

pub mod candidate;
pub mod dice;
pub mod engine;
pub mod measure;
pub mod oracle;
pub mod report;
pub mod scenes;
pub mod world;

#[cfg(test)]
mod tests;
