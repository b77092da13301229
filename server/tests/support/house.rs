//! A server with its listener on a real socket, over the fake engine, and the least of HTTP clients.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use greenroom::{
    auth::Gate,
    config::Offers,
    conversation::Secret,
    engine::Engine as _,
    http::{App, Http, Rest, Served},
    metrics::Metrics,
};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{fake_engine::FakeEngine, mcp::Front};

/// A server with its listener, and a state directory of its own.
pub struct House {
    pub engine: FakeEngine,
    pub front: Front,
    pub served: Served,
    pub offers: Offers,
    pub address: SocketAddr,
    pub state: TempDir,
}

pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        assert_eq!(
            self.headers[header::CONTENT_TYPE],
            "application/json; charset=utf-8"
        );
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    }

    /// Status and code of an error.
    pub fn code(&self) -> (u16, String) {
        let body = self.json();
        let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
        assert_eq!(self.header("x-ms-error-code"), code, "{body}");
        assert!(
            !body["error"]["message"].as_str().unwrap_or_default().is_empty(),
            "{body}"
        );
        (self.status, code)
    }
}

impl House {
    pub async fn open(toml: &str) -> Self {
        let engine = FakeEngine::new();
        let state = tempfile::tempdir().unwrap();
        let own = format!("listen = \"127.0.0.1:0\"\nstate_dir = {:?}\n", state.path());
        let front = Front::with(&engine, "one", &format!("{own}{toml}"));
        let http = Http::bind(&front.config).await.unwrap();
        let address = http.address();
        let sessions = front.server.sessions.clone();
        let offers = Offers::from(&*front.config);
        let rest = Rest::new(
            Arc::clone(&front.config),
            offers.clone(),
            Secret::new([7; 32]),
            sessions,
            Metrics::new(),
            front.mcp.in_flight(),
        );
        let app = App {
            gate: Arc::new(Gate::open(&front.config).unwrap()),
            endpoint: front.mcp.endpoint(),
            sse: Some(front.mcp.sse()),
            links: front.links.clone(),
            rest,
            metrics: Metrics::new(),
        };
        let served = http.start(app, &front.config);
        Self {
            engine,
            front,
            served,
            offers,
            address,
            state,
        }
    }

    /// `METHOD /path?query` below the pool; a body that is JSON calls itself that.
    pub async fn ask(&self, line: &str, body: impl Into<Bytes>) -> Reply {
        self.ask_with(line, &[("content-type", "application/json")], body)
            .await
    }

    pub async fn ask_with(&self, line: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let (method, target) = line.split_once(' ').unwrap();
        self.send(method, &format!("/pools/python{target}"), headers, body)
            .await
    }

    /// Any request.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let response = send.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(send);
        connection.await.unwrap().unwrap();
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    pub async fn run(&self, identifier: &str, code: &str) -> Reply {
        self.ask(
            &format!("POST /executions?identifier={identifier}"),
            json!({ "code": code }).to_string(),
        )
        .await
    }

    pub async fn end(self) {
        self.served.stop_accepting();
        self.front.mcp.close(Duration::from_secs(5)).await;
        self.served.finish().await;
        for sandbox in self.engine.list().await.unwrap() {
            if sandbox.adopted {
                self.engine.destroy(&sandbox.id).await.unwrap();
            }
        }
        self.front.server.stop().await;
        self.engine.assert_nothing_left().await;
    }
}
