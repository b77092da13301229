//! A Docker engine of a test's own, to be killed and started again: another data root, another socket, the host's
//! runtimes and one of its images. Nobody else's containers are on it.

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{Config, Docker};

/// How long an engine may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The engine's image: small, with a plain Python.
const IMAGE: &str = "greenroom/base:trixie";

/// What becomes of containers while their engine is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveRestore {
    /// They go on.
    On,
    /// An engine that is stopped stops them first.
    Off,
}

/// A `dockerd` that belongs to one test. Ended by [`PrivateEngine::finish`], or when it is dropped.
#[derive(Debug)]
pub struct PrivateEngine {
    home: TempDir,
    disk: Option<Disk>,
    child: Child,
    was_killed: bool,
}

impl PrivateEngine {
    /// Starts one, and gives it its image.
    ///
    /// # Errors
    /// The host has no engine, runtimes or image (the message says what to type), or it does not start.
    pub async fn start(live_restore: LiveRestore) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("greenroom-engine-").tempdir()?;
        Self::start_in(home, live_restore, None).await
    }

    /// The same, with a disk of its own of this size.
    ///
    /// # Errors
    /// As [`PrivateEngine::start`].
    pub async fn start_on_disk(live_restore: LiveRestore, size: &str) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("greenroom-engine-").tempdir()?;
        let disk = Disk::mount(home.path().join("data"), size)?;
        Self::start_in(home, live_restore, Some(disk)).await
    }

    async fn start_in(home: TempDir, live_restore: LiveRestore, disk: Option<Disk>) -> Result<Self> {
        let info = Docker::connect().await?.api().info().await?;
        let runtimes: HashMap<String, _> = info
            .runtimes
            .context("the host's engine has no runtimes: type `make setup`")?
            .into_iter()
            .filter(|(name, _)| name.starts_with("runsc"))
            .collect();
        ensure!(
            !runtimes.is_empty(),
            "the host's engine has no runsc: type `make setup`"
        );
        let configuration = json!({ "runtimes": runtimes, "live-restore": live_restore == LiveRestore::On });
        fs::write(home.path().join("daemon.json"), configuration.to_string())?;
        let child = spawn(home.path())?;
        let engine = Self {
            home,
            child,
            was_killed: false,
            disk,
        };
        engine.ready().await?;
        engine.load().await?;
        Ok(engine)
    }

    /// SIGKILL, and the engine again at once.
    ///
    /// # Errors
    /// It does not come up again.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.was_killed = true;
        self.child.kill().await?;
        self.end_containerd().await?;
        self.child = spawn(self.home.path())?;
        self.ready().await
    }

    /// It stands still for a while, and answers nobody.
    ///
    /// # Errors
    /// It has ended.
    pub async fn stall(&self, lasts: Duration) -> Result<()> {
        let pid = self
            .child
            .id()
            .context("the engine has ended already")?
            .to_string();
        Command::new("kill").args(["-STOP", &pid]).status().await?;
        sleep(lasts).await;
        Command::new("kill").args(["-CONT", &pid]).status().await?;
        Ok(())
    }

    /// SIGTERM, as an upgrade of the engine does it, and the engine again.
    ///
    /// # Errors
    /// It does not end, or does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.terminate().await?;
        self.child = spawn(self.home.path())?;
        self.ready().await
    }

    /// From its next start on it has no runtime but Docker's own.
    ///
    /// # Errors
    /// Its configuration cannot be written.
    pub fn forget_runtimes(&self) -> Result<()> {
        let configuration = json!({ "live-restore": true });
        Ok(fs::write(
            self.home.path().join("daemon.json"),
            configuration.to_string(),
        )?)
    }

    /// The disk of its own.
    ///
    /// # Errors
    /// It has none.
    pub fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().context("the engine uses the host's disk")
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end, or something of it is left.
    pub async fn finish(mut self) -> Result<()> {
        self.terminate().await?;
        self.end_containerd().await?;
        let ended = async {
            while !self.processes().is_empty() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(PATIENCE, ended).await.is_err() {
            let left = self.processes();
            let lines = left
                .iter()
                .map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
            let lines: Vec<_> = lines
                .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
                .collect();
            // A shim whose start an engine was killed in is on no record and in no cgroup of ours: that is Docker's.
            ensure!(
                self.was_killed && lines.iter().all(|line| line.contains("containerd-shim")),
                "the engine ended and left {lines:#?}"
            );
            eprintln!("left by an engine that was killed: {lines:#?}");
        }
        Ok(())
    }

    /// A connection to it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn docker(&self) -> Result<Docker> {
        Docker::at(&self.socket()).await
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("docker.sock")
    }

    /// What a server needs to use it, and its one image.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            pool: format!("preload = []\nimage = {IMAGE:?}\n"),
            socket: Some(self.socket()),
            ..Config::default()
        }
    }

    async fn ready(&self) -> Result<()> {
        let answers = async {
            while self.docker().await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, answers)
            .await
            .with_context(|| format!("the engine does not start; the end of its log:\n{}", self.log()))
    }

    async fn load(&self) -> Result<()> {
        let mut save = Command::new("docker")
            .args(["save", IMAGE])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let image: Stdio = save.stdout.take().context("a pipe")?.try_into()?;
        let loaded = Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("load")
            .stdin(image)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .status();
        ensure!(
            timeout(PATIENCE, loaded).await??.success(),
            "{IMAGE} could not be loaded"
        );
        ensure!(
            save.wait().await?.success(),
            "there is no {IMAGE}: type `make image`"
        );
        Ok(())
    }

    async fn terminate(&mut self) -> Result<()> {
        let pid = self.child.id().context("the engine has ended already")?;
        Command::new("kill").arg(pid.to_string()).status().await?;
        timeout(PATIENCE, self.child.wait())
            .await
            .context("SIGTERM did not end the engine")??;
        Ok(())
    }

    /// Everything that runs below its folders, by process id: its containerd, shims, and what is in its sandboxes.
    fn processes(&self) -> Vec<i32> {
        let home = self.home.path().display().to_string();
        let own = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(&home).then_some(pid)
        });
        own.collect()
    }

    /// An engine that was killed leaves its containerd behind, and the next one waits in vain for its locks.
    async fn end_containerd(&self) -> Result<()> {
        let file = self.home.path().join("run/containerd/containerd.pid");
        let Ok(pid) = fs::read_to_string(&file) else {
            return Ok(());
        };
        let pid = pid.trim().parse()?;
        kill(&[pid]);
        let gone = async {
            while self.processes().contains(&pid) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, gone)
            .await
            .context("the engine's containerd does not end")?;
        // Where nobody reaps it, the next engine would take it for alive.
        if file.exists() {
            fs::remove_file(file)?;
        }
        Ok(())
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

/// A small disk in memory, to be filled.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    fn mount(at: PathBuf, size: &str) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&at)
            .status()?;
        ensure!(
            mounted.success(),
            "a tmpfs could not be mounted: tests run as root"
        );
        Ok(Self { at })
    }

    /// Leaves no byte free.
    ///
    /// # Errors
    /// It cannot be written to at all.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = fs::File::create(self.ballast())?;
        let piece = vec![1; 1 << 16];
        while ballast.write_all(&piece).is_ok() {}
        Ok(())
    }

    /// Gives back what [`fill`](Self::fill) took.
    ///
    /// # Errors
    /// It was not filled.
    pub fn clear(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

/// A test that failed leaves nothing behind all the same.
impl Drop for PrivateEngine {
    fn drop(&mut self) {
        drop(self.child.start_kill());
        kill(&self.processes());
        unmount(self.home.path());
    }
}

/// Everything that an engine has mounted below a folder and left there. Lazily: it may be on its way out still.
fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut points: Vec<&str> = points
        .filter(|point| Path::new(point).starts_with(folder))
        .collect();
    points.reverse();
    let _unmounted = std::process::Command::new("umount")
        .arg("--lazy")
        .args(points)
        .stderr(Stdio::null())
        .status();
}

fn kill(pids: &[i32]) {
    let pids = pids.iter().map(ToString::to_string);
    let _ended = std::process::Command::new("kill")
        .arg("-KILL")
        .args(pids)
        .stderr(Stdio::null())
        .status();
}

fn spawn(home: &Path) -> Result<Child> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(home.join("log"))?;
    let name = home
        .file_name()
        .and_then(|name| name.to_str())
        .context("a name")?;
    // In a network of its own: one that is to have no bridge removes the host's, which is the host's engine's.
    Command::new("unshare")
        .args(["--net", "--", "dockerd"])
        .arg("--host")
        .arg(format!("unix://{}", home.join("docker.sock").display()))
        .arg("--config-file")
        .arg(home.join("daemon.json"))
        .arg("--data-root")
        .arg(home.join("data"))
        .arg("--exec-root")
        .arg(home.join("run"))
        .arg("--pidfile")
        .arg(home.join("pid"))
        // Of its own also where the host's containerd serves it.
        .args(["--containerd-namespace", name])
        .args(["--containerd-plugins-namespace", &format!("{name}-plugins")])
        .args(["--bridge", "none", "--iptables=false"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("dockerd does not start: type `make setup`")
}
