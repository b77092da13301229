//! The guest client against real agents, over channels that break.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use greenroom::{
    conversation::{ConversationId, PoolName, Principal, Secret, SessionKey},
    engine::Engine,
    guest::{Depth, Guest, GuestError, Lost, RunFollow},
    sandbox::SandboxId,
};
use greenroom_protocol::{
    EndReason, GENERATION, KeyDigest, Language, LeaseRequest, LeaseState, RefusalKind, RunEventKind, RunId,
    RunRequest, RunStatus, Standing, Stream,
};
use support::fake_engine::{FakeEngine, Fault, Op};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};

const IDLE: Duration = Duration::from_secs(600);

/// A sandbox with its guest.
struct Case {
    engine: FakeEngine,
    id: SandboxId,
    guest: Guest,
}

impl Case {
    async fn new() -> Self {
        let engine = FakeEngine::new();
        let id = SandboxId::mint().unwrap();
        engine.create(&id, &support::spec()).await.unwrap();
        engine.start(&id).await.unwrap();
        let guest = Guest::connect(Arc::new(engine.clone()), id.clone())
            .await
            .unwrap();
        Self { engine, id, guest }
    }

    /// The same, bound to a session whose news was told.
    async fn bound() -> Self {
        let case = Self::new().await;
        let grant = case.guest.lease(&lease("a")).await.unwrap();
        assert_eq!(grant.standing, Standing::New);
        case.guest.told().await.unwrap();
        case
    }

    fn opened(&self) -> usize {
        self.engine.calls(Op::Open)
    }

    async fn end(self) {
        self.engine.destroy(&self.id).await.unwrap();
        self.guest.closed().await;
        assert!(!self.guest.is_open());
        self.engine.assert_nothing_left().await;
    }
}

fn key(conversation: &str) -> KeyDigest {
    let key = SessionKey {
        pool: PoolName::parse("python").unwrap(),
        principal: Principal::Local,
        conversation: ConversationId::parse(conversation).unwrap(),
    };
    Secret::new([7; 32]).session_name(&key).digest()
}

fn lease(conversation: &str) -> LeaseRequest {
    LeaseRequest {
        key: key(conversation),
        idle_ms: IDLE.as_millis() as u64,
        lifetime_ms: 24 * 3600 * 1000,
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    }
}

fn code(id: &str, code: &str) -> RunRequest {
    RunRequest {
        id: RunId(id.to_owned()),
        language: Language::Python,
        code: code.to_owned(),
        timeout_ms: 3600 * 1000,
    }
}

/// What a run shows from here to its end: `accepted`, `out TEXT`, `finished STATUS` and so on.
async fn shown(follow: &mut RunFollow) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(event) = follow.next().await.unwrap() {
        all.push(match event.kind {
            RunEventKind::Accepted { standing } => format!("accepted {standing:?}"),
            RunEventKind::Queued { behind, .. } => format!("behind {behind}"),
            RunEventKind::Started { .. } => "started".to_owned(),
            RunEventKind::Output { stream, text, .. } => match stream {
                Stream::Stdout => format!("out {text}"),
                Stream::Stderr => format!("err {text}"),
            },
            RunEventKind::Display { .. } => "display".to_owned(),
            RunEventKind::Finished(outcome) => format!("finished {:?}", outcome.status),
        });
    }
    all
}

#[tokio::test(start_paused = true)]
async fn a_run_tells_its_events_in_order() {
    let case = Case::bound().await;
    let hello = case.guest.wait_ready(Duration::from_secs(20)).await.unwrap();
    assert!(hello.ready && hello.generation == GENERATION);
    let mut follow = case.guest.run(&code("r1", "print a\nwait 50\nprint b")).unwrap();
    let expected = ["accepted Existing", "started", "out a", "out b", "finished Ok"];
    assert_eq!(shown(&mut follow).await, expected);
    assert!(follow.next().await.unwrap().is_none(), "it stays at its end");
    // A replay from the middle, a look that waits for nothing, and the list.
    let mut replay = case.guest.follow(&RunId("r1".into()), 2, Duration::ZERO).unwrap();
    assert_eq!(shown(&mut replay).await, expected[2..]);
    let runs = case.guest.runs().await.unwrap().runs;
    assert_eq!((runs.len(), runs[0].next), (1, expected.len() as u64));
    drop(follow);
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_on_over_channels_that_break() {
    let case = Case::bound().await;
    let lines: Vec<_> = (0..20).map(|n| format!("print {n}\nwait 1000")).collect();
    let mut follow = case.guest.run(&code("r1", &lines.join("\n"))).unwrap();
    let mut seen = Vec::new();
    let mut next = 0;
    while let Some(event) = follow.next().await.unwrap() {
        assert_eq!(event.seq, next, "in order and without gaps");
        next += 1;
        if let RunEventKind::Output { text, .. } = event.kind {
            seen.push(text);
            if seen.len() % 4 == 0 {
                case.engine.break_channels();
            }
        }
    }
    // One `print` for each line: the code ran once, however often it was asked for.
    let expected: Vec<_> = (0..20).map(|n| n.to_string()).collect();
    assert_eq!(seen, expected);
    assert_eq!(case.opened(), 1 + 20 / 4, "a channel for each that broke");
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_outlasts_an_engine_that_restarts() {
    let case = Case::bound().await;
    let mut follow = case
        .guest
        .run(&code("r1", "print a\nwait 30000\nprint b"))
        .unwrap();
    while !matches!(
        follow.next().await.unwrap().unwrap().kind,
        RunEventKind::Output { .. }
    ) {}
    case.engine.reachable(false);
    case.engine.break_channels();
    let back = {
        let engine = case.engine.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(8)).await;
            engine.reachable(true);
        })
    };
    assert_eq!(shown(&mut follow).await, ["out b", "finished Ok"]);
    back.await.unwrap();
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_is_lost_with_its_sandbox_and_an_engine_that_stays_away() {
    let case = Case::bound().await;
    let begun = |mut follow: RunFollow| async {
        while !matches!(
            follow.next().await.unwrap().unwrap().kind,
            RunEventKind::Started { .. }
        ) {}
        follow
    };
    let mut away = begun(case.guest.run(&code("r1", "hold")).unwrap()).await;
    case.engine.reachable(false);
    case.engine.break_channels();
    let since = Instant::now();
    let error = away.next().await.unwrap_err();
    assert!(matches!(error, GuestError::Lost(Lost::Engine(_))), "{error:?}");
    assert!(since.elapsed() < Duration::from_secs(40), "{:?}", since.elapsed());
    case.engine.reachable(true);

    let mut killed = case.guest.follow(&RunId("r1".into()), 0, IDLE).unwrap();
    assert!(killed.next().await.unwrap().is_some());
    case.engine.kill(&case.id, 137, false);
    let since = Instant::now();
    let error = loop {
        match killed.next().await {
            Ok(event) => assert!(event.is_some(), "it ended without a word"),
            Err(error) => break error,
        }
    };
    assert!(error.is_over(), "{error:?}");
    assert!(
        since.elapsed() < Duration::from_secs(1),
        "no attempt is made twice"
    );
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn following_can_be_given_up_between_any_two_events() {
    let case = Case::bound().await;
    let mut follow = case
        .guest
        .run(&code("r1", "print a\nwait 3000\nprint b"))
        .unwrap();
    let mut seen = Vec::new();
    // Each attempt is dropped after a short while, as a caller's patience or progress ticker would.
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        match timeout(Duration::from_millis(100), follow.next()).await {
            Ok(Ok(Some(event))) => seen.push(event.seq),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => case.engine.break_channels(),
        }
    }
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn callers_share_one_attempt_to_reopen_a_channel() {
    let case = Case::bound().await;
    case.engine.break_channels();
    case.guest.closed().await;
    assert!(!case.guest.is_open());
    // Some callers go away while the channel is being opened; the others are served all the same.
    let calls = (0..32).map(|n| {
        let guest = case.guest.clone();
        async move {
            if n % 2 == 0 {
                drop(timeout(Duration::from_micros(500), guest.hello()).await);
            } else {
                guest.hello().await.unwrap();
            }
        }
    });
    join_all(calls).await;
    assert_eq!(case.opened(), 2);
    assert!(case.guest.is_open());
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_failed_is_not_remembered() {
    let case = Case::bound().await;
    case.engine.break_channels();
    case.guest.closed().await;
    case.engine.script(Op::Open, [Fault::Refused]);
    // Nobody waits for the attempt any more when it fails.
    drop(timeout(Duration::from_micros(100), case.guest.hello()).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    case.guest.hello().await.unwrap();
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_tells_whose_a_sandbox_is_and_how_it_ended() {
    let case = Case::new().await;
    assert_eq!(case.guest.lease_state().await.unwrap(), LeaseState::Unbound);
    case.guest.lease(&lease("a")).await.unwrap();
    let error = case.guest.lease(&lease("b")).await.unwrap_err();
    assert!(
        matches!(&error, GuestError::Refused(refusal) if refusal.kind == RefusalKind::Conflict),
        "{error:?}"
    );
    let busy = case
        .guest
        .end_if_idle(EndReason::Evicted, Duration::from_secs(1))
        .await;
    assert!(matches!(busy, Err(GuestError::Refused(_))), "{busy:?}");
    // A long poll, longer than a call may take, ends with the lease.
    let watch = {
        let guest = case.guest.clone();
        tokio::spawn(async move { guest.watch_lease(IDLE).await })
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!watch.is_finished());
    case.guest.end(EndReason::Reset).await.unwrap();
    let ended = watch.await.unwrap().unwrap_err();
    assert!(matches!(ended, GuestError::Ended(EndReason::Reset)), "{ended:?}");
    assert!(!case.guest.is_open(), "nobody builds on it any more");
    case.guest.closed().await;
    let gone = case.guest.hello().await.unwrap_err();
    assert!(gone.is_over(), "{gone:?}");
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn runs_are_cancelled_and_refused_in_the_agents_words() {
    let case = Case::bound().await;
    let mut follow = case.guest.run(&code("r1", "hold")).unwrap();
    follow.next().await.unwrap();
    case.guest.cancel(&RunId("r1".into())).await.unwrap();
    assert_eq!(
        shown(&mut follow).await.last().unwrap(),
        &format!("finished {:?}", RunStatus::Cancelled)
    );
    for (outcome, kind) in [
        (
            case.guest.cancel(&RunId("r1".into())).await,
            RefusalKind::Conflict,
        ),
        (
            case.guest.cancel(&RunId("r9".into())).await,
            RefusalKind::NotFound,
        ),
        (
            case.guest.cancel(&RunId("../etc".into())).await,
            RefusalKind::BadRequest,
        ),
        (
            case.guest.run(&code("r2", &"#".repeat(2 << 20))).map(drop),
            RefusalKind::TooLarge,
        ),
    ] {
        let refused = outcome.unwrap_err();
        assert!(
            matches!(&refused, GuestError::Refused(refusal) if refusal.kind == kind),
            "{refused:?}"
        );
    }
    drop(follow);
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_must_get_through_does_so_beside_every_follower() {
    let case = Case::bound().await;
    let mut started = case.guest.run(&code("r1", "hold")).unwrap();
    started.next().await.unwrap();
    let mut follows = vec![started];
    let refused = loop {
        match case.guest.follow(&RunId("r1".into()), 0, IDLE) {
            Ok(mut follow) => {
                follow.next().await.unwrap();
                follows.push(follow);
            }
            Err(error) => break error,
        }
    };
    assert!(
        refused.to_string().contains(&follows.len().to_string()),
        "{refused}"
    );
    case.guest.cancel(&RunId("r1".into())).await.unwrap();
    for follow in &mut follows {
        assert_eq!(shown(follow).await.last().unwrap(), "finished Cancelled");
    }
    drop(follows);
    case.guest.follow(&RunId("r1".into()), 0, IDLE).unwrap();
    case.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_lives_exactly_as_long_as_its_guest() {
    let case = Case::bound().await;
    let other = case.guest.clone();
    assert_eq!(case.engine.channels(&case.id), 1);
    // Hours of pings.
    tokio::time::sleep(Duration::from_secs(500)).await;
    assert!(other.is_open());
    drop(case.guest);
    other.hello().await.unwrap();
    drop(other);
    let (engine, id) = (case.engine, case.id);
    // A bound sandbox stays when its last channel is gone.
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(engine.channels(&id), 0);
    engine.destroy(&id).await.unwrap();
    engine.assert_nothing_left().await;
}

#[tokio::test]
async fn tunnels_leave_streams_to_files() {
    let case = Case::bound().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut open = Vec::new();
    for _ in 0..48 {
        open.push(case.guest.tunnel(port).await.unwrap());
    }
    match case.guest.tunnel(port).await {
        Err(GuestError::Refused(refusal)) => {
            assert_eq!(refusal.kind, RefusalKind::QueueFull);
            assert!(refusal.message.contains("48"), "{refusal:?}");
        }
        other => panic!("{other:?}"),
    }
    case.guest.list_files("", Depth::One).await.unwrap();
    open.pop();
    open.push(case.guest.tunnel(port).await.unwrap());
    drop(open);
    case.end().await;
}
