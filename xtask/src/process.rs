//! Running other programs, with errors that name the command.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs a command whose output goes to the terminal; fails when it does.
///
/// # Errors
/// When the program is not there or ends with anything but 0; the message holds the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.status().with_context(|| format!("could not start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it wrote to standard output, without white space at the ends.
///
/// # Errors
/// As [`run`]; the message also holds what the command wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("could not start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// As [`output`], but `None` when the program is missing or fails: a question, not an order.
#[must_use]
pub fn ask(command: &mut Command) -> Option<String> {
    output(command.stderr(Stdio::null())).ok()
}

/// The command as a person would type it.
#[must_use]
pub fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// Every place in `path` (in the form of `PATH`) that holds an executable of that name, in order.
pub fn find_in<'a>(path: &'a std::ffi::OsStr, name: &'a str) -> impl Iterator<Item = PathBuf> + use<'a> {
    std::env::split_paths(path).map(move |dir| dir.join(name)).filter(|file| is_executable(file))
}

/// The first executable of that name in `PATH`.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    find_in(&path, name).next()
}

/// As [`find`], but also in the directories of system programs, which are not in every user's `PATH`.
#[must_use]
pub fn find_system(name: &str) -> Option<PathBuf> {
    let system = std::ffi::OsStr::new("/usr/sbin:/sbin:/usr/bin:/bin");
    find(name).or_else(|| find_in(system, name).next())
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Puts `dirs` before everything else in the command's `PATH`.
///
/// # Errors
/// When a directory's name holds a colon.
pub fn prefer_path(command: &mut Command, dirs: &[PathBuf]) -> io::Result<()> {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let all = dirs.iter().cloned().chain(std::env::split_paths(&old));
    command.env("PATH", std::env::join_paths(all).map_err(io::Error::other)?);
    Ok(())
}
