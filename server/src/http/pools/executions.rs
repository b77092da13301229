//! Executions: started, followed to their end or handed back, and looked at again.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, StatusCode};
use futures_util::future::join;
use greenroom_protocol::{Language, RefusalKind, RunId, RunRequest, Standing, Stream};
use tokio::time::timeout;

use super::{
    Answer, Call, base, json, put,
    stream::{self, Teller},
};
use crate::{
    delivery::{Delivery, News as Owed},
    guest::{Guest, GuestError},
    rest::{
        address::{Dialect, encode},
        ask::{Ask, Mode, What},
        execution::{Execution, Kind, Outputs, Printed},
        fault::{Code, Fault},
        news::News,
    },
    sessions::Session,
    transcript::{Captured, Stage, Transcript},
};

pub(super) const OPERATION_ID: HeaderName = HeaderName::from_static("operation-id");
pub(super) const OPERATION_LOCATION: HeaderName = HeaderName::from_static("operation-location");
const TRUNCATED: HeaderName = HeaderName::from_static("x-greenroom-truncated");
const OUTPUTS: HeaderName = HeaderName::from_static("x-greenroom-outputs");
const DURATION: HeaderName = HeaderName::from_static("x-ms-container-execution-duration");

/// Bytes of each stream that an answer has at most.
pub(super) const STREAM_BYTES: usize = 1 << 20;

/// What is said of an execution that is found nowhere any more.
const GONE: &str = "greenroom: the sandbox ended before anybody was told the end of this execution; its output and variables are lost";

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
    start.answer(done, headers).await
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

    async fn follow(
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

    async fn answer(&self, done: Done, headers: &HeaderMap) -> Result<Answer, Fault> {
        let (body, truncated) = self.body(&done).await;
        let mut response = json(body);
        let outcome = done.transcript.outcome();
        if outcome.is_none() && done.lost.is_none() {
            let status = self.call.address.query.unfinished();
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            let accepted = &self.call.shared().accepted;
            accepted.note(&self.call.key, &self.request.id, self.kind);
        }
        if let Some(outcome) = outcome {
            put(
                response.headers_mut(),
                DURATION,
                &(outcome.duration_ms as u64).to_string(),
            );
            self.call
                .shared()
                .metrics
                .run_ended(outcome.language, outcome.status.as_str());
        }
        describe(
            response.headers_mut(),
            &self.call,
            &self.request.id,
            &truncated,
            headers,
        );
        let loss = done.transcript.loss();
        Ok(self.call.told(response, done.session, &done.standing, loss))
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
fn outputs(headers: &HeaderMap) -> Outputs {
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
struct Shown<'a> {
    call: &'a Call,
    mode: Mode,
    kind: Kind,
    timeout: Option<Duration>,
    most: usize,
    outputs: Outputs,
    lost: Option<&'a str>,
}

impl Shown<'_> {
    async fn body(&self, guest: &Guest, transcript: &Transcript, standing: &Standing) -> (Vec<u8>, String) {
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

/// An execution as it stands. Never makes a sandbox.
pub(super) async fn poll(call: &Call, id: &str, headers: &HeaderMap) -> Result<Answer, Fault> {
    let none = || {
        Fault::new(
            Code::ExecutionNotFound,
            "there is no such execution in this session",
        )
        .of(id.chars().take(64).collect::<String>())
    };
    let id = RunId(id.to_owned());
    if !id.is_valid() {
        return Err(none());
    }
    let Some(session) = call.look().await? else {
        return gone(call, &id, headers).ok_or_else(none);
    };
    let mut transcript = Transcript::new(id.clone(), None);
    let followed = async {
        let mut follow = session.guest.follow(&id, 0, Duration::ZERO)?;
        while let Some(event) = follow.next().await? {
            transcript.push(event);
        }
        Ok::<_, GuestError>(())
    };
    match followed.await {
        Ok(()) => {}
        // Another sandbox has the session's name by now, or this one has ended a moment ago.
        Err(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
            return gone(call, &id, headers).ok_or_else(none);
        }
        Err(error) if error.is_gone() => return gone(call, &id, headers).ok_or_else(none),
        Err(error) => return Err(Fault::from(&error)),
    }
    let is_shell = if let Stage::Finished(outcome) = &transcript.stage {
        outcome.language.is_shell()
    } else {
        let runs = session
            .guest
            .runs()
            .await
            .map_err(|error| Fault::from(&error))?
            .runs;
        let own = runs.iter().find(|run| run.id == id).ok_or_else(none)?;
        own.language.is_shell()
    };
    let code_is_shell = call.pool.languages.first().is_some_and(Language::is_shell);
    let shown = Shown {
        call,
        mode: Mode::Asynchronous,
        kind: if is_shell && !code_is_shell {
            Kind::Shell
        } else {
            Kind::Code
        },
        timeout: None,
        most: STREAM_BYTES,
        outputs: outputs(headers),
        lost: None,
    };
    // Looking does not use up the news of a session, but that of a kernel that this execution tells of.
    let (body, truncated) = shown.body(&session.guest, &transcript, &Standing::Existing).await;
    let mut response = json(body);
    describe(response.headers_mut(), call, &id, &truncated, headers);
    let standing = session.standing.clone();
    if transcript.outcome().is_some() {
        call.shared().accepted.told(&call.key, &id);
    }
    let answer = call.found(response, &session, &standing);
    let owed = Owed::of(session, &Standing::Existing, transcript.loss());
    Ok(Answer { owed, ..answer })
}

/// An execution that was accepted here, and whose sandbox has taken it along: it has failed, and why is said. What
/// became of the session its next answer tells.
fn gone(call: &Call, id: &RunId, headers: &HeaderMap) -> Option<Answer> {
    let kind = call.shared().accepted.kind(&call.key, id)?;
    let (printed, news) = (Printed::default(), News::default());
    let execution = Execution {
        identifier: &call.identifier,
        mode: Mode::Asynchronous,
        kind,
        transcript: &Transcript::new(id.clone(), None),
        stdout: &printed,
        stderr: &printed,
        timeout: None,
        outputs: Outputs::Last,
        news: &news,
        lost: Some(GONE),
    };
    let mut response = json(execution.render(call.dialect()));
    describe(response.headers_mut(), call, id, "", headers);
    Some(Answer {
        response,
        owed: None,
        session: "none",
    })
}
