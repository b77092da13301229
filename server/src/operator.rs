//! What an operator sees of a deployment from the command line and may do to it, whether or not a server runs:
//! `greenroom sessions` and `greenroom sweep`.
//!
//! All of it comes from the engine and from the agents, as everything else does: there is no server to ask.

mod commands;
mod table;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use greenroom_protocol::{EndReason, Hello, LeaseState, RestartReason};
use serde::Serialize;
use tokio::time::timeout;

pub use self::{
    commands::{Broom, Format, sessions, sweep},
    table::Table,
};
use crate::{
    archive::Archive,
    config::Config,
    conversation::{Secret, SessionName},
    engine::{Derivation, Engine, EngineError, Listed, ListedState, Place, Usage},
    guest::{Guest, GuestError},
    pool::{Ground, derivation, judge},
    sandbox::SandboxId,
    serve::{self, ServeError},
};

/// A sandbox that does not answer within this is shown as one that does not.
const ANSWER: Duration = Duration::from_secs(5);
/// One that is to end is asked for longer: without its answer its last changes are lost, and a busy machine takes
/// seconds for a channel alone.
const LAST_ANSWER: Duration = Duration::from_secs(20);
/// Sandboxes that are asked at once: each costs a channel.
const ASKED: usize = 4;
/// How long one that was told to end may take: its agent gives itself 2 s.
const ENDING: Duration = Duration::from_secs(10);

/// How long the files of one that is to end may take to be archived: at 256 MiB that is ten seconds.
const ARCHIVING: Duration = Duration::from_secs(30);

/// A deployment, as its operator has it.
#[derive(Debug)]
pub struct Operator {
    engine: Arc<dyn Engine>,
    config: Config,
    secret: Secret,
    /// What the configured pools add to their images.
    wanted: Vec<Derivation>,
}

/// One sandbox of the deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its id.
    pub sandbox: SandboxId,
    /// The first digits of its session's name, as logs show them; nothing of the conversation can be read from it.
    pub session: Option<String>,
    /// The pool.
    pub pool: String,
    /// What it is doing.
    #[serde(flatten)]
    pub state: State,
    /// Since its creation, in seconds.
    pub age_seconds: u64,
    /// Processor time that it has used, in milliseconds.
    pub cpu_milliseconds: Option<u64>,
    /// Memory that it uses, in bytes.
    pub memory_bytes: Option<u64>,
    /// What it has written and not removed, as its agent says.
    pub disk_bytes: Option<u64>,
}

/// What a sandbox is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Being made.
    Booting,
    /// Nobody's yet.
    Warm,
    /// A session's.
    Bound {
        /// Without a run, tunnel or transfer, in seconds.
        idle_seconds: u64,
        /// Until it ends if nothing more happens, in seconds.
        ends_in_seconds: u64,
    },
    /// On its way out.
    Ending,
    /// It runs, and its agent does not answer.
    Silent,
    /// It ended, and its session has not been told yet.
    Ended {
        /// Why; none where it was nobody's.
        reason: Option<RestartReason>,
    },
}

/// Which sessions to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one.
    All,
    /// Those whose session or sandbox begins so.
    Of(Vec<String>),
}

/// Why an operator's wish was not done.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The state directory, or the engine.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No session begins so.
    #[error("no session or sandbox begins with {0:?}: `greenroom sessions` lists them")]
    NoSuch(String),
    /// Several do.
    #[error("{0:?} is the beginning of {1} sessions: write more of it")]
    Ambiguous(String, usize),
}

impl Operator {
    /// Reaches the engine.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn connect(config: &Config) -> Result<Self, OperatorError> {
        let secret = serve::secret(config).map_err(ServeError::State)?;
        let wanted = config
            .pools
            .iter()
            .map(|(name, pool)| serve::spec(config, name, pool));
        Ok(Self {
            engine: serve::engine(config, &secret).await?,
            wanted: wanted.filter_map(|spec| derivation(&spec)).collect(),
            config: config.clone(),
            secret,
        })
    }

    /// Every sandbox of the deployment, the youngest last.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn sandboxes(&self) -> Result<Vec<Shown>, OperatorError> {
        let listed = self.engine.list().await?;
        let shown = stream::iter(listed)
            .map(|sandbox| self.show(sandbox))
            .buffered(ASKED);
        let mut shown: Vec<_> = shown.collect().await;
        shown.sort_by_key(|one| std::cmp::Reverse(one.age_seconds));
        Ok(shown)
    }

    async fn show(&self, sandbox: Listed) -> Shown {
        let age = SystemTime::now()
            .duration_since(sandbox.created_at)
            .unwrap_or_default();
        let (mut session, mut usage, mut disk) = (None, None, None);
        let state = match sandbox.state {
            ListedState::Created => State::Booting,
            ListedState::Ending => State::Ending,
            ListedState::Exited(fate) => State::Ended {
                reason: fate.reason().filter(|_| sandbox.adopted),
            },
            ListedState::Running => {
                usage = self.engine.usage(&sandbox.id).await.ok();
                let hello = timeout(ANSWER, self.ask(&sandbox.id)).await;
                let hello = hello.ok().and_then(Result::ok);
                disk = hello.as_ref().and_then(|hello| hello.disk_used_bytes);
                match hello.map(|hello| hello.lease) {
                    Some(LeaseState::Bound(lease)) => {
                        session = Some(lease.key.0.chars().take(12).collect());
                        State::Bound {
                            idle_seconds: lease.idle_ms / 1000,
                            ends_in_seconds: lease.ends_in_ms / 1000,
                        }
                    }
                    Some(LeaseState::Unbound) => State::Warm,
                    Some(LeaseState::Ending(_)) => State::Ending,
                    None => State::Silent,
                }
            }
        };
        Shown {
            sandbox: sandbox.id,
            session,
            pool: sandbox.pool.as_str().to_owned(),
            state,
            age_seconds: age.as_secs(),
            cpu_milliseconds: usage.map(|Usage { cpu, .. }| cpu.as_millis().try_into().unwrap_or(u64::MAX)),
            memory_bytes: usage.map(|usage| usage.memory_bytes),
            disk_bytes: disk,
        }
    }

    async fn ask(&self, id: &SandboxId) -> Result<Hello, GuestError> {
        let guest = Guest::connect(Arc::clone(&self.engine), id.clone()).await?;
        guest.hello().await
    }

    /// Ends sessions as a reset does that keeps the files: the next call of each hears of it. Answers which were
    /// ended. Warm sandboxes are left alone: they are a server's.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn end(&self, which: &Which) -> Result<Vec<Shown>, OperatorError> {
        let mut chosen = select(self.sandboxes().await?, which)?;
        let archive = self.archive();
        for session in &chosen {
            self.end_one(&session.sandbox, archive.as_ref()).await?;
        }
        chosen.sort_by(|a, b| a.session.cmp(&b.session));
        Ok(chosen)
    }

    /// Where there is none to be had, the last archives stand, and their sessions' next calls are told of when they are.
    fn archive(&self) -> Option<Archive> {
        let Config {
            archive,
            state_dir,
            engine,
            ..
        } = &self.config;
        let place = archive.place(state_dir)?;
        let (secret, allowance) = (self.secret.clone(), archive.allowance());
        match Archive::unswept(&place, &engine.deployment, secret, allowance, Arc::new(())) {
            Ok(archive) => Some(archive),
            Err(error) => {
                tracing::warn!(%place, %error, "the last changes of files are not archived");
                None
            }
        }
    }

    async fn end_one(&self, id: &SandboxId, archive: Option<&Archive>) -> Result<(), OperatorError> {
        let guest = Guest::connect(Arc::clone(&self.engine), id.clone());
        let Ok(Ok(guest)) = timeout(LAST_ANSWER, guest).await else {
            tracing::warn!(sandbox = %id, "cannot be asked to end itself, nor for its last changes of files");
            return Ok(self.engine.end(id).await?);
        };
        if let Some(archive) = archive {
            self.keep_files(&guest, archive).await;
        }
        if !matches!(timeout(ANSWER, guest.end(EndReason::Reset)).await, Ok(Ok(()))) {
            tracing::debug!(sandbox = %id, "does not end itself");
            return Ok(self.engine.end(id).await?);
        }
        let ended = timeout(ENDING, async {
            while self.runs(id).await? {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, EngineError>(())
        });
        match ended.await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Ok(self.engine.end(id).await?),
        }
    }

    /// Where that fails the last archive stands.
    async fn keep_files(&self, guest: &Guest, archive: &Archive) {
        let Ok(Ok(hello)) = timeout(LAST_ANSWER, guest.hello()).await else {
            tracing::warn!(sandbox = %guest.id(), "does not answer: its last changes are not archived");
            return;
        };
        let Some(name) = SessionName::of(&hello.lease) else {
            return;
        };
        // Whose it is the engine says: one that claims to be another session's is not archived as that one's.
        let found = self.engine.find(&name).await;
        if !matches!(found, Ok(found) if found.place == Place::Running(guest.id().clone())) {
            tracing::warn!(sandbox = %guest.id(), "is not known as its session's: its last changes are not archived");
            return;
        }
        match timeout(ARCHIVING, archive.save(&name, guest)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(session = name.short(), %error, "its last changes are not archived")
            }
            Err(_) => tracing::warn!(session = name.short(), "its files could not be archived in time"),
        }
    }

    async fn runs(&self, id: &SandboxId) -> Result<bool, EngineError> {
        let listed = self.engine.list().await?;
        let state = listed.iter().find(|one| one.id == *id).map(|one| one.state);
        Ok(matches!(state, Some(ListedState::Running | ListedState::Ending)))
    }

    /// What no server and no agent will clear away. What a server is in the middle of looks alike for a moment, so
    /// a sandbox that was created and not started is left to the servers' own sweep.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn leftovers(&self) -> Result<Vec<(SandboxId, Ground)>, OperatorError> {
        let listed = self.engine.list().await?;
        let now = SystemTime::now();
        let judged = listed
            .into_iter()
            .filter_map(|one| Some((one.id.clone(), judge(&one, now)?)));
        Ok(judged.collect())
    }

    /// Images with packages that no configured pool adds any more.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn images(&self) -> Result<Vec<String>, OperatorError> {
        Ok(self.engine.unused_images(&self.wanted).await?)
    }

    /// Removes such images. One that has come into use meanwhile stays. Answers how many are gone.
    pub async fn remove_images(&self, images: &[String]) -> usize {
        let mut removed = 0;
        for image in images {
            match self.engine.remove_image(image).await {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(image, %error, "an image stays"),
            }
        }
        removed
    }

    /// Clears leftovers away, and what an engine left behind when it forgot its sandboxes. Answers how many of the
    /// latter there were.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn sweep(
        &self,
        leftovers: &[(SandboxId, Ground)],
        second_look: Duration,
    ) -> Result<usize, OperatorError> {
        for (id, _) in leftovers {
            self.engine.destroy(id).await?;
        }
        // The first look only notes what has no owner.
        let first = self.engine.sweep().await?;
        tokio::time::sleep(second_look).await;
        Ok(first + self.engine.sweep().await?)
    }
}

/// Those that are meant. Pure.
fn select(shown: Vec<Shown>, which: &Which) -> Result<Vec<Shown>, OperatorError> {
    let sessions = shown
        .into_iter()
        .filter(|one| matches!(one.state, State::Bound { .. } | State::Silent));
    let sessions: Vec<_> = sessions.collect();
    let Which::Of(beginnings) = which else {
        return Ok(sessions);
    };
    let mut chosen: Vec<Shown> = Vec::new();
    for beginning in beginnings {
        let meant: Vec<_> = sessions.iter().filter(|one| one.begins(beginning)).collect();
        match meant[..] {
            [] => return Err(OperatorError::NoSuch(beginning.clone())),
            [one] if chosen.contains(one) => {}
            [one] => chosen.push(one.clone()),
            _ => return Err(OperatorError::Ambiguous(beginning.clone(), meant.len())),
        }
    }
    Ok(chosen)
}

impl Shown {
    fn begins(&self, beginning: &str) -> bool {
        let session = self.session.as_deref().unwrap_or_default();
        let beginning = beginning.strip_prefix("gr-").unwrap_or(beginning);
        !beginning.is_empty()
            && (session.starts_with(beginning) || self.sandbox.as_str().starts_with(beginning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(n: u8, session: Option<&str>, state: State) -> Shown {
        Shown {
            sandbox: SandboxId::parse(&format!("grs-{n:024x}")).unwrap(),
            session: session.map(str::to_owned),
            pool: "python".to_owned(),
            state,
            age_seconds: 1,
            cpu_milliseconds: None,
            memory_bytes: None,
            disk_bytes: None,
        }
    }

    #[test]
    fn sessions_are_meant_by_their_beginning() {
        let bound = State::Bound {
            idle_seconds: 0,
            ends_in_seconds: 9,
        };
        let all = vec![
            shown(1, Some("abc1"), bound.clone()),
            shown(2, Some("abd2"), bound),
            shown(3, None, State::Warm),
            shown(4, None, State::Silent),
        ];
        let chosen = |beginnings: &[&str]| {
            let which = Which::Of(beginnings.iter().map(|&b| b.to_owned()).collect());
            select(all.clone(), &which)
                .map(|chosen| chosen.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!(select(all.clone(), &Which::All).unwrap().len(), 3, "no warm one");
        assert_eq!(chosen(&["abc", "gr-abd2"]), Ok(2));
        assert_eq!(chosen(&["abc", "abc1"]), Ok(1));
        assert_eq!(chosen(&["grs-000000000000000000000004"]), Ok(1));
        assert!(chosen(&["ab"]).unwrap_err().contains("2 sessions"));
        assert!(chosen(&["x"]).unwrap_err().contains("greenroom sessions"));
        assert!(chosen(&[""]).is_err());
        assert!(
            chosen(&["grs-000000000000000000000003"]).is_err(),
            "a warm one is a server's"
        );
    }
}
