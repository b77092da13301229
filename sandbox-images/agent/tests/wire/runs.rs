//! The story of a run: its events, replay and followers, the queue, and what is kept.

use std::time::Duration;

use bytes::Bytes;
use greenroom_protocol::{
    KernelFate, Language, Refusal, RefusalKind, RunEventKind, RunList, RunState, RunStatus, Standing,
    limits::{KEPT_BYTES, KEPT_RUNS, QUEUED_RUNS},
};
use http::Method;
use tokio::time::{Instant, timeout};

use crate::support::{Bench, Scripted, python, run};

#[tokio::test(start_paused = true)]
async fn a_run_tells_its_story_in_order() {
    let bench = python();
    let client = bench.leased().await;
    let events = client.start("r1", "print hello\nresult 2").await.all().await;
    let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3]);
    assert_eq!(
        events[0].kind,
        RunEventKind::Accepted {
            standing: Standing::Existing
        }
    );
    assert_eq!(
        events[1].kind,
        RunEventKind::Started {
            kernel_boot_ms: None,
            lost: None
        }
    );
    assert!(matches!(&events[2].kind, RunEventKind::Output { text, .. } if text == "hello"));
    let RunEventKind::Finished(outcome) = &events[3].kind else {
        panic!("{events:?}")
    };
    assert_eq!(outcome.status, RunStatus::Ok);
    assert_eq!(outcome.result.as_deref(), Some("2"));
    assert_eq!(outcome.stdout.bytes, 5);
    assert_eq!(outcome.kernel, KernelFate::Kept);
}

#[tokio::test(start_paused = true)]
async fn a_short_run_is_few_frames_and_output_does_not_wait() {
    let bench = python();
    let client = bench.leased().await;
    let mut events = client.start("short", "print hello\nprint world").await;
    events.outcome().await;
    assert!(events.frames <= 2, "{} frames", events.frames);
    let mut events = client.start("long", "print first\nwait 5000").await;
    let begin = Instant::now();
    events
        .until(|kind| matches!(kind, RunEventKind::Output { .. }))
        .await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(events.outcome().await.duration_ms.round(), 5000.0);
}

#[tokio::test(start_paused = true)]
async fn code_that_fails_is_an_outcome() {
    let bench = python();
    let client = bench.leased().await;
    let outcome = client.run("r", "print a\nraise bad\nprint b").await;
    assert_eq!(outcome.status, RunStatus::Error);
    assert_eq!(outcome.error.unwrap().message, "bad");
    assert_eq!(outcome.kernel, KernelFate::Kept);
}

#[tokio::test(start_paused = true)]
async fn a_lost_follower_is_no_cancel_and_the_rest_is_had_by_number() {
    let bench = python();
    let client = bench.leased().await;
    let mut events = client.start("r", "print one\nwait 1000\nprint two").await;
    events
        .until(|kind| matches!(kind, RunEventKind::Output { .. }))
        .await;
    drop((events, client));
    let other = bench.connect().await;
    let rest = other.follow("/runs/r?from=3").await.all().await;
    assert_eq!(rest[0].seq, 3);
    assert!(matches!(&rest[0].kind, RunEventKind::Output { text, .. } if text == "two"));
    assert!(matches!(&rest[1].kind, RunEventKind::Finished(end) if end.status == RunStatus::Ok));
    // Finished, it is replayed from the start as often as one likes.
    for _ in 0..2 {
        assert_eq!(other.follow("/runs/r").await.all().await.len(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn many_followers_see_the_same() {
    let bench = python();
    let client = bench.leased().await;
    let mut first = client
        .start("r", "wait 10\nprint one\nwait 1000\nprint two")
        .await;
    let mut others = tokio::task::JoinSet::new();
    for from in 0..20 {
        let client = bench.connect().await;
        others.spawn(async move {
            client
                .follow(&format!("/runs/r?from={}", from % 6))
                .await
                .all()
                .await
        });
    }
    let all = first.all().await;
    while let Some(seen) = others.join_next().await {
        let seen = seen.unwrap();
        assert_eq!(
            seen.as_slice(),
            &all[seen.first().map_or(5, |event| event.seq as usize)..]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_waits_as_long_as_it_says() {
    let bench = python();
    let client = bench.leased().await;
    client.start("r", "print one\nwait 60000").await.started().await;
    let begin = Instant::now();
    for (path, seconds, events) in [
        ("/runs/r?wait=0", 0, 3),
        ("/runs/r?wait=7", 7, 3),
        ("/runs/r?from=3&wait=5", 5, 0),
        ("/runs/r?from=99&wait=1", 1, 0),
    ] {
        let asked = Instant::now();
        assert_eq!(client.follow(path).await.all().await.len(), events, "{path}");
        assert_eq!(asked.elapsed().as_secs(), seconds, "{path}");
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn asking_twice_runs_once() {
    let bench = python();
    let kernel_log = {
        let kernel = Scripted::new(Language::Python);
        let log = kernel.log();
        let bench = Bench::new(vec![kernel]);
        let client = bench.leased().await;
        let (mut one, mut two) = (
            client.start("r", "wait 5\nprint x").await,
            client.start("r", "wait 5\nprint x").await,
        );
        assert_eq!(one.all().await, two.all().await);
        let again = client.run("r", "wait 5\nprint x").await;
        assert_eq!(again.status, RunStatus::Ok);
        log
    };
    let ran = kernel_log
        .lock()
        .unwrap()
        .iter()
        .filter(|line| *line == "print x")
        .count();
    assert_eq!(ran, 1);
    // The same name for something else is no retry.
    let client = bench.leased().await;
    client.run("r", "print x").await;
    let other = client.post("/runs", &run("r", "print y")).await;
    assert_eq!(other.expect(409).json::<Refusal>().kind, RefusalKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn runs_of_one_kernel_wait_their_turn() {
    let bench = python();
    let client = bench.leased().await;
    client.start("a", "wait 1000").await.started().await;
    tokio::time::advance(Duration::from_millis(400)).await;
    let mut b = client.start("b", "wait 1000").await;
    let mut c = client.start("c", "print c").await;
    let waits = |kind: &RunEventKind| matches!(kind, RunEventKind::Queued { .. });
    let RunEventKind::Queued { behind, running_ms } = b.until(waits).await.kind else {
        unreachable!()
    };
    assert_eq!(behind.0, "a");
    assert!((400..420).contains(&running_ms), "{running_ms}");
    let RunEventKind::Queued { behind, .. } = c.until(waits).await.kind else {
        unreachable!()
    };
    assert_eq!(behind.0, "a");
    let states = |list: RunList| -> Vec<_> {
        let runs = list.runs.into_iter();
        runs.map(|run| (run.id.0, run.state)).collect()
    };
    assert_eq!(
        states(client.get("/runs").await.json()),
        [
            ("c".to_owned(), RunState::Queued),
            ("b".to_owned(), RunState::Queued),
            ("a".to_owned(), RunState::Running),
        ]
    );
    // When a is over, c hears that it waits for b now.
    let RunEventKind::Queued { behind, running_ms } = c.until(waits).await.kind else {
        unreachable!()
    };
    assert_eq!((behind.0.as_str(), running_ms), ("b", 0));
    // Time in the queue is not time at work.
    assert_eq!(b.outcome().await.duration_ms.round(), 1000.0);
    assert!(c.outcome().await.duration_ms < 1.0);
}

#[tokio::test(start_paused = true)]
async fn kernels_do_not_wait_for_each_other() {
    let bench = Bench::new(vec![
        Scripted::new(Language::Python),
        Scripted::new(Language::Bash),
    ]);
    let client = bench.leased().await;
    client.start("slow", "wait 60000").await.started().await;
    let begin = Instant::now();
    let mut request = run("quick", "print x");
    request.language = Language::Bash;
    client.submit(&request).await.outcome().await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_queue_has_a_bound() {
    let bench = python();
    let client = bench.leased().await;
    client.start("front", "hold").await.started().await;
    for n in 0..QUEUED_RUNS {
        drop(client.start(&format!("r{n}"), "print x").await);
    }
    let full = client.post("/runs", &run("one-too-many", "print x")).await;
    let refusal: Refusal = full.expect(429).json();
    assert_eq!(refusal.kind, RefusalKind::QueueFull);
    assert!(refusal.message.contains("16"), "{}", refusal.message);
    // Refused is refused: the name is free, and there is room as soon as one goes.
    client.delete("/runs/r3").await.expect(202);
    drop(client.start("one-too-many", "print x").await);
    client.delete("/runs/front").await.expect(202);
    let last = client.follow("/runs/one-too-many").await.outcome().await;
    assert_eq!(last.status, RunStatus::Ok);
}

#[tokio::test(start_paused = true)]
async fn finished_runs_are_kept_by_number() {
    let bench = python();
    let client = bench.leased().await;
    client.start("long", "wait 600000").await.started().await;
    client.delete("/runs/long").await.expect(202);
    client.follow("/runs/long").await.outcome().await;
    for n in 0..KEPT_RUNS {
        client.run(&format!("r{n}"), "print x").await;
    }
    client.get("/runs/long").await.expect(404);
    client.get("/runs/r0").await.expect(200);
    assert_eq!(client.get("/runs").await.json::<RunList>().runs.len(), KEPT_RUNS);
    // A retry that comes so late does not run its code again.
    client
        .post("/runs", &run("long", "wait 600000"))
        .await
        .expect(404);
}

#[tokio::test(start_paused = true)]
async fn finished_runs_are_kept_by_size() {
    let bench = python();
    let client = bench.leased().await;
    let third = format!("print {}", "x".repeat(KEPT_BYTES / 20));
    for n in 0..25 {
        client.run(&format!("r{n}"), &third).await;
    }
    let kept = client.get("/runs").await.json::<RunList>().runs;
    assert_eq!(kept.first().unwrap().id.0, "r24");
    assert_eq!(kept.len(), 19, "19 fit with what is around them");
    client.get("/runs/r5").await.expect(404);
    client.get("/runs/r6").await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_list_shows_what_a_person_needs() {
    let bench = python();
    let client = bench.leased().await;
    client
        .start("r", "\n  print one  \nwait 60000")
        .await
        .started()
        .await;
    tokio::time::advance(Duration::from_millis(1500)).await;
    let list: RunList = client.get("/runs").await.json();
    assert_eq!(list.runs[0].title, "print one");
    assert_eq!(list.runs[0].age_ms, 1500);
    assert_eq!(list.runs[0].next, 3);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_holds_up_nobody() {
    let bench = python();
    let client = bench.leased().await;
    // More than the windows hold, and nobody reads it.
    let much = format!("print {}\n", "x".repeat(900 << 10)).repeat(8);
    let body = Bytes::from(serde_json::to_vec(&run("much", &much[..1 << 20])).unwrap());
    let stalled = client.request(Method::POST, "/runs", body).await;
    let other = bench.connect().await;
    let begin = timeout(Duration::from_secs(5), other.run("small", "print x")).await;
    assert_eq!(begin.unwrap().status, RunStatus::Ok);
    drop(stalled);
}
