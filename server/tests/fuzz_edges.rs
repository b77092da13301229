//! Bodies and headers that nobody should send: whatever comes in, there is an answer, in time, of bounded size, and a
//! good call still works. Seeds are the files of `corpus/`; each case changes one, or is made of nothing.
//!
//! `PROPTEST_CASES` says how many; `make soak` runs many.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::TestRunner,
};
use serde_json::json;
use support::{fake_engine::FakeEngine, mcp::Front};
use tokio::time::timeout;

/// One answer is never longer: the longest is the list of tools.
const ANSWER_BYTES: usize = 64 << 10;

#[derive(Clone, Debug)]
struct Case {
    method: Method,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 8, "the corpus is where it is looked for");
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// A seed with some bytes replaced, doubled or left out.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<Index>(), 0..4_u8, any::<u8>());
    let changed = (select(corpus()), vec(change, 0..4)).prop_map(|(mut body, changes)| {
        for (at, how, byte) in changes {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            match how {
                0 => body[at] = byte,
                1 => body.truncate(at),
                2 => drop(body.remove(at)),
                _ => body.insert(at, byte),
            }
        }
        body
    });
    let deep = (1..400_usize).prop_map(|depth| {
        let (open, shut) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"execute_code","arguments":{{"code":{open}{shut}}}}}}}"#)
            .into_bytes()
    });
    prop_oneof![6 => changed, 1 => deep, 1 => vec(any::<u8>(), 0..200)]
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let names = [
        "accept",
        "content-type",
        "mcp-protocol-version",
        "mcp-session-id",
        "mcp-method",
        "mcp-name",
        "mcp-param-x",
        "last-event-id",
        "x-conversation-id",
        "x-openwebui-chat-id",
        "x-openwebui-user-id",
    ];
    let values = prop_oneof![
        select(vec![
            "2026-07-28",
            "2025-06-18",
            "1999-01-01",
            "application/json",
            "application/json, text/event-stream",
            "tools/call",
            "execute_code",
            "gr-000000000000000000000",
            "0",
            "",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,300}",
    ];
    vec((select(names.to_vec()), values), 0..5)
}

fn cases() -> impl Strategy<Value = Case> {
    let methods = select(vec![
        Method::POST,
        Method::POST,
        Method::POST,
        Method::POST,
        Method::GET,
        Method::DELETE,
        Method::PUT,
    ]);
    (methods, headers(), bodies()).prop_map(|(method, headers, body)| Case {
        method,
        headers,
        body,
    })
}

impl Case {
    fn request(&self) -> Request<Bytes> {
        let mut request = Request::new(Bytes::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = "http://localhost/mcp".parse().unwrap();
        let usual = [
            ("accept", "application/json, text/event-stream"),
            ("content-type", "application/json"),
        ];
        for (name, value) in usual {
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        for (name, value) in &self.headers {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        request
    }
}

/// What an answer may be. A stream that only listens goes on: its beginning is enough.
async fn answered(front: &Front, case: &Case) -> Result<(), String> {
    let mut response = timeout(Duration::from_secs(120), front.send(case.request()))
        .await
        .map_err(|_| "no answer in time".to_owned())?;
    let status = response.status();
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        return Err(format!("{status}"));
    }
    let mut bytes = 0;
    let read = async {
        while let Some(Ok(frame)) = response.body_mut().frame().await {
            bytes += frame.into_data().map_or(0, |data| data.len());
        }
    };
    drop(timeout(Duration::from_secs(60), read).await);
    if bytes > ANSWER_BYTES {
        return Err(format!("{status} with {bytes} bytes"));
    }
    Ok(())
}

#[test]
fn whatever_comes_in_is_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let (engine, front) = runtime.block_on(async {
        let engine = FakeEngine::new();
        let front = Front::with(&engine, "one", "[pool.python]\nmax = 64\n");
        (engine, front)
    });
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let ran = runner.run(&cases(), |case| {
        runtime
            .block_on(answered(&front, &case))
            .map_err(TestCaseError::fail)
    });
    ran.unwrap();
    runtime.block_on(async {
        let good = front
            .call(
                "execute_code",
                json!({ "conversation_id": "comes-after-all-that", "code": "result 7" }),
            )
            .await;
        assert_eq!(good.field("result"), "7", "{good:?}");
        front.end(&engine).await;
    });
}
