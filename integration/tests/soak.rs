//! Hundreds of conversations that all live at once, for long: none is lost, and each is served as quickly as ever.
//!
//! `SOAK_SESSIONS` says how many, `SOAK_SECONDS` for how long; `make soak` has 300 for half an hour.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use greenroom_integration::{Client, Config, Era, Greenroom, resident};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{Instant, sleep};

/// Conversations that begin at once.
const AT_ONCE: usize = 4;
/// Between two calls: hosts that think now and then, not a benchmark.
const PAUSE: Duration = Duration::from_millis(50);

#[expect(
    clippy::disallowed_methods,
    reason = "a test's own settings, not the product's"
)]
fn variable(name: &str, usual: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is a number")),
        Err(_) => Ok(usual),
    }
}

fn id(n: usize) -> String {
    format!("soaked-conversation-{n:04}")
}

async fn begin(client: &Client, n: usize) -> Result<()> {
    let answer = client.python(&id(n), &format!("mark, count = {n}, 0")).await?;
    ensure!(answer.session() == "new", "{n}: {}", answer.text);
    Ok(())
}

/// One more call of a conversation, which has had so many.
async fn count(client: &Client, n: usize, had: usize) -> Result<Duration> {
    let start = Instant::now();
    let answer = client.python(&id(n), "count += 1; (mark, count)").await?;
    let took = start.elapsed();
    let expected = format!("({n}, {})", had + 1);
    ensure!(
        answer.session() == "existing" && answer.result() == expected,
        "{n}: not {expected} but {}",
        answer.text
    );
    Ok(took)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour and half of 24 GiB: type make soak"]
async fn hundreds_of_conversations_live_for_long() -> Result<()> {
    let sessions = variable("SOAK_SESSIONS", 300)?;
    let lasts = Duration::from_secs(u64::try_from(variable("SOAK_SECONDS", 1800)?)?);
    let server = Greenroom::start(&Config {
        warm: 4,
        max: u32::try_from(sessions + 8)?,
        pool: "preload = []\nclaim_wait = \"50s\"\n".into(),
        ..Config::default()
    })
    .await?;
    let client = server.client(Era::Modern).await?;
    let began = Instant::now();
    stream::iter(0..sessions)
        .map(|n| begin(&client, n))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    eprintln!("soak: {sessions} conversations live after {:?}", began.elapsed());

    let mut random = StdRng::seed_from_u64(7);
    let mut counts = vec![0; sessions];
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < lasts {
        let n = random.random_range(0..sessions);
        times.push(count(&client, n, counts[n]).await?);
        counts[n] += 1;
        sleep(PAUSE).await;
    }
    for (n, had) in counts.iter().enumerate() {
        count(&client, n, *had).await?;
    }
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let memory = resident(server.pid().context("it runs")?)? >> 20;
    eprintln!(
        "soak: {} calls in {:?}, none lost; p50 {:?}, p95 {:?}, p99 {:?}; the server has {memory} MiB",
        times.len(),
        began.elapsed(),
        at(50),
        at(95),
        at(99)
    );
    client.close().await?;
    server.finish().await
}
