//! Files and tunnels over the wire: the routes, and that transfers hold the lease open.

use std::time::Duration;

use bytes::Bytes;
use greenroom_protocol::{
    Deleted, EndReason, FileEntry, FileKind, FileList, LeaseState, Refusal, RefusalKind, SIZE_HEADER,
};
use http::{Method, Request};
use http_body_util::{BodyExt, Empty, channel::Channel};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{lease, python, request};

#[tokio::test]
async fn a_file_goes_in_and_comes_out() {
    let bench = python();
    let client = bench.leased().await;
    let put = client.put("/files/a%20b/c.txt", "hello").await;
    let entry: FileEntry = put.expect(200).json();
    assert_eq!((entry.path.as_str(), entry.size), ("a b/c.txt", 5));
    client
        .put("/files/a%20b/c.txt?append=true", " world")
        .await
        .expect(200);
    assert_eq!(
        std::fs::read_to_string(bench.work_dir.path().join("a b/c.txt")).unwrap(),
        "hello world"
    );
    client.put("/files/top", "").await.expect(200);
    let paths = |list: FileList| -> Vec<_> { list.entries.into_iter().map(|entry| entry.path).collect() };
    assert_eq!(
        paths(client.get("/files").await.expect(200).json()),
        ["a b", "top"]
    );
    assert_eq!(
        paths(client.get("/files?recursive=true").await.json()),
        ["a b", "a b/c.txt", "top"]
    );
    assert_eq!(
        paths(client.get("/files?path=a%20b&recursive=false").await.json()),
        ["a b/c.txt"]
    );
    let whole = client.get("/files/a%20b/c.txt").await;
    assert_eq!(whole.expect(200).body, "hello world");
    let deleted: Deleted = client.delete("/files/a%20b").await.expect(200).json();
    assert_eq!((deleted.kind, deleted.count), (FileKind::Directory, 2));
    client.get("/files/a%20b/c.txt").await.expect(404);
}

#[tokio::test]
async fn a_range_says_how_large_the_whole_is() {
    let bench = python();
    let client = bench.leased().await;
    client.put("/files/f", "0123456789").await.expect(200);
    for (range, status, body) in [
        ("bytes=2-4", 206, "234"),
        ("bytes=7-", 206, "789"),
        ("bytes=-2", 206, "89"),
        ("bytes=0-99", 206, "0123456789"),
        ("lines=1-2", 200, "0123456789"),
    ] {
        let request = request(Method::GET, "/files/f").header("range", range);
        let response = client.send(request, Bytes::new()).await;
        assert_eq!(response.status(), status, "{range}");
        assert_eq!(response.headers()[SIZE_HEADER], "10");
        assert_eq!(
            response.headers()["content-length"],
            body.len().to_string().as_str()
        );
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
    let beyond = request(Method::GET, "/files/f").header("range", "bytes=10-");
    assert_eq!(client.send(beyond, Bytes::new()).await.status(), 400);
}

#[tokio::test]
async fn files_are_refused_with_their_kind() {
    let bench = python();
    let client = bench.leased().await;
    client.put("/files/f", "x").await.expect(200);
    let long = format!("/files/{}", "x".repeat(5000));
    for (method, path, status) in [
        (Method::GET, "/files/none", 404),
        (Method::GET, "/files/../etc/passwd", 400),
        (Method::GET, "/files/%2e%2e/etc/passwd", 400),
        (Method::GET, "/files/%2Fetc%2Fpasswd", 400),
        (Method::GET, "/files/a%00b", 400),
        (Method::GET, "/files/%zz", 400),
        (Method::GET, long.as_str(), 400),
        (Method::PUT, "/files/f/below", 409),
        (Method::PUT, "/files/", 409),
        (Method::PUT, "/files/g?append=maybe", 400),
        (Method::DELETE, "/files/none", 404),
        (Method::POST, "/files/f", 404),
        (Method::GET, "/files?path=..", 400),
        (Method::GET, "/files?recursive=1", 400),
    ] {
        let answer = client.answer(method.clone(), path, Bytes::new()).await;
        let refusal: Refusal = answer.expect(status).json();
        assert_eq!(refusal.kind.status(), status, "{method} {path}");
    }
}

#[tokio::test]
async fn an_upload_under_a_mark_is_taken_once() {
    let bench = python();
    let client = bench.leased().await;
    client.put("/files/f/below?once=ab", "x").await.expect(200);
    client.put("/files/f?once=cd", "x").await.expect(409);
    client
        .put("/files/g?once=cd", "refused by the folder, not by the mark")
        .await
        .expect(200);
    let refusal: Refusal = client.put("/files/h?once=cd", "x").await.expect(409).json();
    assert!(refusal.message.contains("used already"), "{}", refusal.message);
    assert!(!bench.work_dir.path().join("h").exists());
}

#[tokio::test]
async fn a_run_names_the_files_it_changed() {
    let bench = python();
    let client = bench.leased().await;
    client.put("/files/before", "x").await.expect(200);
    let file = bench.work_dir.path().join("made");
    let outcome = client.run("r", &format!("write {}", file.display())).await;
    let names: Vec<_> = outcome.files.into_iter().map(|change| change.path).collect();
    assert_eq!(names, ["made"]);
    assert!(client.run("r2", "print x").await.files.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_upload_holds_the_lease_open_and_a_look_does_not() {
    let bench = python();
    let client = bench.connect().await;
    let mut terms = lease('a');
    terms.idle_ms = 10_000;
    client.post("/lease", &terms).await.expect(200);
    let (near, far) = tokio::io::duplex(1 << 20);
    let agent = bench.agent.clone();
    tokio::spawn(async move { agent.serve(far).await });
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near))
            .await
            .unwrap();
    tokio::spawn(connection);
    let (mut body, slow) = Channel::<Bytes>::new(1);
    let put = tokio::spawn(send.send_request(Request::put("http://agent/files/f").body(slow).unwrap()));
    for _ in 0..5 {
        body.send_data(Bytes::from_static(b"x")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(8)).await;
        let LeaseState::Bound(view) = client.get("/lease").await.expect(200).json() else {
            panic!("the lease ended under an upload")
        };
        assert_eq!(view.idle_ms, 0);
    }
    drop(body);
    assert_eq!(put.await.unwrap().unwrap().status(), 200);
    tokio::time::sleep(Duration::from_secs(9)).await;
    client.get("/files").await.expect(200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.agent.ended().await, EndReason::Idle);
}

#[tokio::test]
async fn without_a_lease_there_are_no_files_and_no_tunnels() {
    let bench = python();
    let client = bench.connect().await;
    client.get("/files").await.expect(409);
    client.get("/files/f").await.expect(409);
    client.put("/files/f", "x").await.expect(409);
    client.delete("/files/f").await.expect(409);
    let connect = Request::connect("127.0.0.1:1");
    assert_eq!(client.send(connect, Bytes::new()).await.status(), 409);
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_until_the_sandbox_ends() {
    let bench = python();
    let client = bench.leased().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let (near, far) = tokio::io::duplex(1 << 20);
    let agent = bench.agent.clone();
    tokio::spawn(async move { agent.serve(far).await });
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near))
            .await
            .unwrap();
    tokio::spawn(connection);
    let connect = Request::connect(&target).body(Empty::<Bytes>::new()).unwrap();
    let response = send.send_request(connect).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut outside = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let (mut inside, _) = listener.accept().await.unwrap();
    outside.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    inside.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
    inside.write_all(b"pong").await.unwrap();
    outside.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"pong");
    // Open, it keeps the sandbox from being evicted; a reset takes it down.
    client.delete("/lease?reason=evicted&idle_ms=0").await.expect(409);
    client.delete("/lease?reason=reset").await.expect(202);
    assert_eq!(inside.read(&mut four).await.unwrap_or(0), 0);
    assert_eq!(bench.agent.ended().await, EndReason::Reset);
}

#[tokio::test]
async fn a_tunnel_leads_nowhere_else() {
    let bench = python();
    let client = bench.leased().await;
    for (target, status) in [("10.0.0.1:80", 400), ("localhost:80", 400), ("127.0.0.1:1", 404)] {
        let response = client.send(Request::connect(target), Bytes::new()).await;
        assert_eq!(response.status(), status, "{target}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let refusal: Refusal = serde_json::from_slice(&body).unwrap();
        assert_eq!(refusal.kind.status(), status);
        assert_ne!(refusal.kind, RefusalKind::Internal);
    }
}
