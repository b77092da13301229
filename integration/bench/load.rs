//! Many callers: calls a second and how long each waits, by transport; and a process for every call.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use greenroom_integration::{Client, Config, Era, Greenroom, binary};
use serde_json::json;
use tokio::{process::Command, time::Instant};

use crate::{Effort, report::Report};

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 8, 32];

/// How a client reaches the server.
#[derive(Clone, Copy)]
enum Way {
    Http(Era),
    Stdio,
}

impl Way {
    async fn connect(self, greenroom: &Greenroom) -> Result<Client> {
        match self {
            Self::Http(era) => greenroom.client(era).await,
            Self::Stdio => stdio(greenroom).await,
        }
    }
}

/// A process that attaches to the server that runs.
async fn stdio(greenroom: &Greenroom) -> Result<Client> {
    let mut command = Command::new(binary()?);
    command.args(["stdio", "--config"]).arg(greenroom.config_path());
    Client::stdio(command, Era::Legacy).await
}

async fn hot(client: &Client, conversation: &str) -> Result<Duration> {
    let start = Instant::now();
    let answer = client.python(conversation, "1+1").await?;
    ensure!(answer.status() == "ok", "{}", answer.text);
    Ok(start.elapsed())
}

/// Hot calls of clients that each have a conversation of their own.
pub(crate) async fn many(report: &mut Report, effort: Effort) -> Result<()> {
    let config = Config {
        warm: 2,
        max: 40,
        pool: "preload = []\nclaim_wait = \"50s\"\n".into(),
        ..Config::default()
    };
    let greenroom = Greenroom::start(&config).await?;
    for (way, name) in [
        (Way::Http(Era::Legacy), "HTTP, legacy"),
        (Way::Http(Era::Modern), "HTTP, modern"),
        (Way::Stdio, "stdio, attached"),
    ] {
        for count in CLIENTS {
            let clients = try_join_all((0..count).map(|_| way.connect(&greenroom))).await?;
            let callers = || clients.iter().enumerate();
            // Conversations that are new are not hot.
            for (n, client) in callers() {
                hot(client, &format!("bench-load-{n}")).await?;
            }
            let each = (effort.hot / count).max(4);
            let began = Instant::now();
            let times = try_join_all(callers().map(|(n, client)| async move {
                let conversation = format!("bench-load-{n}");
                let mut times = Vec::with_capacity(each);
                for _ in 0..each {
                    times.push(hot(client, &conversation).await?);
                }
                Ok::<_, anyhow::Error>(times)
            }))
            .await?
            .concat();
            let rate = times.len() as f64 / began.elapsed().as_secs_f64();
            let aim = if count == 32 { "≥ 200 /s" } else { "–" };
            report.values(
                format!("hot calls by {count} client(s), {name}"),
                "/s",
                &[rate],
                aim,
            );
            report.times(format!("each of them, {count} client(s), {name}"), &times, "–");
            for client in clients {
                client.close().await?;
            }
        }
    }
    greenroom.finish().await
}

/// From starting a process to the answer of its first call, where a server runs and the conversation is there.
pub(crate) async fn processes(report: &mut Report, effort: Effort) -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let mut times = Vec::new();
    for n in 0..=effort.fresh.max(20) {
        let start = Instant::now();
        let client = stdio(&greenroom).await?;
        let call = json!({ "code": "1+1", "conversation_id": "bench-a-process-per-call" });
        let answer = client.call("execute_code", call).await?;
        // The first one makes the conversation.
        if n > 0 {
            times.push(start.elapsed());
        }
        ensure!(answer.status() == "ok", "{}", answer.text);
        client.close().await?;
    }
    report.times(
        "a process of `greenroom stdio`, from exec to its first answer",
        &times,
        "≤ 150 ms",
    );
    greenroom.finish().await
}
