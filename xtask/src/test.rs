//! `cargo xtask test`: every test, from unit to kernel, and an honest list of what was skipped.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    check_ebpf, process,
    setup::{self, Need},
    workspace,
};

/// Names the file to which a test that can't run appends `SKIP <test>: <reason>`.
pub const SKIP_LOG_ENV: &str = "EDGEPROXY_SKIP_LOG";
/// With the value 1, a test that can't run panics instead of skipping.
pub const REQUIRE_KERNEL_ENV: &str = "EDGEPROXY_REQUIRE_KERNEL";

/// Options of `test`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// A test that needs root, BPF or network namespaces and can't have them fails instead of skipping.
    #[arg(long)]
    pub require_kernel: bool,
    /// Run only tests whose name contains this.
    #[arg(last = true)]
    pub filter: Vec<String>,
}

/// Runs everything, even after a failure, and prints the summary.
///
/// # Errors
/// When a test fails, the BPF objects are stale, or a skip happened with `--require-kernel`.
pub fn run(args: &Args) -> Result<()> {
    let root = workspace::root();
    prepare(args.require_kernel)?;
    check_ebpf::check(&root)?;
    let skip_log = fresh_skip_log()?;
    let runner = Runner { root: &root, args, skip_log: &skip_log };

    process::run(runner.cargo().args(["build", "--package", "edge-userspace", "--bin", "edgeproxy"]))?;
    let mut report = Report::default();
    for step in steps(&root)? {
        runner.run(&step, &mut report)?;
    }
    report.skips = read_skips(&fs::read_to_string(&skip_log)?);
    report.print();
    if !args.filter.is_empty() && report.passed + report.failed == 0 {
        bail!("no test has {} in its name", args.filter.join(" or "));
    }
    report.verdict(args.require_kernel)
}

/// Installs what the lab needs; without root the tests that need it skip, unless that is forbidden.
fn prepare(require_kernel: bool) -> Result<()> {
    match setup::ensure(Need::Tests) {
        Err(error) if !require_kernel => {
            eprintln!("warning: {error:#}; tests that need it will be skipped")
        }
        other => {
            other?;
        }
    }
    for name in [workspace::DAEMON_OBJECT_ENV, workspace::STEER_OBJECT_ENV, workspace::TESTKIT_OBJECT_ENV] {
        if let Some(path) = std::env::var_os(name).filter(|path| !path.is_empty()) {
            println!("{name}: testing with {}", Path::new(&path).display());
        }
    }
    Ok(())
}

fn fresh_skip_log() -> Result<PathBuf> {
    let path = workspace::target_dir().join("xtask-skips.log");
    fs::write(&path, "").with_context(|| format!("{} can't be written", path.display()))?;
    Ok(path)
}

/// One call of `cargo test`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    title: String,
    args: Vec<String>,
    /// End-to-end tests measure time and memory: one at a time.
    alone: bool,
}

impl Step {
    fn new(title: &str, args: &[&str], alone: bool) -> Self {
        Self { title: title.to_owned(), args: args.iter().map(|arg| (*arg).to_owned()).collect(), alone }
    }
}

fn steps(root: &Path) -> Result<Vec<Step>> {
    let mut steps = vec![
        Step::new("unit tests", &["--workspace", "--lib", "--bins"], false),
        Step::new("examples in the documentation", &["--workspace", "--doc"], false),
    ];
    for package in ["edge-common", "xtask", "edge-userspace"] {
        for test in integration_tests(&root.join(package).join("tests"))? {
            let args = ["--package", package, "--test", &test];
            steps.push(Step::new(&format!("{package}/tests/{test}.rs"), &args, true));
        }
    }
    Ok(steps)
}

/// Names of the test binaries in that directory, sorted; none if there is no such directory.
fn integration_tests(dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    if dir.exists() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
            }
        }
    }
    Ok(names)
}

struct Runner<'a> {
    root: &'a Path,
    args: &'a Args,
    skip_log: &'a Path,
}

impl Runner<'_> {
    fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(self.root).env(SKIP_LOG_ENV, self.skip_log);
        if self.args.require_kernel {
            command.env(REQUIRE_KERNEL_ENV, "1");
        } else {
            command.env_remove(REQUIRE_KERNEL_ENV);
        }
        command
    }

    /// Runs a step, showing its output as it comes and counting the results in it.
    fn run(&self, step: &Step, report: &mut Report) -> Result<()> {
        println!("== {}", step.title);
        let mut command = self.cargo();
        command.arg("test").arg("--no-fail-fast").args(&step.args).arg("--");
        if step.alone {
            command.arg("--test-threads=1");
        }
        command.args(&self.args.filter).stdout(Stdio::piped());
        let mut child = command.spawn().context("could not start cargo test")?;
        let stdout = child.stdout.take().context("cargo test has no output")?;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            report.count(&line);
        }
        if !child.wait()?.success() {
            report.failed_steps.push(step.title.clone());
        }
        Ok(())
    }
}

/// What happened, over all steps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    binaries: u32,
    passed: u32,
    failed: u32,
    failed_steps: Vec<String>,
    skips: Vec<String>,
}

impl Report {
    /// Reads libtest's last line: `test result: ok. 12 passed; 0 failed; …`.
    fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let number = |word: &str| -> u32 {
            let before = result.split(word).next().unwrap_or_default().trim_end();
            before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let (passed, failed) = (number("passed;"), number("failed;"));
        self.passed += passed;
        self.failed += failed;
        self.binaries += u32::from(passed > 0 && failed == 0);
    }

    fn print(&self) {
        println!("\n== summary");
        // A test that skips itself returns, so the harness counts it as passed.
        println!(
            "{} tests passed, {} failed, {} skipped; {} test binaries passed",
            self.passed.saturating_sub(u32::try_from(self.skips.len()).unwrap_or(u32::MAX)),
            self.failed,
            self.skips.len(),
            self.binaries
        );
        for skip in &self.skips {
            println!("skipped: {skip}");
        }
        for step in &self.failed_steps {
            println!("failed: {step}");
        }
    }

    fn verdict(&self, require_kernel: bool) -> Result<()> {
        if !self.failed_steps.is_empty() {
            bail!("tests failed in: {}", self.failed_steps.join(", "));
        }
        if require_kernel && !self.skips.is_empty() {
            bail!("{} tests were skipped, which --require-kernel forbids", self.skips.len());
        }
        Ok(())
    }
}

fn read_skips(log: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| line.strip_prefix("SKIP "));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn results_are_counted_over_binaries() {
        let mut report = Report::default();
        report.count("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        report.count("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out");
        report.count("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        report.count("test pick::tests::weights ... ok");
        assert_eq!((report.passed, report.failed, report.binaries), (15, 2, 1));
    }

    #[test]
    fn skips_are_read_from_the_log() {
        let log = "SKIP sockmap_half_close: needs root\nnoise\nSKIP loss: tc: not found\n";
        assert_eq!(read_skips(log), ["sockmap_half_close: needs root", "loss: tc: not found"]);
    }

    #[test]
    fn a_skip_fails_only_where_the_kernel_is_required() {
        let report = Report { skips: vec!["loss: needs root".to_owned()], ..Report::default() };
        assert!(report.verdict(false).is_ok());
        assert!(report.verdict(true).is_err());
    }

    #[test]
    fn a_failed_step_is_named() {
        let report = Report { failed_steps: vec!["unit tests".to_owned()], ..Report::default() };
        assert!(report.verdict(false).unwrap_err().to_string().contains("unit tests"));
    }

    #[test]
    fn end_to_end_tests_run_alone_and_unit_tests_together() {
        let dir = tempfile::tempdir().unwrap();
        let tests = dir.path().join("edge-userspace/tests");
        fs::create_dir_all(tests.join("common")).unwrap();
        for name in ["forwarding.rs", "admission.rs", "notes.md"] {
            fs::write(tests.join(name), "").unwrap();
        }
        let steps = steps(dir.path()).unwrap();
        let alone: Vec<&str> = steps.iter().filter(|step| step.alone).map(|step| step.title.as_str()).collect();
        assert_eq!(alone, ["edge-userspace/tests/admission.rs", "edge-userspace/tests/forwarding.rs"]);
        assert_eq!(steps.len(), 4);
    }
}
