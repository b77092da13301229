//! Requests that are wrong, too large or odd: each is refused with its kind, and nothing else happens.

use bytes::Bytes;
use greenroom_protocol::{
    Refusal, RefusalKind,
    limits::{CODE_BYTES, JSON_BYTES, RUN_TIMEOUT_MS, STREAMS},
};
use http::Method;

use crate::support::{lease, python, run};

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_refused_with_their_kind() {
    let bench = python();
    let client = bench.leased().await;
    let json = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let with = |key: &str, value: serde_json::Value| {
        let mut request = serde_json::to_value(run("r", "print x")).unwrap();
        request[key] = value;
        Bytes::from(request.to_string())
    };
    for (method, path, body, status) in [
        (Method::GET, "/nowhere", json(""), 404),
        (Method::PUT, "/runs", json(""), 404),
        (Method::POST, "/", json(""), 404),
        (Method::POST, "/runs", json(""), 400),
        (Method::POST, "/runs", json("{"), 400),
        (Method::POST, "/runs", json("[]"), 400),
        (Method::POST, "/runs", json("\u{1}\u{2}"), 400),
        (Method::POST, "/runs", json(&"[".repeat(100_000)), 400),
        (Method::POST, "/runs", with("id", "".into()), 400),
        (Method::POST, "/runs", with("id", "../x".into()), 400),
        (Method::POST, "/runs", with("id", "x".repeat(65).into()), 400),
        (Method::POST, "/runs", with("language", "cobol".into()), 422),
        (Method::POST, "/runs", with("timeout_ms", 0.into()), 400),
        (
            Method::POST,
            "/runs",
            with("timeout_ms", (RUN_TIMEOUT_MS + 1).into()),
            400,
        ),
        (Method::POST, "/runs", with("timeout_ms", (-1).into()), 400),
        (Method::POST, "/runs", with("surprise", 1.into()), 400),
        (
            Method::POST,
            "/runs",
            with("code", "x".repeat(CODE_BYTES + 1).into()),
            413,
        ),
        (
            Method::POST,
            "/runs",
            Bytes::from(vec![b' '; JSON_BYTES + 1]),
            413,
        ),
        (Method::POST, "/lease", json("{}"), 400),
        (Method::GET, "/runs/r?from=x", json(""), 400),
        (Method::GET, "/runs/r?from=-1", json(""), 400),
        (Method::GET, "/runs/r?wait=1e9", json(""), 400),
        (Method::GET, "/runs/r?wait=%zz", json(""), 400),
        (Method::GET, "/runs/r?wait=%ff", json(""), 400),
        (Method::GET, "/runs/", json(""), 400),
        (Method::GET, "/runs/a/b", json(""), 400),
        (Method::GET, "/?wait=soon", json(""), 400),
    ] {
        let answer = client.answer(method.clone(), path, body).await;
        let refusal: Refusal = answer.expect(status).json();
        assert_eq!(refusal.kind.status(), status, "{method} {path}");
        assert!(
            refusal.message.len() < 300,
            "{method} {path}: {}",
            refusal.message
        );
    }
    assert!(
        client
            .get("/runs")
            .await
            .json::<greenroom_protocol::RunList>()
            .runs
            .is_empty()
    );
}

#[tokio::test(start_paused = true)]
async fn malformed_leases_bind_nothing() {
    let bench = python();
    let client = bench.connect().await;
    for key in ["", "abc", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
        let mut request = lease('a');
        request.key.0 = key.to_owned();
        client.post("/lease", &request).await.expect(400);
    }
    for (idle_ms, lifetime_ms) in [(0, 1000), (1000, 0)] {
        let mut request = lease('a');
        (request.idle_ms, request.lifetime_ms) = (idle_ms, lifetime_ms);
        client.post("/lease", &request).await.expect(400);
    }
    // As long as can be said is still a time.
    let mut request = lease('a');
    (request.idle_ms, request.lifetime_ms) = (u64::MAX, u64::MAX);
    client.post("/lease", &request).await.expect(200);
    client.get("/lease").await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn the_largest_code_is_accepted() {
    let bench = python();
    let client = bench.leased().await;
    let code = format!("print {}", "\u{1}".repeat(CODE_BYTES - 6));
    let outcome = client.run("r", &code).await;
    assert_eq!(outcome.stdout.bytes as usize, CODE_BYTES - 6);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let bench = python();
    let (near, far) = tokio::io::duplex(1 << 20);
    let agent = bench.agent.clone();
    tokio::spawn(async move { agent.serve(far).await });
    let (mut send, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(near),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let (_open, body) = http_body_util::channel::Channel::<Bytes>::new(1);
    let request = http::Request::post("http://agent/lease").body(body).unwrap();
    let response = send.send_request(request).await.unwrap();
    assert_eq!(response.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn more_streams_than_allowed_wait_for_their_turn() {
    let bench = python();
    let client = bench.leased().await;
    client.start("r", "wait 5000").await.started().await;
    let mut polls = tokio::task::JoinSet::new();
    for _ in 0..2 * STREAMS {
        let client = client.clone();
        polls.spawn(async move { client.follow("/runs/r?wait=1").await.all().await.len() });
    }
    while let Some(seen) = polls.join_next().await {
        assert_eq!(seen.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_on_a_channel_ends_that_channel_only() {
    let bench = python();
    let client = bench.leased().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\0\0\0\0\0\0\0\0\0\0",
        b"",
    ] {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let agent = bench.agent.clone();
        let served = tokio::spawn(async move { agent.serve(far).await });
        tokio::io::AsyncWriteExt::write_all(&mut near, garbage)
            .await
            .unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut near).await.unwrap();
        served.await.unwrap();
    }
    client.get("/runs").await.expect(200);
    assert_eq!(RefusalKind::NotFound.status(), 404);
}
