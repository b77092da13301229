//! A kernel whose code is a script of one word a line, on tokio's clock.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use greenroom_agent::kernel::{
    Ending, Kernel, KernelControl, KernelError, KernelEvent, KernelOutcome, KernelRun,
};
use greenroom_protocol::{Language, RunError, Stream, StreamSummary};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

/// How a start goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// It takes this long.
    Takes(u64),
    Fails,
    Absent,
}

/// What the code's lines do:
/// `print TEXT`, `result TEXT`, `write PATH`, `wait MS` and `hold` (until interrupted), `deaf` (until killed), `tough` (as
/// deaf, and takes half a second to die), `raise`, `exit`, `panic`.
#[derive(Debug)]
pub(crate) struct Scripted {
    language: Language,
    starts: VecDeque<Start>,
    up: bool,
    signals: Arc<Signals>,
    seen: watch::Receiver<Signal>,
}

#[derive(Debug)]
struct Signals {
    signal: watch::Sender<Signal>,
    /// What was done to it, in order.
    log: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    None,
    Interrupt,
    Kill,
}

impl Scripted {
    pub(crate) fn new(language: Language) -> Self {
        let signal = watch::Sender::new(Signal::None);
        Self {
            language,
            starts: VecDeque::new(),
            up: false,
            seen: signal.subscribe(),
            signals: Arc::new(Signals {
                signal,
                log: Arc::default(),
            }),
        }
    }

    /// The first starts go like this, all others at once and well.
    pub(crate) fn starts(mut self, starts: impl IntoIterator<Item = Start>) -> Self {
        self.starts = starts.into_iter().collect();
        self
    }

    /// What was done to it, in order.
    pub(crate) fn log(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.signals.log)
    }

    pub(crate) fn named(&self) -> Language {
        self.language
    }

    fn note(&self, what: &str) {
        self.signals.log.lock().unwrap().push(what.to_owned());
    }

    async fn line(&mut self, line: &str, end: &mut KernelOutcome, events: &mpsc::Sender<KernelEvent>) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "print" => {
                end.stdout.bytes += rest.len() as u64;
                let event = KernelEvent::Output {
                    stream: Stream::Stdout,
                    text: rest.to_owned(),
                    late: false,
                    omitted: 0,
                };
                // The owner may be gone at the end of a test.
                drop(events.send(event).await);
            }
            "write" => std::fs::write(rest, "made by a run").unwrap(),
            "result" => end.result = Some(rest.to_owned()),
            "wait" => sleep(Duration::from_millis(rest.parse().unwrap())).await,
            "hold" | "deaf" | "tough" => std::future::pending().await,
            "raise" => *end = failed(Ending::Error, "ValueError", rest),
            "exit" => *end = failed(Ending::Died, "exit", rest),
            "" => {}
            "panic" => panic!("scripted"),
            _ => panic!("no such line: {line}"),
        }
    }

    /// Pending unless a signal stops this line.
    async fn stopped(seen: &mut watch::Receiver<Signal>, deaf: bool) -> Signal {
        let least = if deaf { Signal::Kill } else { Signal::Interrupt };
        *seen.wait_for(|signal| *signal >= least).await.unwrap()
    }
}

fn failed(ending: Ending, name: &str, message: &str) -> KernelOutcome {
    KernelOutcome {
        ending,
        error: Some(RunError {
            name: name.to_owned(),
            message: message.to_owned(),
            traceback: String::new(),
        }),
        result: None,
        exit_code: None,
        stdout: StreamSummary::default(),
        stderr: StreamSummary::default(),
        images_omitted: 0,
        background_ended: 0,
    }
}

#[async_trait]
impl Kernel for Scripted {
    fn language(&self) -> Language {
        self.language
    }

    async fn start(&mut self) -> Result<String, KernelError> {
        let language = self.language;
        self.note("start");
        self.signals.signal.send_replace(Signal::None);
        match self.starts.pop_front() {
            None => {}
            Some(Start::Takes(ms)) => sleep(Duration::from_millis(ms)).await,
            Some(Start::Fails) => {
                return Err(KernelError::Start {
                    language,
                    reason: "scripted".into(),
                });
            }
            Some(Start::Absent) => {
                return Err(KernelError::Absent {
                    language,
                    reason: "scripted".into(),
                });
            }
        }
        self.up = true;
        Ok("Scripted 1".into())
    }

    async fn run(&mut self, run: &KernelRun, events: &mpsc::Sender<KernelEvent>) -> KernelOutcome {
        assert!(self.up, "a run on a kernel that was not started");
        let mut end = KernelOutcome {
            ending: Ending::Ok,
            error: None,
            ..failed(Ending::Ok, "", "")
        };
        for line in run.code.lines().map(str::trim) {
            self.note(line);
            let mut seen = self.seen.clone();
            let deaf = matches!(line, "deaf" | "tough");
            let stopped = tokio::select! {
                () = self.line(line, &mut end, events) => None,
                signal = Self::stopped(&mut seen, deaf) => Some(signal),
            };
            if let Some(signal) = stopped {
                if line == "tough" {
                    sleep(Duration::from_millis(500)).await;
                }
                end = if signal == Signal::Kill {
                    failed(Ending::Died, "killed", "signal 9")
                } else {
                    failed(Ending::Error, "KeyboardInterrupt", "")
                };
            }
            if end.ending != Ending::Ok {
                break;
            }
        }
        if end.ending == Ending::Died {
            self.up = false;
        } else {
            self.signals.signal.send_replace(Signal::None);
        }
        end
    }

    fn control(&self) -> Arc<dyn KernelControl> {
        Arc::clone(&self.signals) as _
    }

    async fn died(&mut self) -> RunError {
        if !self.up {
            std::future::pending().await
        }
        self.seen
            .wait_for(|signal| *signal == Signal::Kill)
            .await
            .unwrap();
        self.up = false;
        RunError {
            name: "killed".into(),
            message: "signal 9".into(),
            traceback: String::new(),
        }
    }
}

impl KernelControl for Signals {
    fn interrupt(&self) {
        self.log.lock().unwrap().push("interrupt".into());
        self.signal.send_replace(Signal::Interrupt);
    }

    fn kill(&self) {
        self.log.lock().unwrap().push("kill".into());
        self.signal.send_replace(Signal::Kill);
    }
}
