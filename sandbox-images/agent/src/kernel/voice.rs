//! How the agent speaks to a kernel's process: on its line, or by a named pipe to one that reads only what it has opened
//! by itself.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown},
    path::PathBuf,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::{
    io::AsyncWriteExt,
    net::unix::{OwnedWriteHalf, pipe},
};

use crate::child::Quarters;

/// Where such a pipe lies until it is open.
const PARENT: &str = "/tmp";
/// What it is called: shells put this before what they complain of.
const NAME: &str = "sh";

/// How the agent speaks to a process.
#[derive(Debug)]
pub(super) enum Voice {
    Line(OwnedWriteHalf),
    /// The name goes once the process has opened it.
    Fifo(pipe::Sender, Option<Fifo>),
}

impl Voice {
    pub(super) async fn say(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Line(line) => line.write_all(text).await,
            Self::Fifo(pipe, _) => pipe.write_all(text).await,
        }
    }

    /// Says a few bytes if there is room for them, and answers whether there was: a process that does not come to read
    /// has enough to read.
    pub(super) fn remark(&self, text: &[u8]) -> bool {
        let written = match self {
            Self::Line(line) => line.try_write(text),
            Self::Fifo(pipe, _) => pipe.try_write(text),
        };
        written.is_ok()
    }

    /// The process has begun to listen.
    pub(super) fn heard(&mut self) {
        if let Self::Fifo(_, name) = self {
            *name = None;
        }
    }
}

/// The name of a pipe, for as long as this lives; what has it open keeps it.
#[derive(Debug)]
pub(super) struct Fifo {
    folder: PathBuf,
}

impl Fifo {
    /// Makes one that the guest may read, and the end to write into it. That end is open for reading, too: it can be
    /// had before the process is there, and does not break when that ends, which shows elsewhere.
    pub(super) fn make(quarters: &Quarters) -> io::Result<(Self, pipe::Sender)> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let folder = PathBuf::from(PARENT).join(format!(".greenroom-{:016x}", u64::from_ne_bytes(random)));
        DirBuilder::new().mode(0o700).create(&folder)?;
        let fifo = Self { folder };
        let path = fifo.path();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        let pipe = pipe::OpenOptions::new().read_write(true).open_sender(&path)?;
        if let Some(uid) = quarters.guest() {
            chown(&path, Some(uid), None)?;
            fs::set_permissions(&fifo.folder, fs::Permissions::from_mode(0o711))?;
        }
        Ok((fifo, pipe))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::debug!(%error, "a named pipe is left behind");
        }
    }
}
