//! The task that owns one kernel: starts it, runs what its lane holds, stops what must stop, and brings a
//! dead kernel back.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use greenroom_protocol::{
    EndReason, KernelFate, Loss, LossCause, RunError, RunEventKind, RunId, RunOutcome, RunStatus, Standing,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    Boot, Run, ended,
    lane::{Behind, Lane},
    stop::{Act, Stop, Why},
};
use crate::{
    app::Gate,
    files::Files,
    kernel::{Ending, Kernel, KernelControl, KernelError, KernelEvent, KernelOutcome, KernelRun},
    lease::whole_ms,
};

/// How long a kernel may take to come up, preloads included: a busy host is slow, a broken image is not
/// worth more.
const START_TIME: Duration = Duration::from_secs(60);
/// Events that a kernel may be ahead of its log. Small: what waits here is output that nobody sees yet.
const EVENTS: usize = 64;
/// What a name that nobody has defined raises in Python. Shells take it for empty.
const UNKNOWN_NAME: &str = "NameError";
/// How often a kernel that keeps dying before its first run is brought back unasked.
const UNASKED_STARTS: u32 = 2;

/// Owns a kernel.
#[derive(Debug)]
pub(super) struct Owner {
    kernel: Box<dyn Kernel>,
    control: Arc<dyn KernelControl>,
    lane: Arc<Lane>,
    files: Files,
    ending: watch::Receiver<Option<EndReason>>,
    gate: watch::Receiver<Gate>,
    life: Life,
    /// When and how variables were lost last.
    loss: Option<(Instant, LossCause)>,
}

/// Whether there is a process, and whether anything would be lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Down { unasked: u32 },
    Fresh { unasked: u32 },
    Used,
}

/// The sandbox ends: the owner stops.
#[derive(Debug)]
struct Over;

impl Owner {
    pub(super) fn new(
        kernel: Box<dyn Kernel>,
        lane: Arc<Lane>,
        files: Files,
        ending: watch::Receiver<Option<EndReason>>,
        gate: watch::Receiver<Gate>,
    ) -> Self {
        Self {
            control: kernel.control(),
            kernel,
            lane,
            files,
            ending,
            gate,
            life: Life::Down { unasked: 0 },
            loss: None,
        }
    }

    /// Serves the lane until the sandbox ends. With `boot` the kernel is started at once, and how that
    /// went is told there.
    pub(super) async fn own(mut self, boot: Option<watch::Sender<Boot>>) {
        // Over is the only way out.
        let Err(Over) = self.serve(boot).await;
        self.control.kill();
    }

    async fn serve(&mut self, boot: Option<watch::Sender<Boot>>) -> Result<std::convert::Infallible, Over> {
        tokio::select! {
            biased;
            _ = self.ending.wait_for(Option::is_some) => return Err(Over),
            // What it is to have in its environment is not there before.
            _ = self.gate.wait_for(|gate| *gate == Gate::Open) => {}
        }
        if let Some(boot) = boot {
            let started = self.start().await?;
            boot.send_modify(|boot| match started {
                Ok(_) => boot.missing -= 1,
                Err(error) => boot.failed = Some(error.to_string()),
            });
        }
        loop {
            let died = tokio::select! {
                biased;
                _ = self.ending.wait_for(Option::is_some) => return Err(Over),
                error = self.kernel.died(), if !matches!(self.life, Life::Down { .. }) => Some(error),
                () = self.lane.work() => None,
            };
            if let Some(error) = died {
                self.died_idle(error).await?;
                continue;
            }
            let mut boot_time = None;
            if matches!(self.life, Life::Down { .. }) {
                match self.start().await? {
                    Ok(took) => boot_time = Some(took),
                    Err(_) => continue,
                }
            }
            // All that waited may have been withdrawn meanwhile.
            if let Some((run, code)) = self.lane.take() {
                self.run(&run, code, boot_time).await;
                if let Life::Down { unasked } = self.life {
                    self.restart(unasked).await?;
                }
            }
        }
    }

    /// Brings the kernel up; where that fails, everybody who waits for it has heard why.
    async fn start(&mut self) -> Result<Result<Duration, KernelError>, Over> {
        self.lane.kernel(Behind::Starting);
        let unasked = match self.life {
            Life::Down { unasked } => unasked,
            Life::Fresh { .. } | Life::Used => 0,
        };
        let begun = Instant::now();
        let started = tokio::select! {
            biased;
            _ = self.ending.wait_for(Option::is_some) => return Err(Over),
            started = timeout(START_TIME, self.kernel.start()) => started,
        };
        let started = started.unwrap_or_else(|_| {
            Err(KernelError::Start {
                language: self.kernel.language(),
                reason: format!("it did not answer within {} s", START_TIME.as_secs()),
            })
        });
        Ok(match started {
            Ok(version) => {
                self.lane.kernel(Behind::Up(version));
                self.life = Life::Fresh { unasked };
                Ok(begun.elapsed())
            }
            Err(error) => {
                self.life = Life::Down { unasked };
                self.lane.failed(&error);
                Err(error)
            }
        })
    }

    /// The kernel died between runs: the next run hears of it, if there was anything to lose.
    async fn died_idle(&mut self, error: RunError) -> Result<(), Over> {
        let unasked = match self.life {
            Life::Used => {
                self.lane.untold.lost(error);
                self.loss = Some((Instant::now(), LossCause::Between));
                0
            }
            Life::Fresh { unasked } | Life::Down { unasked } => unasked,
        };
        self.life = Life::Down { unasked };
        self.restart(unasked).await
    }

    /// Brings a dead kernel back at once, so that the next run is quick, unless it keeps dying.
    async fn restart(&mut self, unasked: u32) -> Result<(), Over> {
        if unasked >= UNASKED_STARTS {
            self.life = Life::Down { unasked: 0 };
            self.lane.kernel(Behind::Dormant);
            return Ok(());
        }
        self.life = Life::Down { unasked: unasked + 1 };
        // A failure has been told to those who wait; the next run tries again.
        let _started: Result<Duration, KernelError> = self.start().await?;
        Ok(())
    }

    async fn run(&mut self, run: &Arc<Run>, code: String, boot_time: Option<Duration>) {
        let mark = self.files.mark().await;
        let begun = Instant::now();
        run.log.push([RunEventKind::Started {
            kernel_boot_ms: boot_time.map(whole_ms),
            lost: self.lane.untold.said_by(&run.id),
        }]);
        let mut stop = Stop::At(begun + run.timeout);
        let outcome = self.attempt(run, code, &mut stop).await;
        self.life = match outcome.ending {
            Ending::Died => Life::Down { unasked: 0 },
            Ending::Ok | Ending::Error => Life::Used,
        };
        let mut outcome = run.outcome(outcome, stop.why(), begun.elapsed());
        if let Standing::Restarted { reason, .. } = &run.standing {
            self.loss = Some((begun, LossCause::Sandbox { reason: *reason }));
        }
        outcome.lost = self.loss_behind(&outcome);
        if outcome.kernel == KernelFate::Restarted {
            self.lane
                .untold
                .lost_with(&run.id, taken_along(&run.id, outcome.status));
            let (run, status) = (run.id.clone(), outcome.status);
            self.loss = Some((Instant::now(), LossCause::Run { run, status }));
        }
        outcome.files = self.files.changes_since(&mark).await;
        self.lane.done(run, outcome);
    }

    /// The loss that a name which was not found may have gone with.
    fn loss_behind(&self, outcome: &RunOutcome) -> Option<Loss> {
        let (at, cause) = self.loss.as_ref()?;
        outcome
            .error
            .as_ref()
            .filter(|error| error.name == UNKNOWN_NAME)?;
        Some(Loss {
            cause: cause.clone(),
            ago_ms: whole_ms(at.elapsed()),
        })
    }

    /// Runs the code to its end, however that comes about.
    async fn attempt(&mut self, run: &Run, code: String, stop: &mut Stop) -> KernelOutcome {
        let (events, mut shown) = mpsc::channel(EVENTS);
        let mut batch = Vec::with_capacity(EVENTS);
        let control = &self.control;
        let kernel_run = KernelRun {
            id: run.id.clone(),
            code,
        };
        let mut work = self.kernel.run(&kernel_run, &events);
        let mut alarm = std::pin::pin!(sleep_until(stop.next().unwrap_or_else(Instant::now)));
        let outcome = loop {
            let act = tokio::select! {
                biased;
                // Before the work, which may have so much to do that nothing behind it gets a turn.
                reason = over(&mut self.ending), if !matches!(stop, Stop::Killed(_)) => stop.end(reason),
                () = &mut alarm, if stop.next().is_some() => match (&mut work).now_or_never() {
                    // On a busy machine both may be due.
                    Some(outcome) => break outcome,
                    None => stop.due(Instant::now()),
                },
                _ = shown.recv_many(&mut batch, EVENTS) => {
                    run.log.push(batch.drain(..).map(shown_event));
                    continue;
                }
                outcome = &mut work => break outcome,
                // Not before: until it has begun the kernel has nothing to interrupt.
                () = run.cancel.notified() => stop.cancel(Instant::now()),
            };
            match act {
                Some(Act::Interrupt) => control.interrupt(),
                Some(Act::Kill) => control.kill(),
                None => {}
            }
            if let Some(next) = stop.next() {
                alarm.as_mut().reset(next);
            }
        };
        drop(work);
        let mut rest = Vec::new();
        while let Ok(event) = shown.try_recv() {
            rest.push(shown_event(event));
        }
        run.log.push(rest);
        outcome
    }
}

/// What later runs say of a restart that this one brought about, should nobody hear this one's answer.
fn taken_along(run: &RunId, status: RunStatus) -> RunError {
    let how = match status {
        RunStatus::TimedOut => "stopped at its time limit",
        RunStatus::Cancelled => "cancelled",
        RunStatus::Ok | RunStatus::Error | RunStatus::KernelDied => "it ended the process",
    };
    RunError {
        name: format!("run {run}"),
        message: how.to_owned(),
        traceback: String::new(),
    }
}

/// Also where the task panicked: a run that was accepted gets its answer.
impl Drop for Owner {
    fn drop(&mut self) {
        self.lane.abandon();
    }
}

/// Waits until the sandbox ends.
async fn over(ending: &mut watch::Receiver<Option<EndReason>>) -> EndReason {
    match ending.wait_for(Option::is_some).await {
        Ok(reason) => reason.unwrap_or(EndReason::Failed),
        // The agent itself is gone.
        Err(_) => EndReason::Failed,
    }
}

fn shown_event(event: KernelEvent) -> RunEventKind {
    match event {
        KernelEvent::Output {
            stream,
            text,
            late,
            omitted,
        } => RunEventKind::Output {
            stream,
            text,
            late,
            omitted,
        },
        KernelEvent::Display { data, path } => RunEventKind::Display { data, path },
    }
}

impl Run {
    /// What is told of it in the end. Who stopped it counts before how its code took that.
    fn outcome(&self, kernel: KernelOutcome, stopped: Option<Why>, took: Duration) -> RunOutcome {
        let status = match (stopped, kernel.ending) {
            (Some(why), _) => why.status(),
            (None, Ending::Ok) => RunStatus::Ok,
            (None, Ending::Error) => RunStatus::Error,
            (None, Ending::Died) => RunStatus::KernelDied,
        };
        let error = match stopped {
            Some(Why::Ending(reason)) => Some(ended(reason)),
            Some(Why::TimedOut | Why::Cancelled) | None => kernel.error,
        };
        RunOutcome {
            status,
            language: self.language,
            duration_ms: took.as_secs_f64() * 1000.0,
            stdout: kernel.stdout,
            stderr: kernel.stderr,
            error,
            result: kernel.result,
            exit_code: kernel.exit_code,
            kernel: match kernel.ending {
                Ending::Died => KernelFate::Restarted,
                Ending::Ok | Ending::Error => KernelFate::Kept,
            },
            files: Vec::new(),
            images_omitted: kernel.images_omitted,
            background_ended: kernel.background_ended,
            lost: None,
            standing: self.standing.clone(),
        }
    }
}
