//! What all kernels that are a process of ours have in common: starting it, one run after another over its
//! line, its two output streams, and its death.

use std::{io, os::fd::OwnedFd, process::ExitStatus, sync::Arc};

use async_trait::async_trait;
use futures_util::StreamExt;
use greenroom_protocol::{AgentConfig, Language, RunError, Stream, StreamSummary};
use tokio::{
    net::{UnixStream, unix::OwnedReadHalf},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::{
    Ending, Kernel, KernelControl, KernelError, KernelEvent, KernelOutcome, KernelRun,
    control::{Control, Incarnation},
    dialect::{Dialect, Ends, Hears, Reply},
    voice::{Fifo, Voice},
};
use crate::{
    child::{Child, Quarters, spawn},
    descent::{self, TAG},
    output::{Capture, Spill},
    processes,
};

mod death;
mod session;

use death::bury;
use session::Session;

/// Longest line from a kernel's process. Its texts are bounded well below; images go through files.
const LINE_BYTES: usize = 2 << 20;
/// Characters of what a process wrote that the reason of a failed start shows.
const LAST_WORDS: usize = 2000;

/// Characters of a version.
const VERSION: usize = 100;

/// An interrupt that this process ignores, as jobs in the background of a script do, would be ignored by all that it
/// starts, for ever. One that it handles is not: a handler does not outlive an exec.
fn heed_interrupts() {
    if processes::ignores_interrupts()
        && let Err(error) = signal(SignalKind::interrupt())
    {
        tracing::debug!(%error, "interrupts stay ignored");
    }
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
                    process.version = brief(&version);
                    process.voice.heard();
                    return Ok(());
                }
                Some(Ok(Ok(Reply::Failed(reason)))) => {
                    return Err(self.start_error(end_of(&reason).to_owned()));
                }
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
        let (error, _) = bury(&self.control, &status, None);
        format!("{}: {}", error.message, end_of(words).trim())
    }
}

/// The end of what a process says of its failure, which is where the matter stands.
fn end_of(words: &str) -> &str {
    let from = words.char_indices().rev().nth(LAST_WORDS);
    &words[from.map_or(0, |(at, _)| at)..]
}

/// A version, which code may have made the process say.
fn brief(version: &str) -> String {
    version
        .chars()
        .filter(|c| !c.is_control())
        .take(VERSION)
        .collect()
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
        self.control.make_room(None).await;
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
        let spill = |stream: &str| {
            let path = format!(".greenroom/runs/{}.{stream}", run.id);
            Spill::new(Arc::clone(&self.quarters), path, self.spill_bytes)
        };
        let (stdout, stderr) = (spill("stdout"), spill("stderr"));
        let mut session = Session::new(
            &run.id,
            &mut self.dialect,
            process,
            &self.control,
            &self.quarters,
            events,
        );
        session.begin(stdout, stderr).await;
        let end = session.follow(&run.code).await;
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
        bury(&self.control, &status, None).0
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
