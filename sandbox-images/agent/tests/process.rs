//! The agent's own binary as it runs in a sandbox: `init` with real kernels, reached through `relay`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "wire/support/client.rs"]
#[expect(dead_code, reason = "a part of it serves here")]
mod client;

use std::{process::Stdio, time::Duration};

use bytes::Bytes;
use client::{Client, run};
use greenroom_protocol::{
    AgentConfig, EndReason, Ended, FilesFate, Hello, KernelFate, KeyDigest, Language, LeaseGrant,
    LeaseRequest, LeaseState, MARK_HEADER, PACKED_HEADER, Packed, RELAY_PREFACE, RestartReason, RunEventKind,
    RunOutcome, RunStatus, Standing, Stream, Unpacked,
};
use http::Method;
use http_body_util::BodyExt;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};

/// Long enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sandbox without walls: the agent as a process of ours.
struct Sandbox {
    agent: Child,
    folder: TempDir,
}

impl Sandbox {
    fn start(ready: &[Language], unbound_ms: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let work_dir = folder.path().join("data");
        std::fs::create_dir(&work_dir).unwrap();
        let config = AgentConfig {
            socket: folder.path().join("run/agent.sock").to_str().unwrap().to_owned(),
            work_dir: work_dir.to_str().unwrap().to_owned(),
            guest_uid: None,
            ready: ready.to_vec(),
            unbound_ms,
            ..AgentConfig::default()
        };
        let agent = Command::new(env!("CARGO_BIN_EXE_greenroom-agent"))
            .arg("init")
            .arg(serde_json::to_string(&config).unwrap())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { agent, folder }
    }

    /// A channel, opened while the agent may still be booting.
    async fn channel(&self) -> (Client, Child) {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_greenroom-agent"))
            .arg("relay")
            .arg(self.folder.path().join("run/agent.sock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = relay.stdout.take().unwrap();
        let mut preface = vec![0; RELAY_PREFACE.len()];
        timeout(PATIENCE, output.read_exact(&mut preface))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(preface, RELAY_PREFACE);
        let client = Client::connect(tokio::io::join(output, relay.stdin.take().unwrap())).await;
        (client, relay)
    }

    /// A ready sandbox under a lease.
    async fn leased(ready: &[Language]) -> (Self, Client, Child) {
        let sandbox = Self::start(ready, 30_000);
        let (client, relay) = sandbox.channel().await;
        let hello: Hello = client.get("/?wait=60").await.expect(200).json();
        assert!(hello.ready, "{hello:?}");
        client.post("/lease", &lease()).await.expect(200);
        (sandbox, client, relay)
    }

    async fn exit_code(mut self) -> Option<i32> {
        timeout(PATIENCE, self.agent.wait())
            .await
            .unwrap()
            .unwrap()
            .code()
    }
}

fn lease() -> LeaseRequest {
    LeaseRequest {
        key: KeyDigest("a".repeat(64)),
        idle_ms: 3_600_000,
        lifetime_ms: 3_600_000,
        restarted: None,
        files: FilesFate::Gone,
    }
}

/// Runs code and answers what it wrote, and how it ended.
async fn output(client: &Client, language: Language, id: &str, code: &str) -> (String, RunOutcome) {
    let mut request = run(id, code);
    request.language = language;
    let events = timeout(PATIENCE, async { client.submit(&request).await.all().await })
        .await
        .unwrap();
    let mut text = String::new();
    for event in events {
        match event.kind {
            RunEventKind::Output { text: more, .. } => text.push_str(&more),
            RunEventKind::Finished(outcome) => return (text, outcome),
            RunEventKind::Accepted { .. }
            | RunEventKind::Queued { .. }
            | RunEventKind::Started { .. }
            | RunEventKind::Display { .. } => {}
        }
    }
    panic!("the run never finished")
}

#[tokio::test]
async fn python_and_bash_keep_their_state() {
    let (_sandbox, client, _relay) = Sandbox::leased(&[Language::Python, Language::Bash]).await;
    let py = async |id, code| output(&client, Language::Python, id, code).await;
    py("p1", "x = 20\ndef double(n):\n    return 2 * n").await;
    let (text, outcome) = py("p2", "print('x is', x)\ndouble(x) + 2").await;
    assert_eq!(
        (text.as_str(), outcome.result.as_deref()),
        ("x is 20\n", Some("42"))
    );
    let sh = async |id, code| output(&client, Language::Bash, id, code).await;
    sh("s1", "cd /; where=root; export EXPORTED=1").await;
    let (text, outcome) = sh("s2", "pwd; echo $where $EXPORTED; false").await;
    assert_eq!(text, "/\nroot 1\n");
    assert_eq!((outcome.status, outcome.exit_code), (RunStatus::Error, Some(1)));
}

#[tokio::test]
async fn output_comes_while_the_code_runs() {
    let (_sandbox, client, _relay) = Sandbox::leased(&[Language::Python]).await;
    let mut events = client
        .start(
            "r",
            "import time, sys\nprint('early', flush=True)\ntime.sleep(60)",
        )
        .await;
    let early = timeout(Duration::from_secs(30), async {
        events
            .until(|kind| {
                matches!(
                    kind,
                    RunEventKind::Output {
                        stream: Stream::Stdout,
                        ..
                    }
                )
            })
            .await
    });
    early.await.expect("output waits for the end of its run");
    client.delete("/runs/r").await.expect(202);
    let outcome = timeout(PATIENCE, events.outcome()).await.unwrap();
    assert_eq!(
        (outcome.status, outcome.kernel),
        (RunStatus::Cancelled, KernelFate::Kept)
    );
    assert_eq!(outcome.error.unwrap().name, "KeyboardInterrupt");
}

#[tokio::test]
async fn a_run_out_of_time_that_ignores_it_loses_its_kernel_only() {
    let (sandbox, client, _relay) = Sandbox::leased(&[Language::Python, Language::Bash]).await;
    output(&client, Language::Bash, "s1", "kept=yes").await;
    let mut request = run(
        "r",
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nopen('f', 'w').write('x')\nwhile True: time.sleep(1)",
    );
    request.timeout_ms = 5_000;
    let outcome = timeout(PATIENCE, async { client.submit(&request).await.outcome().await });
    let outcome = outcome.await.unwrap();
    assert_eq!(
        (outcome.status, outcome.kernel),
        (RunStatus::TimedOut, KernelFate::Restarted)
    );
    assert_eq!(outcome.files[0].path, "f");
    let (_, outcome) = output(&client, Language::Python, "after", "1 + 1").await;
    assert_eq!(outcome.result.as_deref(), Some("2"));
    let (text, _) = output(&client, Language::Bash, "s2", "echo $kept; cat f").await;
    assert_eq!(text, "yes\nx");
    assert!(sandbox.folder.path().join("data/f").exists());
}

#[tokio::test]
async fn code_that_ends_its_kernel_is_told_and_the_next_run_works() {
    let (_sandbox, client, _relay) = Sandbox::leased(&[Language::Python]).await;
    let (_, outcome) = output(&client, Language::Python, "r", "import os\nos._exit(7)").await;
    assert_eq!(
        (outcome.status, outcome.kernel),
        (RunStatus::KernelDied, KernelFate::Restarted)
    );
    let (_, outcome) = output(&client, Language::Python, "next", "'back'").await;
    assert_eq!(outcome.result.as_deref(), Some("'back'"));
}

#[tokio::test]
async fn a_broken_channel_loses_nothing() {
    let (sandbox, client, mut relay) = Sandbox::leased(&[Language::Python]).await;
    let mut events = client
        .start("r", "import time\nprint('one', flush=True)\ntime.sleep(1)\n'two'")
        .await;
    events.started().await;
    relay.kill().await.unwrap();
    let (again, _relay) = sandbox.channel().await;
    let outcome = timeout(PATIENCE, async {
        again.follow("/runs/r?from=2").await.outcome().await
    });
    assert_eq!(outcome.await.unwrap().result.as_deref(), Some("'two'"));
}

#[tokio::test]
async fn each_end_has_its_exit_code_and_takes_the_relay_along() {
    let (sandbox, client, mut relay) = Sandbox::leased(&[Language::Python]).await;
    let mut events = client.start("r", "import time; time.sleep(600)").await;
    events.started().await;
    client.delete("/lease?reason=reset").await.expect(202);
    let outcome = timeout(PATIENCE, events.outcome()).await.unwrap();
    assert_eq!(outcome.error.unwrap().name, "sandbox_ended");
    assert_eq!(
        sandbox.exit_code().await,
        Some(EndReason::Reset.exit_code().into())
    );
    let relay = timeout(PATIENCE, relay.wait()).await.unwrap().unwrap();
    assert_eq!(relay.code(), Some(0));
}

#[tokio::test]
async fn nobody_comes_and_it_goes() {
    let sandbox = Sandbox::start(&[], 200);
    assert_eq!(
        sandbox.exit_code().await,
        Some(EndReason::Unbound.exit_code().into())
    );
}

#[tokio::test]
async fn an_idle_session_ends() {
    let sandbox = Sandbox::start(&[], 30_000);
    let (client, _relay) = sandbox.channel().await;
    let mut terms = lease();
    terms.idle_ms = 5_000;
    client.post("/lease", &terms).await.expect(200);
    // The long poll is told, if the connection is not closed before it is read.
    let told = client.get("/lease?wait=60").await;
    assert_eq!(told.expect(410).json::<Ended>().reason, EndReason::Idle);
    assert_eq!(
        sandbox.exit_code().await,
        Some(EndReason::Idle.exit_code().into())
    );
}

#[tokio::test]
async fn an_archive_goes_from_one_sandbox_into_the_next() {
    let (_one, client, _relay) = Sandbox::leased(&[]).await;
    client.put("/files/d/f", "hello").await.expect(200);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let get = async |client: &Client, path: String| client.request(Method::GET, &path, Bytes::new()).await;
    let answer = get(&client, "/archive?max=100000".to_owned()).await;
    assert_eq!(answer.status(), 200);
    let header = |name| answer.headers()[name].to_str().unwrap().to_owned();
    let (mark, packed) = (
        header(MARK_HEADER),
        Packed::parse(&header(PACKED_HEADER)).unwrap(),
    );
    assert_eq!((packed.entries, packed.left_out), (2, 0));
    let archive = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(archive.len() as u64, packed.bytes);
    // It was a look only, and the next one has nothing to add.
    let LeaseState::Bound(view) = client.get("/lease").await.json() else {
        panic!("not bound");
    };
    assert!(view.idle_ms >= 300, "{view:?}");
    client.get(&format!("/archive?since={mark}")).await.expect(204);
    client.get("/archive?max=1024").await.expect(413);
    client.get("/archive?since=-").await.expect(200);
    client.get("/archive?since=%2e%2e").await.expect(400);

    let two = Sandbox::start(&[], 30_000);
    let (client, _relay) = two.channel().await;
    client.get("/archive").await.expect(409);
    let filled = client
        .answer(Method::PUT, "/archive?as_of=5&left_out=1", archive.clone())
        .await;
    assert_eq!(
        filled.expect(200).json::<Unpacked>(),
        Unpacked { entries: 2, bytes: 5 }
    );
    // The files prove a loss, whatever the server knows that asks for the lease.
    let grant: LeaseGrant = client.post("/lease", &lease()).await.expect(200).json();
    assert_eq!(
        grant.standing,
        Standing::Restarted {
            reason: RestartReason::NoLongerOnRecord,
            files: FilesFate::Kept {
                as_of_ms: 5,
                left_out: 1
            },
        }
    );
    assert_eq!(client.get("/files/d/f").await.expect(200).body, "hello");
    // A mark of the first sandbox says that there is an archive, which is as good as what this one was filled with.
    client.get(&format!("/archive?since={mark}")).await.expect(204);
    // Whoever has none is given one.
    client.get("/archive").await.expect(200);
    client.put("/files/d/g", "").await.expect(200);
    client.get(&format!("/archive?since={mark}")).await.expect(200);
    // Nobody's files are replaced once they are somebody's.
    client
        .answer(Method::PUT, "/archive?as_of=6", archive)
        .await
        .expect(409);
}

#[tokio::test]
async fn a_stop_from_outside_is_obeyed_at_once() {
    let (sandbox, _client, _relay) = Sandbox::leased(&[Language::Bash]).await;
    let pid = Pid::from_raw(sandbox.agent.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(sandbox.exit_code().await, Some(143));
}

#[tokio::test]
async fn a_start_that_fails_says_so() {
    for (config, code) in [
        ("{", 85),
        (r#"{"surprise": 1}"#, 85),
        (r#"{"socket": "/proc/none/x"}"#, 85),
    ] {
        let agent = Command::new(env!("CARGO_BIN_EXE_greenroom-agent"))
            .args(["init", config])
            .output()
            .await
            .unwrap();
        assert_eq!(agent.status.code(), Some(code), "{config}");
        assert!(!agent.stderr.is_empty());
    }
    let usage = Command::new(env!("CARGO_BIN_EXE_greenroom-agent"))
        .output()
        .await
        .unwrap();
    assert_eq!(usage.status.code(), Some(64));
}
