//! The commands behind `cargo xtask`, as a library so that they can call each other.
//!
//! Every command works from any directory and finds the repository it was compiled in.

// A command-line tool talks to its user on standard output.
#![allow(clippy::print_stdout)]

pub mod bench;
pub mod build_ebpf;
pub mod check_ebpf;
pub mod demo;
pub mod lab;
pub mod lint_ebpf;
pub mod load;
pub mod manifest;
pub mod object_diff;
pub mod process;
pub mod setup;
pub mod sheet;
pub mod simulate;
pub mod test;
pub mod toolchain;
pub mod workspace;
