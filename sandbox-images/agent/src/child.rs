//! Children: as whom and where they live, how one is started, and how PID 1 leaves none unreaped.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use greenroom_protocol::{AgentConfig, Masked};
use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use tokio::{
    process::{ChildStderr, ChildStdin, ChildStdout},
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use crate::{
    processes::{self, State},
    user::Ids,
};

/// Where programs are looked for, if the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What programs that fetch things are told where there is no network: to fail at once and in few words, instead of
/// trying again for a while. Packages from a file go where the guest may write.
const OFFLINE: [(&str, &str); 11] = [
    ("PIP_NO_INDEX", "1"),
    ("PIP_RETRIES", "0"),
    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
    ("PIP_PROGRESS_BAR", "off"),
    ("PIP_NO_INPUT", "1"),
    ("UV_OFFLINE", "1"),
    ("CARGO_NET_OFFLINE", "true"),
    ("npm_config_fetch_retries", "0"),
    ("npm_config_update_notifier", "false"),
    ("RES_OPTIONS", "timeout:1 attempts:1"),
];

/// As whom the agent's children live, and where.
#[derive(Clone, Debug)]
pub struct Quarters {
    uid: Option<u32>,
    home: PathBuf,
    work_dir: PathBuf,
    agent: PathBuf,
    path: OsString,
    offline: bool,
    gid: Option<u32>,
    /// What a server said, once.
    told: Arc<OnceLock<BTreeMap<String, Masked>>>,
}

impl Quarters {
    /// Quarters as `config` has them. `agent` is this very program, which does [errands](crate::errand) as
    /// the guest.
    #[must_use]
    pub fn new(config: &AgentConfig, agent: PathBuf) -> Self {
        let work_dir = PathBuf::from(&config.work_dir);
        let home = fs::read_to_string("/etc/passwd")
            .ok()
            .and_then(|passwd| home_of(&passwd, config.guest_uid.unwrap_or_else(own_uid)))
            .filter(|home| home.is_dir())
            .unwrap_or_else(|| work_dir.clone());
        Self {
            uid: config.guest_uid,
            home,
            work_dir,
            agent,
            path: std::env::var_os("PATH").unwrap_or_else(|| PATH.into()),
            offline: fs::read_to_string("/proc/net/dev").is_ok_and(|table| has_loopback_only(&table)),
            // The group of the guest's own user goes by the same number.
            gid: config.guest_uid,
            told: Arc::default(),
        }
    }

    /// The same for a user of the image's.
    #[must_use]
    pub fn of(mut self, ids: Ids) -> Self {
        self.uid = Some(ids.uid);
        self.gid = Some(ids.gid);
        let home = fs::read_to_string("/etc/passwd")
            .ok()
            .and_then(|passwd| home_of(&passwd, ids.uid))
            .filter(|home| home.is_dir());
        self.home = home.unwrap_or_else(|| self.work_dir.clone());
        self
    }

    /// Gives every process that starts from now on, by this or by a clone, these variables.
    pub(crate) fn furnish(&self, env: BTreeMap<String, Masked>) {
        // Told once: what came first stays.
        drop(self.told.set(env));
    }

    /// The same with another PATH than the image's, for the children and for finding them.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<OsString>) -> Self {
        self.path = path.into();
        self
    }

    /// Where a program is.
    #[must_use]
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .map(|folder| folder.join(program))
            .find(|file| {
                fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
            })
    }

    /// Where programs keep what they share, the guest's own folder first.
    pub(crate) fn shared_data(&self) -> Vec<PathBuf> {
        let beside = std::env::split_paths(&self.path).filter_map(|bin| Some(bin.parent()?.join("share")));
        let mut folders = vec![self.home.join(".local/share")];
        folders.extend(beside);
        folders.extend(["/usr/local/share", "/usr/share"].map(PathBuf::from));
        let mut seen = BTreeSet::new();
        folders.retain(|folder| seen.insert(folder.clone()));
        folders
    }

    /// The conversation's directory.
    #[must_use]
    pub fn work_dir(&self) -> &Path {
        &self.work_dir
    }

    /// Whether children have another user than the agent, so that it may not look into them.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.guest().is_some()
    }

    /// The user of the children, where it is not the agent's.
    pub(crate) fn guest(&self) -> Option<u32> {
        self.uid.filter(|uid| *uid != own_uid())
    }

    /// A command that runs as the guest in the work directory, in a process group of its own, with the
    /// image's environment. Capabilities go with the uid.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.bare(program);
        command.current_dir(&self.work_dir).env("PWD", &self.work_dir);
        if !self.has("PATH") {
            command.env("PATH", &self.path);
        }
        if std::env::var_os("LANG").is_none() && !self.has("LANG") {
            command.env("LANG", "C.UTF-8");
        }
        if self.offline {
            let unset = |(name, _): &&(&str, &str)| std::env::var_os(name).is_none() && !self.has(name);
            command.envs(OFFLINE.iter().filter(unset).copied());
        }
        command
    }

    /// A command that runs as the guest, in a process group of its own, with the image's environment and what was
    /// told over it.
    pub(crate) fn bare(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        // The agent's own HOME is root's, by the engine.
        command.process_group(0).env("HOME", &self.home);
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", &self.path);
        }
        if let Some(told) = self.told.get() {
            command.envs(told.iter().map(|(name, value)| (name, value.reveal())));
        }
        if let Some(uid) = self.uid {
            // Setting a uid as root drops all other groups.
            command.uid(uid).gid(self.gid.unwrap_or(uid));
        }
        command
    }

    fn has(&self, name: &str) -> bool {
        self.told.get().is_some_and(|told| told.contains_key(name))
    }

    /// A command that runs this program again, as the guest.
    #[must_use]
    pub(crate) fn agent(&self) -> Command {
        self.command(&self.agent)
    }
}

fn own_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Whether the text of `/proc/net/dev` names no interface but the loopback.
fn has_loopback_only(table: &str) -> bool {
    let names = table.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim()).eq(["lo"])
}

/// The home of a uid by the text of `/etc/passwd`.
fn home_of(passwd: &str, uid: u32) -> Option<PathBuf> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let is_theirs = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (is_theirs && home.len() > 1).then(|| PathBuf::from(home))
    })
}

/// Children that somebody waits for by pid: what the reaper must not touch.
static OWNED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// Rung when a child has been waited for, since its zombie may have hidden a signal about others.
static FREED: Notify = Notify::const_new();

/// The pids of the children that somebody waits for.
pub(crate) fn owned() -> BTreeSet<i32> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A child that its holder waits for. Killed when dropped.
#[derive(Debug)]
pub struct Child {
    inner: tokio::process::Child,
    pid: Pid,
    _owned: Owned,
}

/// Starts a child.
///
/// Nothing in the agent starts a process in another way: the reaper takes what is not known to it.
///
/// # Errors
/// The program could not be started.
pub fn spawn(command: Command) -> io::Result<Child> {
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    // Held over the spawn: a child that dies at once must be known before the reaper looks.
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    let inner = command.spawn()?;
    let pid = inner
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .ok_or_else(|| io::Error::other("a child that was just started has no pid"))?;
    owned.insert(pid.as_raw_nonzero().get());
    drop(owned);
    Ok(Child {
        inner,
        pid,
        _owned: Owned(pid),
    })
}

impl Child {
    /// Its pid, which is that of its process group as well. Another's only after it was waited for.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end. Cancel safe; later calls answer the same.
    ///
    /// # Errors
    /// The system has lost it.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.inner.wait().await
    }

    /// The writing end of its standard input, once, if that was piped.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.inner.stdin.take()
    }

    /// The reading end of its standard output, once, if that was piped.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.inner.stdout.take()
    }

    /// The reading end of its standard error, once, if that was piped.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.inner.stderr.take()
    }

    /// Sends it SIGKILL; an ended one is left alone.
    pub fn kill(&mut self) {
        // An error means that it has ended, which is what was wanted.
        drop(self.inner.start_kill());
    }
}

/// A pid in [`OWNED`].
#[derive(Debug)]
struct Owned(Pid);

impl Drop for Owned {
    fn drop(&mut self) {
        let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
        owned.remove(&self.0.as_raw_nonzero().get());
        drop(owned);
        FREED.notify_one();
    }
}

/// Reaps what was left to PID 1 for as long as it is polled; children of [`spawn`] are left to their
/// holders.
///
/// # Errors
/// The system does not deliver SIGCHLD.
pub async fn reap_orphans() -> io::Result<std::convert::Infallible> {
    let mut ended = signal(SignalKind::child())?;
    loop {
        reap();
        tokio::select! {
            _ = ended.recv() => {}
            () = FREED.notified() => {}
        }
    }
}

fn reap() {
    let owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    let own = getpid().as_raw_nonzero().get();
    for process in processes::all() {
        if process.parent == own && process.state == State::Zombie && !owned.contains(&process.pid) {
            // Somebody else may have been quicker; then there is nothing left to do.
            let _ = waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_network_has_the_loopback_only() {
        let head = "Inter-|   Receive  |  Transmit\n face |bytes    packets|bytes\n";
        for (rest, alone) in [
            ("    lo:       0       0    0\n", true),
            (
                "    lo:       0       0    0\n  eth0:       0       0    0\n",
                false,
            ),
            ("  eth0:       0       0    0\n", false),
            ("", false),
        ] {
            assert_eq!(has_loopback_only(&format!("{head}{rest}")), alone, "{rest}");
        }
    }

    #[test]
    fn homes_are_found_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbad line\nsandbox:x:65532:65532::/home/sandbox:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
        assert_eq!(home_of(passwd, 65_532), Some("/home/sandbox".into()));
        assert_eq!(home_of(passwd, 65_534), None, "the root directory is no home");
        assert_eq!(home_of(passwd, 1000), None);
    }
}
