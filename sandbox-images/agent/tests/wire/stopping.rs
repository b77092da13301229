//! Every way in which a run is stopped, and what a dead kernel leaves behind.

use std::time::Duration;

use greenroom_protocol::{
    EndReason, Ended, Hello, KernelFate, KernelState, Language, Refusal, RunEventKind, RunOutcome, RunStatus,
};
use tokio::time::Instant;

use crate::support::{Bench, Client, Scripted, Start, python, run};

/// Starts a run with a second's time on a fresh agent.
async fn timed(code: &str) -> (Bench, Client, RunOutcome, Duration) {
    let bench = python();
    let client = bench.leased().await;
    let mut request = run("r", code);
    request.timeout_ms = 1000;
    let begin = Instant::now();
    let outcome = client.submit(&request).await.outcome().await;
    (bench, client, outcome, begin.elapsed())
}

#[tokio::test(start_paused = true)]
async fn out_of_time_is_an_interrupt_that_keeps_the_kernel() {
    let (_bench, client, outcome, took) = timed("print x\nhold").await;
    assert_eq!(outcome.status, RunStatus::TimedOut);
    assert_eq!(outcome.error.unwrap().name, "KeyboardInterrupt");
    assert_eq!(outcome.kernel, KernelFate::Kept);
    assert_eq!(took, Duration::from_secs(1));
    assert_eq!(client.run("next", "print x").await.status, RunStatus::Ok);
}

#[tokio::test(start_paused = true)]
async fn code_that_ignores_the_interrupt_is_killed_after_the_grace() {
    let (_bench, client, outcome, took) = timed("deaf").await;
    assert_eq!(outcome.status, RunStatus::TimedOut);
    assert_eq!(outcome.kernel, KernelFate::Restarted);
    assert_eq!(took, Duration::from_secs(4));
    let unheard = lost(&client, "unheard").await;
    assert_eq!(
        unheard.as_deref(),
        Some("run r"),
        "nobody may have heard the outcome"
    );
    client.post("/runs/r/told", &()).await.expect(204);
    assert_eq!(lost(&client, "heard").await, None);
}

#[tokio::test(start_paused = true)]
async fn cancelling_interrupts_then_kills() {
    for (code, fate, seconds) in [("hold", KernelFate::Kept, 0), ("deaf", KernelFate::Restarted, 3)] {
        let bench = python();
        let client = bench.leased().await;
        let mut events = client.start("r", code).await;
        events.started().await;
        let begin = Instant::now();
        client.delete("/runs/r").await.expect(202);
        // A second one changes nothing.
        client.delete("/runs/r").await;
        let outcome = events.outcome().await;
        assert_eq!(outcome.status, RunStatus::Cancelled);
        assert_eq!(outcome.kernel, fate);
        assert_eq!(begin.elapsed().as_secs(), seconds);
        client.delete("/runs/r").await.expect(409);
        assert_eq!(client.run("next", "print x").await.status, RunStatus::Ok);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_run_is_cancelled_without_its_kernel() {
    let kernel = Scripted::new(Language::Python);
    let log = kernel.log();
    let bench = Bench::new(vec![kernel]);
    let client = bench.leased().await;
    let mut front = client.start("front", "wait 5000").await;
    front.started().await;
    let mut waiting = client.start("waiting", "print never").await;
    client.delete("/runs/waiting").await.expect(202);
    let begin = Instant::now();
    let outcome = waiting.outcome().await;
    assert_eq!(
        (outcome.status, outcome.kernel),
        (RunStatus::Cancelled, KernelFate::Kept)
    );
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(front.outcome().await.status, RunStatus::Ok);
    assert!(!log.lock().unwrap().iter().any(|line| line == "print never"));
}

#[tokio::test(start_paused = true)]
async fn a_dead_kernel_is_told_and_back_at_once() {
    let python = Scripted::new(Language::Python).starts([Start::Takes(100), Start::Takes(300)]);
    let bash = Scripted::new(Language::Bash);
    let bash_log = bash.log();
    let bench = Bench::new(vec![python, bash]);
    let client = bench.leased().await;
    client.get("/?wait=9").await.expect(200);
    let outcome = client.run("r", "exit boom").await;
    assert_eq!(outcome.status, RunStatus::KernelDied);
    assert_eq!(outcome.kernel, KernelFate::Restarted);
    assert_eq!(outcome.error.unwrap().message, "boom");
    let hello: Hello = client.get("/").await.json();
    assert_eq!(hello.kernels[0].state, KernelState::Starting);
    assert!(hello.ready, "ready once is ready");
    // Most of the new start is over before the next run comes, and the rest is said to it.
    tokio::time::sleep(Duration::from_millis(250)).await;
    let begin = Instant::now();
    let outcome = client.run("next", "print x").await;
    assert_eq!(
        (outcome.status, outcome.kernel),
        (RunStatus::Ok, KernelFate::Kept)
    );
    assert_eq!(begin.elapsed().as_millis(), 50);
    // Its neighbour never noticed.
    assert_eq!(*bash_log.lock().unwrap(), ["start"]);
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_dies_between_runs_is_told_by_the_next() {
    let kernel = Scripted::new(Language::Python);
    let (log, control) = (kernel.log(), greenroom_agent::kernel::Kernel::control(&kernel));
    let bench = Bench::new(vec![kernel]);
    let client = bench.leased().await;
    // Nothing ran, so nothing is lost.
    control.kill();
    let first = client.start("first", "print x").await.all().await;
    assert!(matches!(first[1].kind, RunEventKind::Started { lost: None, .. }));
    control.kill();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(log.lock().unwrap().last().unwrap(), "start", "it is back unasked");
    for run in ["second", "third"] {
        assert_eq!(lost(&client, run).await.as_deref(), Some("killed"), "{run}");
    }
    client.post("/runs/first/told", &()).await.expect(204);
    assert_eq!(
        lost(&client, "fourth").await.as_deref(),
        Some("killed"),
        "first said nothing of it"
    );
    client.post("/runs/second/told", &()).await.expect(204);
    assert_eq!(lost(&client, "fifth").await, None);
    client.post("/runs/nosuch/told", &()).await.expect(404);
}

/// What a run says of a kernel that has lost its variables.
async fn lost(client: &Client, run: &str) -> Option<String> {
    let events = client.start(run, "print x").await.all().await;
    let RunEventKind::Started { lost, .. } = &events[1].kind else {
        panic!("{events:?}")
    };
    lost.as_ref().map(|error| error.name.clone())
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_keeps_dying_waits_for_its_next_run() {
    let kernel = Scripted::new(Language::Python);
    let (log, control) = (kernel.log(), greenroom_agent::kernel::Kernel::control(&kernel));
    let bench = Bench::new(vec![kernel]);
    let client = bench.leased().await;
    for _ in 0..9 {
        control.kill();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let starts = || log.lock().unwrap().iter().filter(|line| *line == "start").count();
    assert_eq!(starts(), 3, "once asked for, twice unasked");
    let hello: Hello = client.get("/").await.json();
    assert_eq!(hello.kernels[0].state, KernelState::Dormant);
    assert_eq!(client.run("r", "print x").await.status, RunStatus::Ok);
    assert_eq!(starts(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_sandbox_is_told_to_every_run() {
    let bench = python();
    let client = bench.leased().await;
    let mut running = client.start("running", "deaf").await;
    running.started().await;
    let mut waiting = client.start("waiting", "print x").await;
    client.delete("/lease?reason=reset").await.expect(202);
    for events in [&mut running, &mut waiting] {
        let outcome = events.outcome().await;
        assert_eq!(outcome.status, RunStatus::KernelDied);
        let error = outcome.error.unwrap();
        assert_eq!(
            (error.name.as_str(), error.message.as_str()),
            ("sandbox_ended", "the sandbox ended: reset")
        );
    }
    let begin = Instant::now();
    assert_eq!(bench.agent.ended().await, EndReason::Reset);
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_lifetime_kills_what_runs() {
    let bench = python();
    let client = bench.connect().await;
    let mut lease = crate::support::lease('a');
    lease.lifetime_ms = 10_000;
    client.post("/lease", &lease).await.expect(200);
    let begin = Instant::now();
    let mut events = client.start("r", "tough").await;
    events.started().await;
    tokio::time::sleep(Duration::from_millis(10_100)).await;
    let gone = client.post("/runs", &run("late", "print x")).await;
    assert_eq!(gone.expect(410).json::<Ended>().reason, EndReason::Lifetime);
    let outcome = events.outcome().await;
    assert_eq!(outcome.status, RunStatus::KernelDied);
    assert_eq!(begin.elapsed().as_millis(), 10_500);
    assert_eq!(bench.agent.ended().await, EndReason::Lifetime);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_ours_answers_too() {
    let bench = Bench::new(vec![
        Scripted::new(Language::Python),
        Scripted::new(Language::Bash),
    ]);
    let client = bench.leased().await;
    let mut running = client.start("running", "wait 100\npanic").await;
    let mut waiting = client.start("waiting", "print x").await;
    for events in [&mut running, &mut waiting] {
        let outcome = events.outcome().await;
        assert_eq!(outcome.status, RunStatus::KernelDied);
        assert_eq!(outcome.error.unwrap().name, "agent_failed");
    }
    client.post("/runs", &run("next", "print x")).await.expect(422);
    // The other kernel works, and nothing is held open for ever.
    let mut request = run("bash", "print x");
    request.language = Language::Bash;
    client.submit(&request).await.outcome().await;
    client.delete("/lease?reason=evicted&idle_ms=0").await.expect(202);
}

#[tokio::test(start_paused = true)]
async fn cancelling_what_is_not_there_says_so() {
    let bench = python();
    let client = bench.leased().await;
    let refusal: Refusal = client.delete("/runs/nobody").await.expect(404).json();
    assert!(refusal.message.contains("nobody"), "{}", refusal.message);
    client.delete("/runs/no%00body").await.expect(400);
}
