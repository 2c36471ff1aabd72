//! The command line as users type it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use crate::adapters::inbound::admin::tests::serve;
use crate::config::KEYS;

fn parse(line: &str) -> Result<Command, clap::Error> {
    parse_from(line.split(' ').map(OsString::from))
}

#[test]
fn clap_finds_no_fault_and_every_setting_has_its_flag() {
    Cli::command().debug_assert();
    let run = Cli::command().find_subcommand("run").unwrap().clone();
    for key in KEYS {
        assert!(run.get_arguments().any(|arg| arg.get_long() == Some(key.flag())), "{}", key.name);
    }
}

#[test]
fn flags_become_settings() {
    let line = "edgeproxy run --listen-addr 127.0.0.1:1 --listen-addr [::1]:2 --access-log false --region eu";
    let Command::Run(args) = parse(line).unwrap() else { panic!("not run") };
    let settings = args.load().unwrap().settings;
    assert_eq!(settings.listen_addr.as_slice().len(), 2);
    assert!(!settings.access_log);
    assert_eq!(settings.region.as_str(), "eu");
}

#[test]
fn bad_values_of_flags_are_reported_together() {
    let Command::Check(args) = parse("edgeproxy check --backlog -1 --forwarder fast").unwrap() else {
        panic!("not check")
    };
    let error = args.load().unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
    assert_eq!(error.to_string().lines().count(), 3, "{error}");
}

#[test]
fn a_config_file_that_is_not_there_is_named() {
    let Command::Run(args) = parse("edgeproxy run --config /nowhere.toml").unwrap() else { panic!("not run") };
    assert!(args.load().unwrap_err().to_string().contains("flag --config: configuration file /nowhere.toml"));
}

#[test]
fn mistakes_are_explained() {
    let error = parse("edgeproxy run --listen-adr x").unwrap_err().to_string();
    assert!(error.contains("--listen-addr"), "{error}");
    assert!(parse("edgeproxy").unwrap_err().to_string().contains("Usage: edgeproxy"));
    assert!(parse("edgeproxy --help").unwrap_err().to_string().contains("64  bad command line"));
    assert!(matches!(parse("edgeproxy --version --verbose"), Ok(Command::Version { verbose: true })));
    assert!(matches!(parse("edgeproxy -V"), Ok(Command::Version { verbose: false })));
}

/// Commands have a runtime of their own, the server needs another.
fn with_daemon(test: impl FnOnce(&str)) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let (up, is_up) = std::sync::mpsc::sync_channel(1);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                serve(&socket, None).await;
                up.send(()).unwrap();
                let _ = stopped.await;
            });
        });
        is_up.recv().unwrap();
        // Moved in, so that a failing test stops the daemon, too.
        let _stop = stop;
        test(socket.to_str().unwrap());
    });
}

fn status_of(line: &str) -> Result<(), CliError> {
    match parse(line).unwrap() {
        Command::Status(args) => status(&args),
        Command::Reload(args) => reload(&args),
        other => panic!("{other:?}"),
    }
}

#[test]
fn status_and_reload_ask_the_daemon() {
    with_daemon(|socket| {
        status_of(&format!("edgeproxy status --admin-socket {socket}")).unwrap();
        status_of(&format!("edgeproxy status --json --wait=5 --admin-socket {socket}")).unwrap();
        status_of(&format!("edgeproxy reload --allow-empty --admin-socket {socket}")).unwrap();
        let error = status_of(&format!("edgeproxy reload --admin-socket {socket}")).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit()), ("the table is empty", Exit::Failure));
    });
}

#[test]
fn the_exit_code_of_explain_says_whether_there_is_a_backend() {
    with_daemon(|socket| {
        let ask = |what: &str| {
            let line = format!("edgeproxy explain --client 192.0.2.1{what} --admin-socket {socket}");
            let Command::Explain(args) = parse(&line).unwrap() else { panic!("not explain") };
            explain(&args)
        };
        assert_eq!(ask("").unwrap(), Exit::Ok);
        assert_eq!(ask(" --app web --json").unwrap(), Exit::Ok);
        assert_eq!(ask(" --app nobody").unwrap(), Exit::NoBackend);
        let error = ask(" --port 1").unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit()), ("no listener on port 1", Exit::NoBackend));
    });
    assert!(parse("edgeproxy explain --client 192.0.2.1 --app web --port 1").is_err());
    assert!(parse("edgeproxy explain --client backend.example").is_err());
}

#[test]
fn no_daemon_is_its_own_exit_code() {
    for wait in ["", " --wait=0"] {
        let error = status_of(&format!("edgeproxy status --admin-socket /nowhere.sock{wait}")).unwrap_err();
        assert_eq!(error.exit(), Exit::Unavailable);
        assert!(error.to_string().contains("/nowhere.sock"));
    }
}
