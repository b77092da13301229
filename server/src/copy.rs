//! `greenroom cp`: a file between this machine and a conversation's sandbox, without a server in between.

use std::{
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

use tokio::{
    fs::File,
    io::{AsyncWrite, AsyncWriteExt as _},
};
use tokio_util::io::ReaderStream;

use crate::{
    alone::{Alone, AloneError},
    config::Config,
    guest::{FileRead, GuestError, Upload, WriteMode},
    sessions::{OpenError, Session},
};

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// `-`
    Standard,
    /// A file or folder of this machine: whatever has no colon, or a slash before it.
    Here(PathBuf),
    /// `CONVERSATION:PATH`
    There(String, String),
}

impl FromStr for End {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            _ if text == "-" => Self::Standard,
            Some((conversation, path)) if !conversation.is_empty() && !conversation.contains('/') => {
                Self::There(conversation.to_owned(), path.to_owned())
            }
            Some(_) | None => Self::Here(text.into()),
        })
    }
}

/// Why nothing was copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Both ends are here, or both there.
    #[error("one of the two must be CONVERSATION:PATH and the other a file of this machine, or -")]
    Ends,
    /// The conversation, or a server for it.
    #[error(transparent)]
    Alone(#[from] AloneError),
    /// There is nothing to copy from.
    #[error("the conversation has no sandbox")]
    NoSandbox,
    /// The path names no file.
    #[error("{0:?} names no file")]
    NoFile(String),
    /// The session.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The sandbox.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A file of this machine.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

/// Copies a file, and tells its bytes. To a conversation without a sandbox it makes one; what its next caller
/// must hear of that is left to be told.
///
/// # Errors
/// [`CopyError`].
pub async fn copy(config: Config, from: &End, to: &End, pool: Option<&str>) -> Result<u64, CopyError> {
    let ((End::There(conversation, _), End::Here(_) | End::Standard)
    | (End::Here(_) | End::Standard, End::There(conversation, _))) = (from, to)
    else {
        return Err(CopyError::Ends);
    };
    let alone = Alone::start(config, pool, conversation).await?;
    let copied = between(&alone, from, to).await;
    alone.end().await;
    copied
}

async fn between(alone: &Alone, from: &End, to: &End) -> Result<u64, CopyError> {
    match (from, to) {
        (End::There(_, path), to) => {
            let session = alone.sessions().look(&alone.key).await?;
            fetch(&session.ok_or(CopyError::NoSandbox)?, path, to).await
        }
        (from, End::There(_, path)) => {
            let path = target(from, path)?;
            let source = Source::open(from).await?;
            let session = alone.sessions().open(&alone.key, alone.terms).await?;
            let written = session
                .guest
                .write_file(&path, WriteMode::Replace, source.0)
                .await;
            Ok(written?.size)
        }
        _ => Err(CopyError::Ends),
    }
}

/// A file to send.
struct Source(Upload);

impl Source {
    async fn open(from: &End) -> Result<Self, CopyError> {
        let upload = match from {
            End::Here(path) => {
                let file = File::open(path).await.map_err(|error| local(path, error))?;
                if file.metadata().await.is_ok_and(|meta| meta.is_dir()) {
                    return Err(local(path, io::ErrorKind::IsADirectory.into()));
                }
                Upload::stream(ReaderStream::with_capacity(file, PIECE))
            }
            End::Standard | End::There(..) => {
                Upload::stream(ReaderStream::with_capacity(tokio::io::stdin(), PIECE))
            }
        };
        Ok(Self(upload))
    }
}

/// Where a file goes: into a folder it goes by its own name.
fn target(from: &End, path: &str) -> Result<String, CopyError> {
    if !(path.is_empty() || path.ends_with('/')) {
        return Ok(path.to_owned());
    }
    match from {
        End::Here(file) => match file.file_name() {
            Some(name) => Ok(format!("{path}{}", name.to_string_lossy())),
            None => Err(CopyError::NoFile(file.display().to_string())),
        },
        End::Standard | End::There(..) => Err(CopyError::NoFile(path.to_owned())),
    }
}

async fn fetch(session: &Session, path: &str, to: &End) -> Result<u64, CopyError> {
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.is_empty() {
        return Err(CopyError::NoFile(path.to_owned()));
    }
    let read = session.guest.read_file(path, ..).await?;
    let size = read.size;
    match to {
        End::Here(file) if file.is_dir() => save(read, &file.join(name)).await?,
        End::Here(file) => save(read, file).await?,
        End::Standard | End::There(..) => pour(read, &mut tokio::io::stdout(), "standard output").await?,
    }
    Ok(size)
}

/// Writes beside the file first, so that one which breaks off leaves what was.
async fn save(read: FileRead, file: &Path) -> Result<(), CopyError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let part = folder
        .unwrap_or(Path::new("."))
        .join(format!(".greenroom-{:016x}.part", rand::random::<u64>()));
    let mut options = tokio::fs::OpenOptions::new();
    let open = options.write(true).create_new(true).open(&part).await;
    let mut open = open.map_err(|error| local(&part, error))?;
    let saved = async {
        pour(read, &mut open, &file.display().to_string()).await?;
        tokio::fs::rename(&part, file)
            .await
            .map_err(|error| local(file, error))
    };
    let saved = saved.await;
    if saved.is_err() {
        // Of what cannot be removed the error that led here says enough.
        drop(tokio::fs::remove_file(&part).await);
    }
    saved
}

async fn pour(mut read: FileRead, to: &mut (impl AsyncWrite + Unpin), name: &str) -> Result<(), CopyError> {
    let failed = |error| CopyError::Io(name.to_owned(), error);
    while let Some(piece) = read.body.next().await? {
        to.write_all(&piece).await.map_err(failed)?;
    }
    to.flush().await.map_err(failed)
}

fn local(path: &Path, error: io::Error) -> CopyError {
    CopyError::Io(path.display().to_string(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        for (text, end) in [
            ("-", End::Standard),
            ("a.csv", End::Here("a.csv".into())),
            ("./a:b", End::Here("./a:b".into())),
            ("/tmp/a:b", End::Here("/tmp/a:b".into())),
            (":a", End::Here(":a".into())),
            ("gr-x:a/b:c", End::There("gr-x".into(), "a/b:c".into())),
            ("gr-x:", End::There("gr-x".into(), String::new())),
        ] {
            assert_eq!(text.parse(), Ok(end), "{text}");
        }
    }

    #[test]
    fn a_file_goes_into_a_folder_by_its_own_name() {
        let here = End::Here("x/data.csv".into());
        for (from, path, expected) in [
            (&here, "", Some("data.csv")),
            (&here, "in/", Some("in/data.csv")),
            (&here, "in/other.csv", Some("in/other.csv")),
            (&End::Standard, "a", Some("a")),
            (&End::Standard, "a/", None),
            (&End::Here("..".into()), "", None),
        ] {
            assert_eq!(target(from, path).ok().as_deref(), expected, "{path}");
        }
    }
}
