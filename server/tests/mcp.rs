//! What callers hear over MCP: stories over the fake engine with real agents, on the paused clock.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use greenroom::{
    auth::Identity,
    conversation::Principal,
    engine::{Engine as _, ListedState},
};
use greenroom_protocol::RunId;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use support::{
    fake_engine::{FakeEngine, Fault, Op},
    mcp::{Front, Reply, modern, post, request},
    server::key,
};
use tokio::time::{Instant, sleep, timeout};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn an_open_stream_is_never_silent_for_long() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let session = front.initialize().await;
    let listen = Request::get("http://localhost/mcp").header("mcp-session-id", session);
    let listen = listen
        .header("accept", "text/event-stream")
        .body(bytes::Bytes::new())
        .unwrap();
    let mut body = front.send(listen).await.into_body();
    let mut comments = 0;
    let started = Instant::now();
    while started.elapsed() < MINUTE {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        comments += usize::from(frame.starts_with(b":"));
    }
    assert_eq!(comments, 4);
    drop(body);
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_modern_call_without_progress_is_not_silent_either() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    front.run("asks-for-no-progress", "result 1").await;
    let code = json!({ "conversation_id": "asks-for-no-progress", "code": "wait 40000\nresult 7" });
    let (parts, body) = modern("execute_code", code).into_parts();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let silent = body.replace("\"progressToken\":\"p\"", "\"quiet\":true");
    assert_ne!(silent, body);
    let started = Instant::now();
    let response = front.send(Request::from_parts(parts, silent.into())).await;
    assert_eq!(
        started.elapsed().as_secs(),
        15,
        "the stream is opened before the answer is there"
    );
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let (mut comments, mut text) = (0, String::new());
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        if data.starts_with(b":") {
            comments += 1;
        } else {
            text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }
    assert_eq!(comments, 2, "{text}");
    let answer: serde_json::Value = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .find_map(|data| serde_json::from_str(data).ok())
        .unwrap();
    assert_eq!(
        answer["result"]["_meta"]["greenroom/result"]["result"], "7",
        "{text}"
    );
    front.end(&engine).await;
}

/// Bound sandboxes that run.
async fn running(engine: &FakeEngine) -> usize {
    let all = engine.list().await.unwrap();
    all.iter()
        .filter(|one| one.adopted && one.state == ListedState::Running)
        .count()
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_passed_on_leads_back() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let first = front
        .call("execute_code", json!({ "code": "print hello\nresult 2" }))
        .await;
    assert_eq!(first.state(), ("ok", "new"), "{first:?}");
    let id = first.field("conversation_id").to_owned();
    assert!(
        first.text.contains(&format!("conversation_id: {id} (pass it on")),
        "{first:?}"
    );
    assert!(
        first.text.contains("stdout:\nhello") && first.text.contains("result:\n2"),
        "{first:?}"
    );
    let second = front.run(&id, "result 3").await;
    assert_eq!(second.state(), ("ok", "existing"), "{second:?}");
    let garbled = front.run(&id.replace("gr-0", "gr-z"), "result 3").await;
    assert!(
        garbled.is_error && garbled.text.contains("copied wrongly"),
        "{garbled:?}"
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_minted_conversation_that_nobody_comes_back_to_is_short() {
    let engine = FakeEngine::new();
    let front = Front::with(&engine, "one", "[pool.python]\nidle = \"20m\"\n");
    let kept = front.call("execute_code", json!({ "code": "result 1" })).await;
    let kept = kept.field("conversation_id").to_owned();
    front.call("execute_code", json!({ "code": "result 1" })).await;
    front.run(&kept, "result 2").await;
    assert_eq!(running(&engine).await, 2);
    sleep(6 * MINUTE).await;
    assert_eq!(
        running(&engine).await,
        1,
        "only the one that was reached twice lives on: {engine:?}"
    );
    let back = front.run(&kept, "result 3").await;
    assert_eq!(back.state(), ("ok", "existing"), "{back:?}");
    sleep(21 * MINUTE).await;
    let late = front.run(&kept, "result 4").await;
    assert_eq!(late.state(), ("ok", "restarted"), "{late:?}");
    assert_eq!(late.field("restart_reason"), "idle");
    assert!(
        late.text
            .lines()
            .next()
            .unwrap()
            .contains("it was idle for too long"),
        "{late:?}"
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_outlasts_patience_goes_on_and_is_fetched() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let started = Instant::now();
    let handed = front
        .run(
            "a-patient-caller",
            "print tick\nwait 100000\nprint over\nresult 7",
        )
        .await;
    assert_eq!(handed.state(), ("running", "new"), "{handed:?}");
    assert!(
        (45..50).contains(&started.elapsed().as_secs()),
        "{:?}",
        started.elapsed()
    );
    assert!(
        handed.text.contains("tick") && !handed.text.contains("over"),
        "{handed:?}"
    );
    assert_eq!(handed.progress.first().map(String::as_str), Some("starting"));
    assert!(
        handed.progress.len() >= 8 && handed.progress[2].ends_with(" s · tick"),
        "{:?}",
        handed.progress
    );
    let run = handed.field("run_id");
    let since = handed.meta["next"].as_u64().unwrap();
    let get = |wait: u64| json!({ "conversation_id": "a-patient-caller", "run_id": run, "since": since, "wait_seconds": wait });
    let still = front.call("get_run", get(0)).await;
    assert_eq!(still.state().0, "running", "{still:?}");
    assert!(!still.text.contains("tick"), "only what is new: {still:?}");
    let still = front.call("get_run", get(50)).await;
    assert_eq!(still.state().0, "running", "{still:?}");
    let over = front.call("get_run", get(50)).await;
    assert_eq!((over.state().0, over.field("result")), ("ok", "7"), "{over:?}");
    assert!(over.text.contains("over"), "{over:?}");
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn patience_is_for_the_run_and_not_for_its_sandbox() {
    let engine = FakeEngine::new();
    // Both that boot at first never come up: the next one is asked for when their deadline is over.
    engine.script(Op::Start, [Fault::Hangs, Fault::Hangs]);
    let front = Front::with(&engine, "one", "patience = \"2s\"");
    let started = Instant::now();
    let answer = front
        .run(
            "waits-for-a-sandbox",
            "print tick\nwait 1000\nprint tock\nresult 7",
        )
        .await;
    assert!(
        started.elapsed() > Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        (answer.state(), answer.field("result")),
        (("ok", "new"), "7"),
        "{answer:?}"
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_background_run_is_answered_at_once() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let arguments =
        json!({ "conversation_id": "in-the-background", "code": "wait 60000\nresult 1", "background": true });
    let first = front.call("execute_code", arguments.clone()).await;
    assert_eq!(first.state(), ("running", "new"), "{first:?}");
    let second = front.call("execute_code", arguments).await;
    assert_eq!(second.state().0, "queued", "{second:?}");
    assert!(
        second
            .text
            .contains(&format!("busy: run {} has been at work", first.field("run_id"))),
        "{second:?}"
    );
    let cancelled = front
        .call(
            "cancel_run",
            json!({ "conversation_id": "in-the-background", "run_id": first.field("run_id") }),
        )
        .await;
    assert_eq!(cancelled.state().0, "cancelled", "{cancelled:?}");
    assert!(
        cancelled.text.contains("Variables and files are kept"),
        "{cancelled:?}"
    );
    let list = front
        .call("get_run", json!({ "conversation_id": "in-the-background" }))
        .await;
    assert!(
        list.text.contains(second.field("run_id")) && list.text.contains(" · running · "),
        "{list:?}"
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_hangs_up_stops_its_run_and_keeps_its_session() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    front.run("hangs-up-suddenly", "result 1").await;
    let code = json!({ "conversation_id": "hangs-up-suddenly", "code": "print begun\nhold" });
    let mut body = front.send(modern("execute_code", code)).await.into_body();
    drop(body.frame().await.expect("progress comes at once"));
    sleep(Duration::from_secs(1)).await;
    drop(body);
    let after = front.run("hangs-up-suddenly", "result 2").await;
    assert_eq!(after.state(), ("ok", "existing"), "{after:?}");
    let list = front
        .call("get_run", json!({ "conversation_id": "hangs-up-suddenly" }))
        .await;
    assert!(list.text.contains(" · cancelled · "), "{list:?}");
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_cancels_no_run() {
    let engine = FakeEngine::new();
    let (front, other) = (Front::start(&engine, "one"), Front::start(&engine, "two"));
    front.run("outlives-the-server", "result 1").await;
    let code = json!({ "conversation_id": "outlives-the-server", "code": "wait 30000\nresult 9" });
    let mut body = front.send(modern("execute_code", code)).await.into_body();
    drop(body.frame().await.expect("progress comes at once"));
    front.mcp.close(Duration::from_secs(2)).await;
    drop(body);
    front.server.stop().await;
    sleep(Duration::from_secs(40)).await;
    let list = other
        .call("get_run", json!({ "conversation_id": "outlives-the-server" }))
        .await;
    assert!(
        !list.text.contains("cancelled") && list.text.contains(" · ok · "),
        "{list:?}"
    );
    other.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn news_counts_as_told_only_when_the_answer_was_written_out() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    front.run("hears-of-its-loss", "result 1").await;
    let reset = front
        .call("reset_session", json!({ "conversation_id": "hears-of-its-loss" }))
        .await;
    assert!(!reset.is_error && reset.field("session") == "none", "{reset:?}");
    // An answer that nobody reads to its end.
    let code = json!({ "conversation_id": "hears-of-its-loss", "code": "result 1" });
    let response = front.send(modern("execute_code", code)).await;
    sleep(Duration::from_secs(1)).await;
    drop(response);
    sleep(Duration::from_secs(1)).await;
    // A look does not use the news up either.
    let look = front
        .call("list_files", json!({ "conversation_id": "hears-of-its-loss" }))
        .await;
    assert_eq!(look.field("session"), "restarted", "{look:?}");
    let heard = front.run("hears-of-its-loss", "result 2").await;
    assert_eq!(
        (heard.state(), heard.field("restart_reason")),
        (("ok", "restarted"), "reset"),
        "{heard:?}"
    );
    sleep(Duration::from_secs(1)).await;
    let after = front.run("hears-of-its-loss", "result 3").await;
    assert_eq!(after.state(), ("ok", "existing"), "{after:?}");
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_ends_under_a_run_is_an_error_with_its_reason() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    front.run("loses-its-sandbox", "result 1").await;
    let code = json!({ "conversation_id": "loses-its-sandbox", "code": "print begun\nwait 20000" });
    let response = front.send(modern("execute_code", code)).await;
    let reading = tokio::spawn(Reply::read(response));
    sleep(Duration::from_secs(5)).await;
    let session = front
        .server
        .sessions
        .look(&key("loses-its-sandbox"))
        .await
        .unwrap()
        .unwrap();
    engine.kill(session.guest.id(), 137, true);
    let reply = timeout(10 * MINUTE, reading).await.unwrap().unwrap();
    let result = &reply.messages.last().unwrap()["result"];
    let text = result["content"][0]["text"].as_str().unwrap();
    assert_eq!(result["isError"], true, "{text}");
    assert_eq!(result["_meta"]["greenroom/result"]["failure"], "lost", "{text}");
    assert!(
        text.contains("it ran out of memory") && text.contains("begun"),
        "{text}"
    );
    let after = front.run("loses-its-sandbox", "result 2").await;
    assert_eq!(after.state(), ("ok", "existing"), "told once: {after:?}");
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ended_unnoticed_is_asked_again() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    front.run("ends-between-calls", "result 1").await;
    let session = front
        .server
        .sessions
        .look(&key("ends-between-calls"))
        .await
        .unwrap()
        .unwrap();
    engine.kill(session.guest.id(), 137, false);
    let next = front.run("ends-between-calls", "result 2").await;
    assert_eq!(
        (next.state(), next.field("result")),
        (("ok", "restarted"), "2"),
        "{next:?}"
    );
    assert_eq!(next.field("restart_reason"), "ended_inside", "{next:?}");
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn looking_makes_no_sandbox() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    for (tool, arguments) in [
        ("list_files", json!({})),
        ("download_file", json!({ "path": "x" })),
        ("get_run", json!({})),
        ("get_run", json!({ "run_id": "run-1" })),
        ("cancel_run", json!({ "run_id": "run-1" })),
        ("delete_file", json!({ "path": "x" })),
        ("session_info", json!({})),
        ("reset_session", json!({})),
    ] {
        let answer = front.call(tool, arguments).await;
        assert_eq!(answer.field("session"), "none", "{tool}: {answer:?}");
        assert!(
            !answer.text.contains("conversation_id:"),
            "an id that leads nowhere is not told: {answer:?}"
        );
    }
    assert_eq!(running(&engine).await, 0);
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_which_limit_and_how_the_session_was_found() {
    let engine = FakeEngine::new();
    let front = Front::with(&engine, "one", "[pool.python]\nwarm = 0\nmax = 1\n");
    assert_eq!(
        front.run("takes-the-only-one", "result 1").await.state(),
        ("ok", "new")
    );
    let full = front.run("comes-too-late", "result 1").await;
    assert!(
        full.is_error && full.text.contains("failed: capacity") && full.text.contains("max = 1"),
        "{full:?}"
    );
    assert_eq!(
        (full.field("failure"), full.field("session")),
        ("capacity", "none")
    );
    let missing = front
        .call(
            "download_file",
            json!({ "conversation_id": "takes-the-only-one", "path": "x" }),
        )
        .await;
    assert!(missing.is_error, "{missing:?}");
    assert_eq!(
        (missing.field("failure"), missing.field("session")),
        ("not_found", "existing")
    );
    let no_run = front
        .call(
            "get_run",
            json!({ "conversation_id": "takes-the-only-one", "run_id": "run-x" }),
        )
        .await;
    assert_eq!(
        (no_run.field("failure"), no_run.field("session")),
        ("not_found", "existing"),
        "{no_run:?}"
    );
    let placeholder = front.run("test-session", "result 1").await;
    assert!(
        placeholder.is_error && placeholder.field("failure") == "bad_argument",
        "{placeholder:?}"
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_session_stands_for_a_conversation() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let session = front.initialize().await;
    let first = front.legacy_run(Some(&session), "result 1").await;
    assert_eq!(first.state(), ("ok", "new"), "{first:?}");
    assert_eq!(first.field("conversation_id"), session);
    let second = front.legacy_run(Some(&session), "result 2").await;
    assert_eq!(second.state(), ("ok", "existing"), "{second:?}");
    // Another server knows neither the transport session nor its state, but the conversation.
    let restarted = Front::start(&engine, "two");
    let third = restarted.legacy_run(Some(&session), "result 3").await;
    assert_eq!(third.state(), ("ok", "existing"), "{third:?}");
    // By the argument it is the same one.
    let by_argument = restarted.run(&session, "result 4").await;
    assert_eq!(by_argument.state(), ("ok", "existing"), "{by_argument:?}");
    restarted.mcp.close(Duration::from_secs(1)).await;
    restarted.server.stop().await;
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_session_of_one_call_is_not_missed() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let (once, twice) = (front.initialize().await, front.initialize().await);
    front.legacy_run(Some(&once), "result 1").await;
    for _ in 0..2 {
        front.legacy_run(Some(&twice), "result 1").await;
    }
    sleep(6 * MINUTE).await;
    assert_eq!(
        running(&engine).await,
        2,
        "as long as they last, both are kept: {engine:?}"
    );
    for session in [&once, &twice] {
        let request = Request::delete("http://localhost/mcp").header("mcp-session-id", session.as_str());
        let reply = Reply::read(front.send(request.body(bytes::Bytes::new()).unwrap()).await).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED);
        let dead = front
            .legacy(
                Some(session),
                json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }),
            )
            .await;
        assert_eq!(dead.status, StatusCode::NOT_FOUND, "what was ended stays dead");
    }
    sleep(6 * MINUTE).await;
    assert_eq!(
        running(&engine).await,
        1,
        "one call, and nobody comes back: {engine:?}"
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn clients_without_a_session_id_are_served() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    for session in [None, Some("somebody-elses-uuid")] {
        let reply = front.legacy(session, list.clone()).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        let tools = reply.messages.last().unwrap()["result"]["tools"]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(tools, 9);
    }
    let first = front.legacy_run(None, "result 1").await;
    let second = front.legacy_run(None, "result 1").await;
    assert_eq!(
        (first.state(), second.state()),
        (("ok", "new"), ("ok", "new")),
        "{second:?}"
    );
    assert_ne!(first.field("conversation_id"), second.field("conversation_id"));
    let get = Request::get("http://localhost/mcp").header("accept", "text/event-stream");
    let reply = Reply::read(front.send(get.body(bytes::Bytes::new()).unwrap()).await).await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn files_come_and_go() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let with = |more: serde_json::Value| {
        let mut arguments = json!({ "conversation_id": "has-some-files" });
        arguments
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        arguments
    };
    let up = front
        .call(
            "upload_file",
            with(json!({ "path": "a/b.txt", "content": "größe" })),
        )
        .await;
    assert!(
        up.text
            .contains("/mnt/data/a/b.txt is written: it has 7 bytes now"),
        "{up:?}"
    );
    assert_eq!(up.field("session"), "new");
    front
        .call(
            "upload_file",
            with(json!({ "path": "a/b.txt", "content": "Cg==", "encoding": "base64", "append": true })),
        )
        .await;
    let down = front
        .call("download_file", with(json!({ "path": "a/b.txt" })))
        .await;
    assert!(
        down.text.ends_with("8 bytes · session: existing\n\ngröße\n"),
        "{down:?}"
    );
    let part = front
        .call(
            "download_file",
            with(json!({ "path": "a/b.txt", "offset": 2, "length": 3 })),
        )
        .await;
    assert!(
        part.text.contains("bytes 2–4 of 8") && part.text.contains("begins at offset 4"),
        "{part:?}"
    );
    let list = front.call("list_files", with(json!({ "recursive": true }))).await;
    let paths: Vec<&str> = list.meta["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["a", "a/b.txt"], "{list:?}");
    let deleted = front.call("delete_file", with(json!({ "path": "a" }))).await;
    assert!(
        deleted
            .text
            .contains("the folder \"a\" is deleted, with the one entry in it"),
        "{deleted:?}"
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn output_that_was_cut_is_saved_whole() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let code = (0..3000)
        .map(|n| format!("print line-{n}"))
        .collect::<Vec<_>>()
        .join("\n");
    let arguments = json!({ "conversation_id": "prints-a-lot", "code": code, "max_output_chars": 1000 });
    let answer = front.call("execute_code", arguments).await;
    assert!(
        answer.text.contains("line-0line-1")
            && answer.text.contains("line-2999")
            && answer.text.chars().count() < 1600,
        "{answer:?}"
    );
    let path = answer.meta["stdout"]["path"]
        .as_str()
        .expect("where all of it is");
    assert!(answer.text.contains(path), "{answer:?}");
    assert!(RunId(answer.field("run_id").to_owned()).is_valid());
    let arguments = json!({ "conversation_id": "prints-a-lot", "path": path, "length": 600_000 });
    let whole = front.call("download_file", arguments).await;
    assert!(
        whole.text.contains("line-1500line-1501"),
        "{} characters",
        whole.text.len()
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn resources_take_the_places_of_the_host_that_asks_for_its_users() {
    let engine = FakeEngine::new();
    let front = Front::with(&engine, "one", "[limits]\ncalls = 4\n");
    let read = async |identity: &Identity| {
        let uri = "greenroom://somebody-elses/files/a.txt";
        let mut read = post(request("resources/read", json!({ "uri": uri })));
        let headers = read.headers_mut();
        headers.insert("x-openwebui-user-id", "another-user".parse().unwrap());
        headers.insert("mcp-protocol-version", "2025-06-18".parse().unwrap());
        let reply = Reply::read(front.endpoint.handle(read, identity).await).await;
        reply.messages.last().unwrap()["error"]["message"].to_string()
    };
    let other = Identity {
        principal: Principal::Key("other".to_owned()),
        ..Identity::LOCAL
    };
    assert!(!read(&Identity::LOCAL).await.contains("in flight"));
    let holds = ["holds-0001", "holds-0002", "holds-0003"].map(|id| front.run(id, "hold"));
    let meanwhile = async {
        sleep(Duration::from_secs(5)).await;
        let full = read(&Identity::LOCAL).await;
        assert!(full.contains("3 calls of yours are in flight"), "{full}");
        let others = read(&other).await;
        assert!(!others.contains("in flight"), "{others}");
    };
    tokio::select! {
        _ = futures_util::future::join_all(holds) => panic!("they hold"),
        () = meanwhile => {}
    }
    front.end(&engine).await;
}
