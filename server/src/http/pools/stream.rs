//! An execution told as it happens, to those who ask for a stream: an addition of ours.
//!
//! A line of JSON an event: `accepted`, `queued`, `started`, `stdout`, `stderr`, `display`, and at the end `finished`
//! with the dialect's own answer in `execution`, or `failed` with its error. Output is what the agent sends, the head
//! and the tail of each stream; a gap is told as `omitted` bytes, and the answer at the end is cut as any other.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use greenroom_protocol::{RunEvent, RunEventKind, Standing, Stream};
use serde_json::{Value, json, value::RawValue};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Answer,
    executions::{self, Start},
};
use crate::{
    delivery::{Delivery, Freight, News as Owed},
    rest::{fault::Fault, news::News},
};

/// Events that wait for a slow reader; behind them the run's own stream waits, and the agent keeps the rest.
const WAITING: usize = 16;

/// An open stream says something at least this often, or proxies take it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How a stream looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `text/event-stream`.
    Events,
    /// `application/x-ndjson`.
    Lines,
}

/// The stream that a request asks for, if it does.
pub(super) fn wanted(headers: &HeaderMap) -> Option<Form> {
    let accepts = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut kinds = accepts
        .flat_map(|value| value.split(','))
        .filter_map(|kind| kind.split(';').next());
    kinds.find_map(|kind| match kind.trim().to_ascii_lowercase().as_str() {
        "text/event-stream" => Some(Form::Events),
        "application/x-ndjson" | "application/ndjson" => Some(Form::Lines),
        _ => None,
    })
}

impl Form {
    fn frame(self, event: &str, line: &str) -> Bytes {
        match self {
            Self::Events => format!("event: {event}\ndata: {line}\n\n"),
            Self::Lines => format!("{line}\n"),
        }
        .into()
    }

    /// What says that nothing is new.
    fn alive(self) -> Bytes {
        match self {
            Self::Events => Bytes::from_static(b":\n\n"),
            Self::Lines => self.frame("alive", "{\"event\":\"alive\"}"),
        }
    }
}

/// Tells a stream's reader of events.
pub(super) struct Teller {
    form: Form,
    to: mpsc::Sender<Bytes>,
}

impl Teller {
    /// One that has left is told nothing: the execution goes on.
    pub(super) async fn tell(&self, event: &RunEvent) {
        if let Some((name, value)) = line(event) {
            drop(self.to.send(self.form.frame(name, &value.to_string())).await);
        }
    }
}

fn line(event: &RunEvent) -> Option<(&'static str, Value)> {
    let at = event.at_ms;
    let (name, mut value) = match &event.kind {
        RunEventKind::Accepted { standing } => {
            let mut value = json!({});
            if *standing != Standing::Existing {
                value["greenroom"] = serde_json::to_value(News::of(standing)).unwrap_or_default();
            }
            ("accepted", value)
        }
        RunEventKind::Queued { behind, running_ms } => (
            "queued",
            json!({ "behind": behind.0, "runningMilliseconds": running_ms }),
        ),
        RunEventKind::Started { .. } => ("started", json!({})),
        RunEventKind::Output {
            stream,
            text,
            late,
            omitted,
        } => {
            let name = match stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            let mut value = json!({ "text": text });
            if *omitted > 0 {
                value["omitted"] = (*omitted).into();
            }
            if *late {
                value["late"] = true.into();
            }
            (name, value)
        }
        RunEventKind::Display { data, .. } => ("display", json!({ "data": data })),
        // The answer at the end says it.
        RunEventKind::Finished(_) => return None,
    };
    value["event"] = name.into();
    value["atMilliseconds"] = at.into();
    Some((name, value))
}

/// Begins to answer once the session is there: what fails before has its own status.
pub(super) async fn answer(
    start: Start,
    form: Form,
    headers: &HeaderMap,
    delivery: &Delivery,
) -> Result<Answer, Fault> {
    let session = start.call.open().await?;
    let (to, events) = mpsc::channel(WAITING);
    let (call, id) = (start.call.clone(), start.request.id.clone());
    tokio::spawn(tell(start, Teller { form, to }, delivery.clone()));
    let frames = stream::unfold(events, move |mut events| async move {
        match timeout(KEEP_ALIVE, events.recv()).await {
            Ok(Some(frame)) => Some((Ok::<_, Infallible>(frame), events)),
            Ok(None) => None,
            Err(_) => Some((Ok(form.alive()), events)),
        }
    });
    let mut response = Response::new(Body::from_stream(frames.boxed()));
    let kind = match form {
        Form::Events => "text/event-stream",
        Form::Lines => "application/x-ndjson",
    };
    let into = response.headers_mut();
    into.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    into.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    into.insert(
        header::HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    executions::describe(into, &call, &id, "", headers);
    let standing = session.standing.clone();
    Ok(call.found(response, &session, &standing))
}

/// Runs it, and tells how it went. What is owed for its news and its end is carried before the last line is sent: a
/// reader that has left by then has heard neither.
async fn tell(start: Start, teller: Teller, delivery: Delivery) {
    let (name, line) = match start.run(Some(&teller)).await {
        Ok(done) => {
            let (body, _) = start.body(&done).await;
            if let Some(outcome) = done.transcript.outcome() {
                start.ended(outcome, &delivery);
            }
            let loss = done.transcript.loss();
            if let Some(news) = Owed::of(done.session, &done.standing, loss) {
                delivery.carry(Freight {
                    news: Some(news),
                    ..Freight::default()
                });
            }
            ("finished", finished(&body))
        }
        Err(fault) => {
            let mut value = fault.envelope(start.request.id.0.as_str());
            value["event"] = "failed".into();
            ("failed", value.to_string())
        }
    };
    drop(teller.to.send(teller.form.frame(name, &line)).await);
}

/// The answer within an event, byte for byte: its numbers may be larger than ours.
fn finished(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body).into_owned();
    let execution =
        RawValue::from_string(text).map_or_else(|_| "null".to_owned(), |raw| raw.get().to_owned());
    format!("{{\"event\":\"finished\",\"execution\":{execution}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_for_those_who_ask() {
        for (accept, form) in [
            ("*/*", None),
            ("application/json", None),
            ("text/event-stream", Some(Form::Events)),
            (
                "application/json;q=0.1, Application/X-NDJSON; q=1",
                Some(Form::Lines),
            ),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(wanted(&headers), form, "{accept}");
        }
        assert_eq!(wanted(&HeaderMap::new()), None);
    }

    #[test]
    fn frames_are_lines() {
        assert_eq!(Form::Lines.frame("x", "{}"), "{}\n");
        assert_eq!(Form::Events.frame("x", "{}"), "event: x\ndata: {}\n\n");
        assert_eq!(
            finished(b"{\"a\":1}"),
            "{\"event\":\"finished\",\"execution\":{\"a\":1}}"
        );
    }
}
