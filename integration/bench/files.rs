//! Bulk over the channel itself: the server's own guest client, a real exec stream, the real agent.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use greenroom::{
    conversation::{PoolName, hex},
    engine::{
        Engine,
        docker::{DockerConfig, DockerEngine},
    },
    guest::{Guest, WriteMode},
    sandbox::{SandboxId, SandboxSpec},
};
use greenroom_integration::agent;
use greenroom_protocol::{AgentConfig, KeyDigest, LeaseRequest};
use tokio::time::Instant;

use crate::{Effort, report::Report};

const BYTES: usize = 64 << 20;

/// 64 MiB up and down.
pub(crate) async fn bulk(report: &mut Report, effort: Effort) -> Result<()> {
    let mut random = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    let engine: Arc<dyn Engine> = Arc::new(
        DockerEngine::connect(DockerConfig {
            socket: "unix:///var/run/docker.sock".into(),
            fingerprint: hex(&random),
            deployment: "bench".into(),
            creator: "bench".into(),
            agent: agent()?,
            cgroup_parent: "greenroom".into(),
        })
        .await?,
    );
    let id = SandboxId::mint()?;
    let measured = transfer(report, effort, &engine, &id).await;
    engine.destroy(&id).await?;
    measured
}

async fn transfer(
    report: &mut Report,
    effort: Effort,
    engine: &Arc<dyn Engine>,
    id: &SandboxId,
) -> Result<()> {
    let spec = SandboxSpec {
        pool: PoolName::parse("bench").map_err(anyhow::Error::msg)?,
        image: engine.prepare("greenroom/python:latest").await?,
        runtime: "runsc-4g".into(),
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
        pids: 512,
        nproc: 128,
        nofile: 1024,
        agent: AgentConfig {
            ready: Vec::new(),
            ..AgentConfig::default()
        },
    };
    engine.create(id, &spec).await?;
    engine.start(id).await?;
    let guest = Guest::connect(Arc::clone(engine), id.clone()).await?;
    guest.wait_ready(Duration::from_secs(20)).await?;
    let lease = LeaseRequest {
        key: KeyDigest("b".repeat(64)),
        idle_ms: 600_000,
        lifetime_ms: 600_000,
        restarted: None,
    };
    guest.lease(&lease).await?;
    let data = bytes::Bytes::from((0..BYTES).map(|n| (n * 31 % 251) as u8).collect::<Vec<_>>());
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
