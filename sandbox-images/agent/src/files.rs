//! Files of the work directory: listed, read, written and deleted with the guest's rights, never the agent's.
//!
//! ```text
//! Files ─▶ owner (a task) ─▶ files process, uid of the guest ─▶ work directory
//!   ▲                              │ descriptors of opened files
//!   └──── bytes, in large pieces ◀─┘
//! ```
//! The process walks paths, opens, renames and deletes; what it opens comes back as a descriptor, and the
//! agent moves the bytes itself. The process holds no state of a transfer: the guest has its uid and may
//! kill it at any time, and the next one goes on where it was.
//!
//! Paths are relative to the work directory or absolute and beneath it. Symbolic links are followed as long
//! as they stay inside (at most 8 of them); deleting means the link itself. Names that are no UTF-8 are
//! listed as `\xNN` and cannot be opened by that form. Bounds and refusals: see [`Files`].

mod beneath;
mod child;
mod hands;
mod listing;
mod owner;
mod path;
mod removal;
mod transfer;
mod wire;

use std::{
    fmt, io,
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use greenroom_protocol::{Deleted, FileChange, FileEntry, FileList, Refusal, RefusalKind};
use rustix::{fs::fstat, io::Errno};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use self::{
    beneath::refusal,
    hands::Hands,
    owner::{Order, Owner, QUEUE, Signal, Workplace},
    path::{PART_PREFIX, WorkPath, bad_path},
    transfer::Writing,
    wire::{Answer, Reply, Request},
};
pub(crate) use self::{
    beneath::{Beneath, kind},
    listing::is_hidden,
    path::{joined, shown},
};
pub use self::{
    child::serve,
    transfer::{ByteRange, FileRead},
};

use crate::child::Quarters;

/// An upload that brings no byte for this long is given up.
const STALL: Duration = Duration::from_secs(60);

/// Who touches the files.
#[derive(Clone, Debug)]
pub enum FileUser {
    /// The agent's own user, on its own threads: where the sandbox has one user only, and in tests.
    Own,
    /// A process of the guest's: the agent's own program with the arguments `files DIR`.
    Guest(Quarters),
}

/// How far a listing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Depth {
    /// The folder's own entries.
    Folder,
    /// Everything below it.
    Tree,
}

/// What happens to a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// The new bytes take its place, all at once.
    Replace,
    /// The new bytes are added at its end; where that fails the file is cut back to what it was.
    Append,
}

/// A handle to the work directory's files. Cheap to clone; the files process ends with the last one.
///
/// Refusals: `BadPath` for a path that breaks a rule or leads out, `NotFound`, `Conflict` where something
/// of another kind or another's is in the way, `TooLarge`, `DiskFull`, `Internal` where the guest keeps
/// the files process from working. No call takes longer than 20 seconds on its own account.
#[derive(Clone)]
pub struct Files {
    work_dir: Arc<str>,
    orders: mpsc::Sender<Order>,
    signal: watch::Receiver<Option<Arc<Signal>>>,
    parts: Arc<AtomicU64>,
}

/// A point in time after which changes are asked for: see [`Files::changes_since`].
#[derive(Debug)]
pub struct Mark(Option<(Arc<Signal>, u64)>);

impl Files {
    /// Starts the task, and the process where there is one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Without a process of its own: the work directory cannot be opened.
    pub fn start(work_dir: &str, user: FileUser) -> io::Result<Self> {
        let workplace = match user {
            FileUser::Own => Workplace::Here(Arc::new(Mutex::new(Hands::open(work_dir)?))),
            FileUser::Guest(quarters) => Workplace::Process {
                quarters,
                work_dir: work_dir.to_owned(),
                live: None,
            },
        };
        let (orders, received) = mpsc::channel(QUEUE);
        let (raise, signal) = watch::channel(None);
        let owner = Owner {
            workplace,
            orders: received,
            signal: raise,
            seq: 0,
        };
        // It ends with the last sender.
        drop(tokio::spawn(owner.run()));
        Ok(Self {
            work_dir: work_dir.into(),
            orders,
            signal,
            parts: Arc::default(),
        })
    }

    /// Lists a folder, everything below it, or the one file that the path names. Sorted segment by segment;
    /// beyond [`LIST_ENTRIES`](greenroom_protocol::limits::LIST_ENTRIES) entries are counted only. The
    /// agent's own folder is listed only when the path leads there.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn list(&self, path: &str, depth: Depth) -> Result<FileList, Refusal> {
        let path = self.parse(path)?;
        match self.ask(Request::List { path, depth }).await? {
            (Reply::Listed(list), _) => Ok(list),
            _ => Err(off_script()),
        }
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// See [`Files`]; `BadRequest` for a range that begins behind the end.
    pub async fn open_read(&self, path: &str, range: Option<ByteRange>) -> Result<FileRead, Refusal> {
        let path = self.parse_file(path)?;
        let (_, mut opened) = self.ask(Request::Read { path }).await?;
        FileRead::open(opened.pop().ok_or_else(off_script)?, range)
    }

    /// Writes a file from a body, making the folders above it. The work goes on in a task of its own, so
    /// that a caller who goes away leaves nothing half-written: what the body did not bring is not kept.
    ///
    /// # Errors
    /// See [`Files`]; `BadRequest` where the body breaks off or stalls for a minute.
    pub async fn write<S, E>(&self, path: &str, mode: WriteMode, body: S) -> Result<FileEntry, Refusal>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: fmt::Display + Send,
    {
        let path = self.parse_file(path)?;
        let files = self.clone();
        let work = tokio::spawn(async move {
            match mode {
                WriteMode::Replace => files.replace(path, body).await,
                WriteMode::Append => files.append(path, body).await,
            }
        });
        work.await.unwrap_or_else(|error| {
            Err(Refusal {
                kind: RefusalKind::Internal,
                message: format!("the write broke off: {error}"),
            })
        })
    }

    /// Deletes a file, or a folder with all that is in it.
    ///
    /// # Errors
    /// See [`Files`]; `TooLarge` where ten seconds were not enough: the rest is still there.
    pub async fn delete(&self, path: &str) -> Result<Deleted, Refusal> {
        let path = self.parse(path)?;
        match self.ask(Request::Delete { path }).await? {
            (Reply::Deleted(deleted), _) => Ok(deleted),
            _ => Err(off_script()),
        }
    }

    /// Marks the present, before a run. One system call unless something changed since the last look.
    pub async fn mark(&self) -> Mark {
        let signal = self.signal();
        // Without a signal the hands are only about to begin.
        if signal.is_none_or(|signal| signal.is_raised()) && self.ask(Request::Mark).await.is_err() {
            return Mark(None);
        }
        Mark(self.signal().map(|signal| {
            let seq = signal.seq();
            (signal, seq)
        }))
    }

    /// What changed since a mark, sorted, at most
    /// [`CHANGED_FILES`](greenroom_protocol::limits::CHANGED_FILES). Nothing where that is not known: too
    /// many files, too many changes, or the files process was killed meanwhile.
    pub async fn changes_since(&self, mark: &Mark) -> Vec<FileChange> {
        let Some((signal, since)) = &mark.0 else {
            return Vec::new();
        };
        if !signal.is_raised() && signal.seq() == *since {
            return Vec::new();
        }
        match self.ask(Request::Changes { since: *since }).await {
            Ok((Reply::Changed { changes, .. }, _)) => changes.unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    async fn replace<S, E>(&self, path: WorkPath, body: S) -> Result<FileEntry, Refusal>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: fmt::Display + Send,
    {
        let part = format!("{PART_PREFIX}{}", self.parts.fetch_add(1, Ordering::Relaxed));
        let create = Request::Create {
            path: path.clone(),
            part: part.clone(),
        };
        let (Reply::Created { name }, opened) = self.ask(create).await? else {
            return Err(off_script());
        };
        let Ok([file, folder]) = <[OwnedFd; 2]>::try_from(opened) else {
            return Err(off_script());
        };
        let mut writing = Writing::open(file)?;
        let filled = match fill(&mut writing, &path, body).await {
            Ok(()) => writing
                .file()
                .try_clone()
                .map_err(|error| cannot_write(&error, &path)),
            Err(refusal) => Err(refusal),
        };
        let done = match filled {
            Ok(file) => {
                let descriptors = vec![
                    folder.try_clone().map_err(|error| cannot_write(&error, &path))?,
                    file.into(),
                ];
                let path = path.clone();
                let part = part.clone();
                self.send(Request::Commit { path, part, name }, descriptors).await
            }
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = done {
            // The first refusal is the one to tell.
            drop(self.send(Request::Discard { part }, vec![folder]).await);
            return Err(refusal);
        }
        written(&writing, &path)
    }

    async fn append<S, E>(&self, path: WorkPath, body: S) -> Result<FileEntry, Refusal>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: fmt::Display + Send,
    {
        let mut writing = self.open_append(&path).await?;
        let before = writing.size();
        if let Err(refusal) = fill(&mut writing, &path, body).await {
            writing.cut_back(before).await;
            return Err(refusal);
        }
        written(&writing, &path)
    }

    async fn open_append(&self, path: &WorkPath) -> Result<Writing, Refusal> {
        let (_, mut opened) = self.ask(Request::Append { path: path.clone() }).await?;
        Writing::open(opened.pop().ok_or_else(off_script)?)
    }

    fn signal(&self) -> Option<Arc<Signal>> {
        self.signal.borrow().clone()
    }

    fn parse(&self, path: &str) -> Result<WorkPath, Refusal> {
        WorkPath::parse(path, &self.work_dir)
    }

    /// A path that must name a file.
    fn parse_file(&self, path: &str) -> Result<WorkPath, Refusal> {
        if path.ends_with('/') {
            return Err(bad_path(format!(
                "{path:?} ends with a slash, which names a folder, not a file"
            )));
        }
        self.parse(path)
    }

    async fn ask(&self, request: Request) -> Answer {
        self.send(request, Vec::new()).await
    }

    async fn send(&self, request: Request, descriptors: Vec<OwnedFd>) -> Answer {
        let (answer, answered) = oneshot::channel();
        let order = Order {
            request,
            descriptors,
            answer,
        };
        // Either fails only if the owner is gone, which lives as long as we do.
        self.orders.send(order).await.map_err(|_| off_script())?;
        answered.await.map_err(|_| off_script())?
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("work_dir", &self.work_dir)
            .finish_non_exhaustive()
    }
}

/// Writes a whole body.
async fn fill<S, E>(writing: &mut Writing, path: &WorkPath, body: S) -> Result<(), Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: fmt::Display + Send,
{
    let mut body = pin!(body);
    let broke_off = |message| Refusal {
        kind: RefusalKind::BadRequest,
        message,
    };
    loop {
        match timeout(STALL, body.next()).await {
            Ok(Some(Ok(bytes))) => writing
                .push(bytes)
                .await
                .map_err(|error| cannot_write(&error, path))?,
            Ok(Some(Err(error))) => return Err(broke_off(format!("the upload broke off: {error}"))),
            Ok(None) => return writing.flush().await.map_err(|error| cannot_write(&error, path)),
            Err(_) => {
                let stall = STALL.as_secs();
                return Err(broke_off(format!("the upload brought nothing for {stall} s")));
            }
        }
    }
}

fn written(writing: &Writing, path: &WorkPath) -> Result<FileEntry, Refusal> {
    let stat = fstat(writing.file()).map_err(|error| refusal(error, path))?;
    Ok(listing::entry(path.as_str().to_owned(), &stat))
}

fn cannot_write(error: &io::Error, path: &WorkPath) -> Refusal {
    match (Errno::from_io_error(error), error.kind()) {
        (Some(errno), _) => refusal(errno, path),
        (None, io::ErrorKind::FileTooLarge) => refusal(Errno::FBIG, path),
        (None, _) => Refusal {
            kind: RefusalKind::Internal,
            message: format!("{path}: {error}"),
        },
    }
}

/// The files process is the guest's: what it answers may be anything.
fn off_script() -> Refusal {
    Refusal {
        kind: RefusalKind::Internal,
        message: "the files process answered something else than was asked".to_owned(),
    }
}
