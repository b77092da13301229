//! How kernels come up, and how the start-up is seen from outside.

use std::time::Duration;

use greenroom_protocol::{
    AgentConfig, Hello, KernelState, Language, Refusal, RefusalKind, RunEventKind, RunStatus,
};
use tokio::time::Instant;

use crate::support::{Bench, Scripted, Start, run};

fn ready(languages: &[Language]) -> AgentConfig {
    AgentConfig {
        ready: languages.to_vec(),
        ..AgentConfig::default()
    }
}

#[tokio::test(start_paused = true)]
async fn hello_waits_until_every_wanted_kernel_answers() {
    let bench = Bench::new(vec![
        Scripted::new(Language::Python).starts([Start::Takes(1500)]),
        Scripted::new(Language::Bash).starts([Start::Takes(200)]),
    ]);
    let client = bench.connect().await;
    let begin = Instant::now();
    let at_once: Hello = client.get("/").await.expect(200).json();
    assert!(!at_once.ready);
    assert_eq!(at_once.kernels[0].state, KernelState::Starting);
    let early: Hello = client.get("/?wait=1").await.json();
    assert!(!early.ready);
    assert_eq!(begin.elapsed().as_millis(), 1000);
    let hello: Hello = client.get("/?wait=60").await.json();
    assert!(hello.ready);
    assert_eq!(begin.elapsed().as_millis(), 1500, "in parallel");
    assert_eq!(hello.kernels[0].version.as_deref(), Some("Scripted 1"));
    assert_eq!(hello.kernels[0].state, KernelState::Idle);
    assert_eq!(hello.uptime_ms, 1500);
    assert_eq!(hello.boot, at_once.boot);
    assert_eq!(hello.boot.len(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_cannot_succeed_says_why() {
    for (config, kernel, reason) in [
        (
            ready(&[Language::Python]),
            Start::Fails,
            "python did not start: scripted",
        ),
        (
            ready(&[Language::Python]),
            Start::Absent,
            "python is not in this image: scripted",
        ),
        (
            ready(&[Language::Bash]),
            Start::Takes(0),
            "there is no bash kernel",
        ),
    ] {
        let bench = Bench::with(&config, vec![Scripted::new(Language::Python).starts([kernel])]);
        let client = bench.connect().await;
        let hello: Hello = client.get("/?wait=60").await.json();
        assert_eq!((hello.ready, hello.failed.as_deref()), (false, Some(reason)));
        assert!(hello.uptime_ms < 1000);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_hangs_at_its_start_is_given_up() {
    let bench = Bench::new(vec![
        Scripted::new(Language::Python).starts([Start::Takes(3_600_000)]),
    ]);
    let client = bench.connect().await;
    let hello: Hello = client.get("/?wait=600").await.json();
    assert_eq!(hello.uptime_ms, 60_000);
    assert!(hello.failed.unwrap().contains("60 s"));
}

#[tokio::test(start_paused = true)]
async fn other_kernels_start_with_their_first_run() {
    let bash = Scripted::new(Language::Bash).starts([Start::Takes(70)]);
    let log = bash.log();
    let bench = Bench::with(
        &ready(&[Language::Python]),
        vec![Scripted::new(Language::Python), bash],
    );
    let client = bench.leased().await;
    let hello: Hello = client.get("/?wait=9").await.json();
    assert!(hello.ready);
    assert_eq!(hello.kernels[1].state, KernelState::Dormant);
    assert!(log.lock().unwrap().is_empty());
    for (id, boot) in [("first", Some(70)), ("second", None)] {
        let mut request = run(id, "print x");
        request.language = Language::Bash;
        let mut events = client.submit(&request).await;
        let started = events
            .until(|kind| matches!(kind, RunEventKind::Started { .. }))
            .await;
        assert_eq!(
            started.kind,
            RunEventKind::Started {
                kernel_boot_ms: boot,
                lost: None
            }
        );
        let outcome = events.outcome().await;
        assert!(outcome.duration_ms < 1.0, "the start is not the code's time");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_fails_its_run_and_the_next_one_tries_again() {
    let bash = Scripted::new(Language::Bash).starts([Start::Fails]);
    let bench = Bench::with(
        &ready(&[Language::Python]),
        vec![Scripted::new(Language::Python), bash],
    );
    let client = bench.leased().await;
    for (id, status, error) in [
        ("first", RunStatus::KernelDied, Some("kernel_start")),
        ("second", RunStatus::Ok, None),
    ] {
        let mut request = run(id, "print x");
        request.language = Language::Bash;
        let outcome = client.submit(&request).await.outcome().await;
        assert_eq!(outcome.status, status);
        assert_eq!(outcome.error.map(|error| error.name).as_deref(), error);
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_kernel_is_refused_once_it_is_known_to_be_missing() {
    let bash = Scripted::new(Language::Bash).starts([Start::Absent]);
    let bench = Bench::with(
        &ready(&[Language::Python]),
        vec![Scripted::new(Language::Python), bash],
    );
    let client = bench.leased().await;
    let mut request = run("first", "print x");
    request.language = Language::Bash;
    let outcome = client.submit(&request).await.outcome().await;
    assert_eq!(outcome.error.unwrap().name, "kernel_absent");
    request.id.0 = "second".into();
    let refusal: Refusal = client.post("/runs", &request).await.expect(422).json();
    assert_eq!(refusal.kind, RefusalKind::NoKernel);
    let only_python = crate::support::python();
    let client = only_python.leased().await;
    client.post("/runs", &request).await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn an_images_one_shell_answers_to_both_names() {
    for (has, is_asked_for) in [(Language::Sh, Language::Bash), (Language::Bash, Language::Sh)] {
        // Also to have it ready.
        let bench = Bench::with(&ready(&[is_asked_for]), vec![Scripted::new(has)]);
        let client = bench.leased().await;
        let mut request = run("first", "print x");
        request.language = is_asked_for;
        let outcome = client.submit(&request).await.outcome().await;
        assert_eq!((outcome.status, outcome.language), (RunStatus::Ok, has));
        // Sent again, it is the same run.
        let outcome = client.submit(&request).await.outcome().await;
        assert_eq!(outcome.language, has);
        request.language = Language::Python;
        let refusal: Refusal = client.post("/runs", &request).await.expect(409).json();
        assert_eq!(refusal.kind, RefusalKind::Conflict);
        request.id.0 = "second".into();
        let refusal: Refusal = client.post("/runs", &request).await.expect(422).json();
        assert!(
            refusal.message.ends_with(&format!("there are: {has}")),
            "{refusal:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_can_be_cancelled_while_its_kernel_starts() {
    let bash = Scripted::new(Language::Bash).starts([Start::Takes(5000)]);
    let bench = Bench::with(
        &ready(&[Language::Python]),
        vec![Scripted::new(Language::Python), bash],
    );
    let client = bench.leased().await;
    let mut request = run("r", "print x");
    request.language = Language::Bash;
    let begin = Instant::now();
    let mut events = client.submit(&request).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.delete("/runs/r").await.expect(202);
    assert_eq!(events.outcome().await.status, RunStatus::Cancelled);
    assert_eq!(begin.elapsed().as_secs(), 1);
    // The start went on: the next run has it.
    request.id.0 = "next".into();
    client.submit(&request).await.outcome().await;
    assert_eq!(begin.elapsed().as_secs(), 5);
}
