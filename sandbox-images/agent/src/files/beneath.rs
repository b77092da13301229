//! The work directory as a descriptor, and the only way from there to anything beneath it.
//!
//! Every step is an `openat` that follows no link. A symbolic link is read and walked by hand, so that one
//! which stays inside works and one that leads out is refused, whoever swaps what for what meanwhile: a
//! folder that was opened stays the folder that it was. The guest may still move such a folder elsewhere
//! while it is in use; all this happens with the guest's own rights, so it gains nothing that way.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use greenroom_protocol::{FileKind, Refusal, RefusalKind};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat, mkdirat, openat, readlinkat, statat},
    io::Errno,
};

use super::path::{WorkPath, bad_path};

/// Symbolic links that one path may lead through.
const LINKS: usize = 8;
/// Opens a folder to go on from, without the right to read it, and never through a link.
const STEP: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Opens a folder to read its names.
const READ_FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The work directory.
#[derive(Debug)]
pub(crate) struct Beneath {
    root: OwnedFd,
    work_dir: String,
}

/// Whether a link in the last segment is walked or meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastLink {
    Follow,
    Keep,
}

/// What happens where a parent folder is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingParents {
    Refuse,
    Make,
}

/// Where a path led.
pub(crate) enum Place {
    /// To a folder by way of a link, or to the work directory.
    Folder(OwnedFd),
    /// To a name in a folder.
    Entry {
        folder: OwnedFd,
        name: Vec<u8>,
        /// What was there; it may be something else by now.
        found: Option<Stat>,
    },
}

impl Beneath {
    /// Opens the work directory.
    ///
    /// # Errors
    /// It is no folder, or may not be entered.
    pub(crate) fn open(work_dir: &str) -> io::Result<Self> {
        let flags = STEP.difference(OFlags::NOFOLLOW);
        let root = openat(rustix::fs::CWD, work_dir, flags, Mode::empty())?;
        Ok(Self {
            root,
            work_dir: work_dir.to_owned(),
        })
    }

    /// The work directory's own path.
    pub(crate) fn work_dir(&self) -> &str {
        &self.work_dir
    }

    /// Walks to a path.
    ///
    /// # Errors
    /// `BadPath` where a link leads out, `NotFound`, or what the system says.
    pub(crate) fn walk(
        &self,
        path: &WorkPath,
        last: LastLink,
        missing: MissingParents,
    ) -> Result<Place, Refusal> {
        let refused = |error| refusal(error, path);
        let mut walk = Walk {
            beneath: self,
            opened: Vec::new(),
            ahead: path
                .segments()
                .map(|segment| segment.as_bytes().to_vec())
                .collect(),
            links: 0,
        };
        while let Some(name) = walk.ahead.pop_front() {
            if name == b".." {
                if walk.opened.pop().is_none() {
                    return Err(leads_out(path));
                }
            } else if walk.ahead.is_empty() {
                let found = walk.look(&name).map_err(refused)?;
                if last == LastLink::Follow && found.is_some_and(|stat| is_link(&stat)) {
                    walk.turn(&name, path)?;
                } else {
                    let folder = walk.into_folder().map_err(refused)?;
                    return Ok(Place::Entry { folder, name, found });
                }
            } else {
                walk.step(&name, path, missing)?;
            }
        }
        Ok(Place::Folder(walk.into_folder().map_err(refused)?))
    }

    /// Opens a folder by its raw segments, through no link at all.
    pub(crate) fn folder(&self, segments: &[Vec<u8>]) -> rustix::io::Result<OwnedFd> {
        let mut folder = reopen(self.root.as_fd())?;
        for segment in segments {
            folder = openat(&folder, segment.as_slice(), READ_FOLDER, Mode::empty())?;
        }
        Ok(folder)
    }
}

/// A walk under way.
struct Walk<'a> {
    beneath: &'a Beneath,
    /// The folders from the work directory down to here: `..` in a link goes back by what was really
    /// walked, not by what a folder says its parent is.
    opened: Vec<OwnedFd>,
    ahead: VecDeque<Vec<u8>>,
    links: usize,
}

impl Walk<'_> {
    fn here(&self) -> BorrowedFd<'_> {
        self.opened.last().map_or(self.beneath.root.as_fd(), AsFd::as_fd)
    }

    fn into_folder(mut self) -> rustix::io::Result<OwnedFd> {
        match self.opened.pop() {
            Some(folder) => Ok(folder),
            None => rustix::io::fcntl_dupfd_cloexec(&self.beneath.root, 0),
        }
    }

    fn look(&self, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
        match statat(self.here(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Enters a folder, or turns where a link leads.
    fn step(&mut self, name: &[u8], path: &WorkPath, missing: MissingParents) -> Result<(), Refusal> {
        let mut opened = openat(self.here(), name, STEP, Mode::empty());
        if matches!(opened, Err(Errno::NOENT)) && missing == MissingParents::Make {
            match mkdirat(self.here(), name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(refusal(error, path)),
            }
            opened = openat(self.here(), name, STEP, Mode::empty());
        }
        match opened {
            Ok(folder) => {
                self.opened.push(folder);
                Ok(())
            }
            // A link says one or the other, by kernel and flags.
            Err(Errno::NOTDIR | Errno::LOOP) => self.turn(name, path),
            Err(error) => Err(refusal(error, path)),
        }
    }

    /// Puts a link's target ahead of what is left of the path.
    fn turn(&mut self, name: &[u8], path: &WorkPath) -> Result<(), Refusal> {
        let target = match readlinkat(self.here(), name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            // No link: what a folder was needed for is something else.
            Err(Errno::INVAL) => return Err(refusal(Errno::NOTDIR, path)),
            Err(error) => return Err(refusal(error, path)),
        };
        self.links += 1;
        if self.links > LINKS {
            return Err(refusal(Errno::LOOP, path));
        }
        let mut segments = target
            .split(|byte| *byte == b'/')
            .filter(|segment| !matches!(*segment, b"" | b"."));
        if target.first() == Some(&b'/') {
            let own = self.beneath.work_dir.split('/');
            for expected in own.filter(|segment| !matches!(*segment, "" | ".")) {
                if segments.next() != Some(expected.as_bytes()) {
                    return Err(leads_out(path));
                }
            }
            self.opened.clear();
        }
        let ahead = segments.map(<[u8]>::to_vec).collect::<VecDeque<_>>();
        let rest = std::mem::replace(&mut self.ahead, ahead);
        self.ahead.extend(rest);
        Ok(())
    }
}

/// Opens a folder to read its names, through no link.
pub(crate) fn read_folder(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat(folder, name, READ_FOLDER, Mode::empty())
}

/// Opens a folder that is open already, so that its names are read from the start.
pub(crate) fn reopen(folder: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    openat(folder, c".", READ_FOLDER, Mode::empty())
}

/// The kind of what was looked at.
pub(crate) fn kind(stat: &Stat) -> FileKind {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Other
    }
}

fn is_link(stat: &Stat) -> bool {
    kind(stat) == FileKind::Symlink
}

fn leads_out(path: &WorkPath) -> Refusal {
    bad_path(format!(
        "{path}: a symbolic link leads outside the work directory"
    ))
}

/// A system's error as an answer. Errors that no path explains are ours.
pub(crate) fn refusal(error: Errno, path: &WorkPath) -> Refusal {
    let (kind, what) = match error {
        Errno::NOENT => (RefusalKind::NotFound, "there is no such file or folder"),
        Errno::NOTDIR => (RefusalKind::Conflict, "a part of the path is not a folder"),
        Errno::ISDIR => (RefusalKind::Conflict, "it is a folder, not a file"),
        Errno::EXIST | Errno::NOTEMPTY => (RefusalKind::Conflict, "something else is in the way"),
        Errno::LOOP => (
            RefusalKind::BadPath,
            "it leads through more than 8 symbolic links, or one that keeps changing",
        ),
        Errno::NAMETOOLONG => (RefusalKind::BadPath, "a link in it makes it too long"),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => (
            RefusalKind::Conflict,
            "its mode or its owner does not let the sandbox's user do this",
        ),
        Errno::NOSPC | Errno::DQUOT => (RefusalKind::DiskFull, "no space is left in the sandbox"),
        Errno::FBIG => (
            RefusalKind::TooLarge,
            "the file would be larger than the sandbox allows",
        ),
        _ => {
            return Refusal {
                kind: RefusalKind::Internal,
                message: format!("{path}: {error}"),
            };
        }
    };
    Refusal {
        kind,
        message: format!("{path}: {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_that_a_path_explains_has_its_kind() {
        let path = WorkPath::parse("a\nb", "/mnt/data").unwrap();
        for (error, kind) in [
            (Errno::NOENT, RefusalKind::NotFound),
            (Errno::NOTDIR, RefusalKind::Conflict),
            (Errno::ISDIR, RefusalKind::Conflict),
            (Errno::NOTEMPTY, RefusalKind::Conflict),
            (Errno::ACCESS, RefusalKind::Conflict),
            (Errno::LOOP, RefusalKind::BadPath),
            (Errno::NAMETOOLONG, RefusalKind::BadPath),
            (Errno::NOSPC, RefusalKind::DiskFull),
            (Errno::DQUOT, RefusalKind::DiskFull),
            (Errno::FBIG, RefusalKind::TooLarge),
            (Errno::MFILE, RefusalKind::Internal),
        ] {
            let refusal = refusal(error, &path);
            assert_eq!(refusal.kind, kind, "{error}");
            assert!(refusal.message.starts_with(r#""a\nb": "#), "{}", refusal.message);
        }
    }
}
