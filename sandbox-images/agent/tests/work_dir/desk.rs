//! A work directory and [`Files`] over it, once for each kind of user that the machine can offer.

use std::{fs, os::fd::AsRawFd, path::PathBuf, sync::OnceLock};

use bytes::Bytes;
use greenroom_agent::{
    child::Quarters,
    files::{FileUser, Files, WriteMode},
};
use greenroom_protocol::{AgentConfig, FileEntry, GUEST_UID, Refusal};
use tempfile::TempDir;

pub(crate) struct Desk {
    pub(crate) files: Files,
    pub(crate) dir: TempDir,
    /// The uid of the files process, where there is one.
    pub(crate) guest: Option<u32>,
}

/// As the agent's own user, and through a files process: as the guest where the tests run as root.
pub(crate) fn desks() -> Vec<Desk> {
    vec![Desk::own(), Desk::guest()]
}

impl Desk {
    pub(crate) fn own() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::start(dir.path().to_str().unwrap(), FileUser::Own).unwrap();
        Self {
            files,
            dir,
            guest: None,
        }
    }

    pub(crate) fn guest() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid();
        let uid = if own.is_root() { GUEST_UID } else { own.as_raw() };
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).unwrap();
        let config = AgentConfig {
            work_dir: dir.path().to_str().unwrap().to_owned(),
            guest_uid: Some(uid),
            ..AgentConfig::default()
        };
        let user = FileUser::Guest(Quarters::new(&config, program()));
        let files = Files::start(&config.work_dir, user).unwrap();
        Self {
            files,
            dir,
            guest: Some(uid),
        }
    }

    /// Who owns what is written here.
    pub(crate) fn uid(&self) -> u32 {
        self.guest.unwrap_or_else(|| rustix::process::geteuid().as_raw())
    }

    /// Kills the files process as code of the guest might, and waits until it is gone.
    pub(crate) fn kill_files_process(&self) {
        self.kill(&["files", self.dir.path().to_str().unwrap()]);
    }

    /// The same with a child on an errand in this work directory.
    pub(crate) fn kill_errand(&self, errand: &str) {
        self.kill(&["errand", errand]);
    }

    /// All that there are: one that was left half-way may be on its way out still.
    fn kill(&self, wanted: &[&str]) {
        let mut killed = 0;
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let Ok(line) = fs::read(path.join("cmdline")) else {
                continue;
            };
            let arguments = line.split(|byte| *byte == 0).skip(1);
            let is_wanted = arguments
                .take(wanted.len())
                .eq(wanted.iter().map(|word| word.as_bytes()));
            let is_here = fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == self.dir.path());
            if is_wanted && is_here {
                let pid = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                // Whoever has ended meanwhile is as good as killed.
                let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                else {
                    continue;
                };
                let _sent = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
                let over = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
                let _ended = rustix::process::waitid(rustix::process::WaitId::Pid(pid), over);
                killed += 1;
            }
        }
        assert!(killed > 0, "no process {wanted:?} in {:?}", self.dir.path());
    }
}

/// Writes a file in one piece.
pub(crate) async fn save(files: &Files, path: &str, bytes: impl Into<Bytes>) -> Result<FileEntry, Refusal> {
    let body = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes.into())]);
    files.write(path, WriteMode::Replace, body).await
}

/// The agent's executable by a path that any user may take: a checkout may lie where the guest may not go.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<fs::File> = OnceLock::new();
    let open = || fs::File::open(env!("CARGO_BIN_EXE_greenroom-agent")).unwrap();
    PathBuf::from(format!("/proc/self/fd/{}", PROGRAM.get_or_init(open).as_raw_fd()))
}
