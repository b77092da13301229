//! Bulk over the channel itself: the server's own guest client, a real exec stream, the real agent.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use greenroom::{
    conversation::{PoolName, hex},
    engine::{
        Engine,
        docker::{DockerConfig, DockerEngine, Installers},
    },
    guest::{Guest, WriteMode},
    sandbox::{SandboxId, SandboxSpec, Stay},
};
use greenroom_integration::{Answer, Config, Era, Greenroom, agent};
use greenroom_protocol::{AgentConfig, KeyDigest, LeaseRequest};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{Effort, report::Report};

const BYTES: usize = 64 << 20;
/// A file by a link.
const LINKED: usize = 512 << 20;
const LISTED: usize = 10_000;

/// 64 MiB up and down.
pub(crate) async fn bulk(report: &mut Report, effort: Effort) -> Result<()> {
    let engine = engine().await?;
    let id = SandboxId::mint()?;
    let measured = transfer(report, effort, &engine, &id).await;
    engine.destroy(&id).await?;
    measured
}

/// The engine itself, for a deployment of its own.
pub(crate) async fn engine() -> Result<Arc<dyn Engine>> {
    let mut random = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    let docker = DockerEngine::connect(DockerConfig {
        socket: "unix:///var/run/docker.sock".into(),
        fingerprint: hex(&random),
        deployment: "bench".into(),
        creator: "bench".into(),
        agent: agent()?,
        cgroup_parent: "greenroom".into(),
        installers: Installers::default(),
    });
    Ok(Arc::new(docker.await?))
}

/// A sandbox without kernels, and its agent.
pub(crate) async fn bare(engine: &Arc<dyn Engine>, id: &SandboxId) -> Result<Guest> {
    let spec = SandboxSpec {
        pool: PoolName::parse("bench").map_err(anyhow::Error::msg)?,
        image: engine.prepare("greenroom/python:latest").await?,
        runtime: "runsc-4g".into(),
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
        pids: 512,
        nproc: 128,
        nofile: 1024,
        stay: Stay::default(),
        agent: AgentConfig {
            ready: Vec::new(),
            ..AgentConfig::default()
        },
    };
    engine.create(id, &spec).await?;
    engine.start(id).await?;
    let guest = Guest::connect(Arc::clone(engine), id.clone()).await?;
    guest.wait_ready(Duration::from_secs(20)).await?;
    Ok(guest)
}

async fn transfer(
    report: &mut Report,
    effort: Effort,
    engine: &Arc<dyn Engine>,
    id: &SandboxId,
) -> Result<()> {
    let guest = bare(engine, id).await?;
    let lease = LeaseRequest {
        key: KeyDigest("b".repeat(64)),
        idle_ms: 600_000,
        lifetime_ms: 600_000,
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    };
    guest.lease(&lease).await?;
    let data = Bytes::from((0..BYTES).map(|n| (n * 31 % 251) as u8).collect::<Vec<_>>());
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let rate = |since: Instant| BYTES as f64 / 1e6 / since.elapsed().as_secs_f64();
    for _ in 0..effort.fresh.clamp(3, 10) {
        let start = Instant::now();
        let entry = guest.write_file("bulk", WriteMode::Replace, data.clone()).await?;
        up.push(rate(start));
        ensure!(entry.size == BYTES as u64, "{entry:?}");
        let start = Instant::now();
        let mut body = guest.read_file("bulk", ..).await?.body;
        let mut seen = 0;
        while let Some(chunk) = body.next().await? {
            ensure!(
                data[seen..seen + chunk.len()] == chunk,
                "the bytes differ at {seen}"
            );
            seen += chunk.len();
        }
        down.push(rate(start));
        ensure!(seen == BYTES, "{seen} bytes came back");
    }
    report.values("64 MiB over the channel, up", "MB/s", &up, "≥ 100 MB/s");
    report.values("64 MiB over the channel, down", "MB/s", &down, "≥ 100 MB/s");
    Ok(())
}

/// 512 MiB by links through the server's HTTP, and a listing of 10,000 files through MCP.
pub(crate) async fn front(report: &mut Report, effort: Effort) -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let id = "bench-of-files-and-links";
    let call = |tool: &'static str, mut arguments: Value| {
        arguments["conversation_id"] = id.into();
        client.call(tool, arguments)
    };
    let link = |answer: Answer| {
        let line = answer.text.lines().find(|line| line.starts_with("http://"));
        line.map(str::to_owned).context("no link")
    };
    let http = reqwest::Client::new();
    let piece = Bytes::from((0..1 << 20).map(|n| (n * 31 % 251) as u8).collect::<Vec<_>>());
    let rate = |since: Instant| LINKED as f64 / 1e6 / since.elapsed().as_secs_f64();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..effort.fresh.clamp(2, 5) {
        let to = link(call("upload_file", json!({ "path": "bulk" })).await?)?;
        let one = piece.clone();
        let pieces = (0..LINKED / one.len()).map(move |_| Ok::<_, std::io::Error>(one.clone()));
        let pieces = stream::iter(pieces);
        let start = Instant::now();
        let sent = http.put(to).body(reqwest::Body::wrap_stream(pieces));
        ensure!(sent.send().await?.status() == 201, "the upload was refused");
        up.push(rate(start));
        let from = link(call("download_file", json!({ "path": "bulk", "link": true })).await?)?;
        let start = Instant::now();
        let mut body = http.get(from).send().await?.error_for_status()?.bytes_stream();
        let mut seen = 0;
        while let Some(bytes) = body.next().await {
            seen += bytes?.len();
        }
        down.push(rate(start));
        ensure!(seen == LINKED, "{seen} bytes came back");
    }
    report.values("512 MiB by a link, up", "MB/s", &up, "≥ 100 MB/s");
    report.values("512 MiB by a link, down", "MB/s", &down, "≥ 100 MB/s");
    let make = format!(
        "import os; os.mkdir('many'); [open(f'many/{{n}}', 'w').close() for n in range({LISTED})]; 1"
    );
    ensure!(
        client.python(id, &make).await?.result() == "1",
        "the files were not made"
    );
    let mut listings = Vec::new();
    for _ in 0..effort.fresh {
        let start = Instant::now();
        let list = call("list_files", json!({ "path": "many" })).await?;
        listings.push(start.elapsed());
        ensure!(list.text.starts_with("10000 entries"), "{}", list.text);
    }
    report.times("listing 10,000 files", &listings, "≤ 300 ms");
    client.close().await?;
    greenroom.finish().await
}
