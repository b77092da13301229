//! The pool over a real engine: it fills, serves a burst, replaces what dies, and leaves nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use greenroom::{
    conversation::{ConversationId, PoolName, Principal, Secret, SessionKey, SessionName},
    engine::{
        Engine,
        docker::{DockerConfig, DockerEngine, Installers},
    },
    pool::{Census, Pool, PoolSpec},
    sandbox::{SandboxId, SandboxSpec, Stay},
};
use greenroom_protocol::AgentConfig;
use tokio::time::{Instant, timeout};

const IMAGE: &str = "greenroom/python:latest";
const PATIENCE: Duration = Duration::from_secs(120);

async fn engine() -> Result<Arc<dyn Engine>> {
    let fingerprint = SandboxId::mint()?.as_str()["grs-".len()..][..16].to_owned();
    let config = DockerConfig {
        socket: "unix:///var/run/docker.sock".to_owned(),
        fingerprint,
        deployment: "pool-test".to_owned(),
        creator: "pool-test".to_owned(),
        agent: greenroom_integration::agent()?,
        cgroup_parent: "greenroom".to_owned(),
        installers: Installers::default(),
    };
    let engine = DockerEngine::connect(config).await;
    Ok(Arc::new(
        engine.context("no Docker engine answers: type `make setup`")?,
    ))
}

fn spec(warm: usize, max: usize) -> Result<PoolSpec> {
    let sandbox = SandboxSpec {
        pool: PoolName::parse("pool-test").map_err(anyhow::Error::msg)?,
        image: IMAGE.to_owned(),
        runtime: "runsc-1g".to_owned(),
        cpu_millis: 1000,
        memory_bytes: 512 << 20,
        pids: 512,
        nproc: 100,
        nofile: 1000,
        stay: Stay::default(),
        agent: AgentConfig::default(),
    };
    Ok(PoolSpec {
        warm,
        max,
        claim_wait: PATIENCE,
        boot_deadline: Duration::from_secs(60),
        ..PoolSpec::new(sandbox)
    })
}

fn session(pool: &Pool, conversation: usize) -> Result<SessionName> {
    Ok(Secret::new([7; 32]).session_name(&SessionKey {
        pool: pool.spec().name().clone(),
        principal: Principal::Local,
        conversation: ConversationId::parse(&format!("conversation {conversation}"))?,
    }))
}

async fn until(pool: &Pool, what: &str, is: impl FnMut(&Census) -> bool) -> Result<Census> {
    let mut census = pool.census();
    let seen = timeout(PATIENCE, census.wait_for(is)).await;
    let seen = seen.with_context(|| format!("never: {what}: {:?}", pool.census().borrow()))?;
    Ok(seen?.clone())
}

/// Ends what the test left, whatever became of it.
async fn clear(engine: &dyn Engine) -> Result<()> {
    for sandbox in engine.list().await? {
        engine.destroy(&sandbox.id).await?;
    }
    Ok(())
}

async fn serves_and_replaces(pool: &Pool, engine: &dyn Engine) -> Result<()> {
    let began = Instant::now();
    until(pool, "warm", |c| c.counts.warm == 2).await?;
    eprintln!("2 warm after {:?}", began.elapsed());

    let began = Instant::now();
    let burst = (0..8).map(|n| async move {
        let claim = pool.claim(&Principal::Local, Instant::now() + PATIENCE).await?;
        let claimed = began.elapsed();
        let guest = claim.adopt(&session(pool, n)?).await?;
        guest.hello().await?;
        anyhow::Ok((guest, claimed, began.elapsed()))
    });
    let served = try_join_all(burst).await?;
    for (_, claimed, adopted) in &served {
        eprintln!("claimed after {claimed:?}, adopted after {adopted:?}");
    }
    until(pool, "refilled", |c| c.counts.warm == 2).await?;

    let listed = engine.list().await?;
    let warm: Vec<_> = listed.iter().filter(|sandbox| !sandbox.adopted).collect();
    ensure!(warm.len() == 2 && listed.len() == 10, "{listed:?}");
    let began = Instant::now();
    engine.destroy(&warm[0].id).await?;
    until(pool, "replaced", |c| c.counts.begun == 11 && c.counts.warm == 2).await?;
    eprintln!("replaced after {:?}", began.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_on_docker_serves_a_burst_and_leaves_nothing() -> Result<()> {
    let engine = engine().await?;
    let pool = Pool::start(spec(2, 12)?, Arc::clone(&engine), Arc::new(()));
    let story = serves_and_replaces(&pool, &*engine).await;
    let closed = pool.close(PATIENCE).await;
    let bound = engine.list().await?.into_iter().filter(|s| s.adopted).count();
    clear(&*engine).await?;
    story?;
    ensure!(
        closed.counts.held() == 0 && closed.counts.adopted == 8,
        "{closed:?}"
    );
    ensure!(bound == 8, "closing touched a conversation's: {bound} are left");
    ensure!(engine.list().await?.is_empty());
    Ok(())
}
