//! What each tool does, whatever protocol the call came by: resolve, parse, open or look, act, render.

mod content;
mod definitions;
mod files;
mod info;
mod runs;
mod shelf;
mod ways;

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use greenroom_protocol::{RunId, Standing};
use greenroom_tool_schemas::{Definition, Folder, SessionState, ToolName};
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::definitions::Definitions;
pub(super) use self::shelf::{Contents, TEMPLATE};
use super::{
    arguments::{Arguments, KeepFiles, Request},
    caller::{Caller, Carrier, Freight, News, Reached},
    conversation::{Asked, Origin, Resolved, Resolver},
    instructions::instructions,
    render::{self, Answer, Heading, Session as Seen, Tell},
    watch::{Await, Watch},
};
use crate::{
    auth::{AllowedPools, Identity, Scope},
    config::{Config, Offers, PoolConfig},
    conversation::{PoolName, Secret, SessionKey},
    error::{Failure, FailureKind},
    links::Links,
    metrics::Metrics,
    places::{Full, Places},
    sessions::{OpenError, Provenance, Session, Sessions, Terms},
    share::Share,
};

/// A session under a minted id that nobody comes back to ends after this long.
const SHORT_IDLE: Duration = Duration::from_secs(5 * 60);

/// Runs that were handed back to their callers and not yet seen to end: so many are counted.
const HANDED_BACK: usize = 1024;

/// Everything that the tools need. Shared by all transports.
pub(super) struct Tools {
    sessions: Sessions,
    resolver: Resolver,
    definitions: Definitions,
    config: Arc<Config>,
    offers: Offers,
    metrics: Metrics,
    ways: Ways,
    in_flight: Places,
    handed_back: Mutex<VecDeque<RunId>>,
}

/// How files come and go without passing the model.
#[derive(Clone, Debug)]
pub struct Ways {
    /// By links, which a person opens.
    pub links: Links,
    /// By a folder of the machine that the client runs on: for stdio, where its user names one.
    pub share: Option<Share>,
}

/// What came of a call.
#[derive(Debug)]
pub(super) struct Outcome {
    pub answer: Answer,
    /// What is to be acknowledged once the answer has arrived.
    pub news: Option<News>,
}

/// A call whose conversation is known.
struct Call<'a> {
    caller: Caller<'a>,
    watch: Watch<'a>,
    resolved: Resolved,
    key: SessionKey,
    pool: Arc<PoolConfig>,
}

/// Why a call has no answer of its own.
#[derive(Debug)]
enum Stop {
    /// It cannot be served; what had been found of its session until then.
    Failed(Failure, Seen),
    /// Its caller has given up.
    Cancelled,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure, Seen::None)
    }
}

impl Tools {
    pub(super) fn new(
        config: Arc<Config>,
        offers: Offers,
        secret: Secret,
        sessions: Sessions,
        ways: Ways,
        metrics: Metrics,
    ) -> Self {
        let folder = match &ways.share {
            Some(_) => Folder::Shared,
            None => Folder::None,
        };
        Self {
            sessions,
            resolver: Resolver::new(config.conversation.clone(), secret),
            definitions: Definitions::new(&config, folder),
            ways,
            in_flight: Places::new(config.limits.calls),
            handed_back: Mutex::default(),
            config,
            offers,
            metrics,
        }
    }

    pub(super) const fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub(super) const fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(super) fn in_flight(&self) -> Places {
        self.in_flight.clone()
    }

    /// The tools on offer to a caller.
    pub(super) fn definitions(&self, caller: &Identity) -> Vec<Definition> {
        self.definitions.list(&self.offers.now(), caller)
    }

    /// The definition of one.
    pub(super) fn definition(&self, name: &str) -> Option<&Definition> {
        self.definitions.find(name.parse().ok()?, &self.offers.now())
    }

    /// What a model is told at the start.
    pub(super) fn instructions(&self) -> String {
        let offer = self.offers.now();
        instructions(
            &self.config,
            offer.pools.get(&offer.default_pool).map(AsRef::as_ref),
        )
    }

    /// Serves one call. `None`: there is no such tool.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
        caller: Caller<'_>,
    ) -> Option<(Answer, Freight)> {
        let definition = self.definition(tool)?;
        let started = Instant::now();
        let _in_flight = self.metrics.call_begins();
        let in_flight = self.in_flight.take(&caller.identity.principal);
        let outcome = match &in_flight {
            Ok(_) => self.serve(definition, arguments, caller).await,
            Err(full) => failed(&busy(*full)),
        };
        let Outcome { answer, news } = outcome;
        self.note(definition.name, &answer, started.elapsed());
        let freight = Freight {
            news,
            in_flight: in_flight.ok(),
            ..Freight::default()
        };
        Some((answer, freight))
    }

    /// Logs and counts a call: the one place where failures are logged.
    fn note(&self, tool: ToolName, answer: &Answer, took: Duration) {
        let session = match answer.meta.session {
            SessionState::New => "new",
            SessionState::Existing => "existing",
            SessionState::Restarted => "restarted",
            SessionState::None => "none",
        };
        self.metrics.call_ended(tool.as_str(), session, took);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let status = answer.meta.run.as_ref().map(|run| run.status.as_str());
        let failure = answer.meta.failure.as_deref();
        tracing::info!(%tool, session, status, failure, millis, "answered");
    }

    async fn serve(&self, tool: &Definition, arguments: Map<String, Value>, caller: Caller<'_>) -> Outcome {
        if let Some(scope) = needed(tool.name)
            && let Err(denied) = caller.identity.may(scope)
        {
            self.metrics.failed(FailureKind::Forbidden);
            return failed(&Failure::forbidden(denied));
        }
        let (call, request) = match self.receive(tool, arguments, caller) {
            Ok(received) => received,
            Err(failure) => {
                self.metrics.failed(failure.kind);
                return failed(&failure);
            }
        };
        let done = match request {
            Request::Execute(execute) => self.execute(&call, execute).await,
            Request::Upload { path, content, mode } => self.upload(&call, &path, content, mode).await,
            Request::UploadLink { path } => self.upload_link(&call, &path).await,
            Request::UploadFrom { path, source } => self.upload_from(&call, &path, source).await,
            Request::DownloadLink { path } => self.download_link(&call, &path).await,
            Request::DownloadTo { path, save_to } => self.download_to(&call, &path, save_to).await,
            Request::List { path, depth } => self.list(&call, &path, depth).await,
            Request::Download(download) => self.download(&call, &download).await,
            Request::ListRuns => self.list_runs(&call).await,
            Request::GetRun { id, since, wait } => self.get_run(&call, id, since, wait).await,
            Request::CancelRun { id } => self.cancel_run(&call, id).await,
            Request::Reset { keep } => self.reset(&call, keep).await,
            Request::Delete { path } => self.delete(&call, &path).await,
            Request::Info => self.info(&call).await,
            Request::Launch => launch(),
        };
        match done {
            Ok(outcome) => outcome,
            Err(Stop::Failed(failure, seen)) => {
                self.metrics.failed(failure.kind);
                Outcome {
                    answer: call.heading(seen).failed(&failure),
                    news: None,
                }
            }
            // Nobody reads this any more.
            Err(Stop::Cancelled) => Outcome {
                answer: call
                    .heading(Seen::None)
                    .sentence("cancelled", "The call was cancelled."),
                news: None,
            },
        }
    }

    /// Everything that needs no sandbox: which pool, which conversation, what is asked.
    fn receive<'a>(
        &'a self,
        tool: &'a Definition,
        arguments: Map<String, Value>,
        caller: Caller<'a>,
    ) -> Result<(Call<'a>, Request), Failure> {
        let mut arguments = Arguments::new(tool, arguments)?;
        let conversation = arguments.conversation()?;
        let (name, pool) = self.pool(arguments.address("pool")?.as_deref(), &caller.identity.pools)?;
        let resolved = self
            .resolver
            .resolve(&Asked {
                identity: caller.identity,
                meta: caller.meta,
                headers: caller.headers,
                fixed: caller.fixed,
                argument: conversation.as_deref(),
                carrier: caller.carrier.map(Carrier::id),
            })
            .map_err(|bad| Failure::bad_argument(bad.to_string()))?;
        let request = arguments.request(&pool, &self.config.limits)?;
        let key = SessionKey {
            pool: name,
            principal: resolved.principal.clone(),
            conversation: resolved.key.clone(),
        };
        let watch = Watch::new(caller, self.config.patience);
        Ok((
            Call {
                caller,
                watch,
                resolved,
                key,
                pool,
            },
            request,
        ))
    }

    /// The pool of a call: the one that it names, else its caller's first, else the configured one. One that its
    /// caller may not use does not exist for it.
    fn pool(
        &self,
        named: Option<&str>,
        allowed: &AllowedPools,
    ) -> Result<(PoolName, Arc<PoolConfig>), Failure> {
        let offer = self.offers.now();
        let first = allowed.first().unwrap_or(&offer.default_pool);
        let wanted = named.unwrap_or_else(|| first.as_str());
        let mut own = offer
            .pools
            .iter()
            .filter(|(name, _)| allowed.allow(name.as_str()));
        let found = own.clone().find(|(name, _)| name.as_str() == wanted);
        let found = found.map(|(name, pool)| (name.clone(), Arc::clone(pool)));
        found.ok_or_else(|| {
            let known: Vec<&str> = own.by_ref().map(|(name, _)| name.as_str()).collect();
            let shown: String = wanted.chars().take(40).collect();
            Failure::bad_argument(format!(
                "there is no pool {shown:?}; there are: {}",
                known.join(", ")
            ))
        })
    }

    /// The conversation's sandbox, made if there is none. Says how it goes, and gives up when patience does, or when
    /// the pool lets no claim wait longer, whichever is later: the opening goes on, and the next call finds what came
    /// of it.
    async fn open(&self, call: &Call<'_>) -> Result<Session, Stop> {
        let opening = self.sessions.open(&call.key, call.terms());
        let watch = call.watch.allowing(call.pool.claim_wait);
        match watch.wait("waiting for a sandbox", opening).await {
            Await::Ready(Ok(session)) => {
                if let (Some(carrier), Origin::Carried) = (call.caller.carrier, call.resolved.origin) {
                    carrier.reach(&call.key);
                }
                Ok(session)
            }
            Await::Ready(Err(error)) => Err(unopened(&error).into()),
            Await::Cancelled => Err(Stop::Cancelled),
            Await::Patience => Err(Failure::new(
                FailureKind::Unavailable,
                format!(
                    "no sandbox was ready within {} s. Try again",
                    call.watch.elapsed().as_secs()
                ),
            )
            .into()),
        }
    }

    /// The conversation's sandbox if it has one.
    async fn look(&self, call: &Call<'_>) -> Result<Option<Session>, Stop> {
        let looking = self.sessions.look(&call.key);
        match call.watch.wait("looking for the sandbox", looking).await {
            Await::Ready(found) => found.map_err(|error| unopened(&error).into()),
            Await::Cancelled => Err(Stop::Cancelled),
            Await::Patience => Err(unopened(&OpenError::Silent).into()),
        }
    }

    async fn reset(&self, call: &Call<'_>, keep: KeepFiles) -> Result<Outcome, Stop> {
        use crate::sessions::Reset;
        let answer = call.heading(Seen::None);
        let reset = match keep {
            KeepFiles::No => self.sessions.reset(&call.key).await,
            KeepFiles::Yes => {
                let resetting = self.sessions.reset_keeping_files(&call.key);
                match call.watch.wait("keeping the files", resetting).await {
                    Await::Ready(reset) => reset,
                    Await::Cancelled => return Err(Stop::Cancelled),
                    Await::Patience => return Err(slow_to_keep(self.config.patience).into()),
                }
            }
        };
        let answer = match reset {
            Ok(Reset::Ended) => answer.sentence("ok", match keep {
                KeepFiles::No => {
                    "The sandbox has ended: its variables, files and runs are gone. The next execute_code or upload_file gets a \
                     fresh one."
                }
                KeepFiles::Yes => {
                    "The sandbox has ended: its variables and runs are gone, its files are kept. The next execute_code or \
                     upload_file gets a fresh one with them."
                }
            }),
            Ok(Reset::Nothing) => answer.sentence("ok", "There was no sandbox. The next execute_code or upload_file makes one."),
            Err(error) => return Err(unopened(&error).into()),
        };
        Ok(Outcome { answer, news: None })
    }

    /// Whether all calls in flight were answered, and their answers written out, within `grace`.
    pub(super) async fn drained(&self, grace: Duration) -> bool {
        self.in_flight.empty(grace).await
    }

    /// A process or a transport session has ended. If one call only ever reached its conversation, nobody comes
    /// back for it: it is let go soon.
    pub(super) async fn carrier_ended(&self, carrier: &Carrier) {
        let Reached::Once(key) = carrier.reached() else {
            return;
        };
        let offer = self.offers.now();
        let Some(pool) = offer.pools.get(&key.pool) else {
            return;
        };
        // Without a look first, a session that has ended meanwhile would be made anew.
        let shortened = match self.sessions.look(&key).await {
            Ok(Some(_)) => self
                .sessions
                .open(&key, short(pool, Provenance::Minted))
                .await
                .map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = shortened {
            tracing::debug!(%error, "a conversation of one call keeps its full idle time");
        }
    }
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tools").finish_non_exhaustive()
    }
}

/// What a tool's caller has to be allowed. A look at a session tells nothing that is not its caller's own.
pub(super) const fn needed(tool: ToolName) -> Option<Scope> {
    match tool {
        ToolName::ExecuteCode
        | ToolName::GetRun
        | ToolName::CancelRun
        | ToolName::ResetSession
        | ToolName::LaunchShell
        | ToolName::RunPythonCode
        | ToolName::RunShellCommand => Some(Scope::Run),
        ToolName::UploadFile | ToolName::ListFiles | ToolName::DownloadFile | ToolName::DeleteFile => {
            Some(Scope::Files)
        }
        ToolName::SessionInfo => None,
    }
}

fn busy(full: Full) -> Failure {
    let text = format!("{full} (limit calls): try again in a moment");
    Failure::new(FailureKind::Busy, text)
}

/// What was archived by then is kept; the sandbox may have ended in the last moment.
fn slow_to_keep(patience: Duration) -> Failure {
    Failure::new(
        FailureKind::Unavailable,
        format!(
            "the files were not kept within {} s. Try again",
            patience.as_secs()
        ),
    )
}

/// Terms of a session that nobody may come back to.
fn short(pool: &PoolConfig, provenance: Provenance) -> Terms {
    Terms {
        idle: SHORT_IDLE.min(pool.idle),
        lifetime: pool.lifetime,
        provenance,
    }
}

impl Call<'_> {
    fn terms(&self) -> Terms {
        let full = |provenance| Terms {
            idle: self.pool.idle,
            lifetime: self.pool.lifetime,
            provenance,
        };
        match self.resolved.origin {
            Origin::Host | Origin::Own => full(Provenance::Own),
            Origin::Minted => full(Provenance::Minted),
            Origin::JustMinted => short(&self.pool, Provenance::JustMinted),
            Origin::Carried => match self.caller.carrier.map(Carrier::reached) {
                None | Some(Reached::Never) => full(Provenance::JustMinted),
                Some(Reached::Once(_) | Reached::Often) => full(Provenance::Minted),
            },
        }
    }

    fn heading(&self, session: Seen) -> Heading {
        Heading {
            conversation: self.resolved.shown.clone(),
            tell: if self.resolved.origin.must_tell() {
                Tell::Yes
            } else {
                Tell::No
            },
            session,
        }
    }

    /// The heading of an answer that comes from a session, as that was found.
    fn found(&self, session: &Session) -> Heading {
        self.heading(Seen::from(&session.standing))
    }

    /// There is no sandbox, and this tool makes none.
    fn nothing(&self, what: &str) -> Outcome {
        let rest = format!(
            "There is no sandbox for this conversation, so {what}. execute_code and upload_file make one."
        );
        Outcome {
            answer: self.heading(Seen::None).sentence("nothing", &rest),
            news: None,
        }
    }
}

/// An answer whose news, if it has any, is to be acknowledged.
fn with_news(answer: Answer, session: Session, standing: &Standing) -> Outcome {
    with_loss(answer, session, standing, None)
}

/// The same where a run may say in it that its kernel has lost its variables.
fn with_loss(answer: Answer, session: Session, standing: &Standing, loss: Option<RunId>) -> Outcome {
    let news = News::of(session, standing, loss);
    Outcome { answer, news }
}

/// A name for an environment of Azure's tools. One that the client made itself would do as well, so it is none that
/// proves that a sandbox existed.
fn launch() -> Result<Outcome, Stop> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| {
        Failure::new(
            FailureKind::Internal,
            format!("no environmentId could be made: {error}"),
        )
    })?;
    let id = uuid::Builder::from_random_bytes(random).into_uuid();
    Ok(Outcome {
        answer: render::launched(&id.to_string()),
        news: None,
    })
}

/// A failure of a call whose conversation is not even known.
fn failed(failure: &Failure) -> Outcome {
    Outcome {
        answer: Answer::failed(failure),
        news: None,
    }
}

/// A sandbox that is there did not do it.
fn refused(session: &Session, failure: Failure) -> Stop {
    let seen = if failure.kind == FailureKind::Lost {
        Seen::None
    } else {
        Seen::from(&session.standing)
    };
    Stop::Failed(failure, seen)
}

/// What the caller may read of it goes into the answer, the rest into the log.
fn unopened(error: &OpenError) -> Failure {
    tracing::warn!(%error, "a session could not be opened");
    Failure::from(error)
}
