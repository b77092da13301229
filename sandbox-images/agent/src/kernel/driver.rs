//! What all kernels that are a process of ours have in common: starting it, one run after another over its
//! line, its two output streams, and its death.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use greenroom_protocol::{AgentConfig, Language, RunError, Stream, StreamSummary, limits::IMAGES};
use serde::Serialize;
use tokio::{
    net::{UnixStream, unix::OwnedReadHalf},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::{
    Ending, Kernel, KernelControl, KernelError, KernelEvent, KernelOutcome, KernelRun,
    control::{Control, Incarnation, Phase},
    voice::{Fifo, Voice},
};
use crate::{
    child::{Child, Quarters, spawn},
    descent::{self, TAG},
    images,
    output::{Capture, Spill},
    processes,
};

/// Longest line from a kernel's process. Its texts are bounded well below; images go through files.
const LINE_BYTES: usize = 2 << 20;
/// Displays of one run that are passed on; our host stops at 64.
const DISPLAYS: u32 = 128;
/// Text that the displays of one run may have together.
const DISPLAY_BYTES: usize = 1 << 20;
/// Output is sent at once, and then at most so often; a run is looked after as often.
const TICK: Duration = Duration::from_millis(50);
/// Ticks between two reminders.
const REMINDER: u32 = 4;
/// Ticks from an interrupt to the reminder after it.
const APART: u32 = 2;
/// Ticks between two looks at the process table: a shell that cannot fork waits a second before it tries again.
const CROWD: u32 = 20;
/// Share of the machine's memory, in percent, at which a death without a reason is taken for want of it.
const NEAR_LIMIT: u64 = 70;
/// Characters of what a process wrote that the reason of a failed start shows.
const LAST_WORDS: usize = 2000;

/// How a kernel's process is started and spoken to.
pub(super) trait Dialect: fmt::Debug + Send + Sync + 'static {
    /// What it runs.
    fn language(&self) -> Language;

    /// The command that starts the process, with these ends as its descriptors.
    fn command(&self, quarters: &Quarters, ends: Ends) -> Result<Command, KernelError>;

    /// What the process hears first. It answers [`Reply::Ready`] or [`Reply::Failed`].
    fn opening(&self) -> String;

    /// What begins a run. It is answered by [`Reply::Done`], if the process lives.
    fn request(&mut self, run: &Request<'_>) -> String;

    /// What is said on the line, each [`REMINDER`], for a process that can lose a line to an interrupt: while
    /// the code has not begun; and, with another interrupt, since it can miss one too, once it was interrupted.
    fn remind(&self) -> Option<String> {
        None
    }

    /// What the process wants to hear when [`Reply::Shown`] has been placed after the output before it.
    fn shown(&self) -> Option<&'static str> {
        None
    }

    /// What a process answers with [`Reply::Settled`] once no interrupt of an earlier run can reach it any more,
    /// for one that would lose the next run to it.
    fn settle(&self) -> Option<String> {
        None
    }

    /// Whose memory counts, if not that of the process itself.
    fn weighed(&self) -> Option<i32> {
        None
    }

    /// Where the process reads what it is told.
    fn hears(&self) -> Hears {
        Hears::Line
    }

    /// Whether the process says [`Reply::Began`].
    fn says_when_it_begins(&self) -> bool;

    /// Understands a line.
    fn reply(&self, line: &str) -> Result<Reply, String>;
}

/// Where a process reads what it is told. What it has to say goes over the line in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hears {
    /// On the line.
    Line,
    /// From a file that it opens by its name.
    Fifo,
}

/// The process's ends of what connects it to the agent.
#[derive(Debug)]
pub(super) struct Ends {
    /// The line.
    pub(super) talk: OwnedFd,
    /// Where [`Hears::Fifo`] is, and nowhere else.
    pub(super) fifo: Option<PathBuf>,
    /// Where ticks arrive.
    pub(super) tick: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// One run, as a dialect puts it into words.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) code: &'a str,
    /// Where images are saved: an absolute path, but for a number and an ending.
    pub(super) figures: &'a str,
    /// Where the whole of a traceback is written that is shown in part: an absolute path.
    pub(super) traceback: &'a str,
    /// An interrupt of an earlier run may be on its way still.
    pub(super) stale: bool,
}

/// What a kernel's process says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It waits for code; its version for people.
    Ready(String),
    /// It cannot be started, and why.
    Failed(String),
    /// It has answered [`Dialect::settle`].
    Settled,
    /// The code runs.
    Began,
    /// The code shows something.
    Shown(Shown),
    /// The code is over, and its output in the pipes.
    Done(Done),
    /// Nothing that matters now.
    Nothing,
}

/// Something rich.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) data: BTreeMap<String, String>,
    /// What completes [`Request::figures`], if an image was saved there.
    pub(super) image: Option<String>,
}

/// How the code ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) failed: bool,
    pub(super) error: Option<RunError>,
    pub(super) result: Option<String>,
    pub(super) exit_code: Option<i32>,
}

impl Done {
    /// As a process reports it that has no exit code for a run.
    pub(super) const fn reported(error: Option<RunError>, result: Option<String>) -> Self {
        Self {
            failed: error.is_some(),
            error,
            result,
            exit_code: None,
        }
    }
}

/// An interrupt that this process ignores, as jobs in the background of a script do, would be ignored by all that it
/// starts, for ever. One that it handles is not: a handler does not outlive an exec.
fn heed_interrupts() {
    if processes::ignores_interrupts()
        && let Err(error) = signal(SignalKind::interrupt())
    {
        tracing::debug!(%error, "interrupts stay ignored");
    }
}

/// A message to a process as a line. Its parts are strings and numbers: there is nothing that JSON cannot say.
pub(super) fn line(message: &impl Serialize) -> String {
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

/// A kernel that is a process of ours.
#[derive(Debug)]
pub(super) struct Driver<D> {
    dialect: D,
    quarters: Arc<Quarters>,
    control: Arc<Control>,
    spill_bytes: u64,
    process: Option<Process>,
}

/// A process that has said that it is ready.
#[derive(Debug)]
struct Process {
    child: Child,
    lines: FramedRead<OwnedReadHalf, LinesCodec>,
    voice: Voice,
    tick: UnixStream,
    stdout: Capture,
    stderr: Capture,
    version: String,
    memory: u64,
}

impl<D: Dialect> Driver<D> {
    pub(super) fn new(dialect: D, quarters: Arc<Quarters>, config: &AgentConfig) -> Self {
        Self {
            dialect,
            control: Arc::new(Control::new(Arc::clone(&quarters))),
            quarters,
            spill_bytes: config.spill_bytes,
            process: None,
        }
    }

    /// Ends what an earlier process has left behind.
    async fn clear(&mut self) {
        self.process = None;
        if let Some(left) = self.control.take() {
            let root = left.pid.map(|pid| pid.as_raw_nonzero().get());
            if !descent::end_from(&self.quarters, &left.tag, root).await {
                tracing::warn!(language = %self.dialect.language(), "a kernel's descent could not be ended");
            }
        }
    }

    fn launch(&self) -> Result<Process, KernelError> {
        let failed = |error: io::Error| self.start_error(error.to_string());
        let (talk, theirs) = UnixStream::pair().map_err(failed)?;
        let (lines, talk) = talk.into_split();
        let (voice, fifo) = match self.dialect.hears() {
            Hears::Line => (Voice::Line(talk), None),
            Hears::Fifo => {
                let (fifo, pipe) = Fifo::make(&self.quarters).map_err(failed)?;
                let path = fifo.path();
                (Voice::Fifo(pipe, Some(fifo)), Some(path))
            }
        };
        let (tick, ticked) = UnixStream::pair().map_err(failed)?;
        let (stdout, stdout_writer) = Capture::new(Stream::Stdout).map_err(failed)?;
        let (stderr, stderr_writer) = Capture::new(Stream::Stderr).map_err(failed)?;
        let ends = Ends {
            talk: blocking(theirs).map_err(failed)?,
            fifo,
            tick: blocking(ticked).map_err(failed)?,
            stdout: stdout_writer,
            stderr: stderr_writer,
        };
        let tag = self.control.next_tag();
        let mut command = self.dialect.command(&self.quarters, ends)?;
        command.env(TAG, &tag);
        let child = spawn(command).map_err(failed)?;
        self.control.started(Incarnation {
            tag,
            pid: Some(child.pid()),
        });
        Ok(Process {
            child,
            lines: FramedRead::new(lines, LinesCodec::new_with_max_length(LINE_BYTES)),
            voice,
            tick,
            stdout,
            stderr,
            version: String::new(),
            memory: processes::machine_memory().unwrap_or(u64::MAX),
        })
    }

    async fn boot(&self, process: &mut Process) -> Result<(), KernelError> {
        let opening = self.dialect.opening();
        if process.voice.say(opening.as_bytes()).await.is_err() {
            // It has died already, and how is what matters.
            let status = process.child.wait().await;
            return Err(self.start_error(self.account(process, status).await));
        }
        loop {
            let line = tokio::select! {
                line = process.lines.next() => line,
                () = process.stdout.readable() => { process.stdout.take().await; continue }
                () = process.stderr.readable() => { process.stderr.take().await; continue }
                status = process.child.wait() => {
                    return Err(self.start_error(self.account(process, status).await));
                }
            };
            match line.map(|line| line.map(|line| self.dialect.reply(&line))) {
                Some(Ok(Ok(Reply::Ready(version)))) => {
                    process.version = version;
                    process.voice.heard();
                    return Ok(());
                }
                Some(Ok(Ok(Reply::Failed(reason)))) => return Err(self.start_error(reason)),
                Some(Ok(Ok(_))) => {}
                Some(Ok(Err(_)) | Err(_)) | None => {
                    process.child.kill();
                    let status = process.child.wait().await;
                    return Err(self.start_error(self.account(process, status).await));
                }
            }
        }
    }

    fn start_error(&self, reason: String) -> KernelError {
        KernelError::Start {
            language: self.dialect.language(),
            reason,
        }
    }

    /// How a process died that never was ready, with the last that it wrote.
    async fn account(&self, process: &mut Process, status: io::Result<ExitStatus>) -> String {
        let words = process.stderr.last_words().await;
        // Of a traceback its end: the rest is ours, and says nothing to anybody outside.
        let words = match words.rsplit_once("\n  File ") {
            Some((_, end)) => end
                .lines()
                .rfind(|line| !line.starts_with(' '))
                .unwrap_or_default(),
            None => &words,
        };
        let from = words.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
        let (error, _) = death(&status, self.control.ended(), None);
        format!("{}: {}", error.message, words[from..].trim())
    }
}

/// Whether what was saved under such a name is sent as an image block: hosts take no others.
fn is_picture(ending: &str) -> bool {
    [".png", ".jpg"].iter().any(|picture| ending.ends_with(picture))
}

/// A socket of ours as a child expects it.
fn blocking(stream: UnixStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

#[async_trait]
impl<D: Dialect> Kernel for Driver<D> {
    fn language(&self) -> Language {
        self.dialect.language()
    }

    async fn start(&mut self) -> Result<String, KernelError> {
        if let Some(process) = &self.process {
            return Ok(process.version.clone());
        }
        self.clear().await;
        self.control.make_room().await;
        heed_interrupts();
        let mut process = self.launch()?;
        self.boot(&mut process).await?;
        let version = process.version.clone();
        self.process = Some(process);
        Ok(version)
    }

    async fn run(&mut self, run: &KernelRun, events: &mpsc::Sender<KernelEvent>) -> KernelOutcome {
        let Some(process) = &mut self.process else {
            return KernelOutcome::died(RunError {
                name: "kernel_start".to_owned(),
                message: "the kernel was not started".to_owned(),
                traceback: String::new(),
            });
        };
        let figures = format!(".greenroom/figures/{}", run.id);
        let mut session = Session {
            dialect: &mut self.dialect,
            control: &self.control,
            quarters: &self.quarters,
            process,
            events,
            figures,
            traceback: format!(".greenroom/runs/{}.traceback.txt", run.id),
            images: 0,
            images_omitted: 0,
            displays: 0,
            display_bytes: 0,
            memory_peak: 0,
            began: false,
            ticks: 0,
            waiting_ticks: 0,
        };
        let end = {
            let spill = |stream: &str| {
                let path = format!(".greenroom/runs/{}.{stream}", run.id);
                Spill::new(Arc::clone(&self.quarters), path, self.spill_bytes)
            };
            session.begin(spill("stdout"), spill("stderr")).await;
            session.follow(&run.code).await
        };
        let outcome = session.finish(end).await;
        if outcome.ending == Ending::Died {
            self.process = None;
        }
        outcome
    }

    fn control(&self) -> Arc<dyn KernelControl> {
        Arc::<Control>::clone(&self.control)
    }

    async fn died(&mut self) -> RunError {
        let Some(process) = &mut self.process else {
            return std::future::pending().await;
        };
        let status = loop {
            tokio::select! {
                () = process.stdout.readable() => process.stdout.take().await,
                () = process.stderr.readable() => process.stderr.take().await,
                status = process.child.wait() => break status,
            }
        };
        self.process = None;
        death(&status, self.control.ended(), None).0
    }
}

/// One run under way.
struct Session<'a, D> {
    dialect: &'a mut D,
    control: &'a Control,
    quarters: &'a Quarters,
    process: &'a mut Process,
    events: &'a mpsc::Sender<KernelEvent>,
    figures: String,
    traceback: String,
    images: usize,
    images_omitted: u32,
    displays: u32,
    display_bytes: usize,
    memory_peak: u64,
    began: bool,
    ticks: u32,
    waiting_ticks: u32,
}

/// How following a run ended.
enum End {
    Done(Done),
    Died(io::Result<ExitStatus>),
    /// The process spoke nonsense, or closed its line, and was killed for it.
    Lost(String),
}

impl<D: Dialect> Session<'_, D> {
    async fn begin(&mut self, stdout: Spill, stderr: Spill) {
        for event in self.process.stdout.begin(stdout).await {
            self.send(event).await;
        }
        for event in self.process.stderr.begin(stderr).await {
            self.send(event).await;
        }
    }

    /// Hands the code over and follows it to its end.
    async fn follow(&mut self, code: &str) -> End {
        if self.control.is_interrupted()
            && let Some(end) = self.settle().await
        {
            return end;
        }
        let figures = self.quarters.work_dir().join(&self.figures);
        let traceback = self.quarters.work_dir().join(&self.traceback);
        let request = self.dialect.request(&Request {
            code,
            figures: &figures.to_string_lossy(),
            traceback: &traceback.to_string_lossy(),
            stale: self.control.is_interrupted(),
        });
        self.control.enter(Phase::Sent);
        loop {
            tokio::select! {
                // A line that is broken shows in the process's death, or in reading from it.
                _ = self.process.voice.say(request.as_bytes()) => {}
                status = self.process.child.wait() => return End::Died(status),
            }
            if !self.dialect.says_when_it_begins() {
                self.begins();
            }
            let end = self.attend().await;
            // Lines are taken in turn: an end without a beginning means that the code was thrown away.
            if self.began || !matches!(end, End::Done(_)) {
                self.control.enter(Phase::Between);
                return end;
            }
        }
    }

    fn begins(&mut self) {
        self.began = true;
        self.control.enter(Phase::Running);
    }

    /// Waits until an interrupt of the run before has had its effect: the process may be woken by the signal
    /// and the next run's code at once, and throw the code away. What it is asked can be lost in the same way,
    /// so it is asked until it answers.
    async fn settle(&mut self) -> Option<End> {
        let question = self.dialect.settle()?;
        let mut rounds = interval_at(Instant::now(), TICK);
        loop {
            tokio::select! {
                biased;
                line = self.process.lines.next() => match line.map(|line| line.map(|line| self.dialect.reply(&line))) {
                    Some(Ok(Ok(Reply::Settled))) => return None,
                    Some(Ok(Ok(_))) => {}
                    Some(Ok(Err(_)) | Err(_)) | None => return Some(End::Died(self.process.child.wait().await)),
                },
                status = self.process.child.wait() => return Some(End::Died(status)),
                _ = rounds.tick() => self.process.voice.remark(question.as_bytes()),
            }
        }
    }

    async fn attend(&mut self) -> End {
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // In the past: the first output is sent at once.
        let mut sent = Instant::now() - TICK;
        loop {
            let fresh = self.process.stdout.has_fresh() || self.process.stderr.has_fresh();
            tokio::select! {
                biased;
                line = self.process.lines.next() => match self.hear(line).await {
                    Some(end) => return end,
                    None => continue,
                },
                status = self.process.child.wait() => return End::Died(status),
                () = sleep_until(sent + TICK), if fresh => {
                    self.send_fresh().await;
                    sent = Instant::now();
                }
                _ = ticks.tick() => self.tick().await,
                () = self.process.stdout.readable() => self.process.stdout.take().await,
                () = self.process.stderr.readable() => self.process.stderr.take().await,
            }
        }
    }

    /// Looks after a run that takes its time.
    async fn tick(&mut self) {
        // Full, if the process does not come to read it: then it has ticks enough.
        drop(self.process.tick.try_write(b"."));
        let own = self.process.child.pid().as_raw_nonzero().get();
        let pid = self.dialect.weighed().unwrap_or(own);
        self.memory_peak = self.memory_peak.max(processes::resident(pid).unwrap_or(0));
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(CROWD) {
            self.control.make_room().await;
        }
        if self.began && !self.control.is_interrupted() {
            return;
        }
        self.waiting_ticks += 1;
        let Some(reminder) = self.dialect.remind() else {
            return;
        };
        // Apart from each other: a process that is woken by both at once throws away what it has read.
        match self.waiting_ticks % REMINDER {
            0 if self.began => self.control.interrupt(),
            APART => self.process.voice.remark(reminder.as_bytes()),
            _ => {}
        }
    }

    /// Understands a line; answers the run's end if this was it.
    async fn hear(&mut self, line: Option<Result<String, LinesCodecError>>) -> Option<End> {
        let reply = match line {
            Some(Ok(line)) => self.dialect.reply(&line),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it closed its line to the agent".to_owned()),
        };
        match reply {
            Ok(Reply::Done(done)) => return Some(End::Done(done)),
            Ok(Reply::Began) => self.begins(),
            Ok(Reply::Shown(shown)) => self.show(shown).await,
            Ok(Reply::Ready(_) | Reply::Failed(_) | Reply::Settled | Reply::Nothing) => {}
            Err(reason) => {
                // A process that is dying closes its line first: give it the chance to say how it died.
                let dying = tokio::time::timeout(TICK, self.process.child.wait()).await;
                if let Ok(status) = dying {
                    return Some(End::Died(status));
                }
                self.control.kill();
                drop(self.process.child.wait().await);
                return Some(End::Lost(reason));
            }
        }
        None
    }

    async fn show(&mut self, shown: Shown) {
        // What was printed before stands before it.
        self.process.stdout.drain().await;
        self.process.stderr.drain().await;
        self.send_fresh().await;
        if let Some(answer) = self.dialect.shown() {
            // It waits for these few bytes; a line that is broken shows elsewhere.
            self.process.voice.remark(answer.as_bytes());
        }
        self.displays += 1;
        self.display_bytes += shown
            .data
            .iter()
            .map(|(kind, value)| kind.len() + value.len())
            .sum::<usize>();
        if self.displays > DISPLAYS || self.display_bytes > DISPLAY_BYTES {
            return;
        }
        let mut data = shown.data;
        let mut path = None;
        if let Some(ending) = shown.image {
            let file = format!("{}{ending}", self.figures);
            if is_picture(&ending) {
                if self.images >= IMAGES {
                    self.images_omitted += 1;
                    return;
                }
                if let Some(image) = images::sendable(self.quarters, file.as_ref()).await {
                    self.images += 1;
                    data.insert(image.mime.to_owned(), BASE64_STANDARD.encode(image.bytes));
                }
            }
            path = Some(file);
        }
        self.send(KernelEvent::Display { data, path }).await;
    }

    async fn send_fresh(&mut self) {
        let stdout = self.process.stdout.fresh();
        let stderr = self.process.stderr.fresh();
        for event in stdout.into_iter().chain(stderr) {
            self.send(event).await;
        }
    }

    async fn send(&self, event: KernelEvent) {
        // Nobody listens any more: the run goes on all the same.
        drop(self.events.send(event).await);
    }

    /// The last output, and the outcome.
    async fn finish(mut self, end: End) -> KernelOutcome {
        let (out, stdout) = self.process.stdout.finish().await;
        let (err, stderr) = self.process.stderr.finish().await;
        for event in out.into_iter().chain(err) {
            self.send(event).await;
        }
        let (ending, done) = self.judge(end);
        KernelOutcome {
            ending,
            error: done.error,
            result: done.result,
            exit_code: done.exit_code,
            stdout,
            stderr,
            images_omitted: self.images_omitted,
            background_ended: self.control.take_ended(),
        }
    }

    fn judge(&mut self, end: End) -> (Ending, Done) {
        let (error, exit_code) = match end {
            End::Done(done) if done.failed => return (Ending::Error, done),
            End::Done(done) => return (Ending::Ok, done),
            End::Died(status) => {
                let near = self.memory_peak >= self.process.memory / 100 * NEAR_LIMIT;
                let memory = near.then_some(self.memory_peak);
                death(&status, self.control.ended(), memory)
            }
            End::Lost(reason) => {
                self.control.ended();
                let message = format!("the kernel's process was ended: {reason}");
                (
                    RunError {
                        name: "kernel_lost".to_owned(),
                        message,
                        traceback: String::new(),
                    },
                    None,
                )
            }
        };
        (
            Ending::Died,
            Done {
                failed: true,
                error: Some(error),
                result: None,
                exit_code,
            },
        )
    }
}

/// How a process died, in words, and its exit code. `memory` is what it held, if that was near all there is.
fn death(status: &io::Result<ExitStatus>, killed: bool, memory: Option<u64>) -> (RunError, Option<i32>) {
    let code = status.as_ref().ok().and_then(ExitStatus::code);
    let signal = status.as_ref().ok().and_then(ExitStatusExt::signal);
    let (name, message) = match (code, signal, memory) {
        (_, Some(_), _) if killed => ("killed", "the process was killed from outside of it".to_owned()),
        // Under gVisor a process that the memory limit has ended exits with 1 and without a word.
        (Some(1), _, Some(held)) | (_, Some(9), Some(held)) => (
            "out_of_memory",
            format!(
                "the process was killed while it held {} MiB: most probably out of memory",
                held >> 20
            ),
        ),
        (Some(code), ..) => ("exit", format!("the process ended itself with exit code {code}")),
        (_, Some(9), None) => (
            "killed",
            "the process was killed (signal 9), not by Greenroom".to_owned(),
        ),
        (_, Some(signal), _) => (
            "signal",
            format!("the process died of signal {signal}{}", signal_name(signal)),
        ),
        (None, None, _) => (
            "lost",
            "the process is gone, and the system does not say how it ended".to_owned(),
        ),
    };
    let error = RunError {
        name: name.to_owned(),
        message,
        traceback: String::new(),
    };
    (error, code)
}

/// What the signals that processes die of are called.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL: an instruction that this processor lacks)",
        6 => " (SIGABRT: native code gave up)",
        7 => " (SIGBUS: a bad memory access in native code)",
        8 => " (SIGFPE: a bad calculation in native code)",
        11 => " (SIGSEGV: a bad memory access in native code)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

impl KernelOutcome {
    /// The outcome of a run that had no process.
    fn died(error: RunError) -> Self {
        Self {
            ending: Ending::Died,
            error: Some(error),
            result: None,
            exit_code: None,
            stdout: StreamSummary::default(),
            stderr: StreamSummary::default(),
            images_omitted: 0,
            background_ended: 0,
        }
    }
}
