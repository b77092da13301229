//! The work directory as a tar archive, all of it or none: by a child with the guest's rights.
//!
//! The child looks at everything first. Where nothing has changed since an archive that is known, where there is
//! too much, or where it all fits, it says so in one line; then it packs what it saw. An archive that breaks off
//! has no end, so nobody takes it for a whole one.

use std::{
    fs,
    io::{self, BufWriter, Read, Write},
    os::{fd::AsFd, unix::ffi::OsStrExt, unix::fs::OpenOptionsExt},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use greenroom_protocol::{Packed, Refusal, RefusalKind};
use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::ChildStdout,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::weigh::{Item, ItemKind, NAME_FIELD, TooMuch, weigh};
use crate::{
    child::{Child, Quarters, spawn},
    errand::Errand,
};

/// A child that says nothing for this long is given up: it looks at 20,000 files in a second.
const STALL: Duration = Duration::from_secs(60);
/// The line that comes first, in bytes.
const LINE: u64 = 512;
/// Bytes that travel at a time.
const PIECE: usize = 256 << 10;

/// An archive on its way out. Dropping it ends the child.
#[derive(Debug)]
pub struct Packing {
    /// What is in it.
    pub packed: Packed,
    /// Tells what was packed from what it may become.
    pub digest: String,
    out: BufReader<ChildStdout>,
    child: Child,
    _turn: OwnedSemaphorePermit,
}

/// Packs the work directory, but for what it holds where that has one of the `known` digests: `None`.
pub(super) async fn pack(
    quarters: &Quarters,
    turn: &Arc<Semaphore>,
    max: u64,
    known: &str,
) -> Result<Option<Packing>, Refusal> {
    let turn = Arc::clone(turn).try_acquire_owned().map_err(|_| Refusal {
        kind: RefusalKind::Conflict,
        message: "the files are being archived already".to_owned(),
    })?;
    let mut command = quarters.errand(Errand::Pack, [max.to_string().as_str(), known]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = spawn(command).map_err(|error| failed(&error.to_string()))?;
    let out = child.take_stdout().ok_or_else(|| failed("it has no output"))?;
    let mut out = BufReader::with_capacity(PIECE, out);
    let mut line = String::new();
    match timeout(STALL, (&mut out).take(LINE).read_line(&mut line)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(failed(&error.to_string())),
        Err(_) => return Err(failed("nothing was seen of it in time")),
    }
    let mut words = line.trim_end().splitn(2, ' ');
    match (words.next(), words.next()) {
        (Some("same"), None) => Ok(None),
        (Some("large"), Some(message)) => Err(Refusal {
            kind: RefusalKind::TooLarge,
            message: message.to_owned(),
        }),
        (Some("packed"), Some(rest)) => {
            let (digest, packed) =
                announced(rest).ok_or_else(|| failed("what packs it went off its script"))?;
            Ok(Some(Packing {
                packed,
                digest,
                out,
                child,
                _turn: turn,
            }))
        }
        _ => Err(failed("what packs it was ended from inside")),
    }
}

fn announced(rest: &str) -> Option<(String, Packed)> {
    let (digest, packed) = rest.split_once(' ')?;
    let is_digest = !digest.is_empty() && digest.len() <= 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then_some(())?;
    Some((digest.to_owned(), Packed::parse(packed)?))
}

fn failed(why: &str) -> Refusal {
    Refusal {
        kind: RefusalKind::Internal,
        message: format!("the files were not archived: {why}"),
    }
}

impl Packing {
    /// Its bytes, as a body wants them. It fails where the child does: what came until then is no archive.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut packing| async move {
            let mut piece = Vec::with_capacity(PIECE);
            let read = timeout(STALL, packing.out.read_buf(&mut piece));
            if read.await.map_err(|_| io::ErrorKind::TimedOut)?? > 0 {
                return Ok(Some((Bytes::from(piece), packing)));
            }
            let status = timeout(STALL, packing.child.wait())
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            if status.success() {
                Ok(None)
            } else {
                Err(io::Error::other("the files changed while they were archived"))
            }
        })
    }
}

/// The child's part: the current directory to standard output, unless it has the `known` digest.
pub(crate) fn errand(max: &str, known: &str) -> io::Result<()> {
    let max = max.parse().map_err(io::Error::other)?;
    // A file instead of std's handle, which flushes at each line's end.
    let out = fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    pack_here(Path::new("."), max, known, BufWriter::with_capacity(PIECE, out))
}

fn pack_here(folder: &Path, max: u64, known: &str, mut out: impl Write) -> io::Result<()> {
    let weighed = match weigh(folder, max) {
        Ok(weighed) => weighed,
        Err(TooMuch::Limit(message)) => {
            writeln!(out, "large {message}")?;
            return out.flush();
        }
        Err(TooMuch::Unreadable(error)) => return Err(error),
    };
    if weighed.digest == known {
        writeln!(out, "same")?;
        return out.flush();
    }
    writeln!(out, "packed {} {}", weighed.digest, weighed.packed)?;
    let mut archive = Builder::new(Bounded { out, left: max });
    for item in &weighed.items {
        append(&mut archive, folder, item)?;
    }
    archive.into_inner()?.flush()
}

/// Appends what was seen, as it is now. What is gone by now was deleted, which is no mistake; what became
/// shorter while it was read would be neither the old nor the new file.
fn append(archive: &mut Builder<impl Write>, folder: &Path, item: &Item) -> io::Result<()> {
    let path = folder.join(&item.path);
    let mut header = Header::new_gnu();
    header.set_mode(item.mode);
    header.set_mtime(item.modified);
    header.set_size(0);
    match item.kind {
        ItemKind::Folder => {
            header.set_entry_type(EntryType::Directory);
            name(archive, &mut header, item)?;
            archive.append(&header, io::empty())
        }
        ItemKind::Link => {
            let target = match fs::read_link(&path) {
                Err(error) if is_other_now(&error) => return Ok(()),
                target => target?,
            };
            header.set_entry_type(EntryType::Symlink);
            name(archive, &mut header, item)?;
            let target = target.as_os_str().as_bytes();
            lengthy(archive, EntryType::GNULongLink, target)?;
            fill(&mut header.as_old_mut().linkname, target);
            header.set_cksum();
            archive.append(&header, io::empty())
        }
        ItemKind::File => {
            let opened = fs::OpenOptions::new()
                .read(true)
                .custom_flags(
                    (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY)
                        .bits()
                        .cast_signed(),
                )
                .open(&path);
            let file = match opened {
                Err(error) if is_other_now(&error) => return Ok(()),
                file => file?,
            };
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Ok(());
            }
            header.set_entry_type(EntryType::Regular);
            header.set_size(meta.len());
            name(archive, &mut header, item)?;
            archive.append(&header, Whole::of(file, meta.len()))
        }
    }
}

/// Gone, or something else than it was.
fn is_other_now(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidInput)
        || rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP)
}

/// Writes a name into a header, whatever bytes it has: the builder's own way wants text.
fn name(archive: &mut Builder<impl Write>, header: &mut Header, item: &Item) -> io::Result<()> {
    let path = item.path.as_os_str().as_bytes();
    lengthy(archive, EntryType::GNULongName, path)?;
    fill(&mut header.as_old_mut().name, path);
    header.set_cksum();
    Ok(())
}

/// What does not fit into a header goes before it.
fn lengthy(archive: &mut Builder<impl Write>, kind: EntryType, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() <= NAME_FIELD {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    fill(&mut header.as_old_mut().name, b"././@LongLink");
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64 + 1);
    header.set_cksum();
    archive.append(&header, Read::chain(bytes, &b"\0"[..]))
}

fn fill(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(NAME_FIELD);
    field.fill(0);
    field[..length].copy_from_slice(&bytes[..length]);
}

/// A file that must have as many bytes as it had when it was opened; what was added since is left for the next
/// archive.
struct Whole {
    file: io::Take<fs::File>,
}

impl Whole {
    fn of(file: fs::File, size: u64) -> Self {
        Self {
            file: file.take(size),
        }
    }
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && self.file.limit() > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(read)
    }
}

/// Files may have grown since they were weighed: the limit holds all the same.
struct Bounded<W> {
    out: W,
    left: u64,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.left = self
            .left
            .checked_sub(written as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(folder: &Path, max: u64, known: &str) -> io::Result<(String, Vec<u8>)> {
        let mut out = Vec::new();
        pack_here(folder, max, known, &mut out)?;
        let end = out.iter().position(|byte| *byte == b'\n').unwrap();
        let archive = out.split_off(end + 1);
        Ok((String::from_utf8(out).unwrap().trim_end().to_owned(), archive))
    }

    fn digest(line: &str) -> &str {
        line.split(' ').nth(1).unwrap()
    }

    #[test]
    fn an_archive_is_as_long_as_was_announced() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "x".repeat(600)).unwrap();
        fs::write(dir.path().join("n".repeat(200)), "").unwrap();
        std::os::unix::fs::symlink("t".repeat(300), dir.path().join("l")).unwrap();
        let (line, archive) = packed(dir.path(), u64::MAX, "").unwrap();
        let said = Packed::parse(line.splitn(3, ' ').nth(2).unwrap()).unwrap();
        assert_eq!((said.entries, said.left_out), (4, 0), "{line}");
        assert_eq!(said.bytes, archive.len() as u64, "{line}");
        // It fits exactly, and one byte less is too little: said before a byte is packed.
        assert!(
            packed(dir.path(), said.bytes, "")
                .unwrap()
                .0
                .starts_with("packed ")
        );
        let (refused, rest) = packed(dir.path(), said.bytes - 1, "").unwrap();
        assert!(refused.starts_with("large ") && rest.is_empty(), "{refused}");
    }

    #[test]
    fn what_has_not_changed_is_not_packed_again() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, _) = packed(dir.path(), u64::MAX, "").unwrap();
        assert_eq!(packed(dir.path(), u64::MAX, digest(&empty)).unwrap().0, "same");
        fs::write(dir.path().join("f"), "one").unwrap();
        let (first, _) = packed(dir.path(), u64::MAX, digest(&empty)).unwrap();
        assert_eq!(packed(dir.path(), u64::MAX, digest(&first)).unwrap().0, "same");
        // As long as before, and as old: the inode's own change cannot be set back.
        let before = fs::metadata(dir.path().join("f")).unwrap().modified().unwrap();
        fs::write(dir.path().join("f"), "two").unwrap();
        let file = fs::File::options()
            .write(true)
            .open(dir.path().join("f"))
            .unwrap();
        file.set_modified(before).unwrap();
        let (second, _) = packed(dir.path(), u64::MAX, digest(&first)).unwrap();
        assert_ne!(digest(&second), digest(&first));
        fs::remove_file(dir.path().join("f")).unwrap();
        assert_eq!(packed(dir.path(), u64::MAX, digest(&empty)).unwrap().0, "same");
    }

    #[test]
    fn a_file_that_became_shorter_breaks_the_archive_off() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "short").unwrap();
        let file = fs::File::open(dir.path().join("f")).unwrap();
        let read = io::copy(&mut Whole::of(file, 6), &mut io::sink());
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
