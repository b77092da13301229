//! An MCP client of the least kind: one HTTP request in, the messages of its answer out, without a socket.

#![expect(
    clippy::needless_pass_by_value,
    reason = "callers hand over what they have just made"
)]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use greenroom::{
    auth::Identity,
    config::{Config, Inputs, Loaded, Offers},
    conversation::Secret,
    engine::Engine as _,
    links::Links,
    mcp::{Answered, Endpoint, Mcp, Ways},
    metrics::Metrics,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::{fake_engine::FakeEngine, server::Server};

/// A server with the tools on top, as far as a listener would be.
pub struct Front {
    pub server: Server,
    pub mcp: Mcp,
    pub endpoint: Endpoint,
    pub config: Arc<Config>,
    pub links: Links,
}

impl Front {
    pub fn start(engine: &FakeEngine, name: &str) -> Self {
        Self::with(engine, name, "")
    }

    /// With a configuration: `max` and the like of the pool are the test server's own.
    pub fn with(engine: &FakeEngine, name: &str, toml: &str) -> Self {
        let inputs = Inputs {
            text: format!("tools = \"full\"\n{toml}"),
            ..Inputs::default()
        };
        let config = Arc::new(Loaded::read(&inputs).unwrap().config);
        let server = Server::with(engine, name, |spec| {
            let pool = &config.pools[&config.default_pool];
            (spec.max, spec.idle, spec.lifetime) = (pool.max, pool.idle, pool.lifetime);
            spec.evict_after = pool.evict_after;
            spec.sandbox.agent.port = pool.container().and_then(|container| container.port);
        });
        let (secret, sessions) = (Secret::new([7; 32]), server.sessions.clone());
        let links = Links::new(
            secret.clone(),
            sessions.clone(),
            config.links.clone(),
            greenroom::http::door,
        );
        let ways = Ways {
            links: links.clone(),
            share: None,
        };
        let mcp = Mcp::new(
            Arc::clone(&config),
            Offers::from(&*config),
            secret,
            sessions,
            ways,
            Metrics::new(),
        );
        let endpoint = mcp.endpoint();
        Self {
            server,
            mcp,
            endpoint,
            config,
            links,
        }
    }

    /// A tool call of the modern era.
    pub async fn call(&self, tool: &str, arguments: Value) -> Answer {
        Answer::of(&Reply::read(self.send(modern(tool, arguments)).await).await)
    }

    /// Runs a script of the scripted kernel.
    pub async fn run(&self, conversation: &str, code: &str) -> Answer {
        self.call(
            "execute_code",
            json!({ "conversation_id": conversation, "code": code }),
        )
        .await
    }

    pub async fn send(&self, request: Request<Bytes>) -> Response<Answered> {
        self.endpoint.handle(request, &Identity::LOCAL).await
    }

    /// A message of the legacy era.
    pub async fn legacy(&self, session: Option<&str>, message: Value) -> Reply {
        let mut request = post(message);
        if let Some(session) = session {
            request
                .headers_mut()
                .insert("mcp-session-id", session.parse().unwrap());
        }
        Reply::read(self.send(request).await).await
    }

    /// Begins a transport session of the legacy era, and tells its id.
    pub async fn initialize(&self) -> String {
        let params = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "0" },
        });
        let reply = self.legacy(None, request("initialize", params)).await;
        let session = reply.session.expect("a session id");
        let done = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(
            self.legacy(Some(&session), done).await.status,
            StatusCode::ACCEPTED
        );
        session
    }

    /// Runs a script by a legacy session, without a conversation id.
    pub async fn legacy_run(&self, session: Option<&str>, code: &str) -> Answer {
        let params = json!({ "name": "execute_code", "arguments": { "code": code } });
        Answer::of(&self.legacy(session, request("tools/call", params)).await)
    }

    /// Ends the test; its conversations are removed as an operator would.
    pub async fn end(self, engine: &FakeEngine) {
        self.mcp.close(Duration::from_secs(1)).await;
        for sandbox in engine.list().await.unwrap() {
            if sandbox.adopted {
                engine.destroy(&sandbox.id).await.unwrap();
            }
        }
        super::server::end(engine, self.server, &[]).await;
    }
}

/// All messages of an HTTP answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub session: Option<String>,
    pub messages: Vec<Value>,
}

impl Reply {
    pub async fn read(response: Response<Answered>) -> Self {
        let status = response.status();
        let session = response
            .headers()
            .get("mcp-session-id")
            .map(|id| id.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let events = text.lines().filter_map(|line| line.strip_prefix("data:"));
        let messages = match serde_json::from_str(&text) {
            Ok(message) => vec![message],
            Err(_) => events
                .filter_map(|data| serde_json::from_str(data).ok())
                .collect(),
        };
        Self {
            status,
            session,
            messages,
        }
    }
}

/// What a tool answered.
#[derive(Debug)]
pub struct Answer {
    pub text: String,
    pub is_error: bool,
    pub meta: Value,
    /// Messages of progress before it.
    pub progress: Vec<String>,
}

impl Answer {
    pub fn of(reply: &Reply) -> Self {
        let result = &reply
            .messages
            .last()
            .unwrap_or_else(|| panic!("no answer: {reply:?}"))["result"];
        assert!(result.is_object(), "{reply:?}");
        let progress = reply
            .messages
            .iter()
            .filter_map(|message| message["params"]["message"].as_str());
        Self {
            text: result["content"][0]["text"].as_str().unwrap().to_owned(),
            is_error: result["isError"] == true,
            meta: result["_meta"]["greenroom/result"].clone(),
            progress: progress.map(str::to_owned).collect(),
        }
    }

    pub fn field(&self, name: &str) -> &str {
        self.meta[name].as_str().unwrap_or_default()
    }

    /// How the run ended, and how the call found its session.
    pub fn state(&self) -> (&str, &str) {
        (self.field("status"), self.field("session"))
    }
}

pub fn request(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

pub fn post(message: Value) -> Request<Bytes> {
    Request::post("http://localhost/mcp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(Bytes::from(message.to_string()))
        .unwrap()
}

/// A tool call as modern clients send it, with a progress token.
pub fn modern(tool: &str, arguments: Value) -> Request<Bytes> {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "progressToken": "p",
    });
    let params = json!({ "name": tool, "arguments": arguments, "_meta": meta });
    let mut request = post(request("tools/call", params));
    for (name, value) in [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", tool),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}
