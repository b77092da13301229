//! The state directory: made private, and holding the deployment's secret.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::conversation::{Secret, hex};

/// The secret's file in the state directory.
const SECRET: &str = "secret";

/// Bytes of a secret.
const SECRET_BYTES: usize = 32;

/// A directory that is there and belongs to this process's user.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

/// Why state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be made.
    #[error("the state directory {path} cannot be made: {source}; set state_dir to one that can")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The secret's file cannot be read or made.
    #[error("the secret {path} cannot be used: {source}")]
    Secret {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read it.
    #[error("the secret {path} has mode {mode:04o}, so that others can read it: type chmod 600 {path}")]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no secret of ours.
    #[error("the secret {path} has to be {SECRET_BYTES} bytes long, and is not")]
    Length {
        /// Which.
        path: PathBuf,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

impl StateDir {
    /// Opens the directory; one that is missing is made, for this user only.
    ///
    /// # Errors
    /// [`StateError::Directory`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StateError::Directory {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The deployment's secret; the first process that asks makes it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn secret(&self) -> Result<Secret, StateError> {
        let path = self.path.join(SECRET);
        match read(&path) {
            Err(StateError::Secret { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        self.make(&path)?;
        read(&path)
    }

    /// Race: of servers that start together each writes a whole secret under a name of its own, and a hard link
    /// gives exactly one of them the final name. Nobody ever reads half a secret, or one that is replaced.
    fn make(&self, path: &Path) -> Result<(), StateError> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes).map_err(StateError::Random)?;
        let mut suffix = [0; 8];
        getrandom::fill(&mut suffix).map_err(StateError::Random)?;
        let draft = self.path.join(format!(".{SECRET}-{}", hex(&suffix)));
        let failed = |source| StateError::Secret {
            path: path.to_owned(),
            source,
        };
        let written = write(&draft, &bytes).and_then(|()| match fs::hard_link(&draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
        let removed = fs::remove_file(&draft);
        written.and(removed).map_err(failed)
    }
}

/// A file that was not there, for this user only, and on the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads a secret from a file that only its owner can read.
///
/// # Errors
/// [`StateError`].
pub fn read(path: &Path) -> Result<Secret, StateError> {
    let failed = |source| StateError::Secret {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StateError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let length = || StateError::Length {
        path: path.to_owned(),
    };
    if metadata.size() != SECRET_BYTES as u64 {
        return Err(length());
    }
    let mut bytes = [0; SECRET_BYTES];
    file.read_exact(&mut bytes).map_err(|_| length())?;
    Ok(Secret::new(bytes))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn dir() -> (tempfile::TempDir, StateDir) {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("a/b")).unwrap();
        (temp, state)
    }

    #[test]
    fn the_secret_is_made_once_and_is_nobody_elses() {
        let (_temp, state) = dir();
        let first = state.secret().unwrap().fingerprint();
        assert_eq!(state.secret().unwrap().fingerprint(), first);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state.path().join(SECRET)), 0o600);
        assert_eq!(mode(state.path()), 0o700);
        assert_ne!(dir().1.secret().unwrap().fingerprint(), first);
    }

    #[test]
    fn processes_that_start_together_agree() {
        let (_temp, state) = dir();
        let prints: Vec<String> = thread::scope(|scope| {
            let racers: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| state.secret().unwrap().fingerprint()))
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert!(prints.iter().all(|print| *print == prints[0]), "{prints:?}");
        let left: Vec<_> = fs::read_dir(state.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [SECRET], "no draft is left behind");
    }

    #[test]
    fn a_secret_that_is_none_is_refused() {
        let (_temp, state) = dir();
        let path = state.path().join(SECRET);
        write(&path, b"short").unwrap();
        assert!(matches!(state.secret(), Err(StateError::Length { .. })));
        fs::write(&path, [7; SECRET_BYTES]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = state.secret().unwrap_err().to_string();
        assert!(
            refused.contains("0640") && refused.contains("chmod 600"),
            "{refused}"
        );
        assert!(matches!(
            read(Path::new("/nowhere/secret")),
            Err(StateError::Secret { .. })
        ));
        assert!(matches!(
            StateDir::open(Path::new("/proc/nowhere")),
            Err(StateError::Directory { .. })
        ));
    }
}
