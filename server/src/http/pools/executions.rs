//! Executions: started, and followed to their end or handed back.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, StatusCode};
use futures_util::future::join;
use greenroom_protocol::{Language, RunId, RunOutcome, RunRequest, Standing, Stream};
use tokio::time::timeout;

use super::{
    Answer, Call,
    accepted::Noted,
    base, json, put,
    stream::{self, Teller},
};
use crate::{
    delivery::Delivery,
    guest::{Guest, GuestError},
    rest::{
        address::{Dialect, encode},
        ask::{Ask, Mode, What},
        execution::{Execution, Kind, Outputs, Printed},
        fault::{Code, Fault},
        news::News,
    },
    sessions::Session,
    transcript::{Captured, Transcript},
};

pub(super) const OPERATION_ID: HeaderName = HeaderName::from_static("operation-id");
pub(super) const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");
const TRUNCATED: HeaderName = HeaderName::from_static("x-greenroom-truncated");
const OUTPUTS: HeaderName = HeaderName::from_static("x-greenroom-outputs");
const DURATION: HeaderName = HeaderName::from_static("x-ms-container-execution-duration");

/// Bytes of each stream that an answer has at most.
pub(super) const STREAM_BYTES: usize = 1 << 20;

/// How long an answer that tells of a lost sandbox waits for the fresh one, which knows the reason.
const REOPENING: Duration = Duration::from_secs(15);

/// An execution that is about to start.
pub(super) struct Start {
    pub(super) call: Call,
    pub(super) request: RunRequest,
    pub(super) kind: Kind,
    pub(super) mode: Mode,
    pub(super) timeout: Duration,
    /// Bytes of each stream.
    pub(super) most: usize,
    pub(super) outputs: Outputs,
}

/// What came of it.
pub(super) struct Done {
    pub(super) session: Session,
    pub(super) transcript: Transcript,
    pub(super) standing: Standing,
    pub(super) lost: Option<&'static str>,
}

pub(super) async fn execute(
    call: &Call,
    ask: Ask,
    headers: &HeaderMap,
    delivery: &Delivery,
) -> Result<Answer, Fault> {
    let start = Start::new(call, ask, headers)?;
    if let (Some(form), Mode::Synchronous) = (stream::wanted(headers), start.mode) {
        return stream::answer(start, form, headers, delivery).await;
    }
    let done = start.run(None).await?;
    Ok(start.answer(done, headers, delivery).await)
}

impl Start {
    fn new(call: &Call, ask: Ask, headers: &HeaderMap) -> Result<Self, Fault> {
        let pool = &call.pool;
        let (kind, language, code) = match ask.what {
            What::Code(code) => (Kind::Code, pool.language(), code),
            What::Shell(shell) => (Kind::Shell, Language::Bash, shell.script()?),
        };
        let is_new = call.dialect() == Dialect::B;
        if !is_new && (kind == Kind::Shell || ask.mode == Mode::Asynchronous) {
            let what = "shell commands and asynchronous executions are for POST executions";
            return Err(Fault::new(Code::NotSupported, what));
        }
        let timeout = ask.timeout.unwrap_or(pool.run_timeout).min(pool.run_timeout_max);
        Ok(Self {
            call: call.clone(),
            request: RunRequest {
                id: id(headers)?,
                language,
                code,
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            },
            kind,
            mode: ask.mode,
            timeout,
            most: ask.most.unwrap_or(STREAM_BYTES).min(STREAM_BYTES),
            outputs: outputs(headers),
        })
    }

    /// Runs it to its end, or until it is known to have begun if nobody waits for more. A client that leaves stops
    /// nothing: the execution goes on and can be polled.
    pub(super) async fn run(&self, teller: Option<&Teller>) -> Result<Done, Fault> {
        let mut session = self.call.open().await?;
        let mut transcript = Transcript::new(self.request.id.clone(), Some(self.request.language));
        let mut followed = self.follow(&session.guest, &mut transcript, teller).await;
        // A session that was answered from memory may have ended a moment ago: nothing ran, so it is asked again.
        if let Err(error) = &followed
            && error.is_gone()
            && transcript.next == 0
        {
            session = self.call.open().await?;
            followed = self.follow(&session.guest, &mut transcript, teller).await;
        }
        let standing = transcript
            .standing
            .clone()
            .unwrap_or_else(|| session.standing.clone());
        match followed {
            Ok(()) => Ok(Done {
                session,
                transcript,
                standing,
                lost: None,
            }),
            Err(error) if error.is_gone() && transcript.next > 0 => {
                tracing::info!(%error, run = %transcript.id, "a sandbox ended under an execution");
                self.lost(transcript, session).await
            }
            Err(error) => Err(Fault::from(&error)),
        }
    }

    /// Notes it before it is sent: from then on it may run whether its client stays or not, and may be asked for.
    async fn follow(
        &self,
        guest: &Guest,
        transcript: &mut Transcript,
        teller: Option<&Teller>,
    ) -> Result<(), GuestError> {
        let (accepted, key) = (&self.call.shared().accepted, &self.call.key);
        let noted = accepted.note(key, &self.request.id, self.kind, guest.id());
        let followed = self.events(guest, transcript, teller).await;
        if matches!(followed, Err(GuestError::Refused(_))) && transcript.next == 0 && noted == Noted::Now {
            accepted.forget(key, &self.request.id);
        }
        followed
    }

    async fn events(
        &self,
        guest: &Guest,
        transcript: &mut Transcript,
        teller: Option<&Teller>,
    ) -> Result<(), GuestError> {
        let mut follow = guest.run(&self.request)?;
        while let Some(event) = follow.next().await? {
            if let Some(teller) = teller {
                teller.tell(&event).await;
            }
            transcript.push(event);
            if self.mode == Mode::Asynchronous && transcript.is_placed() {
                break;
            }
        }
        Ok(())
    }

    /// The sandbox ended under it. The session is opened again at once: only the fresh sandbox knows why.
    async fn lost(&self, transcript: Transcript, before: Session) -> Result<Done, Fault> {
        let session = timeout(REOPENING, self.call.open())
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or(before);
        let standing = session.standing.clone();
        Ok(Done {
            session,
            transcript,
            standing,
            lost: Some("greenroom: the sandbox ended under the execution; variables are lost"),
        })
    }

    /// The body of its answer, and what was cut.
    pub(super) async fn body(&self, done: &Done) -> (Vec<u8>, String) {
        let shown = Shown {
            call: &self.call,
            mode: self.mode,
            kind: self.kind,
            timeout: Some(self.timeout),
            most: self.most,
            outputs: self.outputs,
            lost: done.lost,
        };
        shown
            .body(&done.session.guest, &done.transcript, &done.standing)
            .await
    }

    /// An answer tells its end, to whom it reaches.
    pub(super) fn ended(&self, outcome: &RunOutcome, delivery: &Delivery) {
        let metrics = &self.call.shared().metrics;
        metrics.run_ended(outcome.language, outcome.status.as_str());
        delivery.carry(self.call.telling_end_of(&self.request.id));
    }

    async fn answer(&self, done: Done, headers: &HeaderMap, delivery: &Delivery) -> Answer {
        let (body, truncated) = self.body(&done).await;
        let mut response = json(body);
        let outcome = done.transcript.outcome();
        if outcome.is_none() && done.lost.is_none() {
            let status = self.call.address.query.unfinished();
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        }
        if let Some(outcome) = outcome {
            put(
                response.headers_mut(),
                DURATION,
                &(outcome.duration_ms as u64).to_string(),
            );
            self.ended(outcome, delivery);
        }
        describe(
            response.headers_mut(),
            &self.call,
            &self.request.id,
            &truncated,
            headers,
        );
        let loss = done.transcript.loss();
        self.call.told(response, done.session, &done.standing, loss)
    }
}

/// The headers of an execution.
pub(super) fn describe(into: &mut HeaderMap, call: &Call, id: &RunId, truncated: &str, asked: &HeaderMap) {
    let query = &call.address.query;
    let version = query
        .version
        .as_ref()
        .map(|version| format!("api-version={}&", encode(version)));
    let location = format!(
        "{}/executions/{}?{}identifier={}",
        base(&call.rest, asked, &call.address.pool),
        id,
        version.unwrap_or_default(),
        encode(&call.identifier),
    );
    put(into, OPERATION_ID, &id.0);
    put(into, OPERATION_LOCATION, &location);
    if !truncated.is_empty() {
        put(into, TRUNCATED, truncated);
    }
}

/// Which of what the code showed is wanted.
pub(super) fn outputs(headers: &HeaderMap) -> Outputs {
    match headers.get(&OUTPUTS) {
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"all") => Outputs::All,
        Some(_) | None => Outputs::Last,
    }
}

/// The client's own name for it, or one of ours.
fn id(headers: &HeaderMap) -> Result<RunId, Fault> {
    let sent = headers
        .get(&OPERATION_ID)
        .map(|value| value.to_str().unwrap_or_default());
    match sent {
        Some(text) if !text.is_empty() => {
            let id = RunId(text.to_owned());
            let bad = "operation-id has 1 to 64 letters, digits, - and _";
            if id.is_valid() {
                Ok(id)
            } else {
                Err(Fault::bad(bad).of("operation-id"))
            }
        }
        _ => {
            let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
            Ok(RunId(id.to_string()))
        }
    }
}

/// An execution that an answer shows.
pub(super) struct Shown<'a> {
    pub(super) call: &'a Call,
    pub(super) mode: Mode,
    pub(super) kind: Kind,
    pub(super) timeout: Option<Duration>,
    pub(super) most: usize,
    pub(super) outputs: Outputs,
    pub(super) lost: Option<&'a str>,
}

impl Shown<'_> {
    /// The answer's body, and what was cut.
    pub(super) async fn body(
        &self,
        guest: &Guest,
        transcript: &Transcript,
        standing: &Standing,
    ) -> (Vec<u8>, String) {
        let (stdout, stderr) = join(
            printed(guest, transcript, Stream::Stdout, self.most),
            printed(guest, transcript, Stream::Stderr, self.most),
        )
        .await;
        let mut news = News::of(standing);
        news.kernel = transcript.loss().map(|_| "restarted");
        news.late.clone_from(&transcript.late.text);
        let execution = Execution {
            identifier: &self.call.identifier,
            mode: self.mode,
            kind: self.kind,
            transcript,
            stdout: &stdout,
            stderr: &stderr,
            timeout: self.timeout,
            outputs: self.outputs,
            news: &news,
            lost: self.lost,
        };
        let cut: Vec<&str> = [("stdout", stdout.dropped), ("stderr", stderr.dropped)]
            .into_iter()
            .filter_map(|(name, dropped)| (dropped > 0).then_some(name))
            .collect();
        (execution.render(self.call.dialect()), cut.join(", "))
    }
}

/// The beginning of a stream. Events carry its head and its tail: where there is more between them, it lies in a file
/// of the session.
async fn printed(guest: &Guest, transcript: &Transcript, stream: Stream, most: usize) -> Printed {
    let seen: &Captured = match stream {
        Stream::Stdout => &transcript.stdout,
        Stream::Stderr => &transcript.stderr,
    };
    let summary = transcript.summary(stream);
    let Some((head, _)) = seen.gaps.first() else {
        return Printed::cut(&seen.text, seen.text.len() as u64, most);
    };
    let bytes = summary.bytes.max(seen.bytes);
    let head = &seen.text[..*head];
    if head.len() < most
        && let Some(path) = &summary.path
    {
        let end = most as u64;
        let read = async { guest.read_file(path, 0..end).await?.body.collect(most).await };
        match read.await {
            Ok(whole) => return Printed::of_bytes(&whole, bytes),
            Err(error) => tracing::debug!(%error, "saved output cannot be read"),
        }
    }
    Printed::cut(head, bytes, most)
}
