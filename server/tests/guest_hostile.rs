//! The guest client against an inside that is hostile, broken or silent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use greenroom::guest::{Depth, GuestError, Lost, Upload, WriteMode};
use greenroom_protocol::{
    GENERATION, Language, RefusalKind, RunEvent, RunEventKind, RunId, RunRequest, SIZE_HEADER, Standing,
    Stream, limits,
};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use support::hostile::{Hostile, streaming, whole};
use tokio::time::Instant;

fn run(id: &str) -> RunRequest {
    RunRequest {
        id: RunId(id.to_owned()),
        language: Language::Python,
        code: "1".to_owned(),
        timeout_ms: 1000,
    }
}

fn event(seq: u64, kind: RunEventKind) -> Bytes {
    let mut line = serde_json::to_vec(&RunEvent { seq, at_ms: 0, kind }).unwrap();
    line.push(b'\n');
    line.into()
}

fn output(seq: u64, text: &str) -> Bytes {
    let kind = RunEventKind::Output {
        stream: Stream::Stdout,
        text: text.to_owned(),
        late: false,
        omitted: 0,
    };
    event(seq, kind)
}

fn accepted() -> Bytes {
    let standing = Standing::Existing;
    event(0, RunEventKind::Accepted { standing })
}

#[track_caller]
fn is_protocol<T: std::fmt::Debug>(outcome: Result<T, GuestError>, part: &str) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, GuestError::Protocol(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(part), "{text:?} does not say {part:?}");
    assert!(text.len() < 600 && !text.contains(char::is_control), "{text:?}");
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_does_not_come_up_is_told_from_an_agent_that_is_silent() {
    let error = Hostile::saying("").relaying(None).try_guest().await.unwrap_err();
    assert!(
        matches!(error, GuestError::Lost(Lost::NoRelay { seconds: 20 })),
        "{error:?}"
    );
    // An exec that failed says so where the greeting is due, and an agent's first frames are no greeting.
    for (said, part) in [
        (
            "OCI runtime exec failed: \x1b[31mno such container",
            "OCI runtime exec",
        ),
        ("", "not as a relay does"),
    ] {
        let error = Hostile::saying("").relaying(Some(said)).try_guest().await;
        let error = error.unwrap_err();
        assert!(matches!(error, GuestError::Lost(Lost::Broke(_))), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(part) && !text.contains(char::is_control),
            "{text:?}"
        );
    }
    let since = Instant::now();
    let hangs = Hostile::silent();
    let guest = hangs.guest().await;
    assert!(since.elapsed() < Duration::from_secs(1));
    let error = guest.hello().await.unwrap_err();
    assert!(
        matches!(
            error,
            GuestError::Timeout {
                what: "hello",
                seconds: 10
            }
        ),
        "{error:?}"
    );
    assert!(!error.is_gone() && guest.is_open(), "its channel is fine");
}

#[tokio::test(start_paused = true)]
async fn a_stale_agent_is_named_with_both_versions() {
    let hello = format!(
        r#"{{"generation":{},"version":"0.0.9\u001b[2J","anything":[]}}"#,
        GENERATION + 1
    );
    let error = Hostile::saying(hello).guest().await.hello().await.unwrap_err();
    assert!(matches!(error, GuestError::Generation { .. }), "{error:?}");
    let text = error.to_string();
    for part in [
        "0.0.9\\u{1b}[2J",
        env!("CARGO_PKG_VERSION"),
        &format!("protocol {GENERATION}"),
        &format!("protocol {}", GENERATION + 1),
    ] {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_is_refused_bounded_and_escaped() {
    for body in [
        "",
        "null",
        "[1,2",
        "{\"generation\":\"\x1b[31m\"}",
        &"[".repeat(60_000),
    ] {
        let guest = Hostile::saying(body.to_owned()).guest().await;
        is_protocol(guest.hello().await, "");
        is_protocol(guest.runs().await, "");
        is_protocol(guest.list_files("", Depth::All).await, "");
        is_protocol(guest.lease_state().await, "");
    }
    let endless =
        Hostile::answering(|_| async { streaming(stream::repeat(Bytes::from_static(&[b' '; 16 << 10]))) });
    let guest = endless.guest().await;
    is_protocol(guest.hello().await, "more than 65536 bytes");
    is_protocol(guest.runs().await, "more than 8388608 bytes");
    // The connection is none the worse for it.
    is_protocol(guest.hello().await, "more than 65536 bytes");
    assert!(guest.is_open());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_trickles_is_cut_off() {
    let trickle = Hostile::answering(|_| async {
        streaming(stream::repeat(Bytes::from_static(b" ")).then(|byte| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            byte
        }))
    });
    let since = Instant::now();
    let error = trickle.guest().await.runs().await.unwrap_err();
    assert!(matches!(error, GuestError::Timeout { .. }), "{error:?}");
    assert!(since.elapsed() < Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn statuses_without_a_refusal_are_no_surprise() {
    for status in [302, 404, 410, 500, 503] {
        let hostile = Hostile::answering(move |_| async move {
            let mut answer = whole("<h1>\u{1b}[2Jhello</h1>");
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
        });
        is_protocol(hostile.guest().await.told().await, &status.to_string());
    }
    let hostile = Hostile::answering(|_| async {
        let mut answer = whole(r#"{"kind":"disk_full","message":"no\u0007 space\n"}"#);
        *answer.status_mut() = StatusCode::INSUFFICIENT_STORAGE;
        answer
    });
    let error = hostile.guest().await.delete_file("a").await.unwrap_err();
    assert!(matches!(&error, GuestError::Refused(refusal) if refusal.kind == RefusalKind::DiskFull));
    assert_eq!(error.to_string(), "no\\u{7} space\\n");
}

#[tokio::test(start_paused = true)]
async fn events_are_bounded_in_size_number_and_order() {
    let long = vec![b'x'; limits::EVENT_BYTES / 8];
    let cases: Vec<(Vec<Bytes>, &str)> = vec![
        (vec![accepted(), output(2, "a")], "event 2 where 1 was due"),
        (vec![accepted(), output(u64::MAX, "a")], "where 1 was due"),
        (vec![accepted(), Bytes::from_static(b"{\"seq\":1\n")], "EOF"),
        (
            vec![accepted(), Bytes::from_static(b"\xff\xfe\n")],
            "expected value",
        ),
        (vec![Bytes::from(long); 9], "an event of more than 2097152 bytes"),
    ];
    for (pieces, part) in cases {
        let hostile = Hostile::answering(move |_| {
            let pieces = pieces.clone();
            async move { streaming(stream::iter(pieces).chain(stream::pending())) }
        });
        let guest = hostile.guest().await;
        let mut follow = guest.run(&run("r")).unwrap();
        let error = loop {
            match follow.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a word: {part}"),
                Err(error) => break error,
            }
        };
        is_protocol(Err::<(), _>(error), part);
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_never_stops_talking_is_cut_off() {
    let hostile = Hostile::answering(|_| async {
        let text = "x".repeat(100_000);
        let outputs = stream::iter(1..).map(move |seq| output(seq, &text));
        streaming(stream::iter([accepted()]).chain(outputs))
    });
    let guest = hostile.guest().await;
    let mut follow = guest.run(&run("r")).unwrap();
    let mut bytes = 0;
    let error = loop {
        match follow.next().await {
            Ok(event) => bytes += serde_json::to_vec(&event).unwrap().len(),
            Err(error) => break error,
        }
    };
    assert!(bytes <= limits::KEPT_BYTES, "{bytes}");
    is_protocol(Err::<(), _>(error), "16777216 bytes of events");
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_events_keep_breaking_off_is_lost_in_the_end() {
    let asked = Arc::new(AtomicUsize::new(0));
    let hostile = {
        let asked = Arc::clone(&asked);
        Hostile::answering(move |request| {
            // The first time the run is started, then it is replayed from where it was.
            let n = asked.fetch_add(1, Ordering::Relaxed);
            let expected = if n == 0 { "/runs" } else { "/runs/r?from=1" };
            assert_eq!(request.uri().path_and_query().unwrap().as_str(), expected);
            std::future::ready(whole(if n == 0 { accepted() } else { Bytes::new() }))
        })
    };
    let guest = hostile.guest().await;
    let mut follow = guest.run(&run("r")).unwrap();
    assert!(follow.next().await.unwrap().is_some());
    let error = follow.next().await.unwrap_err();
    assert!(matches!(error, GuestError::Lost(Lost::Broke(_))), "{error:?}");
    let attempts = asked.load(Ordering::Relaxed);
    assert!((5..20).contains(&attempts), "{attempts}");
    assert!(
        follow.next().await.unwrap().is_none(),
        "and that is the end of it"
    );
}

#[tokio::test(start_paused = true)]
async fn files_have_the_bytes_that_were_announced() {
    let file = |size: &'static str, body: &'static [u8]| {
        Hostile::answering(move |_| async move {
            let mut answer = whole(body);
            if !size.is_empty() {
                let size = HeaderValue::from_static(size);
                answer.headers_mut().insert(SIZE_HEADER, size);
            }
            answer
        })
    };
    let read = async |hostile: Hostile, limit| {
        let read = hostile.guest().await.read_file("a", ..).await?;
        read.body.collect(limit).await
    };
    assert_eq!(read(file("5", b"hello"), 5).await.unwrap(), b"hello");
    is_protocol(read(file("", b"hello"), 5).await, SIZE_HEADER);
    is_protocol(read(file("-5", b"hello"), 5).await, SIZE_HEADER);
    is_protocol(read(file("6", b"hello"), 9).await, "ends 1 bytes early");
    is_protocol(read(file("4", b"hello"), 9).await, "more bytes");
    let error = read(file("18446744073709551615", b"hello"), 9).await.unwrap_err();
    assert!(matches!(&error, GuestError::Refused(refusal) if refusal.kind == RefusalKind::TooLarge));
}

#[tokio::test(start_paused = true)]
async fn transfers_that_stand_still_are_given_up_and_slow_ones_are_not() {
    let slow = Hostile::answering(|request| async move {
        if request.method() == Method::GET {
            let pieces = stream::iter(0..4).then(|_| async {
                tokio::time::sleep(Duration::from_secs(50)).await;
                Bytes::from_static(b"x")
            });
            let mut answer = streaming(pieces.chain(stream::pending()));
            let size = HeaderValue::from_static("5");
            answer.headers_mut().insert(SIZE_HEADER, size);
            return answer;
        }
        // An upload is read slowly at first, and then not at all.
        let mut body = request.into_body();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            body.frame().await.unwrap().unwrap();
        }
        std::future::pending().await
    });
    let guest = slow.guest().await;
    let mut body = guest.read_file("a", ..).await.unwrap().body;
    for _ in 0..4 {
        assert!(body.next().await.unwrap().is_some());
    }
    let since = Instant::now();
    let error = body.next().await.unwrap_err();
    assert!(
        matches!(error, GuestError::Timeout { seconds: 60, .. }),
        "{error:?}"
    );
    assert!(since.elapsed() < Duration::from_secs(61));

    let since = Instant::now();
    let upload = Upload::stream(stream::repeat_with(|| Ok(Bytes::from_static(&[0; 4096]))));
    let error = guest
        .write_file("a", WriteMode::Replace, upload)
        .await
        .unwrap_err();
    assert!(
        matches!(error, GuestError::Timeout { seconds: 60, .. }),
        "{error:?}"
    );
    assert!(
        since.elapsed() > Duration::from_secs(120),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_bulk_channel_that_is_unused_for_a_while_is_closed() {
    let second = Duration::from_secs(1);
    let agent = Hostile::answering(|request| async move {
        // A file that takes three minutes.
        let pieces = stream::iter(0..9).then(|_| async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Bytes::from_static(b"x")
        });
        if !request.uri().path().starts_with("/files/") {
            return whole("[]");
        }
        let mut answer = streaming(pieces);
        let size = HeaderValue::from_static("9");
        answer.headers_mut().insert(SIZE_HEADER, size);
        answer
    });
    let guest = agent.guest().await;
    assert_eq!(agent.channels(), (1, 1));
    let body = guest.read_file("a", ..).await.unwrap().body;
    assert_eq!(agent.channels(), (2, 2));
    let slow = tokio::spawn(body.collect(9));
    tokio::time::sleep(50 * second).await;
    drop(guest.list_files("", Depth::One).await);
    tokio::time::sleep(50 * second).await;
    drop(guest.list_files("", Depth::One).await);
    assert_eq!(agent.channels(), (2, 2), "each use keeps it open");
    tokio::time::sleep(61 * second).await;
    assert!(!slow.is_finished());
    assert_eq!(
        slow.await.unwrap().unwrap(),
        b"xxxxxxxxx",
        "what is under way goes on"
    );
    tokio::time::sleep(second).await;
    assert_eq!(agent.channels(), (2, 1));
    drop(guest.list_files("", Depth::One).await);
    assert_eq!(agent.channels(), (3, 2));
    tokio::time::sleep(3600 * second).await;
    assert_eq!(agent.channels(), (3, 1), "that for runs stays");
}

#[tokio::test(start_paused = true)]
async fn paths_reach_the_agent_as_they_were_given() {
    let hostile = Hostile::answering(|request| async move {
        let target = request.uri().path_and_query().unwrap().as_str().to_owned();
        let mut answer = whole(format!(r#"{{"kind":"bad_request","message":"{target}"}}"#));
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        answer
    });
    let guest = hostile.guest().await;
    for (path, target) in [
        ("a b/ä?x#y", "/files/a%20b/%C3%A4%3Fx%23y?append=true"),
        ("../../etc/passwd", "/files/../../etc/passwd?append=true"),
        ("/mnt/data/a", "/files//mnt/data/a?append=true"),
        ("a\0b%2f", "/files/a%00b%252f?append=true"),
        ("", "/files/?append=true"),
    ] {
        let write = guest.write_file(path, WriteMode::Append, "x").await;
        assert_eq!(write.unwrap_err().to_string(), target);
    }
    let listed = guest.list_files("a/b c", Depth::One).await.unwrap_err();
    assert_eq!(listed.to_string(), "/files?path=a%2Fb%20c&recursive=false");
    let long = guest.delete_file(&"x".repeat(5000)).await.unwrap_err();
    assert!(
        long.to_string().contains("the limit is 1024"),
        "it is not even sent: {long}"
    );
}
