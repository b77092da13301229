//! One request and its answer: deadlines, bounds, and refusals made into errors.

use std::{fmt::Write as _, time::Duration};

use bytes::{Bytes, BytesMut};
use greenroom_protocol::{EndReason, Ended, Refusal, RefusalKind, limits};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{
    error::{GuestError, Lost, shown},
    link::{Link, Outgoing, Wire},
};

/// An answer that is no list and no stream: hello, a lease, a refusal.
pub(super) const SMALL: usize = 64 << 10;
/// A list: bounded entries of bounded paths.
pub(super) const LIST: usize = limits::JSON_BYTES;

/// A request that is there as a whole, so that it can be sent again where the channel broke under it:
/// the protocol makes every one of these idempotent.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// What the caller of the call reads in a time-out.
    pub(super) what: &'static str,
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) body: Bytes,
    pub(super) deadline: Duration,
}

impl Ask {
    pub(super) fn new(what: &'static str, method: Method, target: impl Into<String>) -> Self {
        Self {
            what,
            method,
            target: target.into(),
            body: Bytes::new(),
            deadline: super::CALL,
        }
    }

    pub(super) fn json(mut self, body: &impl serde::Serialize) -> Result<Self, GuestError> {
        let body = serde_json::to_vec(body).map_err(|error| GuestError::protocol(error.to_string()))?;
        if body.len() > limits::JSON_BYTES {
            return Err(too_large(format!(
                "a request to a sandbox has at most {} bytes, this one has {}",
                limits::JSON_BYTES,
                body.len()
            )));
        }
        self.body = body.into();
        Ok(self)
    }

    /// For calls that wait inside for `wait`.
    pub(super) fn waiting(mut self, wait: Duration) -> Self {
        self.deadline = wait.saturating_add(super::CALL);
        self
    }

    fn request(&self) -> Result<Request<Outgoing>, GuestError> {
        request(
            self.method.clone(),
            &self.target,
            HeaderMap::new(),
            Either::Left(Full::new(self.body.clone())),
        )
    }

    /// Sends it and reads an answer of at most `limit` bytes.
    pub(super) async fn bytes(&self, link: &Link, limit: usize) -> Result<Bytes, GuestError> {
        let call = async { read(self.open(link).await?.into_body(), limit).await };
        within(self.what, self.deadline, call).await
    }

    /// Sends it and reads a JSON answer of at most `limit` bytes.
    pub(super) async fn answer<T: DeserializeOwned>(
        &self,
        link: &Link,
        limit: usize,
    ) -> Result<T, GuestError> {
        parse(&self.bytes(link, limit).await?)
    }

    /// Sends it where the answer has nothing to say.
    pub(super) async fn done(&self, link: &Link) -> Result<(), GuestError> {
        within(self.what, self.deadline, async {
            self.open(link).await.map(drop)
        })
        .await
    }

    /// Sends it and answers with a success whose body is still to come.
    pub(super) async fn stream(&self, link: &Link) -> Result<Incoming, GuestError> {
        let call = async { Ok(self.open(link).await?.into_body()) };
        within(self.what, self.deadline, call).await
    }

    /// Once more on a new channel where the old one broke.
    async fn open(&self, link: &Link) -> Result<Response<Incoming>, GuestError> {
        match send(&link.wire().await?, self.request()?).await {
            Err(GuestError::Lost(Lost::Broke(_))) => send(&link.wire().await?, self.request()?).await,
            answer => answer,
        }
    }
}

pub(super) fn too_large(message: String) -> GuestError {
    refused(RefusalKind::TooLarge, message)
}

/// A refusal of our own, in the words that the agent would have used.
pub(super) fn refused(kind: RefusalKind, message: String) -> GuestError {
    GuestError::Refused(Refusal { kind, message })
}

/// Bounds a call.
pub(super) async fn within<T>(
    what: &'static str,
    deadline: Duration,
    call: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    match timeout(deadline, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(GuestError::Timeout {
            what,
            seconds: deadline.as_secs(),
        }),
    }
}

pub(super) fn request(
    method: Method,
    target: &str,
    headers: HeaderMap,
    body: Outgoing,
) -> Result<Request<Outgoing>, GuestError> {
    let uri: Uri = target
        .parse()
        .map_err(|error| GuestError::protocol(format!("{target} is no target: {error}")))?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Sends one request over one connection; answers that are no success become errors.
pub(super) async fn send(wire: &Wire, request: Request<Outgoing>) -> Result<Response<Incoming>, GuestError> {
    let response = wire
        .sender()
        .send_request(request)
        .await
        .map_err(|error| GuestError::Lost(Lost::broke(describe(&error))))?;
    if response.status().is_success() {
        Ok(response)
    } else {
        Err(refusal(response).await)
    }
}

/// An error with its causes: hyper's own texts are short.
fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

async fn refusal(response: Response<Incoming>) -> GuestError {
    let status = response.status();
    let body = match read(response.into_body(), SMALL).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    refusal_in(status, &body)
}

fn refusal_in(status: StatusCode, body: &[u8]) -> GuestError {
    if status == StatusCode::GONE
        && let Ok(Ended { reason }) = serde_json::from_slice(body)
    {
        return GuestError::Ended(reason);
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { kind, message }) => refused(kind, shown(&message)),
        Err(_) => GuestError::protocol(format!("{status} with {:?}", String::from_utf8_lossy(body))),
    }
}

/// A whole body of at most `limit` bytes. One frame is handed on as it came.
pub(super) async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, GuestError> {
    let first = next_data(&mut body).await?.unwrap_or_default();
    check_length(first.len(), limit)?;
    let Some(second) = next_data(&mut body).await? else {
        return Ok(first);
    };
    let mut whole = BytesMut::from(first);
    let mut next = Some(second);
    while let Some(data) = next {
        check_length(whole.len() + data.len(), limit)?;
        whole.extend_from_slice(&data);
        next = next_data(&mut body).await?;
    }
    Ok(whole.freeze())
}

fn check_length(length: usize, limit: usize) -> Result<(), GuestError> {
    if length > limit {
        Err(GuestError::protocol(format!(
            "an answer of more than {limit} bytes"
        )))
    } else {
        Ok(())
    }
}

/// The next bytes of a body, or `None` at its end.
pub(super) async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, GuestError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| GuestError::Lost(Lost::broke(describe(&error))))?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Parses what came from inside. serde_json refuses what is nested deeper than 128.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, GuestError> {
    serde_json::from_slice(bytes).map_err(|error| GuestError::protocol(error.to_string()))
}

/// Percent-encodes one value of a path or a query; `/` stays where `keep_slashes` is a path's.
pub(super) fn encode(value: &str, slashes: Slashes) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
            b'/' if slashes == Slashes::Kept => text.push('/'),
            // Writing to a String cannot fail.
            other => drop(write!(text, "%{other:02X}")),
        }
    }
    text
}

/// Whether a `/` is a separator or part of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slashes {
    /// It separates.
    Kept,
    /// It is encoded.
    Encoded,
}

/// `http://agent` and a path: HTTP/2 wants a scheme and an authority, and the socket has neither.
pub(super) fn target(path_and_query: &str) -> String {
    format!("http://agent{path_and_query}")
}

/// A reason as the query of `DELETE /lease` has it.
pub(super) fn end_target(reason: EndReason, idle: Option<Duration>) -> String {
    let mut text = target("/lease?reason=") + reason.as_str();
    if let Some(idle) = idle {
        // Writing to a String cannot fail.
        let _ = write!(text, "&idle_ms={}", idle.as_millis());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_place_in_a_target() {
        for (value, slashes, encoded) in [
            ("a/b c", Slashes::Kept, "a/b%20c"),
            ("a/b?x=1&y#z", Slashes::Encoded, "a%2Fb%3Fx%3D1%26y%23z"),
            ("ä%2f\0", Slashes::Kept, "%C3%A4%252f%00"),
        ] {
            assert_eq!(encode(value, slashes), encoded);
        }
    }

    #[test]
    fn refusals_become_errors_whatever_the_body() {
        let ended = refusal_in(StatusCode::GONE, br#"{"reason":"idle"}"#);
        assert!(matches!(ended, GuestError::Ended(EndReason::Idle)), "{ended:?}");
        let refused = refusal_in(
            StatusCode::NOT_FOUND,
            b"{\"kind\":\"not_found\",\"message\":\"no file \\u001b[2J\"}",
        );
        assert_eq!(refused.to_string(), "no file \\u{1b}[2J");
        for body in [&b"<html>"[..], b"", b"\xff\xfe", b"[[[[[["] {
            let garbage = refusal_in(StatusCode::BAD_GATEWAY, body);
            assert!(matches!(garbage, GuestError::Protocol(_)), "{garbage:?}");
        }
    }

    #[test]
    fn json_that_is_nested_too_deep_is_refused() {
        let deep = "[".repeat(200_000);
        assert!(matches!(
            parse::<serde_json::Value>(deep.as_bytes()),
            Err(GuestError::Protocol(_))
        ));
    }
}
