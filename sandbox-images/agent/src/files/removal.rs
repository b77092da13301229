//! Deleting a file, or a folder with all that is in it, whatever its depth and in bounded time.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use greenroom_protocol::{Deleted, FileKind, Refusal};
use rustix::{
    fs::{AtFlags, RawDir, renameat, unlinkat},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    beneath::{Beneath, LastLink, MissingParents, Place, kind, read_folder, refusal, reopen},
    path::{PART_PREFIX, WorkPath, bad_path},
};

/// A deletion works for this long at a time: a run that begins or ends waits longer than that for its look
/// at what changed, and all that others ask of the files process goes in between. On a busy machine it takes
/// as long as half a batch does, so that reading the names again does not come to more than deleting them …
const SLICE: Duration = Duration::from_millis(200);
/// … but never longer than this.
const LONGEST_SLICE: Duration = Duration::from_secs(1);
/// Folders inside folders that are open at a time. What lies deeper is moved up first, so that neither
/// descriptors nor the stack bound the depth that can be deleted.
const OPEN_FOLDERS: usize = 32;
/// Names that are read before they are deleted, 1 MiB at most: a folder is read again until it is empty,
/// and to begin reading one of 100,000 names costs 20 ms under gVisor.
const BATCH: usize = 4096;
/// Room for one system call's names.
const NAME_BUFFER: usize = 8 << 10;

/// What a slice of a deletion has come to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Removed {
    /// Nothing is left.
    Whole(Deleted),
    /// So many entries are gone, and there are more.
    Part(u64),
}

/// Deletes what is at a path, or as much of it as one slice of time allows; a link itself, not what it leads
/// to. `before`: entries that earlier slices have deleted.
pub(super) fn delete(beneath: &Beneath, path: &WorkPath, before: u64) -> Result<Removed, Refusal> {
    let refused = |error| refusal(error, path);
    let (folder, name, stat) = match beneath.walk(path, LastLink::Keep, MissingParents::Refuse)? {
        Place::Folder(_) => return Err(bad_path("the work directory itself cannot be deleted")),
        Place::Entry { found: None, .. } => return Err(refused(Errno::NOENT)),
        Place::Entry {
            folder,
            name,
            found: Some(stat),
        } => (folder, name, stat),
    };
    let kind = kind(&stat);
    if kind != FileKind::Directory {
        unlinkat(&folder, name.as_slice(), AtFlags::empty()).map_err(refused)?;
        return Ok(Removed::Whole(Deleted {
            kind,
            count: before + 1,
        }));
    }
    let top = read_folder(folder.as_fd(), &name).map_err(refused)?;
    let mut removal = Removal {
        top: &top,
        count: before,
        enough: before + BATCH as u64 / 2,
        hoisted: 0,
        started: Instant::now(),
    };
    let emptied = removal
        .empty(top.as_fd(), OPEN_FOLDERS)
        .and_then(|()| unlinkat(&folder, name.as_slice(), AtFlags::REMOVEDIR).map_err(Stopped::Error));
    match emptied {
        Ok(()) => Ok(Removed::Whole(Deleted {
            kind,
            count: removal.count + 1,
        })),
        Err(Stopped::Error(error)) => {
            let mut refusal = refused(error);
            if removal.count > 0 {
                refusal.message += &format!("; {} entries in it are gone already", removal.count);
            }
            Err(refusal)
        }
        Err(Stopped::OutOfTime) => Ok(Removed::Part(removal.count)),
    }
}

struct Removal<'a> {
    top: &'a OwnedFd,
    count: u64,
    /// The count from which the slice may end.
    enough: u64,
    hoisted: u64,
    started: Instant,
}

enum Stopped {
    Error(Errno),
    OutOfTime,
}

impl Removal<'_> {
    fn is_over(&self) -> bool {
        let worked = self.started.elapsed();
        worked > LONGEST_SLICE || (worked > SLICE && self.count >= self.enough)
    }

    /// Deletes everything in a folder. Each batch of names is gone, or an error, before the next is read,
    /// so this ends; a guest that makes files as fast as they are deleted runs out of slices.
    fn empty(&mut self, folder: BorrowedFd<'_>, levels: usize) -> Result<(), Stopped> {
        loop {
            let names = batch(folder).map_err(Stopped::Error)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                if self.is_over() {
                    return Err(Stopped::OutOfTime);
                }
                match unlinkat(folder, name.as_slice(), AtFlags::empty()) {
                    Ok(()) => self.count += 1,
                    Err(Errno::NOENT) => {}
                    // A folder says one or the other, by kernel.
                    Err(Errno::ISDIR | Errno::PERM) => self.remove_folder(folder, &name, levels)?,
                    Err(error) => return Err(Stopped::Error(error)),
                }
            }
        }
    }

    fn remove_folder(&mut self, parent: BorrowedFd<'_>, name: &[u8], levels: usize) -> Result<(), Stopped> {
        if levels == 0 {
            // Its name is one that no listing shows, in case that the time runs out here. What an earlier slice
            // has moved up lies there still.
            loop {
                self.hoisted += 1;
                let up = format!("{PART_PREFIX}{}-{}", std::process::id(), self.hoisted);
                match renameat(parent, name, self.top, up.as_str()) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) if !self.is_over() => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(Stopped::OutOfTime),
                    outcome => return outcome.map_err(Stopped::Error),
                }
            }
        }
        match read_folder(parent, name) {
            Ok(folder) => self.empty(folder.as_fd(), levels - 1)?,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Stopped::Error(error)),
        }
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => self.count += 1,
            // Filled again or gone meanwhile: the next batch sees which.
            Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(error) => return Err(Stopped::Error(error)),
        }
        Ok(())
    }
}

/// The first names of a folder, read from its start.
fn batch(folder: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let folder = reopen(folder)?;
    let mut buffer = [MaybeUninit::uninit(); NAME_BUFFER];
    let mut entries = RawDir::new(&folder, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}
