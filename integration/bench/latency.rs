//! How long callers wait: hot calls, new conversations, useful ones, boots, a burst.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use greenroom_integration::{Client, Config, Era, Greenroom};
use tokio::time::Instant;

use crate::{Effort, report::Report};

/// Times one call and insists that it went well: a quick error is no measurement.
async fn timed(client: &Client, conversation: &str, code: &str) -> Result<Duration> {
    spoken(client, conversation, "python", code).await
}

/// The same in any language.
async fn spoken(client: &Client, conversation: &str, language: &str, code: &str) -> Result<Duration> {
    let start = Instant::now();
    let answer = client.run(conversation, language, code).await?;
    let took = start.elapsed();
    ensure!(answer.status() == "ok", "{}", answer.text);
    Ok(took)
}

/// A call in a session that is there, in each era and for each language.
pub(crate) async fn hot(report: &mut Report, effort: Effort) -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    for (era, name) in [(Era::Legacy, "legacy"), (Era::Modern, "modern")] {
        let client = greenroom.client(era).await?;
        for (language, code, aim) in [
            ("python", "1+1", "≤ 5 ms"),
            ("bash", "true", "≤ 8 ms"),
            ("typescript", "1", "≤ 60 ms"),
        ] {
            for _ in 0..20 {
                spoken(&client, "bench-hot-calls", language, code).await?;
            }
            let mut times = Vec::new();
            for _ in 0..effort.hot {
                times.push(spoken(&client, "bench-hot-calls", language, code).await?);
            }
            report.times(
                format!("hot execute_code, {language} {code}, {name}"),
                &times,
                aim,
            );
        }
        client.close().await?;
    }
    greenroom.finish().await
}

/// The same over REST, in each dialect.
pub(crate) async fn programs(report: &mut Report, effort: Effort) -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let http = reqwest::Client::new();
    for (path, body) in [
        ("executions", r#"{"code":"1+1"}"#),
        ("code/execute", r#"{"properties":{"code":"1+1"}}"#),
    ] {
        let url = greenroom.url(&format!("/pools/python/{path}?identifier=bench-hot-calls"));
        let mut times = Vec::new();
        for n in 0..effort.hot + 20 {
            let start = Instant::now();
            let answer = http.post(&url).body(body).send().await?.text().await?;
            let took = start.elapsed();
            ensure!(answer.contains("\"executionResult\":2"), "{answer}");
            if n >= 20 {
                times.push(took);
            }
        }
        report.times(format!("hot REST {path}, python 1+1"), &times, "≤ 5 ms");
    }
    greenroom.finish().await
}

/// The first call of a new conversation, served from the warm pool.
pub(crate) async fn fresh(report: &mut Report, effort: Effort) -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        max: 64,
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    let mut times = Vec::new();
    for n in 0..effort.fresh {
        greenroom.wait_warm(2).await?;
        times.push(timed(&client, &format!("bench-fresh-{n}"), "1+1").await?);
    }
    report.times("first call of a new conversation, warm pool", &times, "≤ 50 ms");
    client.close().await?;
    greenroom.finish().await
}

const USEFUL: &str = "\
import pandas as pd, matplotlib.pyplot as plt
frame = pd.read_csv('rows.csv')
frame.plot(x='x', y='y')
frame['y'].mean()
";

const PLOT: &str = "plt.plot([1, 3, 2]);";

/// The first call that does something: a CSV of 1,000 rows and a line plot, with the default preload.
pub(crate) async fn useful(report: &mut Report, effort: Effort) -> Result<()> {
    let config = Config {
        warm: 2,
        max: 64,
        pool: String::new(),
        ..Config::default()
    };
    let greenroom = Greenroom::start(&config).await?;
    let client = greenroom.client(Era::Modern).await?;
    let rows: String = (0..1000).fold("x,y\n".into(), |text, n| format!("{text}{n},{}\n", n * n % 97));
    let mut times = Vec::new();
    for n in 0..effort.fresh.min(10) {
        greenroom.wait_warm(2).await?;
        let conversation = format!("bench-useful-{n}");
        let file =
            serde_json::json!({ "conversation_id": conversation, "path": "rows.csv", "content": rows });
        client.call("upload_file", file).await?;
        times.push(timed(&client, &conversation, USEFUL).await?);
    }
    report.times("first useful call (read_csv and plot)", &times, "≤ 400 ms");
    let mut times = Vec::new();
    for _ in 0..effort.fresh {
        times.push(timed(&client, "bench-useful-0", PLOT).await?);
    }
    report.times("a line plot, after the first", &times, "≤ 400 ms");
    client.close().await?;
    greenroom.finish().await
}

/// What the server itself takes for a boot: from its begin until the sandbox is warm. One boot at a time here.
const BOOT_SECONDS: &str = "greenroom_boot_seconds_sum{pool=\"python\"}";

/// From create to warm, and how many at a time: with an empty pool each new conversation boots its own.
pub(crate) async fn boots(report: &mut Report, effort: Effort) -> Result<()> {
    for (name, pool, aim, rate_aim) in [
        ("without preload", "preload = []\n", "≤ 1.5 s", "≥ 2 /s"),
        ("with the default preload", "", "≤ 4 s", "–"),
    ] {
        let greenroom = Greenroom::start(&Config {
            warm: 0,
            max: 64,
            pool: pool.into(),
            ..Config::default()
        })
        .await?;
        let client = greenroom.client(Era::Modern).await?;
        let (mut boots, mut times) = (Vec::new(), Vec::new());
        for n in 0..effort.fresh.min(10) {
            let before = greenroom.metric(BOOT_SECONDS).await?;
            times.push(timed(&client, &format!("bench-boot-{n}"), "1+1").await?);
            let boot = greenroom.metric(BOOT_SECONDS).await? - before;
            boots.push(Duration::from_secs_f64(boot));
        }
        report.times(format!("boot to warm, {name}"), &boots, aim);
        report.times(format!("first call with an empty pool, {name}"), &times, aim);
        let start = Instant::now();
        let count = effort.fresh;
        let calls = (0..count).map(|n| {
            let client = &client;
            async move { timed(client, &format!("bench-throughput-{n}"), "1").await }
        });
        try_join_all(calls).await?;
        let rate = count as f64 / start.elapsed().as_secs_f64();
        report.values(format!("boots at once, {name}"), "/s", &[rate], rate_aim);
        client.close().await?;
        greenroom.finish().await?;
    }
    Ok(())
}

/// Twenty new conversations at once on four warm sandboxes.
pub(crate) async fn burst(report: &mut Report) -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 4,
        max: 32,
        pool: String::new(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    greenroom.wait_warm(4).await?;
    let calls = (0..20).map(|n| {
        let client = &client;
        async move { timed(client, &format!("bench-burst-{n}"), "1+1").await }
    });
    let times = try_join_all(calls).await?;
    report.times("burst of 20 new conversations, warm = 4", &times, "last ≤ 20 s");
    client.close().await?;
    greenroom.finish().await
}
