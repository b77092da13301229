//! Executions that are asked for again: looked at where they run, and what is said of those that are not there.

use std::time::Duration;

use axum::http::HeaderMap;
use greenroom_protocol::{Language, RefusalKind, RunId, Standing};

use super::{
    Answer, Call,
    accepted::{End, Known},
    executions::{STREAM_BYTES, Shown, describe, outputs},
    json,
};
use crate::{
    delivery::{Delivery, News as Owed},
    guest::{Guest, GuestError},
    rest::{
        ask::Mode,
        execution::{Execution, Kind, Outputs, Printed},
        fault::{Code, Fault},
        news::News,
    },
    sandbox::SandboxId,
    sessions::Session,
    transcript::{Stage, Transcript},
};

/// What is said of an execution whose sandbox has taken it along.
const GONE: &str = "greenroom: the sandbox ended before anybody was told the end of this execution; its output and variables are lost";

/// How often the session is looked up before an answer says that it cannot be reached.
const LOOKS: usize = 2;

/// Where an execution is.
enum Found {
    /// In the session's sandbox.
    Here(Session, Box<Transcript>),
    /// Not there; and the sandbox that the session has instead, if it has one.
    Elsewhere(Option<SandboxId>),
}

/// What a look at a sandbox that did not show an execution says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// The sandbox is well, and does not have it.
    NotHere,
    /// The sandbox is over.
    Over,
    /// The sandbox may be over: only the engine knows.
    Unsure,
    /// Nothing.
    Nothing,
}

/// What is known of an execution that the session's sandbox does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its sandbox ended with it, and nobody was told.
    Lost(Kind),
    /// It ended, and is not kept any more.
    Past,
    /// Nothing was ever heard of it here.
    Unknown,
}

/// An execution as it stands. Never makes a sandbox.
pub(super) async fn poll(
    call: &Call,
    id: &str,
    headers: &HeaderMap,
    delivery: &Delivery,
) -> Result<Answer, Fault> {
    let id = RunId(id.to_owned());
    if !id.is_valid() {
        return Err(none(&id, Fate::Unknown));
    }
    match look(call, &id).await? {
        Found::Here(session, transcript) => {
            let kind = kind(call, &session.guest, &transcript).await?;
            if transcript.outcome().is_some() {
                delivery.carry(call.telling_end_of(&transcript.id));
            }
            Ok(shown(call, session, &transcript, kind, headers).await)
        }
        Found::Elsewhere(held) => {
            let known = call.shared().accepted.find(&call.key, &id);
            match fate(known.as_ref(), held.as_ref()) {
                Fate::Lost(kind) => Ok(lost(call, &id, kind, headers)),
                fate @ (Fate::Past | Fate::Unknown) => Err(none(&id, fate)),
            }
        }
    }
}

async fn look(call: &Call, id: &RunId) -> Result<Found, Fault> {
    let mut looks = 0;
    loop {
        looks += 1;
        let Some(session) = call.look().await? else {
            return Ok(Found::Elsewhere(None));
        };
        let error = match replayed(&session.guest, id).await {
            Ok(transcript) => return Ok(Found::Here(session, Box::new(transcript))),
            Err(error) => error,
        };
        match says(&error) {
            Says::NotHere => return Ok(Found::Elsewhere(Some(session.guest.id().clone()))),
            Says::Over => return Ok(Found::Elsewhere(None)),
            Says::Unsure if looks < LOOKS => {}
            Says::Unsure => {
                tracing::warn!(%error, "a session's sandbox cannot be reached");
                let what =
                    "the sandbox could not be reached, and the execution may be at work in it: ask again";
                return Err(Fault::new(Code::SandboxUnavailable, what));
            }
            Says::Nothing => return Err(Fault::from(&error)),
        }
    }
}

/// What has happened so far.
async fn replayed(guest: &Guest, id: &RunId) -> Result<Transcript, GuestError> {
    let mut transcript = Transcript::new(id.clone(), None);
    let mut follow = guest.follow(id, 0, Duration::ZERO)?;
    while let Some(event) = follow.next().await? {
        transcript.push(event);
    }
    Ok(transcript)
}

fn says(error: &GuestError) -> Says {
    if matches!(error, GuestError::Refused(refusal) if refusal.kind == RefusalKind::NotFound) {
        Says::NotHere
    } else if error.is_over() {
        Says::Over
    } else if error.is_gone() {
        Says::Unsure
    } else {
        Says::Nothing
    }
}

/// A sandbox forgets executions, and takes those that it has along: only where the session's sandbox is not the one
/// that ran it has it been lost.
fn fate(known: Option<&Known>, held: Option<&SandboxId>) -> Fate {
    match known {
        None => Fate::Unknown,
        Some(known) if known.end == End::Told || held == Some(&known.sandbox) => Fate::Past,
        Some(known) => Fate::Lost(known.kind),
    }
}

fn none(id: &RunId, fate: Fate) -> Fault {
    let what = match fate {
        Fate::Past => "this execution is no longer kept: many others have ended since, or its session has",
        Fate::Lost(_) | Fate::Unknown => "there is no such execution in this session",
    };
    Fault::new(Code::ExecutionNotFound, what).of(id.0.chars().take(64).collect::<String>())
}

/// Whether it is code or a command. Of one that this server did not accept itself the language tells, as far as it can.
async fn kind(call: &Call, guest: &Guest, transcript: &Transcript) -> Result<Kind, Fault> {
    let id = &transcript.id;
    if let Some(known) = call.shared().accepted.find(&call.key, id) {
        return Ok(known.kind);
    }
    let is_shell = if let Stage::Finished(outcome) = &transcript.stage {
        outcome.language.is_shell()
    } else {
        let runs = guest.runs().await.map_err(|error| Fault::from(&error))?.runs;
        let own = runs.iter().find(|run| run.id == *id);
        own.ok_or_else(|| none(id, Fate::Past))?.language.is_shell()
    };
    let code_is_shell = call.pool.languages.first().is_some_and(Language::is_shell);
    Ok(if is_shell && !code_is_shell {
        Kind::Shell
    } else {
        Kind::Code
    })
}

/// One that the session's sandbox has.
async fn shown(
    call: &Call,
    session: Session,
    transcript: &Transcript,
    kind: Kind,
    headers: &HeaderMap,
) -> Answer {
    let shown = Shown {
        call,
        mode: Mode::Asynchronous,
        kind,
        timeout: None,
        most: STREAM_BYTES,
        outputs: outputs(headers),
        lost: None,
    };
    // Looking does not use up the news of a session, but that of a kernel that this execution tells of.
    let (body, truncated) = shown.body(&session.guest, transcript, &Standing::Existing).await;
    let mut response = json(body);
    describe(response.headers_mut(), call, &transcript.id, &truncated, headers);
    let standing = session.standing.clone();
    let answer = call.found(response, &session, &standing);
    let owed = Owed::of(session, &Standing::Existing, transcript.loss());
    Answer { owed, ..answer }
}

/// One that its sandbox has taken along: it has failed, and why is said. What became of the session its next answer
/// tells.
fn lost(call: &Call, id: &RunId, kind: Kind, headers: &HeaderMap) -> Answer {
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
    Answer {
        response,
        owed: None,
        session: "none",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use greenroom_protocol::{EndReason, Refusal};

    use super::*;
    use crate::{engine::EngineError, guest::Lost};

    fn sandbox(text: &str) -> SandboxId {
        SandboxId::parse(&format!("grs-{text:0>24}")).unwrap()
    }

    #[test]
    fn only_the_end_of_its_sandbox_loses_an_execution() {
        let known = |end| Known {
            kind: Kind::Shell,
            sandbox: sandbox("1"),
            end,
        };
        let (open, told) = (known(End::Untold), known(End::Told));
        for (known, held, expected) in [
            (None, None, Fate::Unknown),
            (None, Some("1"), Fate::Unknown),
            (Some(&open), Some("1"), Fate::Past),
            (Some(&open), Some("2"), Fate::Lost(Kind::Shell)),
            (Some(&open), None, Fate::Lost(Kind::Shell)),
            (Some(&told), Some("1"), Fate::Past),
            (Some(&told), Some("2"), Fate::Past),
            (Some(&told), None, Fate::Past),
        ] {
            let held = held.map(sandbox);
            assert_eq!(fate(known, held.as_ref()), expected, "{known:?} {held:?}");
        }
    }

    #[test]
    fn what_cannot_be_reached_is_not_over() {
        let engine = |error| GuestError::Lost(Lost::Engine(Arc::new(error)));
        let refused = |kind| {
            GuestError::Refused(Refusal {
                kind,
                message: "why".into(),
            })
        };
        for (error, expected) in [
            (refused(RefusalKind::NotFound), Says::NotHere),
            (refused(RefusalKind::QueueFull), Says::Nothing),
            (GuestError::Ended(EndReason::Idle), Says::Over),
            (engine(EngineError::NoSandbox(sandbox("1"))), Says::Over),
            (engine(EngineError::Unreachable("why".into())), Says::Unsure),
            (GuestError::Lost(Lost::Broke("why".into())), Says::Unsure),
            (GuestError::Lost(Lost::NoRelay { seconds: 1 }), Says::Nothing),
            (
                GuestError::Timeout {
                    what: "it",
                    seconds: 1,
                },
                Says::Nothing,
            ),
        ] {
            assert_eq!(says(&error), expected, "{error}");
        }
    }
}
