//! What is done to files, with the rights of whoever does it: the files process for the guest, or the
//! agent itself where both are one user.

use std::{io, os::fd::OwnedFd};

use greenroom_protocol::{FileKind, Refusal, RefusalKind};
use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat, fchmod, fstat, openat, renameat, statat, unlinkat},
    io::Errno,
};

use super::{
    beneath::{Beneath, LastLink, MissingParents, Place, kind, refusal},
    listing,
    path::WorkPath,
    removal,
    wire::{Answer, Reply, Request},
};
use crate::changes::Journal;

/// Opens what should be a regular file, without waiting for a peer if it is a FIFO after all.
const CAREFULLY: OFlags = OFlags::NONBLOCK
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// Mode of new files: the sandbox has one guest, and its programs may well run as another user's child.
const NEW_FILE: Mode = Mode::from_raw_mode(0o644);

/// Works in one work directory, one request at a time.
#[derive(Debug)]
pub(super) struct Hands {
    beneath: Beneath,
    journal: Journal,
}

impl Hands {
    pub(super) fn open(work_dir: &str) -> io::Result<Self> {
        let beneath = Beneath::open(work_dir)?;
        let journal = Journal::start(&beneath);
        Ok(Self { beneath, journal })
    }

    /// Does what is asked. `descriptors` are those that came with the request.
    pub(super) fn perform(&mut self, request: Request, descriptors: &[OwnedFd]) -> Answer {
        let reply = match request {
            Request::List { path, depth } => Reply::Listed(listing::list(&self.beneath, &path, depth)?),
            Request::Read { path } => return Ok((Reply::Opened, vec![self.read(&path)?])),
            Request::Create { path, part } => return self.create(&path, &part),
            Request::Append { path } => return self.append(&path),
            Request::Commit { path, part, name } => {
                commit(&part, &name, descriptors).map_err(|error| refusal(error, &path))?;
                Reply::Done
            }
            Request::Discard { name } => {
                if let [folder, ..] = descriptors {
                    // Gone already is as good.
                    let _ = unlinkat(folder, name.as_slice(), AtFlags::empty());
                }
                Reply::Done
            }
            Request::Delete { path, before } => {
                Reply::Deleted(removal::delete(&self.beneath, &path, before)?)
            }
            Request::Watch { seq } => {
                self.journal.count_from(seq);
                return Ok((Reply::Watching, self.journal.signal().into_iter().collect()));
            }
            Request::Mark => {
                self.journal.refresh(&self.beneath);
                Reply::Changed {
                    seq: self.journal.seq(),
                    changes: None,
                }
            }
            Request::Changes { since } => {
                self.journal.refresh(&self.beneath);
                Reply::Changed {
                    seq: self.journal.seq(),
                    changes: self.journal.since(since),
                }
            }
        };
        Ok((reply, Vec::new()))
    }

    fn read(&self, path: &WorkPath) -> Result<OwnedFd, Refusal> {
        let (folder, name, found) = self.entry(path, MissingParents::Refuse)?;
        check(found.as_ref().ok_or(Errno::NOENT), path)?;
        open_regular(&folder, &name, OFlags::RDONLY, path)
    }

    fn create(&self, path: &WorkPath, part: &str) -> Answer {
        let (folder, name, found) = self.entry(path, MissingParents::Make)?;
        if let Some(stat) = &found {
            check(Ok(stat), path)?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | CAREFULLY;
        let mut file = openat(&folder, part, flags, NEW_FILE);
        if matches!(file, Err(Errno::EXIST)) {
            // Left by a process that was killed between this and its answer.
            let _ = unlinkat(&folder, part, AtFlags::empty());
            file = openat(&folder, part, flags, NEW_FILE);
        }
        let file = file.map_err(|error| refusal(error, path))?;
        if let Some(stat) = found {
            // A script that is replaced stays executable. Where this fails the new file has the usual mode.
            let _ = fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o777));
        }
        Ok((Reply::Created { name }, vec![file, folder]))
    }

    fn append(&self, path: &WorkPath) -> Answer {
        let (folder, name, found) = self.entry(path, MissingParents::Make)?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        if let Some(stat) = &found {
            check(Ok(stat), path)?;
            Ok((Reply::Opened, vec![open_regular(&folder, &name, flags, path)?]))
        } else {
            let file = open_regular(&folder, &name, flags, path)?;
            Ok((Reply::Created { name }, vec![file, folder]))
        }
    }

    /// The folder and the name where a file is or will be, through links.
    fn entry(
        &self,
        path: &WorkPath,
        missing: MissingParents,
    ) -> Result<(OwnedFd, Vec<u8>, Option<Stat>), Refusal> {
        match self.beneath.walk(path, LastLink::Follow, missing)? {
            Place::Entry { folder, name, found } => Ok((folder, name, found)),
            Place::Folder(_) => Err(refusal(Errno::ISDIR, path)),
        }
    }
}

fn open_regular(folder: &OwnedFd, name: &[u8], flags: OFlags, path: &WorkPath) -> Result<OwnedFd, Refusal> {
    let file = openat(folder, name, flags | CAREFULLY, NEW_FILE).map_err(|error| match error {
        // A FIFO without a reader.
        Errno::NXIO => not_regular(path),
        error => refusal(error, path),
    })?;
    // It may have been swapped since it was looked at; what is open now is what counts.
    check(fstat(&file).as_ref().map_err(|error| *error), path)?;
    Ok(file)
}

/// Lets regular files pass.
fn check(stat: Result<&Stat, Errno>, path: &WorkPath) -> Result<(), Refusal> {
    match kind(stat.map_err(|error| refusal(error, path))?) {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(refusal(Errno::ISDIR, path)),
        FileKind::Symlink => Err(refusal(Errno::LOOP, path)),
        FileKind::Other => Err(not_regular(path)),
    }
}

fn not_regular(path: &WorkPath) -> Refusal {
    Refusal {
        kind: RefusalKind::Conflict,
        message: format!("{path}: it is a FIFO, socket or device, not a file"),
    }
}

/// Puts a finished file in its place. It may be there already: the process that put it there died before
/// it could say so.
fn commit(part: &str, name: &[u8], descriptors: &[OwnedFd]) -> rustix::io::Result<()> {
    let [folder, file] = descriptors else {
        return Err(Errno::BADF);
    };
    match renameat(folder, part, folder, name) {
        Err(Errno::NOENT) => {
            let (there, ours) = (statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?, fstat(file)?);
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) {
                Ok(())
            } else {
                Err(Errno::NOENT)
            }
        }
        outcome => outcome,
    }
}
