//! Runs of code: who asked for which, where each stands, and how its events are had.
//!
//! ```text
//! submit ─▶ Lane (one per kernel: queue of 16) ─▶ owner task ─▶ Kernel
//!    │                                                │ events
//!    └──▶ Known (id → Run) ◀── Log of each run ◀──────┘
//!              follow, list, cancel
//! ```
//! A run belongs to nobody's request: it goes on when its followers are gone, and only [`Runs::cancel`],
//! its own time-out or the end of the sandbox stop it.

mod known;
mod lane;
mod log;
mod owner;
mod stop;
mod untold;

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
    time::Duration,
};

use greenroom_protocol::{
    EndReason, KernelView, Language, RunError, RunEventKind, RunId, RunList, RunOutcome, RunRequest,
    RunState, RunStatus, RunSummary, Standing,
    limits::{CODE_BYTES, QUEUED_RUNS, RUN_ID_BYTES, RUN_TIMEOUT_MS},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::log::{Follower, Piece};
use self::{
    known::{Known, Lookup},
    lane::{Enqueue, Lane},
    log::Log,
    owner::Owner,
};
use crate::{
    agent::lock,
    app::{App, Gate},
    files::Files,
    kernel::Kernel,
    lease::{LeaseError, millis, whole_ms},
    tenure::{Activity, Tenure},
};

/// Characters of a run's title.
const TITLE_CHARS: usize = 80;

/// The runs of a sandbox.
#[derive(Debug)]
pub(crate) struct Runs {
    known: Arc<Mutex<Known>>,
    lanes: Vec<Arc<Lane>>,
    boot: watch::Sender<Boot>,
    ending: watch::Sender<Option<EndReason>>,
}

/// How far the kernels are that must answer before the sandbox counts as ready. Once ready it stays so:
/// what dies later is restarted, and its runs wait for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Kernels that have not answered yet.
    pub(crate) missing: usize,
    /// Why one never will.
    pub(crate) failed: Option<String>,
}

impl Boot {
    pub(crate) const fn is_ready(&self) -> bool {
        self.missing == 0 && self.failed.is_none()
    }
}

/// The tasks that own the kernels. Dropping them drops the kernels.
pub(crate) type Owners = Vec<AbortOnDropHandle<()>>;

/// Why a run is not accepted, followed or cancelled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RunsError {
    /// The sandbox is not this caller's, or not any more.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Its name is none.
    #[error("a run's id is 1 to {RUN_ID_BYTES} letters, digits, - and _")]
    BadId,
    /// Nobody could wait for it.
    #[error("timeout_ms is 1 to {RUN_TIMEOUT_MS}")]
    BadTimeout,
    /// Too much code.
    #[error("code has at most {CODE_BYTES} bytes, this has {0}")]
    CodeTooLarge(usize),
    /// The id stands for something else already.
    #[error("run {0} is another run")]
    OtherRun(RunId),
    /// Its events are gone.
    #[error("run {0} has finished and is no longer kept")]
    Forgotten(RunId),
    /// No such run.
    #[error("there is no run {0:?}")]
    Unknown(String),
    /// There is nothing to cancel any more.
    #[error("run {0} has finished")]
    Finished(RunId),
    /// Too many wait.
    #[error("{QUEUED_RUNS} runs of {0} are waiting already")]
    QueueFull(Language),
    /// The image has no such kernel.
    #[error("{0}")]
    NoKernel(String),
}

impl Runs {
    /// Takes the kernels and starts those that are to be ready.
    pub(crate) fn start(
        kernels: Vec<Box<dyn Kernel>>,
        ready: &[Language],
        files: &Files,
        app: &App,
    ) -> (Self, Owners) {
        let known = Arc::new(Mutex::new(Known::default()));
        let mut boot = Boot::default();
        let offered: Vec<Language> = kernels.iter().map(|kernel| kernel.language()).collect();
        let mut wanted = BTreeSet::new();
        for language in ready {
            match kernel_of(*language, &offered) {
                Some(kernel) => drop(wanted.insert(kernel)),
                None => boot.failed = Some(format!("there is no {language} kernel")),
            }
        }
        // What a server has to say first is one more thing to wait for.
        let untold = usize::from(*app.gate().borrow() == Gate::Shut);
        boot.missing = wanted.len() + untold;
        let boot = watch::Sender::new(boot);
        let ending = watch::Sender::new(None);
        let mut owners = Owners::new();
        let mut lanes = Vec::new();
        for kernel in kernels {
            let wanted = wanted.contains(&kernel.language());
            let lane = Arc::new(Lane::new(kernel.language(), Arc::clone(&known)));
            let owner = Owner::new(
                kernel,
                Arc::clone(&lane),
                files.clone(),
                ending.subscribe(),
                app.gate(),
            );
            let boot = wanted.then(|| boot.clone());
            owners.push(AbortOnDropHandle::new(tokio::spawn(owner.own(boot))));
            lanes.push(lane);
        }
        let runs = Self {
            known,
            lanes,
            boot,
            ending,
        };
        (runs, owners)
    }

    /// Tells how the start-up goes on.
    pub(crate) fn boots(&self) -> watch::Sender<Boot> {
        self.boot.clone()
    }

    /// Sees how the start-up goes on.
    pub(crate) fn boot(&self) -> watch::Receiver<Boot> {
        self.boot.subscribe()
    }

    /// The kernels as hello shows them.
    pub(crate) fn kernels(&self) -> Vec<KernelView> {
        self.lanes.iter().map(|lane| lane.view()).collect()
    }

    /// Stops everything: what runs is killed, what waits is told, and the owners end.
    pub(crate) fn end(&self, reason: EndReason) {
        self.ending.send_replace(Some(reason));
        for lane in &self.lanes {
            lane.end(reason);
        }
    }

    /// Accepts a run, or finds it accepted already, and follows it from its first event.
    pub(crate) fn submit(
        &self,
        mut request: RunRequest,
        tenure: &Arc<Tenure>,
    ) -> Result<Follower, RunsError> {
        let digest = check(&request)?;
        // Held open before the id is looked up, so that the end of the lease cannot fall in between.
        let activity = tenure.open()?;
        let mut known = lock(&self.known);
        match known.look(&request.id) {
            Lookup::Known(run) if run.digest == digest => return Ok(run.follow(0, None)),
            Lookup::Known(_) => return Err(RunsError::OtherRun(request.id)),
            Lookup::Forgotten => return Err(RunsError::Forgotten(request.id)),
            Lookup::Unknown => {}
        }
        let lane = self
            .lane(request.language)
            .ok_or_else(|| RunsError::NoKernel(self.no_kernel(request.language)))?;
        if lane.language().is_shell() {
            // The image's one shell has its own name, whatever it was called.
            request.language = lane.language();
        }
        let run = Arc::new(Run::new(request, digest, activity));
        match lane.enqueue(&run) {
            Enqueue::Queued => {}
            Enqueue::Full => return Err(RunsError::QueueFull(run.language)),
            Enqueue::Absent(reason) => return Err(RunsError::NoKernel(reason)),
            Enqueue::Ending(reason) => return Err(LeaseError::Ending(reason).into()),
        }
        known.insert(&run);
        Ok(run.follow(0, None))
    }

    /// Follows a run from event `from`, for at most `wait`.
    pub(crate) fn follow(&self, id: &str, from: u64, wait: Option<Duration>) -> Result<Follower, RunsError> {
        Ok(self
            .find(id)?
            .follow(from, wait.map(|wait| Instant::now() + wait)))
    }

    /// Every run that is still known, newest first.
    pub(crate) fn list(&self) -> RunList {
        RunList {
            runs: lock(&self.known)
                .newest_first()
                .map(|run| run.summary())
                .collect(),
        }
    }

    /// Takes a run out of the queue, or interrupts it.
    pub(crate) fn cancel(&self, id: &str) -> Result<(), RunsError> {
        let run = self.find(id)?;
        if self.lane(run.language).is_some_and(|lane| lane.withdraw(&run)) {
            return Ok(());
        }
        match run.state() {
            RunState::Finished(_) => Err(RunsError::Finished(run.id.clone())),
            RunState::Queued | RunState::Running => {
                run.cancel.notify_one();
                Ok(())
            }
        }
    }

    /// An answer with what this run says has arrived: a loss that it told of is old news.
    pub(crate) fn told(&self, id: &str) -> Result<(), RunsError> {
        let run = self.find(id)?;
        if let Some(lane) = self.lane(run.language) {
            lane.untold.told(&run.id);
        }
        Ok(())
    }

    /// The lane of a language: its own, or that of the kernel that stands in for one.
    fn lane(&self, language: Language) -> Option<&Arc<Lane>> {
        let kernel = kernel_of(language, &self.offered())?;
        self.lanes.iter().find(|lane| lane.language() == kernel)
    }

    fn offered(&self) -> Vec<Language> {
        self.lanes.iter().map(|lane| lane.language()).collect()
    }

    fn no_kernel(&self, language: Language) -> String {
        let offered = self.offered();
        let known = Language::KNOWN.into_iter().filter(|known| {
            kernel_of(*known, &offered).is_some_and(|kernel| kernel == *known || !kernel.is_shell())
        });
        let others = offered
            .iter()
            .copied()
            .filter(|language| !Language::KNOWN.contains(language));
        let all: Vec<String> = known.chain(others).map(String::from).collect();
        format!("{language} is not in this image; there are: {}", all.join(", "))
    }

    fn find(&self, id: &str) -> Result<Arc<Run>, RunsError> {
        let id = RunId(id.to_owned());
        if !id.is_valid() {
            return Err(RunsError::BadId);
        }
        match lock(&self.known).look(&id) {
            Lookup::Known(run) => Ok(run),
            Lookup::Forgotten => Err(RunsError::Forgotten(id)),
            Lookup::Unknown => Err(RunsError::Unknown(id.0)),
        }
    }
}

/// The kernel that runs a language, of those that the image has.
fn kernel_of(language: Language, offered: &[Language]) -> Option<Language> {
    [Some(language), language.stand_in()]
        .into_iter()
        .flatten()
        .find(|kernel| offered.contains(kernel))
}

/// Checks a request and answers what tells it from another under the same id.
fn check(request: &RunRequest) -> Result<u64, RunsError> {
    if !request.id.is_valid() {
        return Err(RunsError::BadId);
    }
    if !(1..=RUN_TIMEOUT_MS).contains(&request.timeout_ms) {
        return Err(RunsError::BadTimeout);
    }
    if request.code.len() > CODE_BYTES {
        return Err(RunsError::CodeTooLarge(request.code.len()));
    }
    let mut hasher = DefaultHasher::new();
    (request.language, &request.code).hash(&mut hasher);
    Ok(hasher.finish())
}

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    id: RunId,
    language: Language,
    timeout: Duration,
    title: String,
    digest: u64,
    standing: Standing,
    log: Arc<Log>,
    phase: Mutex<Phase>,
    /// Keeps a permit, so that it may be raised before anybody waits for it.
    cancel: Notify,
}

/// Where a run stands. The lease is held open until it is over.
#[derive(Debug)]
enum Phase {
    Queued {
        code: String,
        activity: Activity,
    },
    Running {
        since: Instant,
        #[expect(dead_code, reason = "held, not read")]
        activity: Activity,
    },
    Finished(RunStatus),
}

impl Run {
    fn new(request: RunRequest, digest: u64, activity: Activity) -> Self {
        let standing = activity.standing.clone();
        let log = Log::new();
        log.push([RunEventKind::Accepted {
            standing: standing.clone(),
        }]);
        Self {
            title: title(&request.code),
            id: request.id,
            language: request.language,
            timeout: millis(request.timeout_ms),
            digest,
            standing,
            log: Arc::new(log),
            phase: Mutex::new(Phase::Queued {
                code: request.code,
                activity,
            }),
            cancel: Notify::new(),
        }
    }

    fn follow(&self, from: u64, until: Option<Instant>) -> Follower {
        Follower::new(Arc::clone(&self.log), from, until)
    }

    fn state(&self) -> RunState {
        match &*lock(&self.phase) {
            Phase::Queued { .. } => RunState::Queued,
            Phase::Running { .. } => RunState::Running,
            Phase::Finished(status) => RunState::Finished(*status),
        }
    }

    fn summary(&self) -> RunSummary {
        RunSummary {
            id: self.id.clone(),
            language: self.language,
            state: self.state(),
            title: self.title.clone(),
            age_ms: self.log.age_ms(),
            next: self.log.next(),
        }
    }

    /// How long it has been running.
    fn running_ms(&self) -> u64 {
        match &*lock(&self.phase) {
            Phase::Running { since, .. } => whole_ms(since.elapsed()),
            Phase::Queued { .. } | Phase::Finished(_) => 0,
        }
    }

    /// Its turn has come. Answers the code, once.
    fn begin(&self) -> String {
        let mut phase = lock(&self.phase);
        let before = std::mem::replace(&mut *phase, Phase::Finished(RunStatus::Cancelled));
        let (next, code) = match before {
            Phase::Queued { code, activity } => {
                let since = Instant::now();
                (Phase::Running { since, activity }, code)
            }
            begun @ (Phase::Running { .. } | Phase::Finished(_)) => (begun, String::new()),
        };
        *phase = next;
        code
    }

    /// Says how it ended. The lease is let go only after the last event is there to be read.
    fn finish(&self, outcome: RunOutcome) {
        let status = outcome.status;
        self.log.push([RunEventKind::Finished(outcome)]);
        let before = std::mem::replace(&mut *lock(&self.phase), Phase::Finished(status));
        drop(before);
    }

    /// The outcome of a run that its kernel never saw.
    fn never_ran(&self, status: RunStatus, error: Option<RunError>) -> RunOutcome {
        RunOutcome {
            status,
            language: self.language,
            duration_ms: 0.0,
            stdout: Default::default(),
            stderr: Default::default(),
            error,
            result: None,
            exit_code: None,
            kernel: greenroom_protocol::KernelFate::Kept,
            files: Vec::new(),
            images_omitted: 0,
            background_ended: 0,
            lost: None,
            standing: self.standing.clone(),
        }
    }
}

/// The first line of code that says something, bounded.
fn title(code: &str) -> String {
    let line = code
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    line.chars().take(TITLE_CHARS).collect()
}

/// What a run that a dying sandbox took with it is told.
fn ended(reason: EndReason) -> RunError {
    RunError {
        name: "sandbox_ended".to_owned(),
        message: format!("the sandbox ended: {}", reason.as_str()),
        traceback: String::new(),
    }
}
