//! Sessions under fire: servers that race and servers that die, engines and sandboxes that do.

mod support;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::{join, join_all};
use greenroom::{
    engine::{Engine, Place},
    guest::{Guest, GuestError},
    pool::Sweep,
    sessions::{OpenError, Provenance, Reset},
};
use greenroom_agent::kernel::Kernel;
use greenroom_protocol::{EndReason, Ended, Language, LeaseRequest, LeaseState, RestartReason, Standing};
use support::{
    fake_engine::{FakeEngine, Fault, Op},
    hostile::Hostile,
    kernel::{Scripted, Start},
    mortal::When,
    server::{IDLE, Server, UNBOUND, end, key, minted, name, names, restarted, run, terms},
};
use tokio::time::{Instant, sleep, timeout};

/// The heart of the matter: whatever a server had done when it died, the next one tells of the loss.
#[tokio::test(start_paused = true)]
async fn news_of_a_loss_survives_a_server_that_dies_between_any_two_steps() {
    use Op::{Adopt, Create, Destroy, Find, SetAside, Start};
    use When::{After, Before};
    let news = restarted(RestartReason::Idle);
    for (op, when) in [
        (Find, Before),
        (Find, After),
        (SetAside, Before),
        (SetAside, After),
        (Adopt, Before),
        (Adopt, After),
        (Destroy, Before),
        (Destroy, After),
        (Create, Before),
        (Start, After),
    ] {
        let engine = FakeEngine::new();
        let one = Server::start(&engine, "one");
        let (lost, _) = one.call("tea").await;
        one.stop().await;
        sleep(IDLE + UNBOUND).await;

        let doomed = Server::start(&engine, "doomed");
        if !matches!(op, Create | Start) {
            doomed
                .pool
                .census()
                .wait_for(|census| census.counts.warm == 1)
                .await
                .unwrap();
        }
        doomed.engine.dies(op, when);
        let told = timeout(Duration::from_secs(5), doomed.call("tea")).await.is_ok();
        assert!(doomed.engine.is_dead() && !told, "{op:?} {when:?}");

        // A destroy is the last step: by then the caller had been told, and the sandbox knows.
        let expected = if op == Destroy {
            Standing::Existing
        } else {
            news.clone()
        };
        for wait in [Duration::ZERO, UNBOUND] {
            sleep(wait).await;
            let next = Server::start(&engine, "next");
            let session = next.open("tea").await;
            assert_eq!(session.standing, expected, "{op:?} {when:?} after {wait:?}");
            assert_ne!(*session.guest.id(), lost);
            next.engine.kill();
        }
        let last = Server::start(&engine, "last");
        let (_, standing) = last.call("tea").await;
        assert_eq!(standing, expected, "{op:?} {when:?}");
        assert_eq!(last.call("tea").await.1, Standing::Existing);
        end(&engine, last, &["tea"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_ended_as_nobodys_is_no_loss() {
    let engine = FakeEngine::new();
    let doomed = Server::start(&engine, "doomed");
    doomed
        .pool
        .census()
        .wait_for(|census| census.counts.warm == 1)
        .await
        .unwrap();
    // It dies between the name and the lease of a new conversation.
    doomed.engine.dies(Op::Adopt, When::After);
    drop(timeout(Duration::from_secs(5), doomed.open("tea")).await);
    sleep(UNBOUND).await;
    let next = Server::start(&engine, "next");
    assert_eq!(next.call("tea").await.1, Standing::New);
    assert_eq!(names(&engine, "tea").len(), 1);
    end(&engine, next, &["tea"]).await;
}

/// Found by `session_model.rs`: what was seen before a claim is out of date after it.
#[tokio::test(start_paused = true)]
async fn a_loss_during_a_long_claim_is_told_by_whoever_gets_the_name() {
    let engine = FakeEngine::new();
    let one = Server::start(&engine, "one");
    let slowly = engine.clone().kernels(|_| {
        let kernel = Scripted::new(Language::Python).starts([Start::Takes(10_000)]);
        vec![Box::new(kernel) as Box<dyn Kernel>]
    });
    let two = Server::with(&slowly, "two", |spec| spec.warm = 0);
    let waits = two.open("tea");
    let meanwhile = async {
        sleep(Duration::from_secs(1)).await;
        let (id, standing) = one.call("tea").await;
        assert_eq!(standing, Standing::New);
        engine.kill(&id, 137, false);
        one.misses("tea").await;
        one.engine.dies(Op::SetAside, When::After);
        drop(timeout(Duration::from_secs(5), one.open("tea")).await);
    };
    let (session, ()) = join(waits, meanwhile).await;
    assert_eq!(session.standing, restarted(RestartReason::EndedInside));
    session.told(&session.standing).await.unwrap();
    assert_eq!(names(&engine, "tea").len(), 1);
    end(&engine, two, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn two_servers_race_for_one_conversation() {
    for lost in [None, Some(RestartReason::EndedInside)] {
        let engine = FakeEngine::new();
        let servers = ["one", "two"].map(|name| Server::start(&engine, name));
        let mut standing = Standing::New;
        if let Some(reason) = lost {
            let (id, _) = servers[0].call("tea").await;
            engine.kill(&id, 137, false);
            servers[0].misses("tea").await;
            standing = restarted(reason);
        }
        for server in &servers {
            let mut census = server.pool.census();
            census.wait_for(|census| census.counts.warm == 1).await.unwrap();
        }
        let sessions = join_all(servers.iter().map(|server| server.open("tea"))).await;
        for session in &sessions {
            assert_eq!(session.standing, standing);
            assert_eq!(
                session.guest.id(),
                sessions[0].guest.id(),
                "one sandbox serves both"
            );
            run(session, &format!("r-{:p}", session), "print a")
                .await
                .unwrap();
        }
        // The loser's warm one is warm again.
        let adopted: u64 = servers
            .iter()
            .map(|server| server.pool.census().borrow().counts.adopted)
            .sum();
        assert_eq!(adopted, if lost.is_some() { 2 } else { 1 });
        for session in &sessions {
            session.told(&session.standing).await.unwrap();
        }
        assert_eq!(names(&engine, "tea").len(), 1);
        let [one, two] = servers;
        assert_eq!(one.open("tea").await.standing, Standing::Existing);
        one.stop().await;
        end(&engine, two, &["tea"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn callers_of_one_server_share_an_opening() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let callers = (0..16).map(|n| {
        let server = &server;
        async move {
            if n % 3 == 0 {
                // Given up in the middle, each a little later than the one before.
                let patience = Duration::from_micros(500 * n);
                timeout(patience, server.open("tea")).await.ok()
            } else {
                Some(server.open("tea").await)
            }
        }
    });
    let served: Vec<_> = join_all(callers).await.into_iter().flatten().collect();
    assert!(served.len() >= 10);
    assert!(served.iter().all(|s| s.guest.id() == served[0].guest.id()));
    // One look before the claim, one after it.
    assert_eq!((engine.calls(Op::Find), engine.calls(Op::Adopt)), (2, 1));
    end(&engine, server, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_everybody_left_is_found_by_the_next_caller() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    for n in 0..12 {
        let patience = Duration::from_micros(700 * n);
        drop(timeout(patience, server.open("tea")).await);
    }
    let session = server.open("tea").await;
    assert_eq!(session.standing, Standing::New, "nobody was told");
    assert_eq!(engine.calls(Op::Adopt), 1);
    end(&engine, server, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_end_races_a_call() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let mut reached = [0, 0];
    for n in 0..40 {
        // A call from just before the end to just after everything is over.
        let early = Duration::from_millis(30).saturating_sub(Duration::from_millis(2 * n));
        let late = Duration::from_millis(2 * n).saturating_sub(Duration::from_millis(30));
        let conversation = format!("tea-{n}");
        server.call(&conversation).await;
        sleep(IDLE - early + late).await;
        let session = server.open(&conversation).await;
        let standing = match run(&session, "r", "print a").await {
            Ok(standing) => standing,
            Err(error) => {
                // The sandbox of a session from memory may be over: opened again, it says so.
                assert!(error.is_gone(), "{error:?}");
                let again = server.open(&conversation).await;
                run(&again, "r", "print a").await.unwrap()
            }
        };
        match standing {
            Standing::Existing => reached[0] += 1,
            other @ (Standing::New | Standing::Restarted { .. }) => {
                assert_eq!(other, restarted(RestartReason::Idle));
                reached[1] += 1;
            }
        }
        assert_eq!(
            server.sessions.reset(&key(&conversation)).await.unwrap(),
            Reset::Ended
        );
    }
    assert!(
        reached.iter().all(|n| *n > 5),
        "both outcomes were met: {reached:?}"
    );
    end(&engine, server, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn another_sessions_sandbox_is_never_shared() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let (id, _) = server.call("tea").await;
    // Somebody renames it behind our back.
    engine.adopt(&id, &name("cake")).await.unwrap();
    let other = Server::start(&engine, "two");
    for outcome in [
        other.try_open("cake", terms()).await.map(drop),
        other.sessions.look(&key("cake")).await.map(drop),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, OpenError::NotOurs), "{error:?}");
    }
    engine.destroy(&id).await.unwrap();
    other.stop().await;
    end(&engine, server, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_hangs_is_given_up_where_another_answers() {
    let engine = FakeEngine::new();
    let one = Server::start(&engine, "one");
    let (hung, _) = one.call("tea").await;
    let two = Server::start(&engine, "two");
    two.engine.impostor(&hung, Hostile::silent());
    let since = Instant::now();
    assert_eq!(two.call("tea").await.1, restarted(RestartReason::Unresponsive));
    assert!(since.elapsed() >= Duration::from_secs(30), "three hellos");
    assert!(!engine.names().iter().any(|name| name.contains(hung.as_str())));
    one.stop().await;
    end(&engine, two, &["tea"]).await;
}

/// The record of a loss is made before anything else can go wrong.
#[tokio::test(start_paused = true)]
async fn a_sandbox_that_was_given_up_is_missed_by_the_next_server_too() {
    let engine = FakeEngine::new();
    let one = Server::start(&engine, "one");
    let (hung, _) = one.call("tea").await;
    let two = Server::start(&engine, "two");
    two.engine.impostor(&hung, Hostile::silent());
    two.engine.dies(Op::End, When::After);
    drop(timeout(Duration::from_secs(60), two.open("tea")).await);
    let three = Server::start(&engine, "three");
    assert_eq!(three.call("tea").await.1, restarted(RestartReason::EndedInside));
    one.stop().await;
    end(&engine, three, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_restarts_costs_no_session() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let (id, _) = server.call("tea").await;
    engine.reachable(false);
    engine.break_channels();
    let back = {
        let engine = engine.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(5)).await;
            engine.reachable(true);
        })
    };
    assert_eq!(server.call("tea").await, (id, Standing::Existing));
    back.await.unwrap();
    // One that stays away is named.
    engine.reachable(false);
    engine.break_channels();
    sleep(Duration::from_millis(10)).await;
    let error = server.try_open("tea", terms()).await.unwrap_err();
    assert!(matches!(error, OpenError::Engine(_)), "{error:?}");
    engine.reachable(true);
    assert_eq!(server.call("tea").await.1, Standing::Existing);
    end(&engine, server, &["tea"]).await;
}

/// Under another name it would be missed by a server that has never seen it: a fresh one would take its place, `new`.
#[tokio::test(start_paused = true)]
async fn a_sandbox_that_somebody_renamed_is_found_by_what_it_knows() {
    let engine = FakeEngine::new();
    let one = Server::start(&engine, "one");
    let ((tea, _), (cake, _)) = join(one.call("tea"), one.call("cake")).await;
    one.stop().await;
    for id in [&tea, &cake] {
        engine.displace(id);
    }
    let two = Server::start(&engine, "two");
    let (found, standing) = two.call("tea").await;
    assert_eq!((&found, standing), (&tea, Standing::Existing));
    let (fresh, standing) = two.call("pie").await;
    assert!(fresh != tea && fresh != cake, "nobody else is given it");
    assert_eq!(standing, Standing::New);
    let (found, standing) = two.call("cake").await;
    assert_eq!((found, standing), (cake, Standing::Existing));
    for conversation in ["tea", "cake", "pie"] {
        assert_eq!(names(&engine, conversation).len(), 1, "{conversation}");
    }
    // Whoever looks, and whoever resets, finds it as well.
    engine.displace(&tea);
    let three = Server::start(&engine, "three");
    assert!(three.sessions.look(&key("tea")).await.unwrap().is_some());
    engine.displace(&tea);
    assert_eq!(three.sessions.reset(&key("tea")).await.unwrap(), Reset::Ended);
    assert_eq!(three.call("tea").await.1, restarted(RestartReason::Reset));
    three.stop().await;
    end(&engine, two, &["tea", "cake", "pie"]).await;
}

/// Once it has ended under a foreign name, nothing says any more whose it was.
#[tokio::test(start_paused = true)]
async fn a_renamed_sandbox_gets_its_name_back_while_it_can_say_which() {
    let engine = FakeEngine::new();
    let one = Server::start(&engine, "one");
    let ((tea, _), (cake, _)) = join(one.call("tea"), one.call("cake")).await;
    one.stop().await;
    engine.displace(&tea);
    engine.displace(&cake);
    engine.pause(&cake);
    let sweep = Sweep::start(Arc::new(engine.clone()), SystemTime::now);
    let mut swept = sweep.swept();
    swept.wait_for(|swept| swept.passes == 2).await.unwrap();
    assert_eq!(swept.borrow().put_back, 1);
    assert_eq!(
        [names(&engine, "tea").len(), names(&engine, "cake").len()],
        [1, 0],
        "what is frozen cannot say it"
    );
    engine.displace(&tea);
    swept.wait_for(|swept| swept.put_back == 2).await.unwrap();
    engine.kill(&tea, 137, false);
    let two = Server::start(&engine, "two");
    assert_eq!(two.call("tea").await.1, restarted(RestartReason::EndedInside));
    engine.remove(&cake);
    end(&engine, two, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_adoption_that_nobody_hears_of_is_found() {
    for fault in [
        Fault::HappensUnheard,
        Fault::Hangs,
        Fault::HappensLate(Duration::from_secs(3)),
    ] {
        let engine = FakeEngine::new();
        let server = Server::start(&engine, "one");
        engine.script(Op::Adopt, [fault]);
        assert_eq!(server.call("tea").await.1, Standing::New, "{fault:?}");
        assert_eq!(names(&engine, "tea").len(), 1);
        end(&engine, server, &["tea"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_dies_on_its_way_to_a_session_is_replaced() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    // Dead, and its channel's end not heard of yet.
    let mut census = server.pool.census();
    census.wait_for(|census| census.counts.warm == 1).await.unwrap();
    let warm = engine.list().await.unwrap()[0].id.clone();
    engine.remove(&warm);
    let session = server.open("tea").await;
    assert_eq!(session.standing, Standing::New);
    assert_ne!(*session.guest.id(), warm);
    end(&engine, server, &["tea"]).await;
}

/// A lease taken over a second channel, as a rival server would.
#[tokio::test(start_paused = true)]
async fn whoever_leases_a_named_sandbox_first_its_news_is_one() {
    let engine = FakeEngine::new();
    let doomed = Server::start(&engine, "doomed");
    doomed
        .pool
        .census()
        .wait_for(|census| census.counts.warm == 1)
        .await
        .unwrap();
    doomed.engine.dies(Op::Adopt, When::After);
    drop(timeout(Duration::from_secs(5), doomed.open("tea")).await);
    let Place::Running(id) = engine.find(&name("tea")).await.unwrap().place else {
        panic!("not adopted");
    };
    let rival = Guest::connect(Arc::new(engine.clone()), id.clone())
        .await
        .unwrap();
    let lease = LeaseRequest {
        key: name("tea").digest(),
        idle_ms: 60_000,
        lifetime_ms: 3_600_000,
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    };
    assert_eq!(rival.lease(&lease).await.unwrap().standing, Standing::New);
    let server = Server::start(&engine, "one");
    // Its id is a minted one, but the sandbox is bound: nothing of it was lost.
    let session = server.try_open("tea", minted(Provenance::Minted)).await.unwrap();
    assert_eq!((session.guest.id(), session.standing), (&id, Standing::New));
    end(&engine, server, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_sandbox_is_named_and_can_be_reset() {
    let engine = FakeEngine::new();
    let old = Server::start(&engine, "old");
    let (id, _) = old.call("tea").await;
    let upgraded = Server::start(&engine, "upgraded");
    let hello = r#"{"generation":0,"version":"0.0.1"}"#;
    upgraded.engine.impostor(&id, Hostile::saying(hello));
    let error = upgraded.try_open("tea", terms()).await.unwrap_err();
    assert!(
        matches!(error, OpenError::Guest(GuestError::Generation { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains("0.0.1"), "{error}");
    assert_eq!(upgraded.sessions.reset(&key("tea")).await.unwrap(), Reset::Ended);
    assert_eq!(upgraded.call("tea").await.1, restarted(RestartReason::Reset));
    old.stop().await;
    end(&engine, upgraded, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_says_it_ends_and_does_not_is_ended() {
    let engine = FakeEngine::new();
    let one = Server::start(&engine, "one");
    let session = one.open("tea").await;
    let id = session.guest.id().clone();
    let mut hello = session.guest.hello().await.unwrap();
    let reason = EndReason::Idle;
    hello.lease = LeaseState::Ending(Ended { reason });
    let hello = serde_json::to_vec(&hello).unwrap();
    let two = Server::start(&engine, "two");
    two.engine.impostor(&id, Hostile::saying(hello));
    let since = Instant::now();
    assert_eq!(two.call("tea").await.1, restarted(RestartReason::Idle));
    assert!(since.elapsed() < Duration::from_secs(6));
    assert_eq!(names(&engine, "tea").len(), 1);
    one.stop().await;
    end(&engine, two, &["tea"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_on_its_way_out_is_waited_for_but_not_for_ever() {
    let engine = FakeEngine::new();
    let server = Server::start(&engine, "one");
    let (id, _) = server.call("tea").await;
    engine.kill(&id, 81, false);
    server.misses("tea").await;
    server.engine.shows_ending(Duration::from_secs(20));
    let error = server.try_open("tea", terms()).await.unwrap_err();
    assert!(
        matches!(error, OpenError::StillEnding { seconds: 5 }),
        "{error:?}"
    );
    server.engine.shows_ending(Duration::from_secs(3));
    assert_eq!(server.call("tea").await.1, restarted(RestartReason::Idle));
    end(&engine, server, &["tea"]).await;
}
