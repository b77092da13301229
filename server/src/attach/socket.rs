//! The server's end: one process of a state directory listens, and serves what attaches.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{Greeting, Hello, Refusal, Standing, VERSION, lines, socket_path};
use crate::{
    conversation::ConversationId,
    mcp::{Attached, Mcp},
};

/// Held by the process that listens, for as long as it lives.
const LOCK: &str = "greenroom.lock";

/// After a failed accept, so that a lack of descriptors does not spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// A socket that this process listens on, and nobody else.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    lock: File,
}

/// Why it cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("the socket for other processes, in {}, cannot be used: {source}", .directory.display())]
pub struct SocketError {
    directory: PathBuf,
    source: io::Error,
}

/// What serves until it is told to stop.
#[derive(Debug)]
pub struct Attending {
    accepting: JoinHandle<()>,
    stop: CancellationToken,
    attached: watch::Receiver<usize>,
}

impl Socket {
    /// Listens. None: another process of this state directory does.
    ///
    /// Race: the lock goes with the process that holds it, however that ends. So a socket that is found while the
    /// lock is ours is a dead one, and removing it takes it from nobody.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(state_dir: &Path) -> Result<Option<Self>, SocketError> {
        Self::try_bind(state_dir).map_err(|source| SocketError {
            directory: state_dir.to_owned(),
            source,
        })
    }

    fn try_bind(state_dir: &Path) -> io::Result<Option<Self>> {
        let path = socket_path(state_dir)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(state_dir.join(LOCK))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        // The directory is private already; and who connects is checked.
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Some(Self { listener, path, lock }))
    }

    /// Serves processes that have the same version and configuration, at most so many at once.
    #[must_use]
    pub fn serve(self, mcp: Mcp, digest: watch::Receiver<String>, most: usize) -> Attending {
        let stop = CancellationToken::new();
        let (count, attached) = watch::channel(0);
        let desk = Desk {
            mcp,
            digest,
            most,
            count,
        };
        Attending {
            accepting: tokio::spawn(self.accept(Arc::new(desk), stop.clone())),
            stop,
            attached,
        }
    }

    async fn accept(self, desk: Arc<Desk>, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(desk.most));
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "a process could not attach");
                        sleep(AFTER_FAILURE).await;
                        continue;
                    }
                },
            };
            let (desk, place) = (Arc::clone(&desk), Arc::clone(&places).try_acquire_owned());
            tokio::spawn(async move {
                let seat = place.is_ok().then(|| Seat::take(&desk));
                if let Err(error) = desk.attend(stream, seat.is_some()).await {
                    tracing::debug!(%error, "an attached process is gone");
                }
                drop((seat, place));
            });
        }
        // Who comes from now on finds no socket and starts a server; it can once the lock is gone.
        drop(fs::remove_file(&self.path));
        drop(self.lock);
    }
}

impl Attending {
    /// No more processes from now on; the socket and its lock go.
    pub async fn stop_accepting(&mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.accepting).await {
            tracing::warn!(%error, "accepting processes ended badly");
        }
    }

    /// Returns once no process has been attached for so long.
    pub async fn deserted(&self, linger: Duration) {
        let mut attached = self.attached.clone();
        loop {
            if attached.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(linger) => return,
                somebody = attached.wait_for(|count| *count > 0) => if somebody.is_err() {
                    return;
                },
            }
        }
    }
}

/// What is needed to serve one process.
#[derive(Debug)]
struct Desk {
    mcp: Mcp,
    digest: watch::Receiver<String>,
    most: usize,
    count: watch::Sender<usize>,
}

/// Counts a process in, and out when it goes.
struct Seat(Arc<Desk>);

impl Seat {
    fn take(desk: &Arc<Desk>) -> Self {
        desk.count.send_modify(|count| *count += 1);
        Self(Arc::clone(desk))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| *count -= 1);
    }
}

impl Desk {
    async fn attend(&self, mut stream: UnixStream, has_seat: bool) -> io::Result<()> {
        let own = rustix::process::geteuid().as_raw();
        if stream.peer_cred()?.uid() != own {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let hello: Hello = lines::hear(&mut stream).await?;
        let attached = self.judge(&hello, has_seat);
        let greeting = match &attached {
            Ok(_) => Greeting::Welcome,
            Err(reason) => Greeting::Refused {
                reason: reason.clone(),
            },
        };
        lines::say(&mut stream, &greeting).await?;
        match attached {
            Ok(attached) => {
                let (input, output) = stream.into_split();
                self.mcp.attached(attached, input, output).await
            }
            Err(reason) => {
                tracing::info!(%reason, "a process was refused");
                Ok(())
            }
        }
    }

    fn judge(&self, hello: &Hello, has_seat: bool) -> Result<Attached, Refusal> {
        if hello.version != VERSION {
            return Err(Refusal::Version {
                version: VERSION.to_owned(),
            });
        }
        if hello.configuration != *self.digest.borrow() {
            return Err(Refusal::Configuration);
        }
        if !has_seat {
            return Err(Refusal::Full { limit: self.most });
        }
        let fixed = hello
            .conversation
            .as_deref()
            .map(ConversationId::parse)
            .transpose();
        let (Ok(fixed), Some(carrier)) = (fixed, self.mcp.minted(&hello.carrier)) else {
            return Err(Refusal::Unintelligible);
        };
        Ok(match hello.standing {
            Standing::First => Attached::first(carrier, fixed),
            Standing::Again => Attached::again(carrier, fixed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_process_listens_and_the_next_takes_over_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Socket::bind(dir.path()).unwrap().expect("nobody listens yet");
        assert!(
            Socket::bind(dir.path()).unwrap().is_none(),
            "there is one already"
        );
        let mode = fs::metadata(&first.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // As after SIGKILL: the lock goes, the socket stays.
        drop(first);
        assert!(dir.path().join(super::super::SOCKET).exists());
        let next = Socket::bind(dir.path()).unwrap();
        assert!(next.is_some(), "a dead socket is in nobody's way");
        let nowhere = Socket::bind(&dir.path().join("nowhere")).unwrap_err().to_string();
        assert!(nowhere.contains("nowhere"), "{nowhere}");
    }
}
