//! Reaching the server, and starting it in the background where there is none.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::{relay::AttachError, socket_path};

/// Held by the process that is starting a server, so that twenty at once start one.
const LOCK: &str = "start.lock";

/// What a server in the background says.
const LOG: &str = "background.log";

/// A longer log is set aside before a new server writes to it.
const LOG_BYTES: u64 = 8 << 20;

/// How long a server may take until it listens: it reaches the engine first.
const LISTENS: Duration = Duration::from_secs(30);

/// Between looks.
const LOOK: Duration = Duration::from_millis(10);

/// How much of the log an error shows.
const SHOWN: i64 = 2000;

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Start {
    /// Where its state lies.
    pub state_dir: PathBuf,
    /// This program.
    pub program: PathBuf,
    /// So that it serves in the background, with the same configuration.
    pub arguments: Vec<OsString>,
}

impl Start {
    /// A connection to the server that runs, or to one that this starts.
    pub(super) async fn connect(&self) -> Result<UnixStream, AttachError> {
        let path = socket_path(&self.state_dir).map_err(AttachError::Socket)?;
        let deadline = Instant::now() + LISTENS;
        let mut started: Option<(Child, File)> = None;
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_nobody(&error) => {}
                Err(error) => return Err(AttachError::Socket(error)),
            }
            match &mut started {
                None => started = self.try_start().map_err(AttachError::Start)?,
                Some((child, _)) => {
                    // One that found another server in its place ends well, and that one will listen.
                    let ended = child.try_wait().map_err(AttachError::Start)?;
                    if let Some(status) = ended.filter(|status| !status.success()) {
                        return Err(AttachError::Ended {
                            status: status.to_string(),
                            log: self.state_dir.join(LOG),
                            says: self.last_words(),
                        });
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(AttachError::Silent {
                    seconds: LISTENS.as_secs(),
                    log: self.state_dir.join(LOG),
                });
            }
            sleep(LOOK).await;
        }
    }

    /// Starts a server, unless another process is about to. The lock is kept until the caller is connected.
    fn try_start(&self) -> io::Result<Option<(Child, File)>> {
        let private = |append: bool| {
            let mut options = OpenOptions::new();
            options.write(true).append(append).create(true).mode(0o600);
            options
        };
        let lock = private(true).open(self.state_dir.join(LOCK))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let path = self.state_dir.join(LOG);
        if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES) {
            fs::rename(&path, path.with_extension("log.1"))?;
        }
        let log = private(true).open(&path)?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            // Not the folder that the host works on: it may be unmounted or removed.
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Some((child, lock)))
    }

    /// The end of the log, for whoever sees only our standard error.
    fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let mut log = File::open(self.state_dir.join(LOG))?;
            if log.seek(SeekFrom::End(-SHOWN)).is_err() {
                log.rewind()?;
            }
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().unwrap_or_default()
    }
}

/// No server listens: there is no socket, or a dead one.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Leaves the session of the terminal or the host that started this process, so as not to end with it.
///
/// # Errors
/// The process leads a group already.
pub fn detach() -> io::Result<()> {
    rustix::process::setsid().map(drop).map_err(io::Error::from)
}
