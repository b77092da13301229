//! How long `POST /runs` takes from request to outcome, over a unix socket: through a kernel that does
//! nothing, which is the agent's own share, and through the real ones.
//!
//! `cargo bench -p greenroom-agent`
#![expect(
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

use std::time::Duration;

use client::{Client, run};
use greenroom_agent::{
    Agent, Parts,
    child::Quarters,
    files::{FileUser, Files},
    kernel::{Kernel, all},
    platform,
};
use greenroom_protocol::{AgentConfig, KeyDigest, Language, LeaseRequest};
use tokio::{
    net::{UnixListener, UnixStream},
    time::Instant,
};

const ROUNDS: usize = 3000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
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
        platform: platform::look(),
    };
    Agent::start(config, parts)
}

async fn connect(agent: &Agent, socket: &std::path::Path) -> Client {
    let listener = UnixListener::bind(socket).unwrap();
    let near = UnixStream::connect(socket).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let agent = agent.clone();
    tokio::spawn(async move { agent.serve(far).await });
    let client = Client::connect(near).await;
    client.get("/?wait=60").await.expect(200);
    let lease = LeaseRequest {
        key: KeyDigest("a".repeat(64)),
        idle_ms: 3_600_000,
        lifetime_ms: 3_600_000,
        restarted: None,
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
