//! What the demo prints, and what it checks.

use anyhow::Result;

use super::stage::{POP_REGION, Scene, Stage};
use crate::lab::Status;

/// Prints the account; returns the checks that did not hold.
pub(super) fn print(stage: &Stage, scenes: &[Scene]) -> Result<Vec<String>> {
    let status = stage.status_at_rest()?;
    let maps = Stage::kernel_bytes(&status);
    introduce(&status);
    routes(scenes);
    bytes(scenes, maps);
    let failed: Vec<String> = scenes.iter().flat_map(of_scene).chain(of_daemon(scenes, &status, maps)).collect();
    println!("\nchecks");
    for failure in &failed {
        println!("  FAILED {failure}");
    }
    if failed.is_empty() {
        println!("  every byte arrived once, in order; every count agrees; every client reached its region");
    }
    Ok(failed)
}

fn introduce(status: &Status) {
    println!("\nPOP in region {POP_REGION}");
    match status.text("/forwarder/why") {
        Some(why) => println!("no kernel path, bytes are copied in userspace: {why}"),
        None => println!("connections start in userspace and move into the kernel when they have earned it"),
    }
}

fn routes(scenes: &[Scene]) {
    println!(
        "\n{:<22} {:<7} {:<7} {:<8} {:<14} {:<9} {:>11} {:>11} {:>9}",
        "client", "country", "region", "backend", "why", "forwarder", "bytes up", "bytes down", "CPU ms"
    );
    for Scene { record, cpu, .. } in scenes {
        println!(
            "{:<22} {:<7} {:<7} {:<8} {:<14} {:<9} {:>11} {:>11} {:>9.1}",
            record.client().to_string(),
            or_dash(record.country.as_deref()),
            or_dash(record.client_region.as_deref()),
            or_dash(record.backend.as_deref()),
            or_dash(record.why.as_deref()),
            or_dash(record.forwarder.as_deref()),
            record.bytes_up,
            record.bytes_down,
            cpu.as_secs_f64() * 1000.0
        );
    }
}

/// The kernel's own counts beside those of clients and backends.
fn bytes(scenes: &[Scene], maps: u64) {
    println!(
        "\n{:<22} {:<4} {:>13} {:>13} {:>15} {:>13}",
        "client", "way", "in the kernel", "in userspace", "daemon in all", "both ends saw"
    );
    for Scene { record, checked, .. } in scenes {
        let ways = [
            ("up", record.kernel_up, record.bytes_up, checked.bytes_up()),
            ("down", record.kernel_down, record.bytes_down, checked.bytes_down()),
        ];
        for (way, kernel, all, counted) in ways {
            let user = all.saturating_sub(kernel);
            println!("{:<22} {way:<4} {kernel:>13} {user:>13} {all:>15} {counted:>13}", record.client().to_string());
        }
    }
    println!("the BPF maps count {maps} bytes forwarded in the kernel in all");
}

fn or_dash(text: Option<&str>) -> &str {
    text.unwrap_or("-")
}

/// What is wrong with one connection.
fn of_scene(scene: &Scene) -> Vec<String> {
    let Scene { country, checked, record, .. } = scene;
    let mut failed: Vec<String> = checked.fault().into_iter().collect();
    let mut check = |what: &str, got: &str, expected: &str| {
        if got != expected {
            failed.push(format!("{}: {what} is {got}, not {expected}", record.client()));
        }
    };
    check("country", or_dash(record.country.as_deref()), country.code);
    check("region of the backend", or_dash(record.backend_region.as_deref()), scene.expected_region);
    check("reason", or_dash(record.why.as_deref()), scene.expected_why);
    check("bytes up in the log", &record.bytes_up.to_string(), &checked.bytes_up().to_string());
    check("bytes down in the log", &record.bytes_down.to_string(), &checked.bytes_down().to_string());
    check("termination", &record.termination, "--");
    let served = checked.backend.as_ref().map(|report| report.backend.as_str());
    check("backend in the log", or_dash(record.backend.as_deref()), or_dash(served));
    failed
}

/// What is wrong with the daemon as a whole.
fn of_daemon(scenes: &[Scene], status: &Status, maps: u64) -> Vec<String> {
    let mut failed = Vec::new();
    if status.active() != 0 {
        failed.push(format!("{} connections are left", status.active()));
    }
    for (backend, balancer, kernel) in status.backends() {
        if balancer != 0 || kernel.unwrap_or(0) != 0 {
            failed.push(format!("{backend}: {balancer} connections for the balancer, {kernel:?} for the kernel"));
        }
    }
    let logged: u64 = scenes.iter().map(|scene| scene.record.kernel_up + scene.record.kernel_down).sum();
    // What is spliced does not come to userspace either, and is in no map.
    let spliced = scenes.iter().any(|scene| scene.record.forwarders.iter().any(|step| step.forwarder == "splice"));
    if maps > logged || !spliced && maps != logged {
        failed.push(format!("the access log says {logged} bytes in the kernel, the BPF maps {maps}"));
    }
    if status.text("/forwarder/active") != Some("copy") && maps == 0 {
        failed.push("the kernel path is on and forwarded nothing".to_owned());
    }
    failed
}
