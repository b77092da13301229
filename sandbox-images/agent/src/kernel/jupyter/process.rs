//! A Jupyter kernel's process, as its bridge has it: started, greeted, prepared, and buried.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::getpid;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    spec::Spec,
    wire::{Channel, Endpoints, Message, Wire, WireError},
};
use crate::child::{Child, spawn};

/// Between two questions whether the kernel hears us.
const GREETING: Duration = Duration::from_millis(500);
/// What an image has its kernels do first.
const PRELUDE: Duration = Duration::from_secs(60);
/// How long a kernel that closed its connection may take to die.
const DYING: Duration = Duration::from_secs(2);

/// A kernel that has answered.
pub(super) struct Kernel {
    pub(super) child: Child,
    pub(super) wire: Wire,
    pub(super) version: String,
}

/// Why a kernel did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("it ended before it answered ({0})")]
    Ended(ExitStatus),
    #[error("its prelude failed: {0}")]
    Prelude(String),
    #[error("its prelude does not end")]
    Endless,
}

/// Whether code counts as a cell of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visible {
    Yes,
    No,
}

impl Kernel {
    /// Starts the process and waits until it answers on every channel that matters. Its deadline is the agent's.
    pub(super) async fn start(spec: &Spec) -> Result<Self, StartError> {
        let endpoints = Endpoints::reserve()?;
        let file = ConnectionFile::write(&endpoints)?;
        let mut child = spawn(command(spec, &file.0))?;
        let wire = tokio::select! {
            wire = Wire::connect(endpoints) => wire?,
            status = child.wait() => return Err(StartError::Ended(status?)),
        };
        let mut kernel = Self {
            child,
            wire,
            version: String::new(),
        };
        kernel.version = kernel.greet().await?;
        kernel.prepare(&spec.metadata.greenroom.prelude).await?;
        Ok(kernel)
    }

    /// Asks who it is until the answer has come on both channels: what is published before the subscription has
    /// arrived at the kernel is lost.
    async fn greet(&mut self) -> Result<String, StartError> {
        let (mut version, mut heard) = (None, false);
        loop {
            self.ask_for_info().await?;
            let again = Instant::now() + GREETING;
            while let Some(message) = self.until(again).await? {
                heard |= message.channel == Channel::Iopub;
                if message.kind == "kernel_info_reply" {
                    version = Some(version_of(&message.content));
                }
                if let (Some(version), true) = (&version, heard) {
                    return Ok(version.clone());
                }
            }
        }
    }

    /// Runs code of the image that shows nothing.
    async fn prepare(&mut self, code: &str) -> Result<(), StartError> {
        if code.is_empty() {
            return Ok(());
        }
        let id = self.execute(code, Visible::No).await?;
        let end = Instant::now() + PRELUDE;
        while let Some(message) = self.until(end).await? {
            if message.channel == Channel::Shell && message.parent == id {
                return match message.content["status"].as_str() {
                    Some("ok") => Ok(()),
                    _ => Err(StartError::Prelude(message.content["evalue"].to_string())),
                };
            }
        }
        Err(StartError::Endless)
    }

    /// The next message, if it comes in time.
    async fn until(&mut self, end: Instant) -> Result<Option<Message>, StartError> {
        tokio::select! {
            message = self.wire.next() => Ok(Some(message?)),
            status = self.child.wait() => Err(StartError::Ended(status?)),
            () = sleep_until(end) => Ok(None),
        }
    }

    /// Hands code over. Answers what its messages will name as their parent.
    pub(super) async fn execute(&mut self, code: &str, visible: Visible) -> Result<String, WireError> {
        let content = json!({
            "code": code,
            "silent": visible == Visible::No,
            "store_history": visible == Visible::Yes,
            "user_expressions": {},
            "allow_stdin": false,
            "stop_on_error": false,
        });
        self.wire
            .request(Channel::Shell, "execute_request", content)
            .await
    }

    /// Asks what any kernel answers.
    pub(super) async fn ask_for_info(&mut self) -> Result<String, WireError> {
        self.wire
            .request(Channel::Shell, "kernel_info_request", json!({}))
            .await
    }

    /// How it died; one that only closed its connection is killed.
    pub(super) async fn fate(&mut self) -> io::Result<ExitStatus> {
        if let Ok(status) = timeout(DYING, self.child.wait()).await {
            return status;
        }
        self.child.kill();
        self.child.wait().await
    }
}

/// In a group of its own, so that interrupts reach it by the bridge alone.
fn command(spec: &Spec, connection_file: &Path) -> Command {
    let file = connection_file.to_string_lossy();
    let mut arguments = spec
        .argv
        .iter()
        .map(|argument| argument.replace("{connection_file}", &file));
    let mut command = Command::new(arguments.next().unwrap_or_default());
    command
        .args(arguments)
        .envs(&spec.env)
        .process_group(0)
        .stdin(Stdio::null());
    command
}

fn version_of(info: &Value) -> String {
    let language = &info["language_info"];
    let words = [
        (&language["name"], &language["version"]),
        (&info["implementation"], &info["implementation_version"]),
    ];
    words
        .map(|(name, version)| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{} {}", text(name), text(version))
        })
        .join(", ")
}

/// The file that tells a kernel where to listen. Gone with this value: the kernel has read it by then.
struct ConnectionFile(PathBuf);

impl ConnectionFile {
    fn write(endpoints: &Endpoints) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!(".greenroom-kernel-{}.json", getpid().as_raw_nonzero()));
        // Of an earlier process with this pid.
        drop(fs::remove_file(&path));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(endpoints.connection_file().as_bytes())?;
        Ok(Self(path))
    }
}

impl Drop for ConnectionFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}
