//! Bodies of answers: never silent for long, and they know when they have been written out.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use tokio::time::{Instant, Sleep, sleep};

use super::{super::caller::Delivery, Answering, Served};

/// An open stream says something at least this often, or proxies and clients take it for dead. It is ours and not
/// rmcp's, whose timer mixes two clocks and so cannot be tested on the paused one.
pub(in crate::mcp) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What it says: a comment, which no client shows.
pub(in crate::mcp) const COMMENT: &[u8] = b":\n\n";

/// A stream of events.
const EVENTS: &str = "text/event-stream";

/// A response's body. Once its end has been asked for, all before it is written out, and the news in it is told.
#[derive(Debug)]
pub struct Answered {
    source: Source,
    delivery: Delivery,
    /// Until the next comment, in a stream of events.
    silence: Option<Pin<Box<Sleep>>>,
}

/// Where the frames come from.
enum Source {
    /// A response that was there.
    Prompt(BoxBody<Bytes, Infallible>),
    /// One that is not there yet, in a stream that was opened for it.
    Awaited(Answering),
    /// What came of that, where it is no stream: it becomes one event.
    Whole(BoxBody<Bytes, Infallible>, BytesMut),
    /// That event has been sent.
    Over,
}

impl Answered {
    /// An answer that came in time.
    pub(super) fn prompt(response: Served, delivery: Delivery) -> Response<Self> {
        let streams = is_stream(&response);
        response.map(|body| Self {
            source: Source::Prompt(body),
            delivery,
            silence: streams.then(|| Box::pin(sleep(KEEP_ALIVE))),
        })
    }

    /// A stream for an answer that is still to come. It begins with a comment, at once.
    pub(super) fn late(answering: Answering, delivery: Delivery) -> Response<Self> {
        let body = Self {
            source: Source::Awaited(answering),
            delivery,
            silence: Some(Box::pin(sleep(Duration::ZERO))),
        };
        event_stream(body, "no-cache")
    }
}

/// A response that is a stream of events, which no proxy is to hold back.
pub(in crate::mcp) fn event_stream<B>(body: B, cache: &'static str) -> Response<B> {
    let mut response = Response::new(body);
    for (name, value) in [
        (header::CONTENT_TYPE, EVENTS),
        (header::CACHE_CONTROL, cache),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

fn is_stream(response: &Served) -> bool {
    response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(EVENTS.as_bytes()))
}

impl Source {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        loop {
            match self {
                Self::Prompt(body) => {
                    let frame = ready!(Pin::new(body).poll_frame(context));
                    return Poll::Ready(frame.map(|frame| match frame {
                        Ok(frame) => frame,
                        Err(never) => match never {},
                    }));
                }
                Self::Awaited(answering) => {
                    let response = ready!(answering.as_mut().poll(context));
                    let streams = is_stream(&response);
                    let body = response.into_body();
                    *self = if streams {
                        Self::Prompt(body)
                    } else {
                        Self::Whole(body, BytesMut::new())
                    };
                }
                Self::Whole(body, read) => match ready!(Pin::new(body).poll_frame(context)) {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            read.extend_from_slice(&data);
                        }
                    }
                    Some(Err(never)) => match never {},
                    None => {
                        // JSON on one line, as rmcp writes it.
                        let event = [b"data: ", &read[..], b"\n\n"].concat();
                        *self = Self::Over;
                        return Poll::Ready(Some(Frame::data(event.into())));
                    }
                },
                Self::Over => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prompt(_) => "Prompt",
            Self::Awaited(_) => "Awaited",
            Self::Whole(..) => "Whole",
            Self::Over => "Over",
        })
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = self.source.poll(context);
        let frame = match (polled, &mut self.silence) {
            (Poll::Ready(frame), _) => frame,
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some(silence)) => {
                ready!(silence.as_mut().poll(context));
                Some(Frame::data(Bytes::from_static(COMMENT)))
            }
        };
        if frame.is_none() {
            self.delivery.arrived();
        }
        if let Some(silence) = &mut self.silence {
            silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
        }
        Poll::Ready(frame.map(Ok))
    }

    /// Never, so that the end is always asked for.
    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Prompt(body) => body.size_hint(),
            Source::Awaited(_) | Source::Whole(..) | Source::Over => SizeHint::default(),
        }
    }
}
