//! Files that outlive their sandbox: from one sandbox into the store, and from there into the next.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use bytes::Bytes;
use greenroom::{
    archive::{Allowance, Archive, Place, Restored, Saved},
    config::Size,
    conversation::{ConversationId, PoolName, Principal, Secret, SessionKey, SessionName},
    engine::Engine,
    guest::{Guest, WriteMode},
    sandbox::SandboxId,
};
use greenroom_protocol::LeaseRequest;
use tokio::time::Instant;

use crate::{
    Effort,
    files::{bare, engine},
    report::Report,
};

const BYTES: usize = 100 << 20;
const FILES: usize = 10;

/// 100 MiB in ten files, half of which LZ4 can do nothing with.
pub(crate) async fn keep(report: &mut Report, effort: Effort) -> Result<()> {
    let engine = engine().await?;
    let folder = tempfile::tempdir()?;
    let secret = Secret::new([7; 32]);
    let name = secret.session_name(&SessionKey {
        pool: PoolName::parse("bench").map_err(anyhow::Error::msg)?,
        principal: Principal::Local,
        conversation: ConversationId::parse("bench-of-archives")?,
    });
    let allowance = Allowance {
        session: Size::mib(256),
        total: Size::gib(10),
        keep: Duration::from_secs(3600),
    };
    let archive = Archive::open(
        &Place::Folder(folder.path().to_owned()),
        "bench",
        secret,
        allowance,
        Arc::new(()),
    )?;
    let id = SandboxId::mint()?;
    let saved = save(report, effort, &engine, &archive, &name, &id).await;
    engine.destroy(&id).await?;
    saved?;
    let mut times = Vec::new();
    for _ in 0..rounds(effort) {
        let id = SandboxId::mint()?;
        let restored = restore(&engine, &archive, &name, &id).await;
        engine.destroy(&id).await?;
        times.push(restored?);
    }
    report.times("restore of 100 MiB of files", &times, "≤ 5 s");
    Ok(())
}

fn rounds(effort: Effort) -> usize {
    effort.fresh.clamp(3, 5)
}

async fn save(
    report: &mut Report,
    effort: Effort,
    engine: &Arc<dyn Engine>,
    archive: &Archive,
    name: &SessionName,
    id: &SandboxId,
) -> Result<()> {
    let guest = bare(engine, id).await?;
    let lease = LeaseRequest {
        key: name.digest(),
        idle_ms: 600_000,
        lifetime_ms: 600_000,
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    };
    guest.lease(&lease).await?;
    let noise = (0..(BYTES / FILES) as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8);
    let noise = Bytes::from(noise.collect::<Vec<_>>());
    let plain = Bytes::from(b"a line that is like others\n".repeat(BYTES / FILES / 27));
    let (mut changed, mut unchanged) = (Vec::new(), Vec::new());
    for _ in 0..rounds(effort) {
        for n in 0..FILES {
            let content = if n % 2 == 0 { &noise } else { &plain };
            write(&guest, n, content.clone()).await?;
        }
        let start = Instant::now();
        ensure!(archive.save(name, &guest).await? == Saved::Stored, "not stored");
        changed.push(start.elapsed());
        let start = Instant::now();
        ensure!(
            archive.save(name, &guest).await? == Saved::Unchanged,
            "stored twice"
        );
        unchanged.push(start.elapsed());
    }
    report.times("archive of 100 MiB of files", &changed, "≤ 5 s");
    report.times("archive where nothing has changed", &unchanged, "≤ 250 ms");
    Ok(())
}

async fn write(guest: &Guest, n: usize, content: Bytes) -> Result<()> {
    guest
        .write_file(&format!("f{n}"), WriteMode::Replace, content)
        .await?;
    Ok(())
}

async fn restore(
    engine: &Arc<dyn Engine>,
    archive: &Archive,
    name: &SessionName,
    id: &SandboxId,
) -> Result<Duration> {
    let guest = bare(engine, id).await?;
    let start = Instant::now();
    let restored = archive.restore(name, || guest.clone()).await;
    ensure!(matches!(restored, Restored::Kept { .. }), "{restored:?}");
    Ok(start.elapsed())
}
