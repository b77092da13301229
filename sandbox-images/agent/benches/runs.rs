//! How long `POST /runs` takes from request to outcome, over a unix socket: through a kernel that does
//! nothing, which is the agent's own share, and through the real ones.
//!
//! `cargo bench -p greenroom-agent`, or through a channel to a sandbox that nobody has leased yet:
//! `cargo bench -p greenroom-agent -- docker exec -i NAME /.greenroom/agent relay`
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking and prints"
)]

#[path = "../tests/wire/support/client.rs"]
#[expect(dead_code, reason = "a part of it serves here")]
mod client;
#[path = "../tests/wire/support/kernel.rs"]
#[expect(dead_code, reason = "a part of it serves here")]
mod kernel;

use std::{process::Stdio, time::Duration};

use client::{Client, run};
use greenroom_agent::{
    Agent, Parts,
    child::Quarters,
    files::{FileUser, Files},
    kernel::{Kernel, all},
    platform,
};
use greenroom_protocol::{AgentConfig, KeyDigest, Language, LeaseRequest, RELAY_PREFACE};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    process::Command,
    time::Instant,
};

const ROUNDS: usize = 3000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Cargo adds flags of its own.
    let channel: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if channel.is_empty() {
        here().await;
    } else {
        there(&channel).await;
    }
}

/// Agents in this process.
async fn here() {
    let folder = tempfile::tempdir().unwrap();
    let config = AgentConfig {
        work_dir: folder.path().to_str().unwrap().to_owned(),
        guest_uid: None,
        ready: vec![Language::Python, Language::Bash],
        ..AgentConfig::default()
    };
    let quarters = Quarters::new(&config, std::env::current_exe().unwrap());
    let nothing = vec![
        kernel::Scripted::new(Language::Python),
        kernel::Scripted::new(Language::Bash),
    ];
    let nothing = nothing
        .into_iter()
        .map(|kernel| Box::new(kernel) as Box<dyn Kernel>);
    let nothing = start(&config, nothing.collect());
    let real = start(&config, all(&config, quarters));
    for (name, agent, language, code) in [
        ("no-op", &nothing, Language::Python, "print x"),
        ("python 1+1", &real, Language::Python, "1+1"),
        ("bash :", &real, Language::Bash, ":"),
    ] {
        let client = connect(agent, &folder.path().join(name.replace(' ', ""))).await;
        measure(name, &client, language, code).await;
    }
}

fn start(config: &AgentConfig, kernels: Vec<Box<dyn Kernel>>) -> Agent {
    let parts = Parts {
        kernels,
        files: Files::start(&config.work_dir, FileUser::Own).unwrap(),
        quarters: Quarters::new(config, std::path::PathBuf::new()),
        platform: platform::look(),
    };
    Agent::start(config, parts)
}

/// An agent behind a command that is its relay.
async fn there(channel: &[String]) {
    let mut relay = Command::new(&channel[0])
        .args(&channel[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = relay.stdout.take().unwrap();
    let mut preface = vec![0; RELAY_PREFACE.len()];
    output.read_exact(&mut preface).await.unwrap();
    let client = lease(Client::connect(tokio::io::join(output, relay.stdin.take().unwrap())).await).await;
    measure("python 1+1", &client, Language::Python, "1+1").await;
    measure("bash :", &client, Language::Bash, ":").await;
}

async fn connect(agent: &Agent, socket: &std::path::Path) -> Client {
    let listener = UnixListener::bind(socket).unwrap();
    let near = UnixStream::connect(socket).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let agent = agent.clone();
    tokio::spawn(async move { agent.serve(far).await });
    lease(Client::connect(near).await).await
}

async fn lease(client: Client) -> Client {
    client.get("/?wait=60").await.expect(200);
    let lease = LeaseRequest {
        key: KeyDigest("a".repeat(64)),
        idle_ms: 3_600_000,
        lifetime_ms: 3_600_000,
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    };
    client.post("/lease", &lease).await.expect(200);
    client
}

async fn measure(name: &str, client: &Client, language: Language, code: &str) {
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + ROUNDS / 10 {
        let mut request = run(&format!("{language}-{round}"), code);
        request.language = language;
        let begin = Instant::now();
        client.submit(&request).await.outcome().await;
        if round >= ROUNDS / 10 {
            times.push(begin.elapsed());
        }
    }
    times.sort_unstable();
    let at = |percent: usize| -> Duration { times[times.len() * percent / 100] };
    println!(
        "{name:12} p50 {:>8.1?}  p90 {:>8.1?}  p99 {:>8.1?}",
        at(50),
        at(90),
        at(99)
    );
}
