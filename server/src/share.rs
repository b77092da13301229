//! The folder that `greenroom stdio --share` names: files are copied from it and into it, and nowhere else.
//!
//! Each path is resolved by the kernel in one step that cannot leave the folder (`openat2` with
//! `RESOLVE_BENEATH`), whatever is swapped for a link meanwhile. Only regular files are read; only new ones are
//! made, whole or not at all: nothing that was there before is changed.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, fstat, mkdirat, open, openat, openat2,
        renameat_with, statat, unlinkat,
    },
    io::Errno,
};

/// How a path is walked.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// Opens a folder to go on from.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How often a walk is begun anew where the kernel saw something move under it.
const WALKS: u32 = 16;

/// A shared folder. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Share {
    root: Arc<OwnedFd>,
    path: PathBuf,
}

/// A file that is being saved. Dropped before it is [kept](Self::keep) it leaves nothing.
#[derive(Debug)]
pub struct Saving {
    /// What to write to.
    pub file: File,
    folder: OwnedFd,
    part: String,
    name: PathBuf,
    path: PathBuf,
}

/// Why a file is not copied. The texts are for a model.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It is not, or may not stay, in the folder.
    #[error("{path:?} is not beneath the shared folder {root}")]
    Outside {
        /// As asked for.
        path: PathBuf,
        /// The folder.
        root: String,
    },
    /// No such file.
    #[error("there is no file {0:?} in the shared folder")]
    NotFound(PathBuf),
    /// A folder, FIFO, socket or device.
    #[error("{0:?} is no regular file")]
    NotRegular(PathBuf),
    /// Something is there already.
    #[error("{0:?} exists already in the shared folder, and nothing there is replaced: choose another name")]
    Exists(PathBuf),
    /// The system says no.
    #[error("{path:?}: {source}")]
    Io {
        /// As asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Share {
    /// Opens the folder.
    ///
    /// # Errors
    /// It is none, or this kernel cannot confine a path (Linux before 5.6).
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let root = open(&path, FOLDER, Mode::empty())?;
        // Better said at the start than at the first file.
        openat2(&root, ".", FOLDER, Mode::empty(), BENEATH)?;
        Ok(Self {
            root: Arc::new(root),
            path,
        })
    }

    /// The folder's own path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file to read, and tells its size.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn read(&self, path: &str) -> Result<(File, u64), ShareError> {
        let path = self.relative(path)?;
        // Without NONBLOCK a FIFO would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = self
            .walk(&path, flags)
            .map_err(|error| self.error(error, &path))?;
        let stat = fstat(&file).map_err(|error| self.error(error, &path))?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(ShareError::NotRegular(path));
        }
        Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Begins to save a new file, making the folders above it.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn save(&self, path: &str) -> Result<Saving, ShareError> {
        let path = self.relative(path)?;
        let error = |error| self.error(error, &path);
        let Some(name) = path.file_name().map(PathBuf::from) else {
            return Err(ShareError::NotRegular(path));
        };
        let folder = self
            .folders(path.parent().unwrap_or(Path::new("")))
            .map_err(error)?;
        match statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Err(ShareError::Exists(path)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.error(errno, &path)),
        }
        let part = format!(".greenroom-{:016x}.part", rand::random::<u64>());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, &part, flags, Mode::from_raw_mode(0o666)).map_err(error)?;
        Ok(Saving {
            file: File::from(file),
            folder,
            part,
            name,
            path,
        })
    }

    /// The folder at a path, made where it is missing. Each step is resolved from the root again, so that a link
    /// which stays inside works and a folder is never made behind one that leads out.
    fn folders(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let mut folder = self.walk(Path::new("."), FOLDER)?;
        let mut walked = PathBuf::new();
        for name in path {
            walked.push(name);
            let mut next = self.walk(&walked, FOLDER);
            if matches!(next, Err(Errno::NOENT)) {
                match mkdirat(&folder, name, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                next = self.walk(&walked, FOLDER);
            }
            folder = next?;
        }
        Ok(folder)
    }

    fn walk(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut walks = 0;
        loop {
            walks += 1;
            match openat2(self.root(), path, flags, Mode::empty(), BENEATH) {
                Err(Errno::AGAIN | Errno::INTR) if walks < WALKS => {}
                outcome => return outcome,
            }
        }
    }

    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A path as the kernel gets it: relative to the folder, without `..`.
    fn relative(&self, path: &str) -> Result<PathBuf, ShareError> {
        let asked = Path::new(path);
        let outside = || ShareError::Outside {
            path: asked.to_owned(),
            root: self.path.display().to_string(),
        };
        let below = if asked.is_absolute() {
            asked.strip_prefix(&self.path).map_err(|_| outside())?
        } else {
            asked
        };
        let mut relative = PathBuf::new();
        for component in below.components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => relative.push(name),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(outside()),
            }
        }
        if relative.as_os_str().is_empty() || path.contains('\0') {
            return Err(ShareError::NotRegular(asked.to_owned()));
        }
        Ok(relative)
    }

    fn error(&self, error: Errno, path: &Path) -> ShareError {
        let path = path.to_owned();
        match error {
            Errno::XDEV => ShareError::Outside {
                path,
                root: self.path.display().to_string(),
            },
            Errno::NOENT | Errno::NOTDIR => ShareError::NotFound(path),
            // A socket, or a FIFO without a reader.
            Errno::NXIO => ShareError::NotRegular(path),
            error => ShareError::Io {
                path,
                source: error.into(),
            },
        }
    }
}

impl Saving {
    /// Gives the file its name, unless something has it by now.
    ///
    /// # Errors
    /// [`ShareError`]; nothing is left then.
    pub fn keep(self) -> Result<(), ShareError> {
        let named = renameat_with(
            &self.folder,
            self.part.as_str(),
            &self.folder,
            &self.name,
            RenameFlags::NOREPLACE,
        );
        named.map_err(|error| match error {
            Errno::EXIST => ShareError::Exists(self.path.clone()),
            error => ShareError::Io {
                path: self.path.clone(),
                source: error.into(),
            },
        })
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // Once it is kept there is nothing of this name.
        let _ = unlinkat(&self.folder, self.part.as_str(), AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read as _, Write as _},
        os::unix::{fs::symlink, net::UnixListener},
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    fn shared() -> (tempfile::TempDir, Share) {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("shared")).unwrap();
        fs::write(home.path().join("secret"), "secret").unwrap();
        let share = Share::open(&home.path().join("shared")).unwrap();
        (home, share)
    }

    fn read(share: &Share, path: &str) -> Result<String, ShareError> {
        let (mut file, _) = share.read(path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    fn save(share: &Share, path: &str, text: &str) -> Result<(), ShareError> {
        let mut saving = share.save(path)?;
        saving.file.write_all(text.as_bytes()).unwrap();
        saving.keep()
    }

    #[test]
    fn files_go_in_and_come_out() {
        let (_home, share) = shared();
        save(&share, "a/b/c.txt", "hello").unwrap();
        assert_eq!(read(&share, "a/b/c.txt").unwrap(), "hello");
        let absolute = share.path().join("a/./b/c.txt");
        assert_eq!(read(&share, absolute.to_str().unwrap()).unwrap(), "hello");
        symlink("a/b", share.path().join("link")).unwrap();
        assert_eq!(
            read(&share, "link/c.txt").unwrap(),
            "hello",
            "a link inside is a way inside"
        );
        save(&share, "link/d", "x").unwrap();
        assert!(share.path().join("a/b/d").exists());
    }

    #[test]
    fn nothing_is_replaced_and_nothing_half_written() {
        let (_home, share) = shared();
        save(&share, "a", "first").unwrap();
        assert!(matches!(share.save("a"), Err(ShareError::Exists(_))));
        let late = share.save("b").unwrap();
        save(&share, "b", "quicker").unwrap();
        assert!(matches!(late.keep(), Err(ShareError::Exists(_))));
        drop(share.save("c").unwrap());
        symlink("../secret", share.path().join("l")).unwrap();
        assert!(matches!(share.save("l"), Err(ShareError::Exists(_))));
        let mut names: Vec<_> = fs::read_dir(share.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a", "b", "l"]);
        assert_eq!(read(&share, "b").unwrap(), "quicker");
    }

    #[test]
    fn no_path_leads_out() {
        let (home, share) = shared();
        symlink("../secret", share.path().join("up")).unwrap();
        symlink(home.path().join("secret"), share.path().join("absolute")).unwrap();
        symlink("..", share.path().join("parent")).unwrap();
        for path in [
            "../secret",
            "a/../../secret",
            "up",
            "absolute",
            "parent/secret",
            "/etc/passwd",
            home.path().join("secret").to_str().unwrap(),
        ] {
            let refused = read(&share, path).unwrap_err();
            assert!(matches!(refused, ShareError::Outside { .. }), "{path}: {refused}");
        }
        for path in ["../new", "parent/new", "parent/deeper/new", "/tmp/greenroom-new"] {
            let refused = share.save(path).map(drop).unwrap_err();
            assert!(matches!(refused, ShareError::Outside { .. }), "{path}: {refused}");
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_and_never_waited_for() {
        let (_home, share) = shared();
        let fifo = share.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
        let _socket = UnixListener::bind(share.path().join("socket")).unwrap();
        fs::create_dir(share.path().join("folder")).unwrap();
        for path in ["fifo", "socket", "folder", "", ".", "a\0b"] {
            assert!(
                matches!(share.read(path), Err(ShareError::NotRegular(_))),
                "{path:?}"
            );
        }
        assert!(matches!(share.read("none"), Err(ShareError::NotFound(_))));
    }

    #[test]
    fn a_folder_that_is_swapped_for_a_link_leads_nowhere() {
        let (home, share) = shared();
        let (here, outside) = (share.path().join("d"), home.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let swapping = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                while !over.load(Ordering::Relaxed) {
                    drop(fs::create_dir(&here));
                    drop(fs::remove_dir_all(&here));
                    drop(symlink("../outside", &here));
                    drop(fs::remove_file(&here));
                }
            }
        });
        for n in 0..2000 {
            // Each is refused or lies inside.
            drop(save(&share, &format!("d/{n}"), "x"));
        }
        over.store(true, Ordering::Relaxed);
        swapping.join().unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
