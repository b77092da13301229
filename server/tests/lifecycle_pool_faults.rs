//! Stories of a pool whose engine, sandboxes and agents fail it.

mod support;

use std::{collections::BTreeSet, time::Duration};

use greenroom::{
    pool::{BootFault, ClaimError, Delay, Install, PoolEvent, PoolSpec, Readiness, Unready, Why},
    sandbox::{Dependencies, Requirement},
};
use greenroom_agent::kernel::Kernel;
use greenroom_protocol::{EndReason, Language};
use support::{
    contract::MISSING_IMAGE,
    fake_engine::{FakeEngine, Fault, Op},
    kernel::{Scripted, Start},
    pools::{Bench, ids, pool_spec},
};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn kernels(start: Start) -> impl Fn(&greenroom::sandbox::SandboxSpec) -> Vec<Box<dyn Kernel>> {
    move |_| vec![Box::new(Scripted::new(Language::Python).starts([start])) as Box<dyn Kernel>]
}

#[tokio::test(start_paused = true)]
async fn whatever_call_fails_and_however_the_pool_fills_and_leaves_nothing() {
    let ops = [
        Op::Prepare,
        Op::List,
        Op::Create,
        Op::Start,
        Op::Open,
        Op::Destroy,
    ];
    let faults = [
        Fault::Refused,
        Fault::Panics,
        Fault::Hangs,
        Fault::HappensUnheard,
        Fault::HappensLate(5 * SECOND),
        Fault::HappensLate(25 * SECOND),
        Fault::HappensLate(35 * SECOND),
    ];
    for op in ops {
        for fault in faults {
            let engine = FakeEngine::new();
            // Twice: the image's preparation before anything else, the others half-way through a boot too.
            let between = if op == Op::Prepare { 0 } else { 1 };
            engine.script(op, [fault]);
            engine.script(op, (0..between).map(|_| Fault::None));
            engine.script(op, [fault]);
            let bench = Bench::start(&engine, pool_spec(2, 8));
            bench.settled().await;
            // One is destroyed after the other, so that calls of every kind are made.
            while engine.calls(op) < 2 + between {
                drop(bench.claim().await);
            }
            bench.settled().await;
            bench.end().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn closing_in_the_middle_of_anything_leaves_nothing() {
    for milliseconds in 0..30 {
        let engine = FakeEngine::new().kernels(kernels(Start::Takes(10)));
        let bench = Bench::start(&engine, pool_spec(2, 8));
        sleep(Duration::from_millis(milliseconds)).await;
        bench.end().await;
    }
    for fault in [
        Fault::Hangs,
        Fault::HappensLate(40 * SECOND),
        Fault::HappensUnheard,
    ] {
        let engine = FakeEngine::new();
        engine.script(Op::Create, [fault, fault]);
        let bench = Bench::start(&engine, pool_spec(2, 8));
        sleep(SECOND).await;
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn failing_boots_back_off_say_why_and_recover() {
    let engine = FakeEngine::new();
    engine.script(Op::Start, [Fault::Refused; 12]);
    let bench = Bench::start(&engine, pool_spec(2, 8));
    let census = bench.until("twelve failures", |c| c.failures == 12).await;
    assert!(census.last_boot_error.unwrap().contains("start a sandbox"));
    let Readiness::Unready(Unready::Failing { failures: 12, .. }) = census.readiness else {
        panic!("{:?}", census.readiness)
    };
    let until = census.backoff_until.unwrap();
    assert!(until - Instant::now() >= 14 * SECOND, "it waits longer each time");
    // Whoever needs a sandbox now does not wait that long.
    bench.adopted("conversation").await;
    let census = bench.settled().await;
    assert_eq!(
        (census.failures, census.last_boot_error, census.backoff_until),
        (0, None, None)
    );
    let failed = bench
        .heard
        .count(|e| *e == PoolEvent::BootFailed(BootFault::Engine));
    assert_eq!(failed, 12);
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_hears_why_boots_fail() {
    let spec = PoolSpec {
        sandbox: greenroom::sandbox::SandboxSpec {
            image: MISSING_IMAGE.to_owned(),
            ..support::spec()
        },
        ..pool_spec(2, 8)
    };
    let bench = Bench::start(&FakeEngine::new(), spec);
    let late = bench.claim().await.unwrap_err();
    assert!(late.to_string().contains("no such image"), "{late}");
    bench.end().await;

    let engine = FakeEngine::new();
    engine.reachable(false);
    let bench = Bench::start(&engine, pool_spec(2, 8));
    let late = bench.claim().await.unwrap_err();
    let ClaimError::TimedOut {
        delay: Delay::EngineUnreachable { .. },
        ..
    } = late
    else {
        panic!("{late:?}")
    };
    let Readiness::Unready(Unready::Engine { .. }) = bench.pool.readiness() else {
        panic!("{:?}", bench.census())
    };
    engine.reachable(true);
    bench.settled().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn agents_that_do_not_get_ready_are_destroyed() {
    for (start, fault, says) in [
        (
            Start::Takes(3_600_000),
            BootFault::Deadline,
            "starting its kernels took too long",
        ),
        (Start::Fails, BootFault::Agent, "could not get ready"),
        (Start::Absent, BootFault::Agent, "could not get ready"),
    ] {
        let engine = FakeEngine::new().kernels(kernels(start));
        let bench = Bench::start(&engine, pool_spec(1, 8));
        let census = bench.until("it says why", |c| c.failures >= 2).await;
        let error = census.last_boot_error.unwrap();
        assert!(error.contains(says), "{error}");
        assert!(bench.heard.count(|e| *e == PoolEvent::BootFailed(fault)) >= 2);
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn sandboxes_that_die_are_noticed_and_replaced() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(2, 8));
    bench.settled().await;
    sleep(300 * SECOND).await;
    let before: BTreeSet<_> = ids(&bench.listed().await).into_iter().collect();
    let began = Instant::now();
    let victims: Vec<_> = before.iter().cloned().collect();
    engine.kill(&victims[0], 137, true);
    engine.remove(&victims[1]);
    bench
        .until("both deaths are noticed", |c| c.counts.begun >= 4)
        .await;
    bench.settled().await;
    assert!(began.elapsed() < 10 * SECOND);
    let after: BTreeSet<_> = ids(&bench.listed().await).into_iter().collect();
    assert!(before.is_disjoint(&after));
    assert_eq!(bench.heard.count(|e| *e == PoolEvent::Condemned(Why::Died)), 2);
    assert_eq!(bench.census().failures, 0, "they had lived for long enough");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_dies_young_is_booted_ever_more_slowly() {
    let engine = FakeEngine::new();
    let deaths = [Fault::DiesAfter(SECOND, EndReason::Failed.exit_code().into()); 12];
    engine.script(Op::Start, deaths);
    let bench = Bench::start(&engine, pool_spec(1, 8));
    let began = Instant::now();
    let census = bench.until("twelve deaths", |c| c.failures == 12).await;
    assert!(
        census
            .last_boot_error
            .unwrap()
            .contains("died soon after its boot")
    );
    assert!(began.elapsed() > 60 * SECOND, "{:?}", began.elapsed());
    bench.settled().await;
    // Its successor lives, which in time forgives all.
    bench
        .until("forgiven", |c| c.failures == 0 && c.last_boot_error.is_none())
        .await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_restarts_costs_no_warm_sandbox() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(3, 8));
    bench.settled().await;
    let before = ids(&bench.listed().await);
    for away in [0, 1, 10] {
        engine.reachable(false);
        engine.break_channels();
        bench.until("it is noticed", |c| c.counts.warm == 0).await;
        sleep(away * SECOND).await;
        engine.reachable(true);
        bench.settled().await;
        assert_eq!(ids(&bench.listed().await), before);
    }
    assert_eq!(bench.census().counts.begun, 3);
    bench.adopted("conversation").await;
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_stays_away_costs_what_was_warm() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(2, 8));
    bench.settled().await;
    engine.reachable(false);
    engine.break_channels();
    let census = bench.until("given up", |c| c.counts.condemned == 2).await;
    assert_eq!(census.counts.warm, 0);
    sleep(600 * SECOND).await;
    assert!(bench.census().last_destroy_error.is_some());
    engine.reachable(true);
    let census = bench.settled().await;
    assert_eq!(census.last_destroy_error, None);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_destroyed_is_tried_for_ever_and_shown() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(1, 8));
    bench.settled().await;
    engine.script(Op::Destroy, [Fault::Refused; 40]);
    drop(bench.claim().await.unwrap());
    bench
        .until("it shows", |c| {
            c.last_destroy_error.is_some() && c.counts.warm == 1
        })
        .await;
    sleep(600 * SECOND).await;
    assert_eq!(bench.census().counts.condemned, 1);
    let tried = engine.calls(Op::Destroy);
    assert!(
        (10..30).contains(&tried),
        "ever more slowly: {tried} times in ten minutes"
    );
    bench.settled().await;
    assert_eq!(engine.calls(Op::Destroy), 41);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_was_removed_is_prepared_again() {
    let engine = FakeEngine::new();
    engine.script(Op::Create, [Fault::Refused, Fault::NoImage]);
    let bench = Bench::start(&engine, pool_spec(2, 8));
    bench.settled().await;
    let prepared = engine.calls(Op::Prepare);
    assert_eq!(
        prepared, 2,
        "a refusal of another kind says nothing about the image"
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn packages_that_cannot_be_installed_are_told_at_once_and_tried_again_ever_more_slowly() {
    let engine = FakeEngine::new();
    engine.script(Op::Derive, [Fault::NotInstalled; 6]);
    let bench = Bench::start(&engine, installing());
    bench.until("it failed", |c| c.last_boot_error.is_some()).await;
    let asked = Instant::now();
    let refused = bench.claim().await.unwrap_err();
    assert!(asked.elapsed() < SECOND, "waiting would be in vain");
    assert!(
        matches!(&refused, ClaimError::NotInstalled { reason, .. } if reason.contains("No matching distribution")),
        "{refused}"
    );
    let census = bench.pool.census().borrow().clone();
    let reason = census.last_boot_error.unwrap();
    assert!(reason.contains("`pip install` on image"), "{reason}");
    let Readiness::Unready(shown @ Unready::NotInstalled { failures: 1 }) = census.readiness else {
        panic!("{:?}", census.readiness);
    };
    assert!(
        !shown.to_string().contains("No matching distribution"),
        "anybody may read this: {shown}"
    );
    sleep(600 * SECOND).await;
    let tried = engine.calls(Op::Derive);
    assert!((3..6).contains(&tried), "{tried} times in ten minutes");
    bench.settled().await;
    assert_eq!(engine.calls(Op::Derive), 7);
    drop(bench.claim().await.unwrap());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_calls_while_packages_are_installed_hears_so() {
    let engine = FakeEngine::new();
    // The call hangs for half a minute, as an installation may.
    engine.script(Op::Derive, [Fault::Hangs]);
    let spec = PoolSpec {
        claim_wait: 5 * SECOND,
        ..installing()
    };
    let bench = Bench::start(&engine, spec);
    bench
        .until("it is told", |c| {
            c.readiness == Readiness::Unready(Unready::Installing)
        })
        .await;
    let late = bench.claim().await.unwrap_err();
    let ClaimError::TimedOut { delay, .. } = &late else {
        panic!("{late:?}");
    };
    assert_eq!(*delay, Delay::Installing);
    bench.settled().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_with_packages_that_was_removed_is_made_again() {
    let engine = FakeEngine::new();
    engine.script(Op::Create, [Fault::NoImage]);
    let bench = Bench::start(&engine, installing());
    bench.settled().await;
    assert_eq!((engine.calls(Op::Derive), engine.calls(Op::Prepare)), (2, 2));
    bench.end().await;
}

/// A pool that adds a package to its image.
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
fn installing() -> PoolSpec {
    let wished = vec![Requirement::parse("six").unwrap()];
    PoolSpec {
        install: Some(Install {
            dependencies: Dependencies::new(wished, Vec::new(), None),
            deadline: 60 * SECOND,
        }),
        ..pool_spec(2, 8)
    }
}
