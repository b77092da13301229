//! Who may do what, and whose is what: callers with different identities, over the fake engine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::Bytes;
use greenroom::{
    auth::{AllowedPools, Identity, Scope, Scopes},
    conversation::{PoolName, Principal},
};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use support::{
    fake_engine::FakeEngine,
    mcp::{Answer, Front, Reply, modern},
};

fn holder(key: &str, scopes: impl IntoIterator<Item = Scope>) -> Identity {
    Identity {
        principal: Principal::Key(key.into()),
        scopes: scopes.into_iter().collect(),
        ..Identity::LOCAL
    }
}

fn legacy(method: &str, session: Option<&str>, message: &Value) -> Request<Bytes> {
    let mut request = Request::builder()
        .method(method)
        .uri("http://localhost/mcp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    if let Some(session) = session {
        request = request.header("mcp-session-id", session);
    }
    request.body(Bytes::from(message.to_string())).unwrap()
}

async fn send(front: &Front, identity: &Identity, request: Request<Bytes>) -> Reply {
    Reply::read(front.endpoint.handle(request, identity).await).await
}

async fn call(front: &Front, identity: &Identity, tool: &str, arguments: Value) -> Answer {
    Answer::of(&send(front, identity, modern(tool, arguments)).await)
}

#[tokio::test(start_paused = true)]
async fn two_principals_never_share_a_session() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let (ann, bob) = (holder("ann", Scope::ALL), holder("bob", Scope::ALL));
    let run = json!({ "conversation_id": "the-same-name", "code": "result 1" });
    for (identity, session) in [
        (&ann, "new"),
        (&bob, "new"),
        (&Identity::LOCAL, "new"),
        (&ann, "existing"),
    ] {
        let answer = call(&front, identity, "execute_code", run.clone()).await;
        assert_eq!(answer.state(), ("ok", session), "{identity:?} {answer:?}");
    }
    // A run of one is none of another, whose session is there all the same.
    let runs = call(
        &front,
        &ann,
        "get_run",
        json!({ "conversation_id": "the-same-name" }),
    )
    .await;
    let id = runs.text.split_whitespace().find(|word| word.starts_with("run-"));
    let id = id
        .unwrap_or_else(|| panic!("no run: {runs:?}"))
        .trim_matches(|c: char| c != '-' && !c.is_alphanumeric());
    let ask = |id: &str| json!({ "conversation_id": "the-same-name", "run_id": id });
    assert!(!call(&front, &ann, "get_run", ask(id)).await.is_error);
    let foreign = call(&front, &bob, "get_run", ask(id)).await;
    let unknown = call(&front, &bob, "get_run", ask("run-0123456789")).await;
    assert!(foreign.is_error, "{foreign:?}");
    assert_eq!(
        foreign.text.replace(id, "ID"),
        unknown.text.replace("run-0123456789", "ID")
    );
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_transport_session_is_like_one_that_is_not_there() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let other = Front::start(&engine, "two");
    let (open, unknown) = (front.initialize().await, other.initialize().await);
    let stranger = holder("stranger", Scope::ALL);
    let version = json!({
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "0" },
    });
    let call = json!({ "name": "execute_code", "arguments": { "code": "result 1" } });
    for (method, message) in [
        ("GET", json!({})),
        ("DELETE", json!({})),
        (
            "POST",
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }),
        ),
        (
            "POST",
            json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": version }),
        ),
        (
            "POST",
            json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        ),
        (
            "POST",
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call }),
        ),
        ("PUT", json!({})),
    ] {
        let mut seen = Vec::new();
        for id in [&open, &unknown] {
            let reply = send(&front, &stranger, legacy(method, Some(id), &message)).await;
            let text = serde_json::to_string(&reply.messages)
                .unwrap()
                .replace(id.as_str(), "ID");
            // How long it took, and the run's own id.
            let text: Vec<String> = text
                .split([' ', '"', ',', '}', ':'])
                .filter(|word| !word.starts_with("run-") && !word.starts_with(|c: char| c.is_ascii_digit()))
                .map(str::to_owned)
                .collect();
            seen.push((reply.status, text));
        }
        assert_eq!(seen[0], seen[1], "{method} {message}");
    }
    // Nor does any of it reach the one whose it is: it is still open, and its conversation is new.
    let own = front.legacy_run(Some(&open), "result 1").await;
    assert_eq!(own.state(), ("ok", "new"), "{own:?}");
    // What its owner ends is dead for its owner, and for a stranger what it was.
    let ended = legacy("DELETE", Some(&open), &json!({}));
    assert_eq!(
        send(&front, &Identity::LOCAL, ended).await.status,
        StatusCode::ACCEPTED
    );
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    for (identity, status) in [
        (&Identity::LOCAL, StatusCode::NOT_FOUND),
        (&stranger, StatusCode::OK),
    ] {
        let reply = send(&front, identity, legacy("POST", Some(&open), &list)).await;
        assert_eq!(reply.status, status, "{identity:?}");
    }
    other.mcp.close(std::time::Duration::from_secs(1)).await;
    other.server.stop().await;
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_tool_needs_its_scope_and_its_pool() {
    let engine = FakeEngine::new();
    let front = Front::with(
        &engine,
        "one",
        "aliases = \"azure\"\n[pool.python]\nmax = 4\nwarm = 1\n",
    );
    let runner = holder("runner", [Scope::Run]);
    let filer = holder("filer", [Scope::Files]);
    let nobody = holder("nobody", []);
    let id = json!({ "conversation_id": "scopes-are-checked" });
    let with = |more: Value| {
        let mut arguments = id.clone();
        arguments
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        arguments
    };
    let tools = [
        (
            "execute_code",
            with(json!({ "code": "result 1" })),
            Some(Scope::Run),
        ),
        ("get_run", id.clone(), Some(Scope::Run)),
        ("cancel_run", with(json!({ "run_id": "run-0" })), Some(Scope::Run)),
        ("reset_session", id.clone(), Some(Scope::Run)),
        ("launchShell", json!({}), Some(Scope::Run)),
        (
            "upload_file",
            with(json!({ "path": "a", "content": "b" })),
            Some(Scope::Files),
        ),
        ("list_files", id.clone(), Some(Scope::Files)),
        ("download_file", with(json!({ "path": "a" })), Some(Scope::Files)),
        ("delete_file", with(json!({ "path": "a" })), Some(Scope::Files)),
        ("session_info", id.clone(), None),
    ];
    for (tool, arguments, needed) in tools {
        for identity in [&Identity::LOCAL, &runner, &filer, &nobody] {
            let answer = call(&front, identity, tool, arguments.clone()).await;
            let is_refused = answer.field("failure") == "forbidden";
            let may = needed.is_none_or(|scope| identity.scopes.has(scope));
            assert_eq!(is_refused, !may, "{tool} {:?}: {answer:?}", identity.scopes);
            if let (true, Some(scope)) = (is_refused, needed) {
                assert!(
                    answer.is_error && answer.text.contains(&format!("scope {scope}")),
                    "{answer:?}"
                );
            }
        }
    }
    // A pool that is not one's own is not there, and one's own comes before the configured one.
    let elsewhere = Identity {
        pools: AllowedPools::Only([PoolName::parse("elsewhere").unwrap()].into()),
        scopes: Scopes::ALL,
        ..holder("elsewhere", [])
    };
    let refused = call(
        &front,
        &elsewhere,
        "execute_code",
        with(json!({ "code": "result 1" })),
    )
    .await;
    assert!(
        refused.is_error && refused.text.contains("there is no pool \"elsewhere\""),
        "{refused:?}"
    );
    assert!(!refused.text.contains("python"), "{refused:?}");
    front.end(&engine).await;
}
