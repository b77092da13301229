//! `greenroom reload` and the servers that hear it: each listens on a unix socket of its own in the state directory, so
//! that whoever asks reaches every one of them and hears what each has done.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};

/// Names of the sockets: this, the process's number, and `.sock`.
const PREFIX: &str = "control-";
const SUFFIX: &str = ".sock";
/// Bytes of one line of either side: a report of a configuration that is all wrong is long.
const LINE: u64 = 1 << 20;
/// How long whoever connects may take to ask.
const ASKING: Duration = Duration::from_secs(5);
/// After a failed accept.
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// How long an answer may take: images are prepared and sandboxes booted meanwhile.
const ANSWERING: Duration = Duration::from_secs(30 * 60);

/// What a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// To read its configuration again.
    Reload,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// It did, and this has changed.
    Done {
        /// In words.
        text: String,
    },
    /// It did not, and nothing has changed.
    Refused {
        /// Why.
        text: String,
    },
}

/// The socket of one server. It goes when this is dropped; after a SIGKILL whoever asks next clears it away.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

impl Control {
    /// Listens for as long as this is kept.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(format!("{PREFIX}{}{SUFFIX}", std::process::id()));
        // Whoever had this number before is gone.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// The next request. Who cannot be understood is not answered.
    ///
    /// Cancel safe: who has not been heard hears that nobody answers.
    pub async fn next(&self) -> Asked {
        loop {
            match self.hear().await {
                Ok(asked) => return asked,
                Err(error) => tracing::debug!(%error, "a request to this server came to nothing"),
            }
        }
    }

    async fn hear(&self) -> io::Result<Asked> {
        let accepted = self.listener.accept().await;
        if accepted.is_err() {
            // A lack of descriptors must not spin.
            sleep(AFTER_FAILURE).await;
        }
        let (stream, _) = accepted?;
        if stream.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut stream = BufReader::new(stream);
        let request = timeout(ASKING, hear(&mut stream)).await??;
        Ok(Asked { request, stream })
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    stream: BufReader<UnixStream>,
}

impl Asked {
    /// Answers. Whoever asked may have gone.
    pub async fn answer(mut self, answer: &Answer) {
        if let Ok(Err(error)) | Err(error) = timeout(ASKING, say(&mut self.stream, answer))
            .await
            .map_err(io::Error::from)
        {
            tracing::debug!(%error, "whoever asked does not hear the answer");
        }
    }
}

/// Asks every server of a state directory, one after the other. Answers by process; one that is gone is no server.
///
/// # Errors
/// The directory cannot be read.
pub async fn ask_all(state_dir: &Path, request: Request) -> io::Result<Vec<(u32, io::Result<Answer>)>> {
    let mut answers = Vec::new();
    for entry in fs::read_dir(state_dir)? {
        let path = entry?.path();
        let Some(pid) = process(&path) else { continue };
        match UnixStream::connect(&path).await {
            Ok(stream) => answers.push((pid, ask(stream, request).await)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => drop(fs::remove_file(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => answers.push((pid, Err(error))),
        }
    }
    answers.sort_by_key(|(pid, _)| *pid);
    Ok(answers)
}

/// The number in a socket's name.
fn process(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

async fn ask(stream: UnixStream, request: Request) -> io::Result<Answer> {
    let mut stream = BufReader::new(stream);
    say(&mut stream, &request).await?;
    timeout(ANSWERING, hear(&mut stream)).await?
}

async fn say(to: &mut BufReader<UnixStream>, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    to.flush().await
}

async fn hear<T: for<'de> Deserialize<'de>>(from: &mut BufReader<UnixStream>) -> io::Result<T> {
    let mut line = Vec::new();
    from.take(LINE).read_until(b'\n', &mut line).await?;
    if !line.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_server_is_asked_and_those_that_are_gone_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ask_all(dir.path(), Request::Reload).await.unwrap().len(), 0);
        // As after SIGKILL.
        let dead = dir.path().join("control-1.sock");
        drop(UnixListener::bind(&dead).unwrap());
        fs::write(dir.path().join("control-x.sock"), "no number").unwrap();
        let control = Control::bind(dir.path()).unwrap();
        let mode = fs::metadata(&control.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let text = "no pool has changed".to_owned();
        let done = Answer::Done { text };
        let serve = async { control.next().await.answer(&done).await };
        let (answers, ()) = tokio::join!(ask_all(dir.path(), Request::Reload), serve);
        let mut answers = answers.unwrap();
        assert_eq!(answers.len(), 1);
        let (pid, answer) = answers.remove(0);
        assert_eq!(pid, std::process::id());
        assert_eq!(answer.unwrap(), done);
        assert!(!dead.exists(), "a dead socket is in nobody's way");
        let path = control.path.clone();
        drop(control);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn garbage_is_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::bind(dir.path()).unwrap();
        for garbage in ["\"resume\"\n", "reload\n", "\"reload\""] {
            let mut stream = UnixStream::connect(&control.path).await.unwrap();
            stream.write_all(garbage.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(control.hear().await.is_err(), "{garbage:?}");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "", "{garbage:?}");
        }
    }
}
