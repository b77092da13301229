//! What lasts: taking over from a server that was killed, what hundreds of conversations leave behind, and quiet
//! conversations beside loud ones.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use greenroom_integration::{Client, Config, Docker, Era, Greenroom};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{Effort, report::Report, resources::resident};

/// Conversations one after the other.
const SEQUENTIAL: usize = 200;
/// Conversations that burn their processors beside the quiet one.
const LOUD: usize = 4;

/// From the death of a server until another one, which never saw the conversation, has answered with its state.
pub(crate) async fn take_over(report: &mut Report, effort: Effort) -> Result<()> {
    let config = Config {
        warm: 1,
        max: 40,
        ..Config::default()
    };
    let mut first = Greenroom::start(&config).await?;
    let second = first.twin(&config).await?;
    let other = second.client(Era::Modern).await?;
    let mut times = Vec::new();
    for n in 0..effort.fresh.min(10) {
        let conversation = format!("bench-take-over-{n}");
        let client = first.client(Era::Modern).await?;
        client.python(&conversation, &format!("mark = {n}")).await?;
        first.kill().await?;
        let start = Instant::now();
        let answer = other.python(&conversation, "mark").await?;
        times.push(start.elapsed());
        let existing = answer.session() == "existing";
        ensure!(existing && answer.result() == n.to_string(), "{}", answer.text);
        first.restart().await?;
    }
    report.times("take-over after SIGKILL, by another server", &times, "≤ 150 ms");
    drop(other);
    let mut second = second;
    second.stop().await?;
    first.finish().await
}

/// What two hundred conversations leave behind that were each begun, used and ended.
pub(crate) async fn sequence(report: &mut Report, effort: Effort) -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        max: 8,
        pool: "preload = []\n".into(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    // What is made once is no leak.
    one(&client, "bench-sequence-first").await?;
    let before = Held::now(&greenroom).await?;
    let count = if effort.fresh < 20 { 10 } else { SEQUENTIAL };
    for n in 0..count {
        one(&client, &format!("bench-sequence-{n}")).await?;
    }
    let after = Held::now(&greenroom).await?;
    for (what, unit, value) in [
        ("containers", "", after.containers - before.containers),
        (
            "shims and sandbox processes",
            "",
            after.processes - before.processes,
        ),
        (
            "descriptors of the server",
            "",
            after.descriptors - before.descriptors,
        ),
        ("memory of the server", "MiB", after.memory - before.memory),
        (
            "descriptors of dockerd",
            "",
            after.engine_descriptors - before.engine_descriptors,
        ),
        (
            "memory of dockerd",
            "MiB",
            after.engine_memory - before.engine_memory,
        ),
    ] {
        report.values(
            format!("left behind by {count} conversations: {what}"),
            unit,
            &[value],
            "none",
        );
    }
    client.close().await?;
    greenroom.finish().await
}

async fn one(client: &Client, conversation: &str) -> Result<()> {
    let answer = client.python(conversation, "x = 1\nx").await?;
    ensure!(answer.result() == "1", "{}", answer.text);
    client
        .call("reset_session", json!({ "conversation_id": conversation }))
        .await?;
    Ok(())
}

/// What a server and its engine hold.
struct Held {
    containers: f64,
    processes: f64,
    descriptors: f64,
    memory: f64,
    engine_descriptors: f64,
    engine_memory: f64,
}

impl Held {
    /// Once the pool is warm and everything that ended has gone.
    async fn now(greenroom: &Greenroom) -> Result<Self> {
        greenroom.wait_warm(2).await?;
        sleep(Duration::from_secs(5)).await;
        let docker = Docker::connect().await?;
        let server = greenroom.pid().context("the server runs")?;
        let engine = pids("dockerd")?.pop().context("dockerd runs")?;
        Ok(Self {
            containers: docker.running(greenroom.deployment()).await? as f64,
            processes: (pids("containerd-shim")?.len() + pids("runsc-sandbox")?.len()) as f64,
            descriptors: descriptors(server)?,
            memory: resident(server)?,
            engine_descriptors: descriptors(engine)?,
            engine_memory: resident(engine)?,
        })
    }
}

/// The processes whose name begins like this.
fn pids(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_string_lossy().parse::<u32>().ok() else {
            continue;
        };
        // One that has just ended has no name any more. The kernel keeps 15 bytes of it.
        let known = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if known.trim_end().starts_with(name.get(..15).unwrap_or(name)) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn descriptors(pid: u32) -> Result<f64> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64)
}

/// Hot calls of a quiet conversation beside four that burn what processors they get.
pub(crate) async fn neighbours(report: &mut Report, effort: Effort) -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 1,
        max: 8,
        pool: "preload = []\n".into(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    client.python("bench-quiet-one", "1").await?;
    let burn = (0..LOUD).map(|n| {
        let code = json!({
            "conversation_id": format!("bench-loud-{n}"), "background": true, "timeout_seconds": 300, "code": "while True: pass",
        });
        client.call("execute_code", code)
    });
    try_join_all(burn).await?;
    let mut times = Vec::new();
    for _ in 0..effort.hot.min(300) {
        let start = Instant::now();
        let answer = client.python("bench-quiet-one", "1+1").await?;
        times.push(start.elapsed());
        ensure!(answer.result() == "2", "{}", answer.text);
        sleep(Duration::from_millis(20)).await;
    }
    report.times(
        format!("hot execute_code beside {LOUD} conversations that burn their processors"),
        &times,
        "p99 ≤ 100 ms",
    );
    client.close().await?;
    greenroom.finish().await
}
