//! Listings: sorted, bounded in entries and in work, however many files there are.

use std::{collections::BinaryHeap, mem::MaybeUninit, os::fd::AsFd, time::Duration, vec};

use greenroom_protocol::{
    FileEntry, FileKind, FileList, Refusal,
    limits::{JSON_BYTES, LIST_ENTRIES, PATH_BYTES},
};
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, RawDir, Stat, statat},
    io::Errno,
};
use tokio::time::Instant;

use super::{
    Depth,
    beneath::{Beneath, LastLink, MissingParents, Place, kind, read_folder, refusal, reopen},
    path::{OWN_FOLDER, PART_PREFIX, WorkPath, joined, shown},
};

/// A listing reads names for this long at most: 100,000 of them take a tenth of it.
const LIST_TIME: Duration = Duration::from_secs(3);
/// Names between two looks at the clock.
const NAMES_PER_LOOK: u64 = 512;
/// Bytes of a listing as JSON at its worst: it must fit into one message.
const LIST_BYTES: usize = JSON_BYTES - (64 << 10);
/// Bytes of an entry as JSON, beside its path.
const ENTRY_BYTES: usize = 128;
/// Bytes of names that one system call brings.
const NAME_BUFFER: usize = 32 << 10;

/// Lists a folder, or the one file that the path names.
///
/// Entries come in the order of their segments' bytes, each folder directly before what it contains; the
/// first [`LIST_ENTRIES`] of that order are in the answer, the others are counted as far as they were
/// seen. Folders whose paths would be too long to be asked for are listed and not entered.
pub(super) fn list(beneath: &Beneath, path: &WorkPath, depth: Depth) -> Result<FileList, Refusal> {
    let refused = |error| refusal(error, path);
    let folder = match beneath.walk(path, LastLink::Follow, MissingParents::Refuse)? {
        Place::Folder(folder) => reopen(folder.as_fd()).map_err(refused)?,
        Place::Entry { found: None, .. } => return Err(refused(Errno::NOENT)),
        Place::Entry {
            folder,
            name,
            found: Some(stat),
        } => {
            if kind(&stat) != FileKind::Directory {
                return Ok(FileList {
                    entries: vec![entry(path.as_str().to_owned(), &stat)],
                    omitted: 0,
                });
            }
            read_folder(folder.as_fd(), &name).map_err(refused)?
        }
    };
    let mut listing = Listing {
        list: FileList::default(),
        room: LIST_BYTES,
        until: Instant::now() + LIST_TIME,
    };
    let level = listing.read(folder, path.as_str()).map_err(refused)?;
    listing.descend(level, depth);
    Ok(listing.list)
}

struct Listing {
    list: FileList,
    /// Bytes that entries may still take as JSON.
    room: usize,
    until: Instant,
}

/// A folder whose names are read and sorted, and partly listed.
struct Level {
    folder: OwnedFd,
    path: String,
    names: vec::IntoIter<Vec<u8>>,
}

impl Listing {
    /// Lists level by level, keeping the folders above open: at most as many as a path has segments.
    fn descend(&mut self, level: Level, depth: Depth) {
        let mut levels = vec![level];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                levels.pop();
                continue;
            };
            if self.list.entries.len() == LIST_ENTRIES || self.room == 0 {
                self.list.omitted += 1;
                continue;
            }
            let path = joined(&level.path, &shown(&name));
            // Gone again, or not for us to see.
            let Ok(stat) = statat(&level.folder, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            // At its worst a character of a name becomes six in JSON.
            let size = path.len() * 6 + ENTRY_BYTES;
            if size > self.room {
                self.room = 0;
                self.list.omitted += 1;
                continue;
            }
            self.room -= size;
            self.list.entries.push(entry(path.clone(), &stat));
            if depth == Depth::Tree
                && kind(&stat) == FileKind::Directory
                && path.len() + "/n".len() <= PATH_BYTES
                && let Ok(folder) = read_folder(level.folder.as_fd(), &name)
                && let Ok(below) = self.read(folder, &path)
            {
                levels.push(below);
            }
        }
    }

    /// Reads a folder's names and keeps the smallest ones, as many as may still be listed.
    fn read(&mut self, folder: OwnedFd, path: &str) -> rustix::io::Result<Level> {
        let keep = LIST_ENTRIES - self.list.entries.len();
        let mut smallest = BinaryHeap::with_capacity(keep.min(64));
        let mut seen = 0;
        let mut buffer = [MaybeUninit::uninit(); NAME_BUFFER];
        let mut names = RawDir::new(folder.as_fd(), &mut buffer);
        while let Some(next) = names.next() {
            let next = next?;
            let name = next.file_name().to_bytes();
            if is_hidden(name, path) {
                continue;
            }
            seen += 1;
            if seen % NAMES_PER_LOOK == 0 && Instant::now() > self.until {
                break;
            }
            let largest: Option<&Vec<u8>> = smallest.peek();
            if smallest.len() < keep || largest.is_some_and(|largest| name < largest.as_slice()) {
                smallest.push(name.to_vec());
            }
            if smallest.len() > keep {
                smallest.pop();
            }
        }
        self.list.omitted += seen - smallest.len() as u64;
        Ok(Level {
            path: path.to_owned(),
            names: smallest.into_sorted_vec().into_iter(),
            folder,
        })
    }
}

/// `.` and `..`, files that are being written, and the agent's own folder.
pub(crate) fn is_hidden(name: &[u8], folder: &str) -> bool {
    matches!(name, b"." | b"..")
        || name.starts_with(PART_PREFIX.as_bytes())
        || (folder.is_empty() && name == OWN_FOLDER.as_bytes())
}

/// An entry of what was looked at.
pub(super) fn entry(path: String, stat: &Stat) -> FileEntry {
    let kind = kind(stat);
    let nanos = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    FileEntry {
        path,
        kind,
        size: match kind {
            FileKind::File | FileKind::Symlink => u64::try_from(stat.st_size).unwrap_or(0),
            FileKind::Directory | FileKind::Other => 0,
        },
        // The guest sets times as it likes: before 1970 is shown as 1970.
        modified_ms: u64::try_from(nanos / 1_000_000).unwrap_or(0),
    }
}
