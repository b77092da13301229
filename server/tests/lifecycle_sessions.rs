//! The life of sessions: new, existing, restarted and why.

mod support;

use std::time::Duration;

use futures_util::future::{join, join_all};
use greenroom::{
    conversation::{PoolName, SessionKey},
    engine::{Engine, Place},
    pool::ClaimError,
    sessions::{OpenError, Provenance, Reset, Session, Terms},
};
use greenroom_protocol::{EndReason, Language, RestartReason, RunId, RunRequest, Standing};
use support::{
    fake_engine::{FakeEngine, Op},
    hostile::Hostile,
    mortal::When,
    server::{IDLE, Server, end, key, minted, name, names, restarted, run, terms},
};
use tokio::time::{sleep, timeout};

#[tokio::test(start_paused = true)]
async fn a_conversation_is_new_once_and_exists_from_then_on() {
    let engine = FakeEngine::new();
    let (one, two) = (Server::start(&engine, "one"), Server::start(&engine, "two"));
    let first = one.open("tea").await;
    assert_eq!(first.standing, Standing::New);
    // Until somebody was told, or has used it, it stays new, on every server.
    assert_eq!(one.open("tea").await.standing, Standing::New);
    let elsewhere = two.open("tea").await;
    assert_eq!(elsewhere.standing, Standing::New);
    assert_eq!(elsewhere.guest.id(), first.guest.id());
    assert_eq!(run(&first, "r1", "print a").await.unwrap(), Standing::New);
    assert_eq!(
        two.open("tea").await.standing,
        Standing::Existing,
        "the run left something"
    );
    elsewhere.told(&elsewhere.standing).await.unwrap();
    assert_eq!(one.open("tea").await.standing, Standing::Existing);
    // A hot call asks nobody.
    let calls = engine.calls(Op::Find) + engine.calls(Op::Open);
    for _ in 0..10 {
        assert_eq!(one.open("tea").await.standing, Standing::Existing);
    }
    assert_eq!(engine.calls(Op::Find) + engine.calls(Op::Open), calls);
    // Another conversation has another sandbox.
    assert_ne!(one.open("cake").await.guest.id(), first.guest.id());
    two.stop().await;
    end(&engine, one, &["tea", "cake"]).await;
}

/// A caller that has read its answer may call again before the server has seen that answer leave.
#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_answer_before_it_to_be_told() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let first = server.open("tea").await;
    let telling = first.clone().telling(Standing::New, None);
    let told = async {
        sleep(Duration::from_millis(100)).await;
        telling.told().await.unwrap();
    };
    let (next, ()) = join(server.open("tea"), told).await;
    assert_eq!(next.standing, Standing::Existing);
    // An answer that never arrives holds nobody up, and its news is told again.
    let other = server.open("cake").await;
    drop(other.clone().telling(Standing::New, None));
    assert_eq!(server.open("cake").await.standing, Standing::New);
    // Nor does one that takes its time.
    let slow = other.telling(Standing::New, None);
    assert_eq!(server.open("cake").await.standing, Standing::New);
    drop(slow);
    end(&engine, server, &["tea", "cake"]).await;
}

#[tokio::test(start_paused = true)]
async fn every_loss_has_its_reason() {
    use RestartReason::{
        EndedInside, Evicted, Exited, Idle, Lifetime, NoLongerOnRecord, OutOfMemory, Removed, Reset,
        Unhealthy, Unresponsive,
    };
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let kill = |session: &Session, code, oom| engine.kill(session.guest.id(), code, oom);
    for reason in [
        Idle,
        Lifetime,
        Reset,
        Evicted,
        OutOfMemory,
        EndedInside,
        Exited,
        Unhealthy,
    ] {
        let session = server.open("tea").await;
        session.told(&session.standing).await.unwrap();
        match reason {
            Idle => sleep(IDLE + Duration::from_secs(1)).await,
            OutOfMemory => kill(&session, 137, true),
            EndedInside => kill(&session, 137, false),
            Exited => kill(&session, 86, false),
            Unhealthy => kill(&session, 87, false),
            Lifetime => {
                let mut n = 0;
                while run(&session, &format!("life-{n}"), "wait 1000").await.is_ok() {
                    n += 1;
                    sleep(IDLE / 2).await;
                }
            }
            Reset => session.guest.end(EndReason::Reset).await.unwrap(),
            Evicted => session.guest.end(EndReason::Evicted).await.unwrap(),
            Removed | Unresponsive | NoLongerOnRecord => unreachable!(),
        }
        server.misses("tea").await;
        let next = server.open("tea").await;
        assert_eq!(next.standing, restarted(reason));
        assert_ne!(next.guest.id(), session.guest.id());
        // The notice is in the runs' answers too, and goes once it was told; so does the tombstone.
        assert_eq!(run(&next, "r1", "print a").await.unwrap(), restarted(reason));
        assert_eq!(names(&engine, "tea").len(), 2);
        next.told(&next.standing).await.unwrap();
        assert_eq!(names(&engine, "tea").len(), 1);
        assert_eq!(run(&next, "r2", "print a").await.unwrap(), Standing::Existing);
    }
    end(&engine, server, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_was_removed_is_missed_by_who_knew_it() {
    let engine = FakeEngine::new();
    let (one, two) = (Server::start(&engine, "one"), Server::start(&engine, "two"));
    let (id, _) = one.call("tea").await;
    engine.remove(&id);
    one.misses("tea").await;
    assert_eq!(one.call("tea").await.1, restarted(RestartReason::Removed));
    // A server that never saw it cannot know, unless the id itself says that a session existed.
    let (id, _) = one.call("tea").await;
    engine.remove(&id);
    assert_eq!(two.call("tea").await.1, Standing::New);
    let gone = two
        .try_open("gr-minted", minted(Provenance::Minted))
        .await
        .unwrap();
    assert_eq!(gone.standing, restarted(RestartReason::NoLongerOnRecord));
    let finds = engine.calls(Op::Find);
    let fresh = two
        .try_open("gr-fresh", minted(Provenance::JustMinted))
        .await
        .unwrap();
    assert_eq!(fresh.standing, Standing::New);
    assert_eq!(engine.calls(Op::Find), finds, "there is nothing to look for");
    // Told or not: the second call reaches a session that is no loss to anybody.
    let again = two
        .try_open("gr-fresh", minted(Provenance::Minted))
        .await
        .unwrap();
    assert_eq!(again.standing, Standing::New);
    again.told(&again.standing).await.unwrap();
    let again = one
        .try_open("gr-fresh", minted(Provenance::Minted))
        .await
        .unwrap();
    assert_eq!(again.standing, Standing::Existing);
    one.stop().await;
    end(&engine, two, &["tea", "gr-minted", "gr-fresh"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_says_so_and_forgets_no_loss() {
    let engine = FakeEngine::new();
    let server = Server::with(&engine, "one", |spec| {
        spec.warm = 0;
        spec.max = 1;
    });
    let (id, _) = server.call("tea").await;
    let error = server.try_open("cake", terms()).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Claim(ClaimError::Capacity { .. })),
        "{error:?}"
    );
    engine.remove(&id);
    server.misses("tea").await;
    server.call("cake").await;
    let error = server.try_open("tea", terms()).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Claim(ClaimError::Capacity { .. })),
        "{error:?}"
    );
    server.sessions.reset(&key("cake")).await.unwrap();
    assert_eq!(server.call("tea").await.1, restarted(RestartReason::Removed));
    end(&engine, server, &["tea"]).await;
}

/// A pool of two places, whose sessions may stay for hours.
fn two_places(engine: &FakeEngine, evict_after: Option<Duration>) -> Server {
    Server::with(engine, "one", |spec| {
        spec.warm = 0;
        spec.max = 2;
        spec.evict_after = evict_after;
    })
}

#[tokio::test(start_paused = true)]
async fn the_session_that_was_idle_longest_makes_room() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let patient = Terms {
        idle: minutes(120),
        ..terms()
    };
    let engine = FakeEngine::new();
    let server = two_places(&engine, Some(minutes(10)));
    let call = async |conversation| {
        let session = server.try_open(conversation, patient).await?;
        session.told(&session.standing).await?;
        Ok::<_, OpenError>(session)
    };
    call("tea").await.unwrap();
    sleep(minutes(5)).await;
    call("cake").await.unwrap();
    sleep(minutes(4)).await;
    // Nobody has been idle for long enough.
    let full = call("toast").await.unwrap_err();
    assert!(
        matches!(full, OpenError::Claim(ClaimError::Capacity { .. })),
        "{full:?}"
    );
    sleep(minutes(2)).await;
    assert_eq!(call("toast").await.unwrap().standing, Standing::New);
    assert_eq!(call("cake").await.unwrap().standing, Standing::Existing);
    // Who made room hears of it, in a place that another makes.
    sleep(minutes(11)).await;
    let back = call("tea").await.unwrap();
    assert_eq!(back.standing, restarted(RestartReason::Evicted));
    // What is at work is not idle, however long ago it was called.
    let mut running = back
        .guest
        .run(&RunRequest {
            id: RunId("long".to_owned()),
            language: Language::Python,
            code: "hold".to_owned(),
            timeout_ms: 3_600_000,
        })
        .unwrap();
    running.next().await.unwrap();
    sleep(minutes(12)).await;
    call("scone").await.unwrap();
    assert_eq!(call("tea").await.unwrap().standing, Standing::Existing);
    let full = call("jam").await.unwrap_err();
    assert!(
        matches!(full, OpenError::Claim(ClaimError::Capacity { .. })),
        "{full:?}"
    );
    end(&engine, server, &["tea", "cake", "toast", "scone"]).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_makes_room_where_that_is_off() {
    let engine = FakeEngine::new();
    let server = two_places(&engine, None);
    for conversation in ["tea", "cake"] {
        server.call(conversation).await;
    }
    sleep(IDLE - Duration::from_secs(60)).await;
    let full = server.try_open("toast", terms()).await.unwrap_err();
    assert!(
        matches!(full, OpenError::Claim(ClaimError::Capacity { .. })),
        "{full:?}"
    );
    assert_eq!(server.call("tea").await.1, Standing::Existing);
    end(&engine, server, &["tea", "cake"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_creates_nothing_and_uses_up_no_news() {
    let engine = FakeEngine::new();
    let (one, two) = (Server::start(&engine, "one"), Server::start(&engine, "two"));
    assert!(one.sessions.look(&key("tea")).await.unwrap().is_none());
    assert!(names(&engine, "tea").is_empty());
    let (id, _) = one.call("tea").await;
    engine.kill(&id, 137, false);
    one.misses("tea").await;
    assert!(one.sessions.look(&key("tea")).await.unwrap().is_none());
    let news = restarted(RestartReason::EndedInside);
    let session = one.open("tea").await;
    for server in [&one, &two] {
        let seen = server.sessions.look(&key("tea")).await.unwrap().unwrap();
        assert_eq!((seen.guest.id(), &seen.standing), (session.guest.id(), &news));
    }
    assert_eq!(two.call("tea").await.1, news);
    for server in [&one, &two] {
        let seen = server.sessions.look(&key("tea")).await.unwrap().unwrap();
        assert_eq!(seen.standing, Standing::Existing);
    }
    one.stop().await;
    end(&engine, two, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_ends_whatever_has_the_sessions_name() {
    let engine = FakeEngine::new();
    let (one, two) = (Server::start(&engine, "one"), Server::start(&engine, "two"));
    assert_eq!(one.sessions.reset(&key("tea")).await.unwrap(), Reset::Nothing);
    let session = one.open("tea").await;
    session.told(&session.standing).await.unwrap();
    // In the middle of a run, by another server.
    let running = {
        let session = session.clone();
        tokio::spawn(async move { run(&session, "r", "hold").await })
    };
    sleep(Duration::from_millis(50)).await;
    assert_eq!(two.sessions.reset(&key("tea")).await.unwrap(), Reset::Ended);
    let place = engine.find(&name("tea")).await.unwrap().place;
    assert!(
        matches!(place, Place::Exited(_)),
        "it returns when it is over: {place:?}"
    );
    drop(running.await.unwrap());
    assert_eq!(one.call("tea").await.1, restarted(RestartReason::Reset));
    // A sandbox that hangs, and one that is nobody's yet.
    let (hung, _) = one.call("tea").await;
    two.engine.impostor(&hung, Hostile::silent());
    let three = Server::start(&engine, "three");
    three.engine.impostor(&hung, Hostile::silent());
    assert_eq!(three.sessions.reset(&key("tea")).await.unwrap(), Reset::Ended);
    assert_eq!(three.call("tea").await.1, restarted(RestartReason::Reset));
    three.engine.dies(Op::Adopt, When::After);
    drop(timeout(Duration::from_secs(5), three.open("cake")).await);
    assert_eq!(two.sessions.reset(&key("cake")).await.unwrap(), Reset::Ended);
    assert!(names(&engine, "cake").is_empty());
    one.stop().await;
    end(&engine, two, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn the_second_call_may_lengthen_a_session() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let short = Terms {
        idle: Duration::from_secs(60),
        ..minted(Provenance::JustMinted)
    };
    let first = server.try_open("tea", short).await.unwrap();
    first.told(&first.standing).await.unwrap();
    let second = server.try_open("tea", minted(Provenance::Minted)).await.unwrap();
    assert_eq!(second.standing, Standing::Existing);
    sleep(IDLE - Duration::from_secs(5)).await;
    assert_eq!(server.call("tea").await.1, Standing::Existing);
    // Callers with different terms at the same moment are both served.
    let both = join_all([short, terms()].map(|terms| server.try_open("tea", terms))).await;
    assert!(both.iter().all(|session| session.is_ok()));
    end(&engine, server, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn unknown_pools_are_named() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let other = SessionKey {
        pool: PoolName::parse("node").unwrap(),
        ..key("tea")
    };
    let error = server.sessions.open(&other, terms()).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no pool node");
    end(&engine, server, &[]).await;
}
