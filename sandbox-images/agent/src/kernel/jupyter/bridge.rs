//! The bridge: the guest's process between the agent's line and one Jupyter kernel, its child.
//!
//! What a kernel says becomes what the driver expects of any process: text goes to descriptors 1 and 2, what
//! is rich becomes a message, the end of a run comes once the kernel has both replied and gone idle. An
//! interrupt arrives as SIGINT and is passed on as the kernelspec wants it. When the kernel dies, the bridge
//! dies of the same.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use futures_util::StreamExt;
use greenroom_protocol::{RunError, limits::CODE_BYTES};
use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, kill_process_group, setrlimit};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::{
    Asked, Said,
    bundle::{Bundle, cut, plain},
    line,
    process::{Kernel, StartError, Visible},
    spec::{Interrupt, Spec},
    wire::{Channel, Message, WireError},
};

/// Longest line from the agent: code with every byte escaped, and some room.
const LINE_BYTES: usize = CODE_BYTES * 6 + (64 << 10);
/// Bundles of one run that are shown as they are; more become plain text.
const DISPLAYS: usize = 64;
/// Characters of an error's message, and of its traceback.
const MESSAGE: usize = 4 << 10;
const TRACEBACK: usize = 16 << 10;
/// How long the other half of a run's end may lag behind what came last.
const LAG: Duration = Duration::from_secs(5);
/// What a dying kernel has said arrives within this.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// An interrupt that was sent before a question has arrived when this is over.
const SETTLING: Duration = Duration::from_millis(20);

/// Does the errand: drives the kernel of this spec until it or the agent is gone.
pub(crate) fn errand(spec: &str) -> ExitCode {
    let Ok(spec) = serde_json::from_str(spec) else {
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(end) = runtime.map(|runtime| runtime.block_on(bridge(&spec))) else {
        return ExitCode::FAILURE;
    };
    match end {
        Ok(status) => die_like(status),
        Err(error) => {
            // Into the stream that the agent reads: it shows the last of it.
            drop(writeln!(io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}

/// Why there is nothing to bridge any more, the kernel's own death apart.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the agent's line: {0}")]
    Line(#[from] io::Error),
    #[error("the agent is gone")]
    Alone,
    #[error("the kernel did not start: {0}")]
    Start(#[from] StartError),
    #[error("the kernel's connection: {0}")]
    Wire(#[from] WireError),
}

async fn bridge(spec: &Spec) -> Result<ExitStatus, Broken> {
    let line = io::stdin().as_fd().try_clone_to_owned()?;
    let interrupts = signal(SignalKind::interrupt())?;
    let mut agent = Agent::new(line)?;
    let mut kernel = match Kernel::start(spec).await {
        Ok(kernel) => kernel,
        Err(error) => {
            agent.say(&Said::Failed(error.to_string())).await?;
            return Err(error.into());
        }
    };
    agent
        .say(&Said::Ready {
            version: kernel.version.clone(),
            pid: kernel.child.pid().as_raw_nonzero().get(),
        })
        .await?;
    let mut bridge = Bridge {
        agent,
        interrupts,
        mode: spec.interrupt_mode,
        explain: spec.metadata.greenroom.explain.clone(),
    };
    let end = bridge.serve(&mut kernel).await;
    if end.is_err() {
        kernel.child.kill();
    }
    end
}

/// The line to the agent.
struct Agent {
    lines: FramedRead<OwnedReadHalf, LinesCodec>,
    talk: OwnedWriteHalf,
}

impl Agent {
    fn new(line: OwnedFd) -> io::Result<Self> {
        let line = std::os::unix::net::UnixStream::from(line);
        line.set_nonblocking(true)?;
        let (lines, talk) = UnixStream::from_std(line)?.into_split();
        Ok(Self {
            lines: FramedRead::new(lines, LinesCodec::new_with_max_length(LINE_BYTES)),
            talk,
        })
    }

    async fn say(&mut self, said: &Said) -> io::Result<()> {
        self.talk.write_all(line(said).as_bytes()).await
    }

    /// The next thing that is asked. Cancel safe.
    async fn asked(&mut self) -> Result<Asked, Broken> {
        match self.lines.next().await {
            Some(Ok(line)) => serde_json::from_str(&line).map_err(|_| Broken::Alone),
            Some(Err(_)) | None => Err(Broken::Alone),
        }
    }
}

/// Between the agent and a kernel.
struct Bridge {
    agent: Agent,
    interrupts: Signals,
    mode: Interrupt,
    explain: String,
}

/// A run on its way.
#[derive(Debug, Default)]
struct Cell {
    id: String,
    /// What was asked when it seemed over.
    question: Option<String>,
    figures: String,
    began: bool,
    replied: bool,
    idle: bool,
    interrupted: bool,
    error: Option<RunError>,
    result: Option<String>,
    images: u32,
    displays: usize,
}

impl Cell {
    const fn is_over(&self) -> bool {
        self.replied && self.idle
    }

    /// Its error, where the kernel says no more of it than that.
    fn bare_error(&self) -> Option<&RunError> {
        self.error.as_ref().filter(|error| error.traceback.is_empty())
    }

    /// The question was answered.
    fn answered(&mut self, content: &Value) {
        self.replied = true;
        if content["status"] == "error" && self.error.is_some() {
            self.error = Some(raised(content));
        }
    }
}

impl Bridge {
    /// Serves the agent until the kernel has died, and answers how.
    async fn serve(&mut self, kernel: &mut Kernel) -> Result<ExitStatus, Broken> {
        loop {
            tokio::select! {
                biased;
                status = kernel.child.wait() => return self.bury(kernel, None, status?).await,
                message = kernel.wire.next() => match message {
                    Ok(message) => self.hear(kernel, None, message).await?,
                    Err(_) => return Ok(kernel.fate().await?),
                },
                asked = self.agent.asked() => match asked? {
                    Asked::Run { code, figures } => {
                        if let Some(status) = self.run(kernel, &code, figures).await? {
                            return Ok(status);
                        }
                    }
                    Asked::Settle => {
                        drop(timeout(SETTLING, self.interrupts.recv()).await);
                        self.agent.say(&Said::Settled).await?;
                    }
                    Asked::Shown => {}
                },
                // Of a run that is over.
                _ = self.interrupts.recv() => {}
            }
        }
    }

    /// Runs code. Answers how the kernel died, if it did.
    async fn run(
        &mut self,
        kernel: &mut Kernel,
        code: &str,
        figures: String,
    ) -> Result<Option<ExitStatus>, Broken> {
        let mut cell = Cell {
            id: kernel.execute(code, Visible::Yes).await?,
            figures,
            ..Cell::default()
        };
        if let Some(status) = self.follow(kernel, &mut cell).await? {
            return Ok(Some(status));
        }
        if cell.interrupted && cell.bare_error().is_some() {
            cell.error = Some(interrupted());
        } else {
            cell.question = self.question(kernel, &cell, code).await?;
        }
        if cell.question.is_some() {
            cell.replied = false;
            if let Some(status) = self.follow(kernel, &mut cell).await? {
                return Ok(Some(status));
            }
        }
        // An end counts only behind a beginning.
        self.begin(&mut cell).await?;
        self.agent
            .say(&Said::Done {
                error: cell.error,
                result: cell.result,
            })
            .await?;
        Ok(None)
    }

    /// Asks what is still to be known of a cell that seems over, if anything is.
    ///
    /// Race: a kernel that publishes from another task may say that it is idle before it says the result, as Deno does.
    /// Once it has answered another question the result has come, if there is one.
    async fn question(
        &self,
        kernel: &mut Kernel,
        cell: &Cell,
        code: &str,
    ) -> Result<Option<String>, WireError> {
        if cell.bare_error().is_some() && !self.explain.is_empty() {
            let code = serde_json::to_string(code).unwrap_or_default();
            let explain = self.explain.replace("{code}", &code);
            return kernel.execute(&explain, Visible::No).await.map(Some);
        }
        if cell.error.is_none() && cell.result.is_none() {
            return kernel.ask_for_info().await.map(Some);
        }
        Ok(None)
    }

    /// Hears the kernel until the cell is over, or its end overdue. Answers how the kernel died, if it did.
    async fn follow(&mut self, kernel: &mut Kernel, cell: &mut Cell) -> Result<Option<ExitStatus>, Broken> {
        let mut overdue = None;
        while !cell.is_over() {
            tokio::select! {
                biased;
                message = kernel.wire.next() => match message {
                    Ok(message) => self.hear(kernel, Some(&mut *cell), message).await?,
                    Err(_) => return Ok(Some(kernel.fate().await?)),
                },
                status = kernel.child.wait() => return self.bury(kernel, Some(cell), status?).await.map(Some),
                _ = self.interrupts.recv() => {
                    cell.interrupted = true;
                    self.interrupt(kernel).await?;
                }
                // Nothing is asked while a run lasts.
                asked = self.agent.asked() => drop(asked?),
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => break,
            }
            overdue = (cell.replied || cell.idle).then(|| Instant::now() + LAG);
        }
        Ok(None)
    }

    async fn begin(&mut self, cell: &mut Cell) -> Result<(), Broken> {
        if !cell.began {
            cell.began = true;
            self.agent.say(&Said::Began).await?;
        }
        Ok(())
    }

    async fn interrupt(&self, kernel: &mut Kernel) -> Result<(), Broken> {
        match self.mode {
            Interrupt::Message => {
                let asked = kernel
                    .wire
                    .request(Channel::Control, "interrupt_request", json!({}));
                drop(asked.await?);
            }
            // It may have died a moment ago.
            Interrupt::Signal => {
                let _ = kill_process_group(kernel.child.pid(), Signal::INT);
            }
        }
        Ok(())
    }

    /// Understands a message. Output counts whoever's it is: threads print on when their run is over, and then there may
    /// be no cell.
    async fn hear(
        &mut self,
        kernel: &mut Kernel,
        cell: Option<&mut Cell>,
        message: Message,
    ) -> Result<(), Broken> {
        let content = &message.content;
        match (message.channel, message.kind.as_str(), cell) {
            (Channel::Iopub, "stream", _) => write(
                content["name"].as_str().unwrap_or_default(),
                content["text"].as_str().unwrap_or_default(),
            ),
            (Channel::Iopub, "display_data" | "update_display_data", cell) => {
                let bundle = Bundle::read(&content["data"]);
                match cell {
                    Some(cell) => self.show(cell, bundle).await?,
                    None => print(&bundle),
                }
            }
            (Channel::Stdin, "input_request", cell) => {
                if let Some(cell) = cell {
                    cell.error = Some(no_terminal());
                }
                self.interrupt(kernel).await?;
                // For one that waits on all the same.
                let answer = json!({"value": "", "status": "error"});
                kernel.wire.answer(&message, "input_reply", answer).await?;
            }
            (_, _, Some(cell)) if message.parent == cell.id => self.advance(cell, &message).await?,
            (Channel::Shell, _, Some(cell)) if Some(&message.parent) == cell.question.as_ref() => {
                cell.answered(content);
            }
            _ => {}
        }
        Ok(())
    }

    /// Understands what is said of the cell itself.
    async fn advance(&mut self, cell: &mut Cell, message: &Message) -> Result<(), Broken> {
        let content = &message.content;
        match (message.channel, message.kind.as_str()) {
            (Channel::Iopub, "execute_result") => self.result(cell, Bundle::read(&content["data"])).await?,
            (Channel::Iopub, "error") => cell.error = Some(raised(content)),
            (Channel::Iopub, "status") => match content["execution_state"].as_str() {
                Some("busy") => self.begin(cell).await?,
                Some("idle") => cell.idle = true,
                _ => {}
            },
            (Channel::Shell, "execute_reply") => {
                cell.replied = true;
                if content["status"] != "ok" && cell.error.is_none() {
                    cell.error = Some(raised(content));
                }
                self.page(cell, content).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What a kernel would open in a pager, such as R's help.
    async fn page(&mut self, cell: &mut Cell, reply: &Value) -> Result<(), Broken> {
        let pages = reply["payload"].as_array().into_iter().flatten();
        for page in pages.filter(|payload| payload["source"] == "page") {
            self.show(cell, Bundle::read(&page["data"])).await?;
        }
        Ok(())
    }

    /// A result is told with the end of its run; what of it is more than text is shown.
    async fn result(&mut self, cell: &mut Cell, bundle: Bundle) -> Result<(), Broken> {
        cell.result = bundle.plain().map(str::to_owned);
        if bundle.has_image() || cell.result.is_none() {
            self.show(cell, bundle).await?;
        }
        Ok(())
    }

    async fn show(&mut self, cell: &mut Cell, mut bundle: Bundle) -> Result<(), Broken> {
        if !bundle.is_rich() || cell.displays >= DISPLAYS {
            print(&bundle);
            return Ok(());
        }
        cell.displays += 1;
        let image = bundle.save(&cell.figures, &mut cell.images);
        self.begin(cell).await?;
        self.agent
            .say(&Said::Display {
                data: bundle.texts,
                image,
            })
            .await?;
        // Once the agent has read what was printed before.
        while !matches!(self.agent.asked().await?, Asked::Shown) {}
        Ok(())
    }

    /// Passes on what the kernel said before it died.
    async fn bury(
        &mut self,
        kernel: &mut Kernel,
        mut cell: Option<&mut Cell>,
        status: ExitStatus,
    ) -> Result<ExitStatus, Broken> {
        while let Some(message) = kernel.wire.left(LAST_WORDS).await {
            if message.channel == Channel::Iopub {
                self.hear(kernel, cell.as_deref_mut(), message).await?;
            }
        }
        Ok(status)
    }
}

/// What is shown as text.
fn print(bundle: &Bundle) {
    if let Some(text) = bundle.plain() {
        write("stdout", &format!("{text}\n"));
    }
}

/// To our own descriptors, which the agent reads; where it does not, there is nobody to tell.
fn write(stream: &str, text: &str) {
    let output = match stream {
        "stderr" => io::stderr().as_fd().try_clone_to_owned(),
        _ => io::stdout().as_fd().try_clone_to_owned(),
    };
    if let Ok(output) = output {
        drop(File::from(output).write_all(text.as_bytes()));
    }
}

/// An error as a kernel tells it.
fn raised(content: &Value) -> RunError {
    let text = |field: &str, most| cut(&plain(content[field].as_str().unwrap_or_default()), most);
    let lines = content["traceback"].as_array().into_iter().flatten();
    let lines: Vec<&str> = lines.filter_map(Value::as_str).collect();
    let name = text("ename", 200);
    RunError {
        name: if name.is_empty() { "error".to_owned() } else { name },
        message: text("evalue", MESSAGE),
        traceback: cut(&plain(&lines.join("\n")), TRACEBACK),
    }
}

fn interrupted() -> RunError {
    RunError {
        name: "interrupted".to_owned(),
        message: "interrupted".to_owned(),
        traceback: String::new(),
    }
}

fn no_terminal() -> RunError {
    RunError {
        name: "no_terminal".to_owned(),
        message: "there is no terminal: the code cannot ask anybody; put the value into the code".to_owned(),
        traceback: String::new(),
    }
}

/// Ends this process as another one ended, so that its parent reads it from the status.
fn die_like(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        let _ = setrlimit(Resource::Core, none);
        // Twice: the runtime's own handler of SIGSEGV only takes itself away, the first time.
        for _ in 0..2 {
            let _ = kill_process(getpid(), signal);
        }
    }
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    ExitCode::from(u8::try_from(code.unwrap_or(1)).unwrap_or(1))
}
