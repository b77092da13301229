//! What callers meet over HTTP+SSE of 2024-11-05: stories over the fake engine, on the paused clock.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use greenroom::{auth::Identity, conversation::Principal, mcp::Sse};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, combinators::BoxBody};
use serde_json::{Value, json};
use support::{fake_engine::FakeEngine, mcp::Front};
use tokio::time::{Instant, sleep};

/// A client with its stream.
struct Client {
    sse: Sse,
    endpoint: String,
    events: BoxBody<Bytes, Infallible>,
}

impl Client {
    /// Opens a stream and shakes hands.
    async fn connect(sse: &Sse) -> Self {
        let mut client = Self::open(sse).await;
        let params = json!({
            "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": { "name": "test", "version": "0" },
        });
        let reply = client.request("initialize", params).await;
        assert_eq!(reply["result"]["protocolVersion"], "2024-11-05", "{reply}");
        client
            .post(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }))
            .await;
        client
    }

    async fn open(sse: &Sse) -> Self {
        let response = sse.open(&Identity::LOCAL);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = response.into_body();
        let first = events.frame().await.unwrap().unwrap().into_data().unwrap();
        let first = String::from_utf8(first.to_vec()).unwrap();
        let endpoint = first.strip_prefix("event: endpoint\ndata: ").unwrap().trim_end();
        assert!(endpoint.starts_with("/messages?sessionId="), "{endpoint}");
        Self {
            sse: sse.clone(),
            endpoint: endpoint.to_owned(),
            events,
        }
    }

    async fn post(&self, message: &Value) -> StatusCode {
        self.post_as(&Identity::LOCAL, message.to_string()).await
    }

    async fn post_as(&self, identity: &Identity, body: String) -> StatusCode {
        let request = Request::post(&self.endpoint)
            .header("x-conversation-id", "named-by-a-header")
            .body(Bytes::from(body))
            .unwrap();
        self.sse.post(request, identity).await.status()
    }

    /// The next event that is no comment.
    async fn next(&mut self) -> Value {
        loop {
            let frame = self.events.frame().await.unwrap().unwrap().into_data().unwrap();
            let text = String::from_utf8(frame.to_vec()).unwrap();
            if let Some(data) = text.strip_prefix("event: message\ndata: ") {
                return serde_json::from_str(data).unwrap();
            }
            assert!(text.starts_with(':'), "{text}");
        }
    }

    async fn request(&mut self, method: &str, params: Value) -> Value {
        let message = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
        assert_eq!(self.post(&message).await, StatusCode::ACCEPTED);
        loop {
            let message = self.next().await;
            if message["id"] == 7 {
                return message;
            }
        }
    }

    async fn run(&mut self, code: &str) -> Value {
        let params = json!({ "name": "execute_code", "arguments": { "code": code } });
        let reply = self.request("tools/call", params).await;
        reply["result"]["_meta"]["greenroom/result"].clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_of_2024_is_served() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let sse = front.mcp.sse();
    let mut client = Client::connect(&sse).await;
    let tools = client.request("tools/list", json!({})).await;
    assert_eq!(tools["result"]["tools"].as_array().unwrap().len(), 9, "{tools}");
    let first = client.run("result 1").await;
    assert_eq!(
        (&first["session"], &first["conversation_id"]),
        (&json!("new"), &json!("named-by-a-header")),
        "headers are read as on /mcp: {first}"
    );
    let second = client.run("result 2").await;
    assert_eq!(second["session"], "existing", "the news was told: {second}");
    let unknown = client.request("no/such/method", json!({})).await;
    assert_eq!(unknown["error"]["code"], -32601, "{unknown}");
    drop(client);
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn progress_and_comments_come_while_a_run_lasts() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let mut client = Client::connect(&front.mcp.sse()).await;
    let params = json!({
        "name": "execute_code", "arguments": { "code": "print tick\nwait 12000" }, "_meta": { "progressToken": 3 },
    });
    let call = json!({ "jsonrpc": "2.0", "id": 8, "method": "tools/call", "params": params });
    client.post(&call).await;
    let mut told = Vec::new();
    let answer = loop {
        let message = client.next().await;
        match message["params"]["message"].as_str() {
            Some(text) => told.push(text.to_owned()),
            None => break message,
        }
    };
    assert_eq!(answer["id"], 8);
    assert!(
        told.len() >= 3 && told.last().unwrap().ends_with("tick"),
        "{told:?}"
    );
    // Without a call it is comments that keep the stream alive.
    let started = Instant::now();
    let frame = client.events.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(
        (&frame[..], started.elapsed().as_secs()),
        (&b":\n\n"[..], 15),
        "{frame:?}"
    );
    drop(client);
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_belong_to_a_stream_is_refused() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let client = Client::connect(&front.mcp.sse()).await;
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }).to_string();
    let other = Identity {
        principal: Principal::Key("other".into()),
        ..Identity::LOCAL
    };
    assert_eq!(
        client.post_as(&other, list.clone()).await,
        StatusCode::NOT_FOUND,
        "somebody else's is like none"
    );
    for bad in ["", "{", "[]", "{\"jsonrpc\":\"2.0\"}", &"[".repeat(100_000)] {
        assert_eq!(
            client.post_as(&Identity::LOCAL, bad.to_owned()).await,
            StatusCode::BAD_REQUEST,
            "{:.20}",
            bad
        );
    }
    for uri in ["/messages", "/messages?sessionId=", "/messages?sessionId=00"] {
        let request = Request::post(uri).body(Bytes::from(list.clone())).unwrap();
        let answer = front.mcp.sse().post(request, &Identity::LOCAL).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{uri}");
    }
    let Client {
        sse,
        endpoint,
        events,
    } = client;
    drop(events);
    let request = Request::post(&endpoint).body(Bytes::from(list)).unwrap();
    let late = sse.post(request, &Identity::LOCAL).await;
    assert_eq!(late.status(), StatusCode::NOT_FOUND, "a stream that is over");
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_stops_a_run_and_a_broken_stream_does_not() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let sse = front.mcp.sse();
    let mut client = Client::connect(&sse).await;
    client.run("result 1").await;
    let call = |id: u32, code: &str| {
        json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
                "params": { "name": "execute_code", "arguments": { "code": code } } })
    };
    client.post(&call(8, "hold")).await;
    sleep(Duration::from_secs(1)).await;
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 8 } });
    client.post(&cancel).await;
    let after = client.run("result 2").await;
    assert_eq!(after["session"], "existing", "{after}");
    client.post(&call(9, "wait 30000\nresult 9")).await;
    sleep(Duration::from_secs(1)).await;
    drop(client);
    sleep(Duration::from_secs(40)).await;
    let list = front
        .call("get_run", json!({ "conversation_id": "named-by-a-header" }))
        .await;
    assert_eq!(list.text.matches(" · cancelled · ").count(), 1, "{}", list.text);
    assert_eq!(list.text.matches(" · ok · ").count(), 3, "{}", list.text);
    front.end(&engine).await;
}

#[tokio::test(start_paused = true)]
async fn streams_have_a_bound_and_end_with_the_server() {
    let engine = FakeEngine::new();
    let front = Front::start(&engine, "one");
    let sse = front.mcp.sse();
    let mut streams = Vec::new();
    let refused = loop {
        let response = sse.open(&Identity::LOCAL);
        if response.status() != StatusCode::OK {
            break response.status();
        }
        streams.push(response);
    };
    assert_eq!((refused, streams.len()), (StatusCode::SERVICE_UNAVAILABLE, 1024));
    streams.truncate(1);
    let mut client = Client::connect(&sse).await;
    front.mcp.close(Duration::from_secs(1)).await;
    while let Some(frame) = client.events.frame().await {
        assert!(frame.is_ok());
    }
    front.end(&engine).await;
}
