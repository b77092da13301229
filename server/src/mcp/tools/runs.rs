//! `execute_code`, `get_run`, `cancel_run`.

use std::{sync::PoisonError, time::Duration};

use greenroom_protocol::{RefusalKind, RunId, RunRequest, Standing, limits};
use tokio::time::timeout;

use super::{
    super::{
        arguments::{Execute, Form, Waiting},
        render::{self, Heading, RunStyle, Session as Seen},
        transcript::Transcript,
        watch::{Waited, Watch},
    },
    Call, HANDED_BACK, Outcome, Stop, Tools, refused, with_loss, with_news,
};
use crate::{
    error::{Failure, FailureKind},
    guest::{Guest, GuestError, WriteMode},
    sessions::Session,
};

/// How long an answer that tells of a lost sandbox waits for the fresh one, which knows the reason.
const REOPENING: Duration = Duration::from_secs(15);

/// How long `cancel_run` waits for the run to end, so that it can say how it did.
const CANCELLING: Duration = Duration::from_secs(3);

impl Tools {
    pub(super) async fn execute(&self, call: &Call<'_>, execute: Execute) -> Result<Outcome, Stop> {
        call.caller.progress.tell("starting".to_owned()).await;
        let request = RunRequest {
            id: mint_run()?,
            language: execute.language,
            code: execute.code,
            timeout_ms: u64::try_from(execute.timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let style = RunStyle {
            chars: execute.chars,
            errors: self.config.errors,
            timeout: Some(execute.timeout),
            form: execute.form,
        };
        let mut session = self.open(call).await?;
        let mut transcript = Transcript::new(request.id.clone(), Some(execute.language));
        let mut waited = self
            .run(call, &session, &request, &mut transcript, execute.waiting)
            .await;
        // A session that was answered from memory may have ended a moment ago: nothing ran, so it is asked again.
        if let Waited::Failed(error) = &waited
            && error.is_gone()
            && transcript.next == 0
        {
            session = self.open(call).await?;
            waited = self
                .run(call, &session, &request, &mut transcript, execute.waiting)
                .await;
        }
        transcript.wait(call.watch.elapsed());
        match waited {
            Waited::Through | Waited::Patience => self.show(call, session, &transcript, style).await,
            Waited::Cancelled => {
                if !call.caller.closing.is_cancelled() {
                    cancel(&session.guest, &request.id).await;
                }
                Err(Stop::Cancelled)
            }
            Waited::Failed(error) if error.is_gone() => self.lost(call, &error, &transcript, style).await,
            Waited::Failed(error) => Err(refused(&session, public(&error))),
        }
    }

    async fn run(
        &self,
        call: &Call<'_>,
        session: &Session,
        request: &RunRequest,
        transcript: &mut Transcript,
        waiting: Waiting,
    ) -> Waited {
        match session.guest.run(request) {
            Ok(mut run) => {
                let enough = |seen: &Transcript| waiting == Waiting::NotAtAll && seen.is_placed();
                // Patience is for runs: what the sandbox took does not count.
                let watch = call.watch.allowing(self.config.patience);
                watch.follow(&mut run, transcript, enough).await
            }
            Err(error) => Waited::Failed(error),
        }
    }

    /// The answer to a run that was started by this call.
    async fn show(
        &self,
        call: &Call<'_>,
        session: Session,
        transcript: &Transcript,
        style: RunStyle,
    ) -> Result<Outcome, Stop> {
        let standing = transcript
            .standing
            .clone()
            .unwrap_or_else(|| session.standing.clone());
        let heading = call.heading(Seen::from(&standing));
        let answer = self.shown(&heading, &session.guest, transcript, style).await;
        match transcript.outcome() {
            Some(outcome) => {
                let status = answer.meta.run.as_ref().map_or("", |run| run.status.as_str());
                self.metrics.run_ended(outcome.language, status);
            }
            None => self.hand_back(transcript.id.clone()),
        }
        Ok(with_loss(answer, session, &standing, transcript.loss()))
    }

    /// Renders; where the answer lacks output that the agent had no reason to save, it is saved first, so that
    /// nothing is only half there.
    async fn shown(
        &self,
        heading: &Heading,
        guest: &Guest,
        seen: &Transcript,
        style: RunStyle,
    ) -> render::Answer {
        let answer = render::run(heading, seen, style);
        let unsaved = |name: &str| {
            let run = answer.meta.run.as_ref()?;
            let meta = if name == "stdout" {
                &run.stdout
            } else {
                &run.stderr
            };
            (meta.truncated && meta.path.is_none())
                .then(|| format!(".greenroom/runs/{}.{name}.txt", seen.id.0))
        };
        let (stdout, stderr) = (unsaved("stdout"), unsaved("stderr"));
        if seen.outcome().is_none() || (stdout.is_none() && stderr.is_none()) {
            return answer;
        }
        let mut saved = seen.clone();
        for (path, captured) in [(stdout, &mut saved.stdout), (stderr, &mut saved.stderr)] {
            let Some(path) = path.filter(|_| !captured.has_gaps()) else {
                continue;
            };
            match guest
                .write_file(&path, WriteMode::Replace, captured.text.clone())
                .await
            {
                Ok(_) => captured.saved = Some(path),
                Err(error) => tracing::debug!(%error, "output of a run could not be saved"),
            }
        }
        render::run(heading, &saved, style)
    }

    /// The sandbox ended under the run. The session is opened again at once: only the fresh sandbox knows why.
    async fn lost(
        &self,
        call: &Call<'_>,
        error: &GuestError,
        seen: &Transcript,
        style: RunStyle,
    ) -> Result<Outcome, Stop> {
        tracing::info!(%error, run = %seen.id, "a sandbox ended under a run");
        self.metrics.failed(FailureKind::Lost);
        let reopened = timeout(REOPENING, self.sessions.open(&call.key, call.terms())).await;
        let session = reopened.ok().and_then(Result::ok);
        let standing = session
            .as_ref()
            .map_or(Standing::Existing, |session| session.standing.clone());
        let found = session.as_ref().map_or(Seen::None, |_| Seen::from(&standing));
        let answer = render::lost(&call.heading(found), seen, style);
        match session {
            Some(session) => Ok(with_news(answer, session, &standing)),
            None => Ok(Outcome { answer, news: None }),
        }
    }

    pub(super) async fn get_run(
        &self,
        call: &Call<'_>,
        id: RunId,
        since: u64,
        wait: Duration,
    ) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Err(no_run(&id).into());
        };
        if !wait.is_zero() {
            call.caller.progress.tell("waiting for the run".to_owned()).await;
        }
        let watch = Watch::new(call.caller, wait + limits_of_patience());
        let mut follow = session
            .guest
            .follow(&id, since, wait)
            .map_err(|error| refused(&session, public(&error)))?;
        let mut transcript = Transcript::new(id, None);
        transcript.next = since;
        match watch.follow(&mut follow, &mut transcript, |_| false).await {
            Waited::Through | Waited::Patience => {}
            Waited::Cancelled => return Err(Stop::Cancelled),
            Waited::Failed(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                return Err(refused(&session, no_run(&transcript.id)));
            }
            Waited::Failed(error) => return Err(refused(&session, public(&error))),
        }
        self.complete(&session, &mut transcript).await?;
        let style = RunStyle {
            chars: self.config.limits.output_chars,
            errors: self.config.errors,
            timeout: None,
            form: Form::Text,
        };
        let answer = self
            .shown(&call.found(&session), &session.guest, &transcript, style)
            .await;
        if let (Some(outcome), Some(run)) = (transcript.outcome(), &answer.meta.run)
            && self.was_handed_back(&transcript.id)
        {
            self.metrics.run_ended(outcome.language, run.status.as_str());
        }
        // Looking at a run does not use up the news of its session.
        Ok(with_loss(answer, session, &Standing::Existing, transcript.loss()))
    }

    /// What a replay from the middle cannot know: whether the run waits, works or is over, and in what language.
    async fn complete(&self, session: &Session, transcript: &mut Transcript) -> Result<(), Stop> {
        if transcript.outcome().is_some() {
            return Ok(());
        }
        let runs = session
            .guest
            .runs()
            .await
            .map_err(|error| refused(session, public(&error)))?
            .runs;
        if transcript.place(&runs) {
            Ok(())
        } else {
            Err(refused(session, no_run(&transcript.id)))
        }
    }

    pub(super) async fn list_runs(&self, call: &Call<'_>) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there are no runs"));
        };
        let list = session
            .guest
            .runs()
            .await
            .map_err(|error| refused(&session, public(&error)))?;
        Ok(Outcome {
            answer: render::runs(&call.found(&session), &list),
            news: None,
        })
    }

    pub(super) async fn cancel_run(&self, call: &Call<'_>, id: RunId) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Err(no_run(&id).into());
        };
        match session.guest.cancel(&id).await {
            Ok(()) => {}
            Err(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
                return Err(refused(&session, no_run(&id)));
            }
            // It is over: the answer shows how it ended.
            Err(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::Conflict => {}
            Err(error) => return Err(refused(&session, public(&error))),
        }
        self.get_run(call, id, 0, CANCELLING).await
    }

    fn hand_back(&self, id: RunId) {
        let mut handed = self.handed_back.lock().unwrap_or_else(PoisonError::into_inner);
        if handed.len() == HANDED_BACK {
            handed.pop_front();
        }
        handed.push_back(id);
    }

    /// Whether a run's end has yet to be counted: each is counted once, however often it is looked at.
    fn was_handed_back(&self, id: &RunId) -> bool {
        let mut handed = self.handed_back.lock().unwrap_or_else(PoisonError::into_inner);
        let place = handed.iter().position(|handed| handed == id);
        place.is_some_and(|place| handed.remove(place).is_some())
    }
}

/// The agent ends a stream when the time to follow is over; this much later patience would.
const fn limits_of_patience() -> Duration {
    Duration::from_secs(3)
}

/// A run whose caller has left is stopped; the session and its state stay.
async fn cancel(guest: &Guest, id: &RunId) {
    if let Err(error) = guest.cancel(id).await {
        tracing::debug!(%error, run = %id, "a run whose caller left could not be cancelled");
    }
}

fn public(error: &GuestError) -> Failure {
    let failure = Failure::from(error);
    match failure.kind {
        FailureKind::BadArgument => {}
        FailureKind::Internal => tracing::warn!(%error, "a sandbox answered what it must not"),
        FailureKind::Capacity
        | FailureKind::Busy
        | FailureKind::NoKernel
        | FailureKind::Unavailable
        | FailureKind::Forbidden
        | FailureKind::NotFound
        | FailureKind::Conflict
        | FailureKind::DiskFull
        | FailureKind::Generation
        | FailureKind::Lost => tracing::debug!(%error, "a sandbox refused"),
    }
    failure
}

fn no_run(id: &RunId) -> Failure {
    Failure::new(
        FailureKind::NotFound,
        format!(
            "there is no run {:?} in this conversation's sandbox. Runs are lost with their sandbox, and {} finished ones are kept: \
             get_run without run_id lists them",
            id.0,
            limits::KEPT_RUNS
        ),
    )
}

/// Short enough for a model to copy; unique within a sandbox is all that it has to be.
fn mint_run() -> Result<RunId, Failure> {
    let mut bytes = [0; 5];
    getrandom::fill(&mut bytes)
        .map_err(|_| Failure::new(FailureKind::Internal, "the operating system gave no random bytes"))?;
    Ok(RunId(format!("run-{}", crate::conversation::hex(&bytes))))
}
