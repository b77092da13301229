//! The image's own program: started when the boot is told, watched by its probes, heard, and reaped.
//!
//! ```text
//! POST /boot ─▶ gate opens (kernels may start) ─▶ program starts ─▶ startup probe passed: ready
//!                                                     │ exits, or fails its liveness probe
//!                                                     ▼
//!              bound: the lease ends, exited or unhealthy · nobody's yet: failed
//! ```
//! The sandbox outlives its program by seconds only: what it wrote last goes with PID 1's own last words.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use greenroom_protocol::{
    App as Program, AppEnd, AppLog, BootRequest, EndReason, LastWords, Probe,
    limits::{ENV_BYTES, ENV_NAMES, LAST_WORDS, LOG_HEAD, LOG_TAIL},
};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Signal, kill_process_group},
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    agent::lock,
    child::{self, Child, Quarters},
    output::{After, HeadTail, plain},
    probes,
    runs::Boot,
    tenure::Tenure,
};

/// What a program that has ended may still have in its pipe.
const LAST_OUTPUT: Duration = Duration::from_millis(200);
/// A program that is asked to end gets this long, of the time that a sandbox takes to wind down.
const GRACE: Duration = Duration::from_millis(1500);
/// Bytes that are read at a time.
const PIECE: usize = 16 << 10;

/// The image's own program, if it is to have one. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quarters: Quarters,
    output: Mutex<HeadTail>,
    gate: watch::Sender<Gate>,
    state: watch::Sender<State>,
    note: Mutex<Option<String>>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// Whether the guest's processes may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Not before the boot was told.
    Shut,
    /// They may.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none, or it was not started yet.
    None,
    Running,
    Ended(AppEnd),
}

/// Why a boot is not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadBoot {
    #[error("a sandbox has at most {ENV_NAMES} variables of {ENV_BYTES} bytes together")]
    Env,
    #[error("the name or value of a variable cannot be one")]
    Name,
    #[error("a program has a name")]
    Argv,
}

impl App {
    pub(crate) fn new(quarters: Quarters, gate: Gate) -> Self {
        Self(Arc::new(Inner {
            quarters,
            output: Mutex::new(HeadTail::new(LOG_HEAD, LOG_TAIL)),
            gate: watch::Sender::new(gate),
            state: watch::Sender::new(State::None),
            note: Mutex::default(),
            task: Mutex::default(),
        }))
    }

    /// Sees the gate.
    pub(crate) fn gate(&self) -> watch::Receiver<Gate> {
        self.0.gate.subscribe()
    }

    /// Takes what the server says, opens the gate, and starts the program; `boot` is told how that went. A second
    /// time nothing happens: a server repeats itself where its channel broke.
    pub(crate) fn begin(
        &self,
        request: BootRequest,
        boot: watch::Sender<Boot>,
        tenure: &Arc<Tenure>,
    ) -> Result<(), BadBoot> {
        check(&request)?;
        let mut task = lock(&self.0.task);
        if *self.0.gate.borrow() == Gate::Open {
            return Ok(());
        }
        self.0.quarters.furnish(request.env);
        self.0.gate.send_replace(Gate::Open);
        let Some(program) = request.app else {
            boot.send_modify(|boot| boot.missing = boot.missing.saturating_sub(1));
            return Ok(());
        };
        let (app, tenure) = (self.clone(), Arc::clone(tenure));
        *task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            app.run(&program, &boot, &tenure).await;
        })));
        Ok(())
    }

    async fn run(&self, program: &Program, boot: &watch::Sender<Boot>, tenure: &Arc<Tenure>) {
        let (mut child, output) = match self.start(program) {
            Ok(started) => started,
            Err(error) => {
                let why = format!("{:?} could not be started: {error}", program.argv[0]);
                *lock(&self.0.note) = Some(why.clone());
                self.0.state.send_replace(State::Ended(AppEnd::NotStarted));
                boot.send_modify(|boot| boot.failed = Some(why));
                return;
            }
        };
        self.0.state.send_replace(State::Running);
        let mut heard = AbortOnDropHandle::new(tokio::spawn(self.clone().hear(output)));
        let came_up = tokio::select! {
            up = up(program.startup.as_ref()) => up.map_err(|met| format!("its startup probe failed: {met}")),
            ended = child.wait() => Err(self.ended(ended, &mut heard).await),
            _ = tenure.ended() => return self.stop(&mut child).await,
        };
        if let Err(why) = came_up {
            let why = self.with_output(&why);
            boot.send_modify(|boot| boot.failed = Some(why));
            if *self.0.state.borrow() == State::Running {
                self.stop(&mut child).await;
            }
            return;
        }
        boot.send_modify(|boot| boot.missing = boot.missing.saturating_sub(1));
        tokio::select! {
            ended = child.wait() => {
                let why = self.ended(ended, &mut heard).await;
                *lock(&self.0.note) = Some(why);
                tenure.app_over(EndReason::Exited);
            }
            met = down(program.liveness.as_ref()) => {
                *lock(&self.0.note) = Some(format!("its liveness probe failed: {met}"));
                tenure.app_over(EndReason::Unhealthy);
                self.stop(&mut child).await;
            }
            _ = tenure.ended() => self.stop(&mut child).await,
        }
    }

    fn start(&self, program: &Program) -> io::Result<(Child, Receiver)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // The program's own end blocks, as programs expect.
        rustix::io::ioctl_fionbio(&write, false)?;
        let mut command = self.0.quarters.app_command(&program.argv, &program.work_dir);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::from(write.try_clone()?))
            .stderr(Stdio::from(write));
        let child = child::spawn(command)?;
        Ok((child, Receiver::from_owned_fd(read)?))
    }

    /// Keeps the head and the tail of what is written, for as long as anybody has the other end.
    async fn hear(self, mut output: Receiver) {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = output.read(&mut piece).await {
            lock(&self.0.output).push(&piece[..length]);
        }
    }

    /// Takes down how it ended, and says it.
    async fn ended(&self, status: io::Result<ExitStatus>, heard: &mut AbortOnDropHandle<()>) -> String {
        let end = status.map_or(AppEnd::Code(-1), end_of);
        // Descendants may hold the pipe for as long as they like.
        drop(timeout(LAST_OUTPUT, heard).await);
        self.0.state.send_replace(State::Ended(end));
        format!("the image's program ended: {end}")
    }

    /// Asks it to end, and kills it where it does not.
    async fn stop(&self, child: &mut Child) {
        // An error means that it has ended, which is what was wanted.
        let _ = kill_process_group(child.pid(), Signal::TERM);
        let end = match timeout(GRACE, child.wait()).await {
            Ok(status) => status.map_or(AppEnd::Code(-1), end_of),
            Err(_) => {
                let _ = kill_process_group(child.pid(), Signal::KILL);
                AppEnd::Signal(Signal::KILL.as_raw())
            }
        };
        self.0.state.send_replace(State::Ended(end));
    }

    /// Waits until it does not run, for a sandbox that ends.
    pub(crate) async fn over(&self) {
        let mut state = self.0.state.subscribe();
        // The sender is in `self`, so this cannot be an error.
        drop(state.wait_for(|state| *state != State::Running).await);
    }

    /// What it has written.
    pub(crate) fn log(&self) -> AppLog {
        let end = match *self.0.state.borrow() {
            State::Ended(end) => Some(end),
            State::None | State::Running => None,
        };
        let mut output = lock(&self.0.output);
        let omitted = output.omitted();
        let after = if omitted == 0 { After::More } else { After::End };
        let (mut head, taken) = plain(output.head(), after);
        let rest = output.head()[taken..].to_vec();
        let tail = if omitted == 0 {
            // One text, cut where the head happens to end.
            [rest.as_slice(), output.tail()].concat()
        } else {
            output.tail().to_vec()
        };
        let (mut tail, _) = plain(&tail, After::End);
        if omitted == 0 {
            head.push_str(&std::mem::take(&mut tail));
        }
        AppLog {
            head,
            omitted,
            tail,
            end,
        }
    }

    /// For whoever looks at the sandbox when it has ended; `None` where there never was a program.
    pub(crate) fn last_words(&self, reason: EndReason) -> Option<LastWords> {
        let log = self.log();
        let note = lock(&self.0.note).clone();
        if *self.0.state.borrow() == State::None && note.is_none() {
            return None;
        }
        Some(LastWords {
            reason,
            note,
            end: log.end,
            output: last(&log, LAST_WORDS),
        })
    }

    fn with_output(&self, why: &str) -> String {
        let written = last(&self.log(), 1024);
        if written.trim().is_empty() {
            format!("{why}; it has written nothing")
        } else {
            format!("{why}; it has written last: {written}")
        }
    }
}

impl Quarters {
    /// The image's own program: in its own place, with the image's environment and what was told over it.
    fn app_command(&self, argv: &[String], work_dir: &str) -> std::process::Command {
        let mut command = self.bare(&argv[0]);
        command.args(&argv[1..]).current_dir(work_dir);
        command
    }
}

fn check(request: &BootRequest) -> Result<(), BadBoot> {
    let bytes = |(name, value): (&String, &greenroom_protocol::Masked)| name.len() + value.reveal().len();
    if request.env.len() > ENV_NAMES || request.env.iter().map(bytes).sum::<usize>() > ENV_BYTES {
        return Err(BadBoot::Env);
    }
    let odd = |(name, value): (&String, &greenroom_protocol::Masked)| {
        name.is_empty() || name.contains(['=', '\0']) || value.reveal().contains('\0')
    };
    if request.env.iter().any(odd) {
        return Err(BadBoot::Name);
    }
    match &request.app {
        Some(app) if app.argv.first().is_none_or(String::is_empty) => Err(BadBoot::Argv),
        Some(_) | None => Ok(()),
    }
}

async fn up(probe: Option<&Probe>) -> Result<(), String> {
    match probe {
        Some(probe) => probes::until_up(probe).await,
        None => Ok(()),
    }
}

async fn down(probe: Option<&Probe>) -> String {
    match probe {
        Some(probe) => probes::until_down(probe).await,
        None => std::future::pending().await,
    }
}

fn end_of(status: ExitStatus) -> AppEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => AppEnd::Code(code),
        (None, Some(signal)) => AppEnd::Signal(signal),
        (None, None) => AppEnd::Code(-1),
    }
}

/// The last bytes of a log, from the beginning of a line where that leaves some.
fn last(log: &AppLog, bytes: usize) -> String {
    let whole = format!("{}{}", log.head, log.tail);
    let text = if log.omitted > 0 { &log.tail } else { &whole };
    if text.len() <= bytes {
        return text.clone();
    }
    let mut start = text.len() - bytes;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let cut = &text[start..];
    match cut.split_once('\n') {
        Some((_, lines)) if !lines.is_empty() => lines.to_owned(),
        Some(_) | None => cut.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole_ones() {
        let log = |head: &str, omitted, tail: &str| AppLog {
            head: head.into(),
            omitted,
            tail: tail.into(),
            end: None,
        };
        assert_eq!(last(&log("a\nb\n", 0, ""), 100), "a\nb\n");
        assert_eq!(last(&log("first\nsecond\nthird", 0, ""), 14), "second\nthird");
        assert_eq!(last(&log("first", 9, "second\nthird\n"), 8), "third\n");
        assert_eq!(last(&log("ääää", 0, ""), 3), "ä");
    }

    #[test]
    fn what_no_process_can_have_is_refused() {
        let env = |name: &str, value: &str| BootRequest {
            env: [(name.to_owned(), greenroom_protocol::Masked::new(value.to_owned()))].into(),
            app: None,
        };
        assert_eq!(check(&env("A", "b")), Ok(()));
        for (name, value) in [("", "b"), ("A=B", "b"), ("A", "b\0")] {
            assert_eq!(check(&env(name, value)), Err(BadBoot::Name));
        }
        assert_eq!(check(&env("A", &"x".repeat(ENV_BYTES))), Err(BadBoot::Env));
    }
}
