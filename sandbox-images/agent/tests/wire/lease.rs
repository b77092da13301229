//! The lease over the wire: binding, news, clocks, ends, and the calls that race them.

use std::time::Duration;

use greenroom_protocol::{
    AgentConfig, EndReason, Ended, FilesFate, Hello, LeaseGrant, LeaseState, LeaseView, RestartReason,
    RunEventKind, Standing,
};
use tokio::time::{Instant, timeout};

use crate::support::{Bench, Client, lease, python, run};

fn standing(answer: &crate::support::Answer) -> Standing {
    answer.expect(200).json::<LeaseGrant>().standing
}

async fn view(client: &Client) -> LeaseView {
    match client.get("/lease").await.expect(200).json() {
        LeaseState::Bound(view) => view,
        other @ (LeaseState::Unbound | LeaseState::Ending(_)) => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn news_is_repeated_until_told() {
    let bench = python();
    let client = bench.connect().await;
    let other = bench.connect().await;
    for client in [&client, &other, &client] {
        assert_eq!(standing(&client.post("/lease", &lease('a')).await), Standing::New);
    }
    let events = client.start("r", "print x").await.all().await;
    assert_eq!(
        events[0].kind,
        RunEventKind::Accepted {
            standing: Standing::New
        }
    );
    assert!(matches!(&events[3].kind, RunEventKind::Finished(end) if end.standing == Standing::New));
    other.post("/lease/told", &()).await.expect(204);
    assert_eq!(
        standing(&client.post("/lease", &lease('a')).await),
        Standing::Existing
    );
    assert_eq!(client.run("r2", "print x").await.standing, Standing::Existing);
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_told_even_by_the_second_to_know() {
    let bench = python();
    let client = bench.connect().await;
    let mut request = lease('a');
    assert_eq!(standing(&client.post("/lease", &request).await), Standing::New);
    request.restarted = Some(RestartReason::Idle);
    let restarted = Standing::Restarted {
        reason: RestartReason::Idle,
        files: FilesFate::Gone,
    };
    assert_eq!(standing(&client.post("/lease", &request).await), restarted);
    // The first reason stays, whatever others say, and after it was told it is over.
    request.restarted = Some(RestartReason::Reset);
    assert_eq!(standing(&client.post("/lease", &request).await), restarted);
    client.post("/lease/told", &()).await.expect(204);
    assert_eq!(
        standing(&client.post("/lease", &request).await),
        Standing::Existing
    );
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_serves_one_session() {
    let bench = python();
    let client = bench.leased().await;
    client.post("/lease", &lease('b')).await.expect(409);
    assert_eq!(view(&client).await.key, lease('a').key);
}

#[tokio::test(start_paused = true)]
async fn nothing_runs_without_a_lease() {
    let bench = python();
    let client = bench.connect().await;
    client.post("/runs", &run("r", "print x")).await.expect(409);
    client.get("/runs").await.expect(409);
    client.get("/runs/r").await.expect(409);
    client.delete("/runs/r").await.expect(409);
    client.post("/lease/told", &()).await.expect(409);
    client.delete("/lease?reason=reset").await.expect(409);
    assert_eq!(
        client.get("/lease").await.json::<LeaseState>(),
        LeaseState::Unbound
    );
    client.get("/").await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn idle_means_no_run_and_looks_do_not_count() {
    let bench = python();
    let client = bench.connect().await;
    let mut request = lease('a');
    request.idle_ms = 10_000;
    client.post("/lease", &request).await.expect(200);
    let begin = Instant::now();
    // A run of 25 s keeps it; the clock starts when that is over.
    client.run("long", "wait 25000").await;
    for _ in 0..9 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.get("/runs").await.expect(200);
        client.get("/runs/long").await.expect(200);
        client.get("/").await.expect(200);
    }
    let seen = view(&client).await;
    assert_eq!(
        (seen.idle_ms, seen.ends_in_ms, seen.ends_by),
        (9000, 1000, EndReason::Idle)
    );
    assert_eq!(bench.agent.ended().await, EndReason::Idle);
    assert_eq!(begin.elapsed().as_secs(), 35);
}

#[tokio::test(start_paused = true)]
async fn the_holder_may_change_the_idle_time_and_not_the_lifetime() {
    let bench = python();
    let client = bench.connect().await;
    let mut request = lease('a');
    (request.idle_ms, request.lifetime_ms) = (5000, 60_000);
    client.post("/lease", &request).await.expect(200);
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs(4)).await;
    (request.idle_ms, request.lifetime_ms) = (3_600_000, 3_600_000);
    client.post("/lease", &request).await.expect(200);
    let seen = view(&client).await;
    assert_eq!((seen.ends_in_ms, seen.ends_by), (56_000, EndReason::Lifetime));
    assert_eq!(bench.agent.ended().await, EndReason::Lifetime);
    assert_eq!(begin.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn unbound_it_ends_when_no_channel_lives() {
    let bench = Bench::with(
        &AgentConfig {
            ready: vec![],
            ..AgentConfig::default()
        },
        vec![],
    );
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let client = bench.connect().await;
    assert!(
        timeout(Duration::from_secs(300), bench.agent.ended())
            .await
            .is_err(),
        "a live channel keeps it"
    );
    client.get("/").await.expect(200);
    drop(client);
    assert_eq!(bench.agent.ended().await, EndReason::Unbound);
    assert_eq!(begin.elapsed().as_secs(), 350);
}

#[tokio::test(start_paused = true)]
async fn bound_it_needs_no_channel() {
    let bench = python();
    drop(bench.leased().await);
    let ended = timeout(Duration::from_secs(7100), bench.agent.ended()).await;
    assert!(ended.is_err());
    assert_eq!(bench.agent.ended().await, EndReason::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_no_live_channel() {
    let bench = Bench::with(
        &AgentConfig {
            ready: vec![],
            ..AgentConfig::default()
        },
        vec![],
    );
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let agent = bench.agent.clone();
    let served = tokio::spawn(async move { agent.serve(far).await });
    // A client's first bytes, and then silence.
    tokio::io::AsyncWriteExt::write_all(&mut near, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    served.await.unwrap();
    assert_eq!(bench.agent.ended().await, EndReason::Unbound);
}

#[tokio::test(start_paused = true)]
async fn an_end_on_request_answers_first() {
    for (query, reason) in [
        ("reason=reset", EndReason::Reset),
        ("reason=evicted", EndReason::Evicted),
        ("reason=idle", EndReason::Idle),
        ("idle_ms=0&reason=lifetime", EndReason::Lifetime),
    ] {
        let bench = python();
        let client = bench.leased().await;
        client.delete(&format!("/lease?{query}")).await.expect(202);
        assert_eq!(bench.agent.ended().await, reason);
    }
    let bench = python();
    let client = bench.leased().await;
    for query in [
        "",
        "?reason=unbound",
        "?reason=failed",
        "?reason=x",
        "?reason=reset&idle_ms=-1",
    ] {
        client.delete(&format!("/lease{query}")).await.expect(400);
    }
}

#[tokio::test(start_paused = true)]
async fn an_eviction_spares_who_is_at_work() {
    let bench = python();
    let client = bench.leased().await;
    client.start("r", "wait 5000").await.outcome().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    client
        .delete("/lease?reason=evicted&idle_ms=3001")
        .await
        .expect(409);
    client.start("r2", "wait 50000").await.started().await;
    client.delete("/lease?reason=evicted&idle_ms=0").await.expect(409);
    client.follow("/runs/r2").await.outcome().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    client
        .delete("/lease?reason=evicted&idle_ms=3000")
        .await
        .expect(202);
    assert_eq!(bench.agent.ended().await, EndReason::Evicted);
}

#[tokio::test(start_paused = true)]
async fn long_polls_answer_at_changes_and_at_the_end() {
    let bench = python();
    let client = bench.connect().await;
    let begin = Instant::now();
    let other = bench.connect().await;
    let poll = async |client: &Client| client.get("/lease?wait=30").await;
    let (seen, ()) = tokio::join!(poll(&other), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        client.post("/lease", &lease('a')).await.expect(200);
    });
    assert!(matches!(seen.json(), LeaseState::Bound(_)));
    assert_eq!(begin.elapsed().as_secs(), 2);
    // Nothing happens: what stands is the answer. A run is no change.
    client.start("r", "wait 100").await.outcome().await;
    let asked = Instant::now();
    poll(&other).await.expect(200);
    assert_eq!(asked.elapsed().as_secs(), 30);
    let (seen, ()) = tokio::join!(poll(&other), async {
        client.delete("/lease?reason=reset").await.expect(202);
    });
    assert_eq!(seen.expect(410).json::<Ended>().reason, EndReason::Reset);
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_says_why_to_everything_but_hello() {
    let bench = python();
    let client = bench.leased().await;
    client.start("tough", "tough").await.started().await;
    client.delete("/lease?reason=evicted").await.expect(202);
    // While its kernel dies, everybody hears why.
    let late = bench.connect().await;
    for answer in [
        late.post("/lease", &lease('a')).await,
        late.post("/lease/told", &()).await,
        late.get("/lease").await,
        late.get("/lease?wait=9").await,
        late.delete("/lease?reason=reset").await,
        late.post("/runs", &run("r", "print x")).await,
        late.get("/runs").await,
        late.get("/runs/tough").await,
        late.delete("/runs/tough").await,
    ] {
        assert_eq!(answer.expect(410).json::<Ended>().reason, EndReason::Evicted);
    }
    let hello: Hello = late.get("/?wait=9").await.expect(200).json();
    assert_eq!(
        hello.lease,
        LeaseState::Ending(Ended {
            reason: EndReason::Evicted
        })
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_races_an_expiry_runs_or_hears_of_it() {
    // Around the moment of the expiry, a millisecond at a time.
    for at in 995..1005 {
        let bench = python();
        let client = bench.connect().await;
        let mut request = lease('a');
        request.idle_ms = 1000;
        client.post("/lease", &request).await.expect(200);
        tokio::time::sleep(Duration::from_millis(at)).await;
        let body = serde_json::to_vec(&run("r", "wait 5000")).unwrap().into();
        match client.try_request(http::Method::POST, "/runs", body).await {
            Ok(response) if response.status() == 200 => {
                assert!(at <= 1000, "{at}");
                assert_eq!(
                    client.follow("/runs/r").await.outcome().await.duration_ms.round(),
                    5000.0,
                    "accepted is held open: {at}"
                );
            }
            Ok(response) => {
                assert_eq!(response.status(), 410);
                assert!(at >= 1000, "{at}");
            }
            // The connection was closed in an orderly way before the request was taken: it never ran.
            Err(_) => assert!(at >= 1000, "{at}"),
        }
    }
}
