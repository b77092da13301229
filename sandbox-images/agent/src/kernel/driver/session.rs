//! One run in a process: the code goes in, what it shows comes out, and how it ended is judged.

use std::{collections::BTreeMap, io, process::ExitStatus, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use greenroom_protocol::{RunError, RunId, limits::IMAGES};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_util::codec::LinesCodecError;

use super::{Process, death::bury};
use crate::{
    child::Quarters,
    images,
    kernel::{
        Ending, KernelControl, KernelEvent, KernelOutcome,
        control::{Control, Phase},
        dialect::{Dialect, Done, Reply, Request, Shown},
    },
    output::Spill,
    processes,
};

/// Displays of one run that are passed on; our host stops at 64.
const DISPLAYS: u32 = 128;
/// Text that the displays of one run may have together.
const DISPLAY_BYTES: usize = 1 << 20;
/// Bytes of its plain text that name a display which does not fit.
const NAME: usize = 200;
/// The kind of text that every display has.
const PLAIN: &str = "text/plain";
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

/// One run under way.
pub(super) struct Session<'a, D> {
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
    /// An interrupt of the run before may be on its way still.
    stale: bool,
    began: bool,
    ticks: u32,
    waiting_ticks: u32,
}

/// How following a run ended.
pub(super) enum End {
    Done(Done),
    Died(io::Result<ExitStatus>),
    /// The process spoke nonsense, or closed its line, and was killed for it.
    Lost(String),
}

impl<'a, D: Dialect> Session<'a, D> {
    pub(super) fn new(
        run: &RunId,
        dialect: &'a mut D,
        process: &'a mut Process,
        control: &'a Control,
        quarters: &'a Quarters,
        events: &'a mpsc::Sender<KernelEvent>,
    ) -> Self {
        Self {
            dialect,
            control,
            quarters,
            process,
            events,
            figures: format!(".greenroom/figures/{run}"),
            traceback: format!(".greenroom/runs/{run}.traceback.txt"),
            images: 0,
            images_omitted: 0,
            displays: 0,
            display_bytes: 0,
            memory_peak: 0,
            stale: false,
            began: false,
            ticks: 0,
            waiting_ticks: 0,
        }
    }

    /// From here on an interrupt is this run's, and waits until the code runs.
    pub(super) async fn begin(&mut self, stdout: Spill, stderr: Spill) {
        self.stale = self.control.is_interrupted();
        self.control.enter(Phase::Sent);
        for event in self.process.stdout.begin(stdout).await {
            self.send(event).await;
        }
        for event in self.process.stderr.begin(stderr).await {
            self.send(event).await;
        }
    }

    /// Hands the code over and follows it to its end.
    pub(super) async fn follow(&mut self, code: &str) -> End {
        if self.stale
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
        });
        loop {
            if let Some(end) = self.say(&request).await {
                return end;
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

    /// Meanwhile its output is read: a process may have to get rid of that before it listens.
    async fn say(&mut self, request: &str) -> Option<End> {
        let Process {
            voice,
            child,
            stdout,
            stderr,
            ..
        } = &mut *self.process;
        let mut saying = std::pin::pin!(voice.say(request.as_bytes()));
        loop {
            tokio::select! {
                // A line that is broken shows in the process's death, or in reading from it.
                _ = &mut saying => return None,
                status = child.wait() => return Some(End::Died(status)),
                () = stdout.readable() => stdout.take().await,
                () = stderr.readable() => stderr.take().await,
            }
        }
    }

    /// Waits until an interrupt of the run before has had its effect: the process may be woken by the signal
    /// and the next run's code at once, and throw the code away. A process that can lose the question in the same way
    /// is asked until it answers.
    async fn settle(&mut self) -> Option<End> {
        let question = self.dialect.settle()?;
        let may_lose_it = self.dialect.remind().is_some();
        let mut asked = false;
        let mut rounds = interval_at(Instant::now(), TICK);
        loop {
            tokio::select! {
                biased;
                line = self.process.lines.next() => match self.understand(line) {
                    Ok(Reply::Settled) => return None,
                    Ok(_) => {}
                    Err(reason) => return Some(self.give_up(reason).await),
                },
                status = self.process.child.wait() => return Some(End::Died(status)),
                _ = rounds.tick(), if may_lose_it || !asked => {
                    asked = self.process.voice.remark(question.as_bytes());
                }
                () = self.process.stdout.readable() => self.process.stdout.take().await,
                () = self.process.stderr.readable() => self.process.stderr.take().await,
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
            self.control.make_room(self.dialect.weighed()).await;
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
            APART => drop(self.process.voice.remark(reminder.as_bytes())),
            _ => {}
        }
    }

    /// Understands a line; answers the run's end if this was it.
    async fn hear(&mut self, line: Option<Result<String, LinesCodecError>>) -> Option<End> {
        match self.understand(line) {
            Ok(Reply::Done(done)) => return Some(End::Done(done)),
            Ok(Reply::Began) => self.begins(),
            Ok(Reply::Shown(shown)) => self.show(shown).await,
            Ok(Reply::Ready(_) | Reply::Failed(_) | Reply::Settled | Reply::Nothing) => {}
            Err(reason) => return Some(self.give_up(reason).await),
        }
        None
    }

    fn understand(&self, line: Option<Result<String, LinesCodecError>>) -> Result<Reply, String> {
        match line {
            Some(Ok(line)) => self.dialect.reply(&line),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it closed its line to the agent".to_owned()),
        }
    }

    /// Ends a process that cannot be understood.
    async fn give_up(&mut self, reason: String) -> End {
        // One that is dying closes its line first: give it the chance to say how it died.
        let dying = tokio::time::timeout(TICK, self.process.child.wait()).await;
        if let Ok(status) = dying {
            return End::Died(status);
        }
        self.control.kill();
        drop(self.process.child.wait().await);
        End::Lost(reason)
    }

    async fn show(&mut self, shown: Shown) {
        // What was printed before stands before it.
        self.process.stdout.drain().await;
        self.process.stderr.drain().await;
        self.send_fresh().await;
        if let Some(answer) = self.dialect.shown() {
            // It waits for these few bytes; a line that is broken shows elsewhere.
            let _read_later = self.process.voice.remark(answer.as_bytes());
        }
        self.displays += 1;
        if self.displays > DISPLAYS {
            return;
        }
        let mut data = shown.data;
        if self.display_bytes + size_of(&data) > DISPLAY_BYTES {
            data = left_out(&data);
        }
        self.display_bytes += size_of(&data);
        let mut path = None;
        if let Some(ending) = shown.image {
            let file = format!("{}{ending}", self.figures);
            if is_picture(&ending) {
                // Nobody waits for a run that was killed to be drawn, and what is no image is tried as seldom as one.
                if self.images >= IMAGES || self.control.is_killed() {
                    self.images_omitted += 1;
                    return;
                }
                self.images += 1;
                if let Some(image) = images::sendable(self.quarters, file.as_ref()).await {
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
    pub(super) async fn finish(mut self, end: End) -> KernelOutcome {
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
                bury(self.control, &status, memory)
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

fn size_of(data: &BTreeMap<String, String>) -> usize {
    data.iter().map(|(kind, value)| kind.len() + value.len()).sum()
}

/// What is said of a display for which there is no room any more.
fn left_out(data: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let plain = data.get(PLAIN).map_or("", String::as_str);
    let name = &plain[..plain.floor_char_boundary(NAME)];
    let said = format!(
        "{name} [left out: what one run displays has {} KiB of text at most]",
        DISPLAY_BYTES >> 10
    );
    BTreeMap::from([(PLAIN.to_owned(), said.trim_start().to_owned())])
}

/// Whether what was saved under such a name is sent as an image block: hosts take no others.
fn is_picture(ending: &str) -> bool {
    [".png", ".jpg"].iter().any(|picture| ending.ends_with(picture))
}
