//! Stories of several servers on one engine, which know of each other only what the engine lists.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use greenroom::{
    engine::{Engine, ListedState},
    pool::{ClaimError, Ground, PoolEvent, PoolSpec, Sweep, Why},
    sandbox::SandboxId,
};
use greenroom_agent::kernel::Kernel;
use greenroom_protocol::Language;
use support::{
    fake_engine::{FakeEngine, Fault, Op},
    kernel::{Scripted, Start},
    pools::{Bench, ids, pool_spec, session},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

fn engine() -> FakeEngine {
    FakeEngine::new().kernels(|_| {
        let kernel = Scripted::new(Language::Python).starts([Start::Takes(300)]);
        vec![Box::new(kernel) as Box<dyn Kernel>]
    })
}

/// Looks at the engine all the time, and keeps the most that ever ran at once.
struct Most(Arc<AtomicUsize>, JoinHandle<()>);

impl Most {
    fn watch(engine: &FakeEngine) -> Self {
        let (engine, most) = (engine.clone(), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&most);
        let watch = tokio::spawn(async move {
            loop {
                let listed = engine.list().await.unwrap_or_default();
                let running = listed.iter().filter(|s| s.state == ListedState::Running).count();
                seen.fetch_max(running, Ordering::Relaxed);
                sleep(Duration::from_millis(3)).await;
            }
        });
        Self(most, watch)
    }

    fn end(self) -> usize {
        self.1.abort();
        self.0.load(Ordering::Relaxed)
    }
}

/// Waits until the reserves are as large as they get, and stay so.
async fn filled(benches: &[Bench], warm: usize) {
    let all = || -> usize { benches.iter().map(|bench| bench.census().counts.warm).sum() };
    let filling = async {
        while all() < warm {
            sleep(SECOND).await;
        }
    };
    let filled = timeout(60 * SECOND, filling).await;
    assert!(filled.is_ok(), "the engine is not filled: {} are warm", all());
    // Whoever looked just before tries once more in vain.
    sleep(10 * SECOND).await;
    let begun = || -> u64 { benches.iter().map(|bench| bench.census().counts.begun).sum() };
    let before = begun();
    sleep(60 * SECOND).await;
    assert_eq!((all(), begun()), (warm, before), "they are at peace");
}

#[tokio::test(start_paused = true)]
async fn servers_that_fill_one_engine_never_overshoot() {
    let engine = engine();
    let most = Most::watch(&engine);
    let benches: Vec<_> = (0..3)
        .map(|n| Bench::start(&engine.seen_by(&format!("server-{n}")), pool_spec(4, 8)))
        .collect();
    // All but the one slot that is a claim's.
    filled(&benches, 7).await;

    // Twelve conversations come at once: eight have room, whichever server they meet.
    let race = (0..12).map(|n| {
        let bench = &benches[n % 3];
        async move {
            Some(
                bench
                    .claim()
                    .await
                    .ok()?
                    .adopt(&session(&format!("conversation {n}")))
                    .await
                    .unwrap(),
            )
        }
    });
    let served = join_all(race).await.into_iter().flatten().count();
    assert_eq!(served, 8);
    assert_eq!(most.end(), 8);
    benches[0].end_sessions().await;
    filled(&benches, 7).await;
    for bench in &benches {
        bench.pool.close(60 * SECOND).await;
    }
    engine.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn claims_race_for_the_last_slots_and_all_are_taken() {
    for _ in 0..5 {
        let engine = engine();
        let most = Most::watch(&engine);
        let benches: Vec<_> = (0..2)
            .map(|n| Bench::start(&engine.seen_by(&format!("server-{n}")), pool_spec(0, 3)))
            .collect();
        let claims = join_all((0..6).map(|n| benches[n % 2].claim())).await;
        assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 3);
        assert!(most.end() <= 3);
        drop(claims);
        for bench in benches {
            bench.pool.close(60 * SECOND).await;
        }
        engine.assert_nothing_left().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_conversation_never_starves_behind_anothers_reserve() {
    let engine = engine();
    let keeps = Bench::start(&engine.seen_by("server-1"), pool_spec(6, 6));
    keeps.until("all but one", |c| c.counts.warm == 5).await;
    let wants = Bench::start(&engine.seen_by("server-2"), pool_spec(0, 6));
    let began = Instant::now();
    for n in 0..6 {
        wants.adopted(&format!("conversation {n}")).await;
    }
    assert!(began.elapsed() < 40 * SECOND, "{:?}", began.elapsed());
    assert_eq!(keeps.heard.count(|e| *e == PoolEvent::Condemned(Why::Yielded)), 5);
    let refused = wants.claim().await.unwrap_err();
    assert!(
        matches!(refused, ClaimError::Capacity { max: 6, .. }),
        "{refused:?}"
    );
    wants.end_sessions().await;
    keeps.until("its reserve is back", |c| c.counts.warm == 5).await;
    wants.pool.close(60 * SECOND).await;
    keeps.end().await;
}

/// The wall clock of a test's engine.
fn clock() -> impl Fn() -> SystemTime + Send + Sync + 'static {
    let (wall, began) = (SystemTime::now(), Instant::now());
    move || wall + began.elapsed()
}

fn sweep(engine: &FakeEngine) -> Sweep {
    Sweep::start(Arc::new(engine.clone()), clock())
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_server_left_goes_and_conversations_stay() {
    let engine = engine();
    let spec = pool_spec(0, 8);
    // A server that is killed: its tasks end in the midst of what they do.
    let killed = tokio::runtime::Handle::current();
    let (told, left) = tokio::sync::oneshot::channel();
    let seen = engine.seen_by("killed");
    let victim = killed.spawn(async move {
        let spec = greenroom::sandbox::SandboxSpec {
            image: "image+agent".into(),
            ..support::spec()
        };
        let created = SandboxId::mint().unwrap();
        seen.create(&created, &spec).await.unwrap();
        let warm = SandboxId::mint().unwrap();
        seen.create(&warm, &spec).await.unwrap();
        seen.start(&warm).await.unwrap();
        let bound = SandboxId::mint().unwrap();
        seen.create(&bound, &spec).await.unwrap();
        seen.start(&bound).await.unwrap();
        let guest = greenroom::guest::Guest::connect(Arc::new(seen.clone()), bound.clone())
            .await
            .unwrap();
        seen.adopt(&bound, &session("conversation")).await.unwrap();
        let lease = greenroom_protocol::LeaseRequest {
            key: session("conversation").digest(),
            idle_ms: 3_600_000,
            lifetime_ms: 86_400_000,
            restarted: None,
            files: greenroom_protocol::FilesFate::Gone,
        };
        guest.lease(&lease).await.unwrap();
        drop(told.send((created, warm, bound)));
        std::future::pending::<()>().await;
    });
    let (created, warm, bound) = left.await.unwrap();
    victim.abort();
    let bench = Bench::start(&engine.seen_by("next"), spec.clone());
    let sweep = sweep(&engine);
    sleep(30 * SECOND).await;
    assert!(
        ids(&bench.listed().await).contains(&created),
        "it could be a boot in progress"
    );
    let mut swept = sweep.swept();
    swept.wait_for(|swept| swept.destroyed.len() == 2).await.unwrap();
    assert_eq!(swept.borrow().destroyed[&Ground::NeverStarted], 1);
    assert_eq!(swept.borrow().destroyed[&Ground::EndedUnbound], 1);
    let left = ids(&bench.listed().await);
    assert!(left.contains(&bound) && !left.contains(&warm) && !left.contains(&created));
    // An hour idle, it ends; its news stands for a day, and then goes too.
    sleep(2 * 3600 * SECOND).await;
    assert!(ids(&bench.listed().await).contains(&bound));
    swept
        .wait_for(|swept| swept.destroyed.contains_key(&Ground::Tombstone))
        .await
        .unwrap();
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_create_that_comes_true_when_nobody_waits_for_it_is_swept() {
    let engine = engine();
    let spec = pool_spec(1, 8);
    engine.script(Op::Create, [Fault::HappensLate(300 * SECOND)]);
    let bench = Bench::start(&engine, spec.clone());
    let sweep = sweep(&engine);
    let mut swept = sweep.swept();
    swept
        .wait_for(|swept| swept.destroyed.contains_key(&Ground::NeverStarted))
        .await
        .unwrap();
    bench.settled().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_whose_agent_does_not_end_it_is_ended_from_outside() {
    let engine = engine();
    let spec = PoolSpec {
        lifetime: 1200 * SECOND,
        warm_age: 600 * SECOND,
        ..pool_spec(1, 8)
    };
    let bench = Bench::start(&engine, spec.clone());
    let sweep = sweep(&engine);
    // Adopted and never leased, with its channel held open: no agent would ever end it.
    let guest = bench.adopted("conversation").await;
    let lifetime = spec.warm_age + spec.lifetime;
    sleep(lifetime).await;
    assert!(ids(&bench.listed().await).contains(guest.id()));
    let mut swept = sweep.swept();
    swept
        .wait_for(|swept| swept.destroyed.contains_key(&Ground::Overdue))
        .await
        .unwrap();
    assert!(!ids(&bench.listed().await).contains(guest.id()));
    bench.end().await;
}

/// It is asked whose it is, and that must not keep it alive.
#[tokio::test(start_paused = true)]
async fn a_renamed_sandbox_that_is_nobodys_ends_itself() {
    let engine = engine();
    let spec = greenroom::sandbox::SandboxSpec {
        image: "image+agent".into(),
        ..support::spec()
    };
    let id = SandboxId::mint().unwrap();
    engine.create(&id, &spec).await.unwrap();
    engine.start(&id).await.unwrap();
    engine.displace(&id);
    let sweep = sweep(&engine);
    engine.assert_nothing_left().await;
    assert_eq!(engine.calls(Op::Open), 1, "it was asked once");
    let swept = sweep.swept().borrow().clone();
    assert_eq!((swept.put_back, swept.last_error), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_does_what_it_can() {
    let engine = engine();
    engine.script(Op::Sweep, [Fault::Refused, Fault::Refused]);
    let sweep = sweep(&engine);
    let mut swept = sweep.swept();
    swept.wait_for(|swept| swept.last_error.is_some()).await.unwrap();
    swept.wait_for(|swept| swept.last_error.is_none()).await.unwrap();
    engine.assert_nothing_left().await;
}
