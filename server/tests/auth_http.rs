//! Who is let in over a real socket: headers as clients send them and as nobody should, keys that come and go.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, SystemTime};

use greenroom::{
    auth::{ApiKey, KeyFile, Order, Scope, Scopes},
    conversation::PoolName,
};
use serde_json::{Value, json};
use support::house::{House, Reply};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// Every route that asks, with a request that it would serve.
const ASKED: [(&str, &str, &str); 5] = [
    ("POST", "/mcp", LIST),
    ("POST", "/messages?sessionId=none", LIST),
    ("GET", "/metrics", ""),
    ("GET", "/pools/python/files?identifier=conv-0001", ""),
    (
        "GET",
        "/subscriptions/s/resourceGroups/g/sessionPools/python/files?identifier=conv-0001",
        "",
    ),
];

fn make(house: &House, scopes: impl IntoIterator<Item = Scope>, pools: &[&str]) -> ApiKey {
    let order = Order {
        scopes: scopes.into_iter().collect(),
        pools: pools.iter().map(|pool| PoolName::parse(pool).unwrap()).collect(),
        ..Order::default()
    };
    file(house).create(order, SystemTime::now()).unwrap().0
}

fn file(house: &House) -> KeyFile {
    KeyFile::of(house.state.path())
}

async fn with(house: &House, (method, path, body): (&str, &str, &str), headers: &[(&str, &str)]) -> Reply {
    let mut all = vec![("content-type", "application/json")];
    if path == "/mcp" {
        all.push(("accept", "application/json, text/event-stream"));
    }
    all.extend_from_slice(headers);
    house.send(method, path, &all, body.to_owned()).await
}

async fn bearing(house: &House, asked: (&str, &str, &str), key: &str) -> Reply {
    with(house, asked, &[("authorization", &format!("Bearer {key}"))]).await
}

#[track_caller]
fn is_unauthorized(reply: &Reply, challenge: &str) {
    assert_eq!(
        (reply.status, reply.header("www-authenticate")),
        (401, challenge),
        "{:?}",
        reply.body
    );
    assert_eq!(reply.header("cache-control"), "no-store");
}

const MISSING: &str = "Bearer realm=\"greenroom\"";
const BAD: &str = "Bearer realm=\"greenroom\", error=\"invalid_token\"";

#[tokio::test]
async fn without_keys_loopback_asks_nobody_and_reads_no_credential() {
    let house = House::open("").await;
    for headers in [
        &[][..],
        &[("authorization", "Bearer anything")],
        &[("authorization", "Basic \u{e4}"), ("x-ms-apikey", "")],
    ] {
        for asked in ASKED {
            let reply = with(&house, asked, headers).await;
            let expected = if asked.1.starts_with("/messages") {
                404
            } else {
                200
            };
            assert_eq!(reply.status, expected, "{asked:?} {headers:?} {:?}", reply.body);
        }
    }
    house.end().await;
}

#[tokio::test]
async fn the_first_key_closes_the_door_and_its_holder_opens_it() {
    let house = House::open("").await;
    let key = make(&house, Scope::ALL, &[]);
    for asked in ASKED {
        is_unauthorized(&with(&house, asked, &[]).await, MISSING);
        for headers in [
            [("authorization", format!("Bearer {}", key.reveal()))],
            [("authorization", format!("bearer  {} ", key.reveal()))],
            [("x-ms-apikey", key.reveal().to_owned())],
        ] {
            let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
            let reply = with(&house, asked, &headers).await;
            let expected = if asked.1.starts_with("/messages") {
                404
            } else {
                200
            };
            assert_eq!(reply.status, expected, "{asked:?} {:?}", reply.body);
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(with(&house, ("GET", path, ""), &[]).await.status, 200, "{path}");
    }
    // Another door, which is its own permission: without a credential it is a link like any other that is none.
    assert_eq!(
        with(&house, ("GET", "/files/none/a.txt", ""), &[]).await.status,
        404
    );
    let refused = with(&house, ASKED[3], &[]).await;
    assert_eq!(refused.code(), (401, "Unauthorized".to_owned()));
    house.end().await;
}

#[tokio::test]
async fn what_is_no_credential_is_refused_in_one_way() {
    let house = House::open("").await;
    let (key, other) = (make(&house, Scope::ALL, &[]), make(&house, Scope::ALL, &[]));
    let text = key.reveal();
    let bearer = format!("Bearer {text}");
    let (long, huge) = ("x".repeat(33 << 10), format!("Bearer {}", "x".repeat(60 << 10)));
    let typo = format!("Bearer {}_", &text[..49]);
    let crossed = format!("Bearer {}{}", &text[..12], &other.reveal()[12..]);
    let unknown = format!("Bearer {}", ApiKey::mint().unwrap().reveal());
    let basic = format!("Basic {text}");
    let wrong: [&[(&str, &str)]; 16] = [
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer ")],
        &[("authorization", "")],
        &[("x-ms-apikey", "")],
        &[("authorization", text)],
        &[("authorization", &basic)],
        &[("authorization", "Bearer \u{e4}\u{f6}")],
        &[("authorization", &typo)],
        &[("authorization", &crossed)],
        &[("authorization", &unknown)],
        &[("authorization", &huge)],
        &[("x-ms-apikey", &long)],
        &[("authorization", &bearer), ("authorization", &bearer)],
        &[("authorization", &bearer), ("x-ms-apikey", other.reveal())],
        &[("authorization", &basic), ("x-ms-apikey", text)],
        &[("x-ms-apikey", text), ("x-ms-apikey", text)],
    ];
    for headers in wrong {
        for asked in [ASKED[0], ASKED[3]] {
            let reply = with(&house, asked, headers).await;
            is_unauthorized(&reply, BAD);
            let said = String::from_utf8(reply.body.to_vec()).unwrap();
            assert!(
                said.contains("the credential is not valid") && !said.contains("grk_"),
                "{said}"
            );
        }
    }
    let both = [("authorization", bearer.as_str()), ("x-ms-apikey", text)];
    assert_eq!(
        with(&house, ASKED[3], &both).await.status,
        200,
        "the same twice is one"
    );
    house.end().await;
}

#[tokio::test]
async fn a_head_of_a_megabyte_is_not_read() {
    let house = House::open("").await;
    make(&house, Scope::ALL, &[]);
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let head = format!(
        "GET /metrics HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\r\n",
        house.address,
        "x".repeat(1 << 20)
    );
    // It stops reading at some point.
    drop(stream.write_all(head.as_bytes()).await);
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    drop(read.expect("an end"));
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(with(&house, ("GET", "/healthz", ""), &[]).await.status, 200);
    house.end().await;
}

#[tokio::test]
async fn a_key_that_is_revoked_ends_with_the_next_request() {
    let house = House::open("").await;
    let (key, other) = (make(&house, Scope::ALL, &[]), make(&house, Scope::ALL, &[]));
    let credential = format!("Bearer {}", key.reveal());
    let headers = [("authorization", credential.as_str())];
    // A transport session of its own, opened before.
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "0" } } });
    let opened = with(&house, ("POST", "/mcp", &initialize.to_string()), &headers).await;
    let session = opened.header("mcp-session-id").to_owned();
    assert!(!session.is_empty(), "{:?}", opened.body);
    let in_session = [headers[0], ("mcp-session-id", &session)];
    assert_eq!(with(&house, ASKED[0], &in_session).await.status, 200);
    file(&house).revoke(key.id()).unwrap();
    for asked in ASKED {
        is_unauthorized(&with(&house, asked, &headers).await, BAD);
    }
    is_unauthorized(&with(&house, ASKED[0], &in_session).await, BAD);
    // The last one, too, opens nothing.
    assert_eq!(bearing(&house, ASKED[2], other.reveal()).await.status, 200);
    file(&house).revoke(other.id()).unwrap();
    is_unauthorized(&bearing(&house, ASKED[2], other.reveal()).await, BAD);
    is_unauthorized(&with(&house, ASKED[2], &[]).await, MISSING);
    house.end().await;
}

#[tokio::test]
async fn where_nothing_is_required_a_credential_is_still_to_be_right() {
    let house = House::open("[auth]\nrequired = \"never\"\n").await;
    let key = make(&house, [Scope::Run], &[]);
    assert_eq!(with(&house, ASKED[2], &[]).await.status, 200, "local");
    assert_eq!(
        bearing(&house, ASKED[2], key.reveal()).await.status,
        403,
        "the key's holder"
    );
    is_unauthorized(&bearing(&house, ASKED[2], "grk_wrong").await, BAD);
    house.end().await;
    let house = House::open("[auth]\nrequired = \"always\"\n").await;
    is_unauthorized(&with(&house, ASKED[2], &[]).await, MISSING);
    let key = make(&house, Scope::ALL, &[]);
    assert_eq!(bearing(&house, ASKED[2], key.reveal()).await.status, 200);
    house.end().await;
}

#[tokio::test]
async fn an_operation_needs_its_scope_and_its_pool() {
    let house = House::open("").await;
    let run = make(&house, [Scope::Run], &[]);
    let files = make(&house, [Scope::Files], &[]);
    let admin = make(&house, [Scope::Admin], &[]);
    let elsewhere = make(&house, Scope::ALL, &["elsewhere"]);
    let code = json!({ "code": "result 1" }).to_string();
    let operations = [
        (
            "POST",
            "/executions?identifier=conv-0001",
            code.as_str(),
            Scope::Run,
        ),
        (
            "POST",
            "/code/execute?identifier=conv-0001",
            code.as_str(),
            Scope::Run,
        ),
        (
            "POST",
            "/executions?identifier=conv-0001",
            r#"{"shellCommand":"result 1"}"#,
            Scope::Run,
        ),
        ("GET", "/executions/none?identifier=conv-0001", "", Scope::Run),
        ("GET", "/session?identifier=conv-0001", "", Scope::Run),
        (
            "POST",
            "/.management/getSession?identifier=conv-0001",
            "",
            Scope::Run,
        ),
        (
            "POST",
            "/.management/stopSession?identifier=conv-0001",
            "",
            Scope::Run,
        ),
        ("DELETE", "/session?identifier=conv-0001", "", Scope::Run),
        ("GET", "/files?identifier=conv-0001", "", Scope::Files),
        ("PUT", "/files/a.txt?identifier=conv-0001", "abc", Scope::Files),
        ("GET", "/files/a.txt?identifier=conv-0001", "", Scope::Files),
        (
            "GET",
            "/files/a.txt/content?identifier=conv-0001",
            "",
            Scope::Files,
        ),
        ("DELETE", "/files/a.txt?identifier=conv-0001", "", Scope::Files),
        ("GET", "/listSessions", "", Scope::Admin),
        ("POST", "/.management/listSessions", "", Scope::Admin),
    ];
    for (method, path, body, needed) in operations {
        let path = format!("/pools/python{path}");
        for (scope, key) in [(Scope::Run, &run), (Scope::Files, &files), (Scope::Admin, &admin)] {
            let reply = bearing(&house, (method, &path, body), key.reveal()).await;
            assert_eq!(
                reply.status == 403,
                scope != needed,
                "{method} {path} {scope}: {:?}",
                reply.body
            );
            if scope != needed {
                assert_eq!(reply.code().1, "Forbidden");
                let text = String::from_utf8(reply.body.to_vec()).unwrap();
                assert!(text.contains(&format!("the scope {needed}")), "{text}");
                // Nobody can ask for more of a key.
                assert_eq!(reply.header("www-authenticate"), "", "{method} {path}");
            }
        }
        let reply = bearing(&house, (method, &path, body), elsewhere.reveal()).await;
        assert_eq!(reply.code(), (403, "Forbidden".to_owned()), "{method} {path}");
    }
    // Whether a pool exists is told to those who may use it.
    let metadata = |pool: &str| format!("/pools/{pool}/files?identifier=conv-0001");
    for (key, pool, code) in [
        (&files, "nowhere", (404, "PoolNotFound")),
        (&elsewhere, "nowhere", (403, "Forbidden")),
        (&elsewhere, "python", (403, "Forbidden")),
        (&elsewhere, "elsewhere", (404, "PoolNotFound")),
    ] {
        let reply = bearing(&house, ("GET", &metadata(pool), ""), key.reveal()).await;
        assert_eq!(reply.code(), (code.0, code.1.to_owned()), "{pool}");
    }
    assert_eq!(
        bearing(&house, ASKED[2], run.reveal()).await.status,
        403,
        "metrics"
    );
    house.end().await;
}

#[tokio::test]
async fn one_key_and_identifier_is_one_session_over_both_protocols() {
    let house = House::open("").await;
    let (ann, bob) = (
        make(&house, Scopes::ALL.iter(), &[]),
        make(&house, Scopes::ALL.iter(), &[]),
    );
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "execute_code",
        "arguments": { "code": "result 1", "conversation_id": "the-same-conversation" } } });
    let over_mcp = async |key: &ApiKey| {
        let reply = bearing(&house, ("POST", "/mcp", &call.to_string()), key.reveal()).await;
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        let answer = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .next_back();
        let answer: Value = serde_json::from_str(answer.unwrap_or(&text)).unwrap();
        answer["result"]["_meta"]["greenroom/result"]["session"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let over_rest = async |key: &ApiKey| {
        let path = "/pools/python/executions?identifier=the-same-conversation";
        let reply = bearing(&house, ("POST", path, r#"{"code":"result 1"}"#), key.reveal()).await;
        (
            reply.header("x-ms-session-guid").to_owned(),
            reply.header("x-ms-new-allocation") == "true",
        )
    };
    assert_eq!(over_mcp(&ann).await, "new");
    let (ann_guid, is_new) = over_rest(&ann).await;
    assert!(!is_new, "what began over MCP goes on over REST");
    let (bob_guid, is_new) = over_rest(&bob).await;
    assert!(is_new && bob_guid != ann_guid, "another key's is another one");
    assert_eq!(over_mcp(&bob).await, "existing");
    assert_eq!(over_rest(&ann).await, (ann_guid, false));
    // Each sees its own ones listed.
    for key in [&ann, &bob] {
        let list = bearing(&house, ("GET", "/pools/python/listSessions", ""), key.reveal())
            .await
            .json();
        assert_eq!(list["count"], 1, "{list}");
    }
    let gone = bearing(
        &house,
        (
            "DELETE",
            "/pools/python/session?identifier=the-same-conversation",
            "",
        ),
        bob.reveal(),
    )
    .await;
    assert_eq!(gone.status, 204);
    assert_eq!(over_mcp(&ann).await, "existing", "its end is nobody else's");
    house.end().await;
}

#[tokio::test]
async fn an_execution_of_another_key_is_one_that_does_not_exist() {
    let house = House::open("").await;
    let (ann, bob) = (make(&house, Scope::ALL, &[]), make(&house, Scope::ALL, &[]));
    let run = (
        "POST",
        "/pools/python/executions?identifier=conv-0001",
        r#"{"code":"result 1"}"#,
    );
    let id = bearing(&house, run, ann.reveal()).await.json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    bearing(&house, run, bob.reveal()).await;
    let poll = |id: &str| format!("/pools/python/executions/{id}?identifier=conv-0001");
    let asked = async |id: &str, key: &ApiKey| {
        let reply = bearing(&house, ("GET", &poll(id), ""), key.reveal()).await;
        (reply.status, reply.header("x-ms-error-code").to_owned())
    };
    assert_eq!(asked(&id, &ann).await, (200, String::new()));
    assert_eq!(asked(&id, &bob).await, (404, "ExecutionNotFound".to_owned()));
    assert_eq!(asked(&id, &bob).await, asked("never-was", &bob).await);
    house.end().await;
}
