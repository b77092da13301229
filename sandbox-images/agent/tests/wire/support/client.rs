//! A plain HTTP/2 client of an agent: requests in, status and JSON out.

use bytes::{Buf, Bytes, BytesMut};
use greenroom_protocol::{Language, RunEvent, RunEventKind, RunId, RunOutcome, RunRequest};
use http::{Method, Request, Response, StatusCode, request::Builder};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};

#[derive(Clone)]
pub(crate) struct Client {
    send: http2::SendRequest<Full<Bytes>>,
}

impl Client {
    pub(crate) async fn connect<I>(io: I) -> Self
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self { send }
    }

    pub(crate) async fn request(&self, method: Method, path: &str, body: Bytes) -> Response<Incoming> {
        self.try_request(method, path, body).await.unwrap()
    }

    pub(crate) async fn try_request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        self.try_send(request(method, path), body).await
    }

    pub(crate) async fn send(&self, request: Builder, body: Bytes) -> Response<Incoming> {
        self.try_send(request, body).await.unwrap()
    }

    async fn try_send(&self, request: Builder, body: Bytes) -> hyper::Result<Response<Incoming>> {
        let mut send = self.send.clone();
        send.ready().await?;
        send.send_request(request.body(Full::new(body)).unwrap()).await
    }

    pub(crate) async fn answer(&self, method: Method, path: &str, body: Bytes) -> Answer {
        let response = self.request(method, path, body).await;
        Answer {
            status: response.status(),
            body: response.into_body().collect().await.unwrap().to_bytes(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.answer(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.answer(Method::DELETE, path, Bytes::new()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &'static str) -> Answer {
        self.answer(Method::PUT, path, Bytes::from_static(body.as_bytes()))
            .await
    }

    pub(crate) async fn post<T: Serialize>(&self, path: &str, body: &T) -> Answer {
        self.answer(Method::POST, path, serde_json::to_vec(body).unwrap().into())
            .await
    }

    /// Starts a run of the python kernel with a minute's time.
    pub(crate) async fn start(&self, id: &str, code: &str) -> Events {
        self.submit(&run(id, code)).await
    }

    pub(crate) async fn submit(&self, request: &RunRequest) -> Events {
        let body = serde_json::to_vec(request).unwrap().into();
        Events::of(self.request(Method::POST, "/runs", body).await)
    }

    pub(crate) async fn follow(&self, path: &str) -> Events {
        Events::of(self.request(Method::GET, path, Bytes::new()).await)
    }

    /// Runs code to its end.
    pub(crate) async fn run(&self, id: &str, code: &str) -> RunOutcome {
        self.start(id, code).await.outcome().await
    }
}

/// A request to be sent.
pub(crate) fn request(method: Method, path: &str) -> Builder {
    Request::builder()
        .method(method)
        .uri(format!("http://agent{path}"))
}

/// A request for a run of the python kernel with a minute's time.
pub(crate) fn run(id: &str, code: &str) -> RunRequest {
    RunRequest {
        id: RunId(id.into()),
        language: Language::Python,
        code: code.into(),
        timeout_ms: 60_000,
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{:?}", self.body);
        self
    }

    #[track_caller]
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

/// A run's events.
pub(crate) struct Events {
    body: Incoming,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no end of a line.
    seen: usize,
    /// HTTP/2 frames so far.
    pub(crate) frames: usize,
}

impl Events {
    #[track_caller]
    fn of(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body(),
            buffer: BytesMut::new(),
            seen: 0,
            frames: 0,
        }
    }

    pub(crate) async fn next(&mut self) -> Option<RunEvent> {
        loop {
            let unseen = &self.buffer[self.seen..];
            if let Some(end) = unseen.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.seen + end);
                self.buffer.advance(1);
                self.seen = 0;
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let Some(frame) = self.body.frame().await else {
                assert!(self.buffer.is_empty(), "a line broke off");
                return None;
            };
            self.frames += 1;
            self.seen = self.buffer.len();
            self.buffer
                .extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Reads until an event fits.
    pub(crate) async fn until(&mut self, fits: impl Fn(&RunEventKind) -> bool) -> RunEvent {
        loop {
            let event = self.next().await.expect("the stream ended early");
            if fits(&event.kind) {
                return event;
            }
        }
    }

    pub(crate) async fn started(&mut self) {
        self.until(|kind| matches!(kind, RunEventKind::Started { .. }))
            .await;
    }

    /// Reads to the end.
    pub(crate) async fn outcome(&mut self) -> RunOutcome {
        let last = self.until(|kind| matches!(kind, RunEventKind::Finished(_))).await;
        assert!(self.next().await.is_none(), "something follows the end");
        let RunEventKind::Finished(outcome) = last.kind else {
            unreachable!()
        };
        outcome
    }

    /// Everything to the end of the stream.
    pub(crate) async fn all(&mut self) -> Vec<RunEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
