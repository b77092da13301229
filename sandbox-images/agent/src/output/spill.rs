//! The whole of a long output, in a file of the work directory: written by a child with the guest's rights,
//! since the guest may have made anything of the folders on the way.

use std::{
    fs::{File, create_dir_all},
    io,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::ChildStdin, time::timeout};

use crate::{
    child::{Child, Quarters, spawn},
    errand::Errand,
};

/// How long the file may hold a run up: the guest can stop or starve the child.
const PATIENCE: Duration = Duration::from_secs(5);

/// A file that comes to be with the first byte.
#[derive(Debug)]
pub(crate) struct Spill {
    quarters: Arc<Quarters>,
    path: String,
    written: u64,
    limit: u64,
    /// Whether there was more than the limit.
    over: bool,
    state: State,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spilled {
    /// Where the file is, if there is one.
    pub(crate) path: Option<String>,
    /// Its bytes, if it lacks the rest.
    pub(crate) first: Option<u64>,
}

#[derive(Debug)]
enum State {
    Untouched,
    Writing(Box<Child>, ChildStdin),
    Failed,
}

impl Spill {
    /// A file at `path` under the work directory that takes `limit` bytes, and no more.
    pub(crate) fn new(quarters: Arc<Quarters>, path: String, limit: u64) -> Self {
        Self {
            quarters,
            path,
            written: 0,
            limit,
            over: false,
            state: State::Untouched,
        }
    }

    /// Writes the next bytes, as far as the limit lets it. A file that cannot be written is given up.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let left = usize::try_from(self.limit - self.written).unwrap_or(usize::MAX);
        let taken = bytes.len().min(left);
        self.over |= taken < bytes.len();
        if taken == 0 {
            return;
        }
        self.written += taken as u64;
        if matches!(self.state, State::Untouched) {
            self.state = self
                .open()
                .map_or(State::Failed, |(child, input)| State::Writing(child, input));
        }
        if let State::Writing(_, input) = &mut self.state
            && !matches!(
                timeout(PATIENCE, input.write_all(&bytes[..taken])).await,
                Ok(Ok(()))
            )
        {
            self.state = State::Failed;
        }
    }

    fn open(&self) -> io::Result<(Box<Child>, ChildStdin)> {
        let mut command = self.quarters.errand(Errand::Spill, [&self.path]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = spawn(command)?;
        let input = child.take_stdin().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((Box::new(child), input))
    }

    /// Closes the file, if there is one.
    pub(crate) async fn finish(self) -> Spilled {
        let State::Writing(mut child, input) = self.state else {
            return Spilled::default();
        };
        drop(input);
        match timeout(PATIENCE, child.wait()).await {
            Ok(Ok(status)) if status.success() => Spilled {
                path: Some(self.path),
                first: self.over.then_some(self.written),
            },
            _ => Spilled::default(),
        }
    }
}

/// The child's part: standard input into a new file.
pub(crate) fn errand(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        create_dir_all(folder)?;
    }
    io::copy(&mut io::stdin().lock(), &mut File::create(path)?)?;
    Ok(())
}
