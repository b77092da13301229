//! What a run has shown so far: its events gathered into bounded memory, ready to be rendered.

use std::time::Duration;

use greenroom_protocol::{
    KernelFate, Language, RunError, RunEvent, RunEventKind, RunId, RunOutcome, RunState, RunSummary,
    Standing, Stream, StreamSummary, limits,
};

/// Bytes of text of one stream that are kept. The agent sends 128 KiB, four times that if all of it was escaped.
const STREAM_BYTES: usize = 1 << 20;

/// Displays that are kept; the agent bounds images, a hostile one is bounded here.
const DISPLAYS: usize = 64;

/// Characters of a progress message's line.
const LINE_CHARS: usize = 200;

/// A run as far as its events have come.
#[derive(Clone, Debug)]
pub(crate) struct Transcript {
    /// Its name.
    pub id: RunId,
    /// What runs it, as far as is known: the outcome says it, and whoever started it knows.
    pub language: Option<Language>,
    /// Bash was asked for, and the image's plain shell ran it.
    pub stood_in: bool,
    /// What its caller must hear.
    pub standing: Option<Standing>,
    /// Where it stands.
    pub stage: Stage,
    /// How the kernel before this run's died, if no answer has said so yet.
    pub lost: Option<RunError>,
    /// How long the kernel took to start, where it was started for this run.
    pub boot: Option<Duration>,
    /// Descriptor 1.
    pub stdout: Captured,
    /// Descriptor 2.
    pub stderr: Captured,
    /// What arrived between runs.
    pub late: Captured,
    /// Rich results, in order.
    pub displays: Vec<Display>,
    /// Rich results beyond the bound.
    pub displays_dropped: usize,
    /// The number of the next event.
    pub next: u64,
    /// Time from acceptance to the last that is known of it, in milliseconds.
    pub at_ms: u64,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// It waits behind another.
    Queued {
        /// That other, once it is known.
        behind: Option<Ahead>,
    },
    /// It is at work.
    Running,
    /// It is over.
    Finished(Box<RunOutcome>),
}

/// The run that another waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Its name.
    pub run: RunId,
    /// For how long it had been running …
    running_ms: u64,
    /// … when the waiting run was so old.
    at_ms: u64,
}

impl Ahead {
    /// For how long it has been running when the waiting run is `at_ms` old.
    pub(crate) fn running(&self, at_ms: u64) -> Duration {
        Duration::from_millis(self.running_ms.saturating_add(at_ms.saturating_sub(self.at_ms)))
    }
}

/// A rich result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Display {
    /// MIME type → value.
    pub data: std::collections::BTreeMap<String, String>,
    /// Where it was saved.
    pub path: Option<String>,
}

/// Text of one stream, with the places where some was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    /// What is there.
    pub text: String,
    /// Offset in `text` → bytes left out there.
    pub gaps: Vec<(usize, u64)>,
    /// Bytes that were written, as far as is known.
    pub bytes: u64,
    /// Where we saved all of it, if the agent did not.
    pub saved: Option<String>,
}

impl Captured {
    fn push(&mut self, text: &str, omitted: u64) {
        let fits = self.text.len() + text.len() <= STREAM_BYTES;
        let lost = omitted + if fits { 0 } else { text.len() as u64 };
        if lost > 0 {
            match self.gaps.last_mut() {
                Some((at, bytes)) if *at == self.text.len() => *bytes += lost,
                _ => self.gaps.push((self.text.len(), lost)),
            }
        }
        self.bytes += omitted + text.len() as u64;
        if fits {
            self.text.push_str(text);
        }
    }

    /// Whether some of the stream is not in the text.
    pub(crate) fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// The last line that is not blank, cut to what a progress message takes.
    fn last_line(&self) -> Option<String> {
        let line = self
            .text
            .rsplit(['\n', '\r'])
            .find(|line| !line.trim().is_empty())?;
        Some(
            line.chars()
                .filter(|c| !c.is_control())
                .take(LINE_CHARS)
                .collect(),
        )
    }
}

impl Transcript {
    pub(crate) fn new(id: RunId, language: Option<Language>) -> Self {
        Self {
            id,
            language,
            stood_in: false,
            standing: None,
            stage: Stage::Queued { behind: None },
            lost: None,
            boot: None,
            stdout: Captured::default(),
            stderr: Captured::default(),
            late: Captured::default(),
            displays: Vec::new(),
            displays_dropped: 0,
            next: 0,
            at_ms: 0,
        }
    }

    /// Takes the next event.
    pub(crate) fn push(&mut self, event: RunEvent) {
        self.next = event.seq.saturating_add(1);
        self.at_ms = event.at_ms;
        match event.kind {
            RunEventKind::Accepted { standing } => self.standing = Some(standing),
            RunEventKind::Queued { behind, running_ms } => {
                let (run, at_ms) = (behind, event.at_ms);
                let behind = Some(Ahead {
                    run,
                    running_ms,
                    at_ms,
                });
                self.stage = Stage::Queued { behind };
            }
            RunEventKind::Started { lost, kernel_boot_ms } => {
                self.stage = Stage::Running;
                self.lost = lost;
                self.boot = kernel_boot_ms.map(Duration::from_millis);
            }
            RunEventKind::Output {
                late: true,
                text,
                omitted,
                ..
            } => self.late.push(&text, omitted),
            RunEventKind::Output {
                stream: Stream::Stdout,
                text,
                omitted,
                ..
            } => self.stdout.push(&text, omitted),
            RunEventKind::Output {
                stream: Stream::Stderr,
                text,
                omitted,
                ..
            } => self.stderr.push(&text, omitted),
            RunEventKind::Display { data, path } => {
                if self.displays.len() < DISPLAYS {
                    self.displays.push(Display { data, path });
                } else {
                    self.displays_dropped += 1;
                }
            }
            RunEventKind::Finished(outcome) => {
                self.stood_in = self.language == Some(Language::Bash) && outcome.language == Language::Sh;
                self.language = Some(outcome.language);
                self.standing = Some(outcome.standing.clone());
                self.stage = Stage::Finished(Box::new(outcome));
            }
        }
    }

    /// Time has passed without an event.
    pub(crate) fn wait(&mut self, elapsed: Duration) {
        self.at_ms = self
            .at_ms
            .max(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    }

    /// Takes from a list what events that were not replayed said. False: the run is not in it.
    pub(crate) fn place(&mut self, runs: &[RunSummary]) -> bool {
        let Some(own) = runs.iter().find(|run| run.id == self.id) else {
            return false;
        };
        self.language = Some(own.language);
        self.at_ms = self.at_ms.max(own.age_ms);
        self.next = self.next.max(own.next);
        let ahead = |run: &&RunSummary| run.language == own.language && run.state == RunState::Running;
        match (own.state, runs.iter().find(ahead)) {
            (RunState::Queued, Some(run)) if !self.is_placed() => {
                let behind = Some(Ahead {
                    run: run.id.clone(),
                    running_ms: run.age_ms,
                    at_ms: own.age_ms,
                });
                self.stage = Stage::Queued { behind };
            }
            (RunState::Queued, _) => {}
            (RunState::Running | RunState::Finished(_), _) => self.stage = Stage::Running,
        }
        true
    }

    /// Whether it is known if the run waits or works.
    pub(crate) const fn is_placed(&self) -> bool {
        !matches!(self.stage, Stage::Queued { behind: None })
    }

    /// The outcome, once there is one.
    pub(crate) fn outcome(&self) -> Option<&RunOutcome> {
        match &self.stage {
            Stage::Finished(outcome) => Some(outcome),
            Stage::Queued { .. } | Stage::Running => None,
        }
    }

    /// This run, if it says that its kernel has lost its variables.
    pub(crate) fn loss(&self) -> Option<RunId> {
        let restarted = |outcome: &RunOutcome| outcome.kernel == KernelFate::Restarted;
        (self.lost.is_some() || self.outcome().is_some_and(restarted)).then(|| self.id.clone())
    }

    /// What the outcome says of a stream, or what has been seen of it.
    pub(crate) fn summary(&self, stream: Stream) -> StreamSummary {
        let (seen, said) = match stream {
            Stream::Stdout => (&self.stdout, self.outcome().map(|outcome| &outcome.stdout)),
            Stream::Stderr => (&self.stderr, self.outcome().map(|outcome| &outcome.stderr)),
        };
        let mut summary = said.cloned().unwrap_or_else(|| StreamSummary {
            bytes: seen.bytes,
            omitted: seen.gaps.iter().map(|(_, bytes)| bytes).sum(),
            path: None,
            spilled: None,
        });
        if summary.path.is_none() {
            summary.path.clone_from(&seen.saved);
        }
        summary
    }

    /// One line for a progress message: what was printed last, or what the run waits for.
    pub(crate) fn last_line(&self) -> Option<String> {
        match &self.stage {
            Stage::Queued { behind: Some(ahead) } => Some(format!("queued behind run {}", ahead.run)),
            Stage::Queued { behind: None } => None,
            Stage::Running | Stage::Finished(_) => {
                self.stdout.last_line().or_else(|| self.stderr.last_line())
            }
        }
    }
}

const _: () = assert!(STREAM_BYTES >= 4 * (limits::OUTPUT_HEAD + limits::OUTPUT_TAIL));
