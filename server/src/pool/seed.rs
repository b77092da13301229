//! What each new sandbox of a pool finds in its work directory: a folder of the operator's, packed for each boot.

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use greenroom_protocol::limits::ARCHIVE_ENTRIES;
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::config::Size;

/// What a seed may weigh: each boot copies all of it, within the boot's deadline.
const BYTES: Size = Size::mib(256);
/// Bytes of the archive that go out at a time …
const PIECE: usize = 256 << 10;
/// … and pieces that may wait.
const PIECES: usize = 4;

/// A folder whose contents fill new work directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed(PathBuf);

/// Why a seed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// It cannot be read.
    #[error("the seed {0:?} cannot be read: {1}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// It is over its bounds.
    #[error("the seed {0:?} has more than {BYTES} or {ARCHIVE_ENTRIES} entries")]
    TooLarge(PathBuf),
    /// A socket, FIFO or device.
    #[error("the seed has {0:?}, which is neither file, folder nor symbolic link")]
    Strange(PathBuf),
}

impl Seed {
    /// A folder, by its path.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Looks whether it can be used as it is now.
    ///
    /// # Errors
    /// [`SeedError`].
    pub async fn check(&self) -> Result<(), SeedError> {
        let path = self.0.clone();
        match spawn_blocking(move || weigh(&path)).await {
            Ok(outcome) => outcome,
            Err(error) => Err(SeedError::Unreadable(self.0.clone(), io::Error::other(error))),
        }
    }

    /// Its contents as a tar archive. What changes under the hand that packs it breaks the stream off.
    pub fn archive(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (pieces, packed) = mpsc::channel(PIECES);
        let path = self.0.clone();
        // It ends when all is packed, or when nobody takes the next piece.
        drop(spawn_blocking(move || {
            if let Err(error) = pack(&path, Pieces(pieces.clone())) {
                drop(pieces.blocking_send(Err(error)));
            }
        }));
        stream::unfold(packed, async |mut packed| Some((packed.recv().await?, packed)))
    }
}

fn weigh(seed: &Path) -> Result<(), SeedError> {
    let unreadable = |error| SeedError::Unreadable(seed.to_owned(), error);
    let (mut entries, mut bytes) = (0, 0);
    let mut folders = vec![seed.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let meta = entry.metadata().map_err(unreadable)?;
            entries += 1;
            bytes += meta.len();
            if entries > ARCHIVE_ENTRIES || bytes > BYTES.bytes() {
                return Err(SeedError::TooLarge(seed.to_owned()));
            }
            if meta.is_dir() {
                folders.push(entry.path());
            } else if !meta.is_file() && !meta.is_symlink() {
                return Err(SeedError::Strange(entry.path()));
            }
        }
    }
    Ok(())
}

fn pack(seed: &Path, pieces: Pieces) -> io::Result<()> {
    let mut archive = tar::Builder::new(BufWriter::with_capacity(PIECE, pieces));
    archive.follow_symlinks(false);
    // What has holes is packed as any other file: its size was weighed.
    archive.sparse(false);
    // Inside they are the guest's, whoever has them here.
    archive.mode(tar::HeaderMode::Deterministic);
    for entry in fs::read_dir(seed)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type()?.is_dir() {
            archive.append_dir_all(&name, &path)?;
        } else {
            archive.append_path_with_name(&path, &name)?;
        }
    }
    archive.into_inner()?.flush()
}

/// The end of a channel as a place to write to.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        let sent = self.0.blocking_send(piece);
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use futures_util::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_folder_is_packed_with_all_that_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), vec![7; 3 * PIECE]).unwrap();
        symlink("a/b/c", dir.path().join("l")).unwrap();
        let seed = Seed::new(dir.path().to_owned());
        seed.check().await.unwrap();
        let pieces: Vec<Bytes> = seed.archive().try_collect().await.unwrap();
        let packed = pieces.concat();
        let mut archive = tar::Archive::new(packed.as_slice());
        let mut names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path().unwrap().display().to_string();
                path.trim_end_matches('/').to_owned()
            })
            .collect();
        names.sort();
        assert_eq!(names, ["a", "a/b", "a/b/c", "l"]);
    }

    #[tokio::test]
    async fn a_seed_that_cannot_be_used_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        let strange = Seed::new(dir.path().to_owned()).check().await;
        assert!(matches!(strange, Err(SeedError::Strange(_))), "{strange:?}");
        let none = Seed::new(dir.path().join("none"));
        assert!(matches!(none.check().await, Err(SeedError::Unreadable(..))));
        let broken: Result<Vec<Bytes>, _> = none.archive().try_collect().await;
        assert!(broken.is_err());
        let large = tempfile::tempdir().unwrap();
        let file = fs::File::create(large.path().join("large")).unwrap();
        file.set_len(BYTES.bytes() + 1).unwrap();
        let too_large = Seed::new(large.path().to_owned()).check().await;
        assert!(matches!(too_large, Err(SeedError::TooLarge(_))), "{too_large:?}");
    }
}
