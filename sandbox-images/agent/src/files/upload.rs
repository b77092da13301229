//! Writing a file from a body: all of it or none of it.

use std::{fmt, io, os::fd::OwnedFd, pin::pin, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use greenroom_protocol::{FileEntry, Refusal, RefusalKind};
use rustix::{fs::fstat, io::Errno};
use tokio::time::timeout;

use super::{
    Files,
    beneath::refusal,
    listing, off_script,
    path::{PART_PREFIX, WorkPath},
    transfer::Writing,
    wire::{Reply, Request},
};

/// An upload that brings no byte for this long is given up.
const STALL: Duration = Duration::from_secs(60);

/// A new file beside the one whose place it will take.
struct Part {
    path: WorkPath,
    part: String,
    /// Where links led: the name that it gets in `folder`.
    name: Vec<u8>,
    folder: OwnedFd,
    writing: Writing,
}

/// Puts a body in a file's place, once all of it is there.
pub(super) async fn replace<S, E>(files: &Files, path: WorkPath, body: S) -> Result<FileEntry, Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: fmt::Display + Send,
{
    let mut part = Part::create(files, path).await?;
    match part.complete(files, body).await {
        Ok(()) => written(&part.writing, &part.path),
        Err(refusal) => {
            discard(files, part.part.into_bytes(), part.folder).await;
            Err(refusal)
        }
    }
}

/// Adds a body to a file's end, or cuts the file back to what it was.
pub(super) async fn append<S, E>(files: &Files, path: WorkPath, body: S) -> Result<FileEntry, Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: fmt::Display + Send,
{
    let (reply, opened) = files.ask(Request::Append { path: path.clone() }).await?;
    let mut opened = opened.into_iter();
    let mut writing = Writing::open(opened.next().ok_or_else(off_script)?)?;
    let before = writing.size();
    if let Err(refusal) = fill(&mut writing, &path, body).await {
        writing.cut_back(before).await;
        if let (Reply::Created { name }, Some(folder)) = (reply, opened.next()) {
            discard(files, name, folder).await;
        }
        return Err(refusal);
    }
    written(&writing, &path)
}

impl Part {
    async fn create(files: &Files, path: WorkPath) -> Result<Self, Refusal> {
        let part = format!("{PART_PREFIX}{}", files.parts.fetch_add(1, Ordering::Relaxed));
        let create = Request::Create {
            path: path.clone(),
            part: part.clone(),
        };
        let (Reply::Created { name }, opened) = files.ask(create).await? else {
            return Err(off_script());
        };
        let [file, folder] = <[OwnedFd; 2]>::try_from(opened).map_err(|_| off_script())?;
        Ok(Self {
            path,
            part,
            name,
            folder,
            writing: Writing::open(file)?,
        })
    }

    async fn complete<S, E>(&mut self, files: &Files, body: S) -> Result<(), Refusal>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: fmt::Display + Send,
    {
        fill(&mut self.writing, &self.path, body).await?;
        let descriptors = || {
            Ok(vec![
                self.folder.try_clone()?,
                self.writing.file().try_clone()?.into(),
            ])
        };
        let descriptors = descriptors().map_err(|error| cannot_write(&error, &self.path))?;
        let commit = Request::Commit {
            path: self.path.clone(),
            part: self.part.clone(),
            name: self.name.clone(),
        };
        files.send(commit, descriptors).await?;
        Ok(())
    }
}

/// Writes a whole body.
async fn fill<S, E>(writing: &mut Writing, path: &WorkPath, body: S) -> Result<(), Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: fmt::Display + Send,
{
    let mut body = pin!(body);
    let failed = |error: io::Error| cannot_write(&error, path);
    loop {
        match timeout(STALL, body.next()).await {
            Ok(Some(Ok(bytes))) => writing.push(bytes).await.map_err(failed)?,
            Ok(Some(Err(error))) => return Err(broke_off(format!("the upload broke off: {error}"))),
            Ok(None) => return writing.flush().await.map_err(failed),
            Err(_) => {
                let stall = STALL.as_secs();
                return Err(broke_off(format!("the upload brought nothing for {stall} s")));
            }
        }
    }
}

/// Takes away what a failed write has made. Its refusal is the one to tell, not what comes of this.
async fn discard(files: &Files, name: Vec<u8>, folder: OwnedFd) {
    drop(files.send(Request::Discard { name }, vec![folder]).await);
}

fn broke_off(message: String) -> Refusal {
    Refusal {
        kind: RefusalKind::BadRequest,
        message,
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
