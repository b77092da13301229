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
mod pack;
mod path;
mod picture;
mod removal;
mod transfer;
mod unpack;
mod upload;
mod weigh;
mod wire;

use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use greenroom_protocol::{
    ByteRange, Deleted, FileChange, FileEntry, FileKind, FileList, Refusal, RefusalKind, Unpacked,
    limits::DELETE_SECS,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinError,
    time::{Instant, timeout},
};

pub(crate) use self::{
    beneath::{Beneath, kind},
    listing::is_hidden,
    pack::errand as pack_errand,
    path::{joined, shown},
    unpack::errand as unpack_errand,
};
pub use self::{child::serve, pack::Packing, picture::Picture, transfer::FileRead, unpack::Onto};
use self::{
    hands::Hands,
    owner::{Order, Owner, QUEUE, Signal, Workplace},
    path::{WorkPath, bad_path},
    removal::Removed,
    wire::{Answer, Reply, Request},
};

use crate::{agent::lock, child::Quarters};

/// A run waits this long for the look at what changed, before it and after it. The look takes a millisecond
/// or two; but it may stand behind a slice of a deletion or a long listing, or the guest may have stopped the
/// files process.
const LOOK_TIME: Duration = Duration::from_millis(500);

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
/// the files process from working. No call takes longer than 20 seconds on its own
/// account.
#[derive(Clone)]
pub struct Files {
    work_dir: Arc<str>,
    orders: mpsc::Sender<Order>,
    signal: watch::Receiver<Option<Arc<Signal>>>,
    parts: Arc<AtomicU64>,
    quarters: Option<Quarters>,
    pictures: Arc<Semaphore>,
    packs: Arc<Semaphore>,
    /// The digest of what the work directory held when the agent last filled it.
    origin: Arc<Mutex<String>>,
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
        let quarters = match &user {
            FileUser::Own => None,
            FileUser::Guest(quarters) => Some(quarters.clone()),
        };
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
            quarters,
            pictures: Arc::new(Semaphore::new(1)),
            packs: Arc::new(Semaphore::new(1)),
            origin: Arc::new(Mutex::new(weigh::empty())),
        })
    }

    /// The same where the agent's own user touches the files, with quarters for the children that some
    /// requests need. Without any those are refused.
    #[must_use]
    pub fn in_quarters(mut self, quarters: Quarters) -> Self {
        self.quarters = Some(quarters);
        self
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

    /// Makes a picture of an image file, with no side longer than `side` and no more bytes than are sent.
    ///
    /// # Errors
    /// See [`Files`]; `BadRequest` where it cannot be decoded.
    pub async fn picture(&self, path: &str, side: u32) -> Result<Picture, Refusal> {
        let path = self.parse_file(path)?;
        let quarters = self.quarters()?;
        let (_, mut opened) = self.ask(Request::Read { path }).await?;
        let file = opened.pop().ok_or_else(off_script)?;
        // One at a time: each may take much memory, and the semaphore is never closed.
        let _turn = self.pictures.acquire().await;
        picture::make(quarters, file, side).await
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
                WriteMode::Replace => upload::replace(&files, path, body).await,
                WriteMode::Append => upload::append(&files, path, body).await,
            }
        });
        work.await.unwrap_or_else(|error| Err(broke("the write", &error)))
    }

    /// Unpacks a tar archive into the work directory: all of it or, where it breaks off or something is in the
    /// way, none. The work goes on in a task of its own, as a write does.
    ///
    /// # Errors
    /// `BadRequest` with what was wrong with it, `DiskFull`.
    pub async fn unpack<S, E>(&self, onto: Onto, body: S) -> Result<Unpacked, Refusal>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: fmt::Display + Send,
    {
        let (quarters, origin) = (self.quarters()?.clone(), Arc::clone(&self.origin));
        let work = tokio::spawn(async move {
            let (unpacked, digest) = unpack::unpack(&quarters, onto, body).await?;
            *lock(&origin) = digest;
            Ok(unpacked)
        });
        work.await
            .unwrap_or_else(|error| Err(broke("the unpacking", &error)))
    }

    /// Packs the work directory into a tar archive of at most `max` bytes. `None`: it holds what it held when it
    /// had this digest, or without one, what the agent filled it with.
    ///
    /// # Errors
    /// `TooLarge` before a byte is packed; `Conflict` where it is being packed already; `Internal`.
    pub async fn pack(&self, max: u64, known: Option<&str>) -> Result<Option<Packing>, Refusal> {
        let known = known.map_or_else(|| lock(&self.origin).clone(), str::to_owned);
        pack::pack(self.quarters()?, &self.packs, max, &known).await
    }

    fn quarters(&self) -> Result<&Quarters, Refusal> {
        self.quarters.as_ref().ok_or_else(|| Refusal {
            kind: RefusalKind::Internal,
            message: "this agent has no children".to_owned(),
        })
    }

    /// Deletes a file, or a folder with all that is in it: slice by slice, so that others are served in
    /// between, and to its end, whether or not the caller waits for it.
    ///
    /// # Errors
    /// See [`Files`]; `TooLarge` where [`DELETE_SECS`] were not
    /// enough: the rest is still there.
    pub async fn delete(&self, path: &str) -> Result<Deleted, Refusal> {
        let path = self.parse(path)?;
        let files = self.clone();
        let work = tokio::spawn(async move { files.delete_slices(path).await });
        work.await
            .unwrap_or_else(|error| Err(broke("the deletion", &error)))
    }

    async fn delete_slices(&self, path: WorkPath) -> Result<Deleted, Refusal> {
        let until = Instant::now() + Duration::from_secs(DELETE_SECS);
        let mut before = 0;
        loop {
            let slice = Request::Delete {
                path: path.clone(),
                before,
            };
            match self.ask(slice).await {
                Ok((Reply::Deleted(Removed::Whole(deleted)), _)) => return Ok(deleted),
                Ok((Reply::Deleted(Removed::Part(count)), _)) if Instant::now() < until => before = count,
                Ok((Reply::Deleted(Removed::Part(count)), _)) => {
                    return Err(Refusal {
                        kind: RefusalKind::TooLarge,
                        message: format!(
                            "{path}: {count} entries were deleted in {DELETE_SECS} s, the limit; delete it again for the rest"
                        ),
                    });
                }
                // Race: between two slices somebody else has deleted what was left.
                Err(refusal) if refusal.kind == RefusalKind::NotFound && before > 0 => {
                    return Ok(Deleted {
                        kind: FileKind::Directory,
                        count: before,
                    });
                }
                Err(refusal) => return Err(refusal),
                Ok(_) => return Err(off_script()),
            }
        }
    }

    /// Marks the present, before a run. One system call unless something changed since the last look.
    pub async fn mark(&self) -> Mark {
        let signal = self.signal();
        // Without a signal the hands are only about to begin.
        if signal.is_none_or(|signal| signal.is_raised())
            && !matches!(timeout(LOOK_TIME, self.ask(Request::Mark)).await, Ok(Ok(_)))
        {
            return Mark(None);
        }
        Mark(self.signal().map(|signal| {
            let seq = signal.seq();
            (signal, seq)
        }))
    }

    /// What changed since a mark, sorted, at most
    /// [`CHANGED_FILES`](greenroom_protocol::limits::CHANGED_FILES). Nothing where that is not known: too
    /// many files, too many changes, or the files process was killed meanwhile or is at work on something long.
    pub async fn changes_since(&self, mark: &Mark) -> Vec<FileChange> {
        let Some((signal, since)) = &mark.0 else {
            return Vec::new();
        };
        if !signal.is_raised() && signal.seq() == *since {
            return Vec::new();
        }
        match timeout(LOOK_TIME, self.ask(Request::Changes { since: *since })).await {
            Ok(Ok((Reply::Changed { changes, .. }, _))) => changes.unwrap_or_default(),
            _ => Vec::new(),
        }
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

/// Work in a task of its own that panicked or was aborted.
fn broke(what: &str, error: &JoinError) -> Refusal {
    Refusal {
        kind: RefusalKind::Internal,
        message: format!("{what} broke off: {error}"),
    }
}

/// The files process is the guest's: what it answers may be anything.
fn off_script() -> Refusal {
    Refusal {
        kind: RefusalKind::Internal,
        message: "the files process answered something else than was asked".to_owned(),
    }
}
