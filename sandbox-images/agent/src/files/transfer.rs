//! Bytes on their way into and out of open files: the agent reads and writes them itself, in large pieces
//! and one piece ahead, on threads that may block.

use std::{
    fs::File,
    io::{self, IoSlice, Write},
    ops::Range,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use greenroom_protocol::{ByteRange, FileKind, Refusal, RefusalKind};
use rustix::{
    fs::fstat,
    process::{Resource, getrlimit},
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::beneath::kind;

/// Bytes of one piece. Handing one to another thread costs up to 75 µs under gVisor, writing it more.
const PIECE: usize = 512 << 10;
/// One piece of a regular file takes milliseconds; what takes this long will not come any more.
const PIECE_TIME: Duration = Duration::from_secs(30);

/// A file that is being read.
#[derive(Debug)]
pub struct FileRead {
    /// Bytes of the whole file when it was opened.
    pub size: u64,
    /// The bytes that will come.
    pub range: Range<u64>,
    file: Arc<File>,
    ahead: Option<JoinHandle<io::Result<Bytes>>>,
}

impl FileRead {
    pub(super) fn open(file: OwnedFd, range: Option<ByteRange>) -> Result<Self, Refusal> {
        let size = size_of_regular(&file)?;
        let range = match range {
            Some(range) => range.within(size).ok_or_else(|| Refusal {
                kind: RefusalKind::BadRequest,
                message: format!("the range begins at or after the file's end; the file has {size} bytes"),
            })?,
            None => 0..size,
        };
        Ok(Self {
            size,
            range,
            file: Arc::new(File::from(file)),
            ahead: None,
        })
    }

    /// The next piece; `None` at the end of the range. The piece after it is read meanwhile.
    ///
    /// # Errors
    /// The file became shorter than it was, or cannot be read; nothing more will come.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let reading = match self.ahead.take() {
            Some(reading) => reading,
            None => self.read_piece(),
        };
        let piece = timeout(PIECE_TIME, reading)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?
            .map_err(io::Error::other)??;
        self.range.start += piece.len() as u64;
        if !self.range.is_empty() {
            self.ahead = Some(self.read_piece());
        }
        Ok(Some(piece))
    }

    /// All pieces, as a body wants them.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut read| async move {
            Ok(read.next().await?.map(|piece| (piece, read)))
        })
    }

    fn read_piece(&self) -> JoinHandle<io::Result<Bytes>> {
        let file = Arc::clone(&self.file);
        let at = self.range.start;
        let length = (self.range.end - at).min(PIECE as u64) as usize;
        spawn_blocking(move || {
            let mut piece = vec![0; length];
            let got = read_at(&file, &mut piece, at)?;
            if got == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file became shorter while it was read",
                ));
            }
            piece.truncate(got);
            Ok(Bytes::from(piece))
        })
    }
}

fn read_at(file: &File, piece: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(piece, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    file: Arc<File>,
    /// Bytes that the file has once all that was pushed is written.
    size: u64,
    /// Bytes that a file may have: beyond it the kernel would kill the writer.
    limit: Option<u64>,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    under_way: Option<JoinHandle<io::Result<()>>>,
}

impl Writing {
    pub(super) fn open(file: OwnedFd) -> Result<Self, Refusal> {
        Ok(Self {
            size: size_of_regular(&file)?,
            file: Arc::new(File::from(file)),
            limit: getrlimit(Resource::Fsize).current,
            waiting: Vec::new(),
            waiting_bytes: 0,
            under_way: None,
        })
    }

    /// Takes more bytes; at most two pieces are in memory.
    pub(super) async fn push(&mut self, bytes: Bytes) -> io::Result<()> {
        let size = self.size + bytes.len() as u64;
        if self.limit.is_some_and(|limit| size > limit) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.size = size;
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes);
        if self.waiting_bytes >= PIECE {
            self.hand_over().await?;
        }
        Ok(())
    }

    /// Writes what is left and waits for it.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.hand_over().await?;
        self.settle().await
    }

    /// Cuts the file back to a size, if nobody else wrote behind our bytes meanwhile.
    pub(super) async fn cut_back(&mut self, size: u64) {
        // What went wrong is known already to whoever cuts back.
        drop(self.settle().await);
        let file = Arc::clone(&self.file);
        let written_at_most = self.size;
        let cut = spawn_blocking(move || {
            if file.metadata().is_ok_and(|now| now.len() <= written_at_most) {
                // Of what cannot be cut off the caller's error says enough.
                drop(file.set_len(size));
            }
        });
        drop(cut.await);
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes that the file has once all that was pushed is written.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    async fn hand_over(&mut self) -> io::Result<()> {
        self.settle().await?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        let file = Arc::clone(&self.file);
        let pieces = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        self.under_way = Some(spawn_blocking(move || write_all(&file, &pieces)));
        Ok(())
    }

    async fn settle(&mut self) -> io::Result<()> {
        match self.under_way.take() {
            Some(writing) => timeout(PIECE_TIME, writing)
                .await
                .map_err(|_| io::ErrorKind::TimedOut)?
                .map_err(io::Error::other)?,
            None => Ok(()),
        }
    }
}

fn write_all(mut file: &File, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = slices.as_mut_slice();
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The files process has looked already, but it is the guest's: nothing else than a regular file may ever
/// block one of our threads.
fn size_of_regular(file: &OwnedFd) -> Result<u64, Refusal> {
    let internal = |message: String| Refusal {
        kind: RefusalKind::Internal,
        message,
    };
    let stat = fstat(file).map_err(|error| internal(error.to_string()))?;
    if kind(&stat) != FileKind::File {
        return Err(internal("the files process opened what is no file".to_owned()));
    }
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}
