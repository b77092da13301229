//! What it costs: an idle sandbox, a server with many sessions, a run that never stops printing.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use greenroom_integration::{Config, Docker, Era, Greenroom};
use tokio::time::{Instant, sleep};

use crate::report::Report;

/// CPU and memory of idle sandboxes, by their cgroups, with the server's channel open and its pings on.
pub(crate) async fn idle(report: &mut Report) -> Result<()> {
    for (name, pool, aim) in [
        ("without preload", "preload = []\n", "≤ 40 MiB"),
        ("with the default preload", "", "≤ 140 MiB"),
    ] {
        let greenroom = Greenroom::start(&Config {
            warm: 3,
            pool: pool.into(),
            ..Config::default()
        })
        .await?;
        greenroom.wait_warm(3).await?;
        let ids = ids(&greenroom).await?;
        sleep(Duration::from_secs(5)).await;
        let (start, before) = (Instant::now(), cpu(&ids)?);
        sleep(Duration::from_secs(30)).await;
        let elapsed = start.elapsed().as_secs_f64();
        let shares: Vec<f64> = cpu(&ids)?
            .iter()
            .zip(before)
            .map(|(after, before)| (after - before) / elapsed * 100.0)
            .collect();
        report.values(format!("idle sandbox, CPU, {name}"), "%", &shares, "≤ 0.1 %");
        let memory = ids.iter().map(|id| memory(id)).collect::<Result<Vec<_>>>()?;
        report.values(format!("idle sandbox, memory, {name}"), "MiB", &memory, aim);
        greenroom.finish().await?;
    }
    Ok(())
}

/// A gigabyte by Python itself: what pipes between programs cost under gVisor is not the question.
const PRINT: &str = "for _ in range(1000): print('y' * 999_999)";

/// The server's own memory with twenty sessions, and after one of them printed a gigabyte.
pub(crate) async fn server(report: &mut Report) -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 1,
        max: 32,
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    for n in 0..20 {
        client.python(&format!("bench-session-{n}"), "1").await?;
    }
    let pid = greenroom.pid().context("the server runs")?;
    report.values(
        "server, resident memory with 20 sessions",
        "MiB",
        &[resident(pid)?],
        "≤ 60 MiB",
    );
    let start = Instant::now();
    let answer = client.python("bench-session-0", PRINT).await?;
    anyhow::ensure!(answer.status() == "ok", "{}", answer.text);
    report.times("a run that prints 1 GB", &[start.elapsed()], "≤ 10 s");
    report.values(
        "server, resident memory after it",
        "MiB",
        &[resident(pid)?],
        "unchanged",
    );
    let agent = client
        .python("bench-session-0", "open('/proc/1/statm').read().split()[1]")
        .await?;
    let pages: f64 = agent.result().trim_matches('\'').parse()?;
    report.values(
        "agent, resident memory after it",
        "MiB",
        &[pages / 256.0],
        "≤ 32 MiB",
    );
    client.close().await?;
    greenroom.finish().await
}

async fn ids(greenroom: &Greenroom) -> Result<Vec<String>> {
    let containers = Docker::connect()
        .await?
        .containers(greenroom.deployment())
        .await?;
    Ok(containers
        .into_iter()
        .filter_map(|container| container.id)
        .collect())
}

/// Seconds of processor time that each container has used.
fn cpu(ids: &[String]) -> Result<Vec<f64>> {
    ids.iter()
        .map(|id| {
            if let Ok(path) = cgroup_file("cpuacct", id, "cpuacct.usage") {
                return Ok(std::fs::read_to_string(path)?.trim().parse::<f64>()? / 1e9);
            }
            let text = std::fs::read_to_string(cgroup_file("", id, "cpu.stat")?)?;
            let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
            Ok(micros.context("cpu.stat has usage_usec")?.parse::<f64>()? / 1e6)
        })
        .collect()
}

/// Resident memory of a container's cgroup in MiB, page cache of files left out.
fn memory(id: &str) -> Result<f64> {
    let (path, keys) = match cgroup_file("memory", id, "memory.stat") {
        Ok(path) => (path, ["total_rss ", "total_shmem "]),
        Err(_) => (cgroup_file("", id, "memory.stat")?, ["anon ", "shmem "]),
    };
    let text = std::fs::read_to_string(path)?;
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    Ok(keys.iter().map(|key| value(key)).sum::<f64>() / f64::from(1 << 20))
}

/// Finds a file of a container's cgroup below one controller, in v1 or v2.
fn cgroup_file(controller: &str, id: &str, file: &str) -> Result<PathBuf> {
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup").join(controller)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)?.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            if entry.file_name().to_string_lossy().contains(id) && path.join(file).is_file() {
                return Ok(path.join(file));
            }
            folders.push(path);
        }
    }
    anyhow::bail!("no cgroup of {id} below {controller:?} has {file}")
}

/// Resident memory of a process in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    Ok(greenroom_integration::resident(pid)? as f64 / f64::from(1 << 20))
}
