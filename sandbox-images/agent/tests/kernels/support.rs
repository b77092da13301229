//! A kernel in a temporary work directory, and what one run of it showed.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use greenroom_agent::{
    child::Quarters,
    kernel::{self, Ending, Kernel, KernelControl, KernelEvent, KernelOutcome, KernelRun},
};
use greenroom_protocol::{AgentConfig, Language, RunError, RunId, Stream};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

/// For what takes milliseconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A started kernel.
pub(crate) struct Bench {
    pub(crate) kernel: Box<dyn Kernel>,
    pub(crate) dir: TempDir,
    pub(crate) version: String,
    runs: u32,
}

/// What a run showed.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) outcome: KernelOutcome,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Both streams, as far as it arrived late.
    pub(crate) late: String,
    pub(crate) displays: Vec<(BTreeMap<String, String>, Option<String>)>,
    pub(crate) events: Vec<KernelEvent>,
}

/// Python with IPython, matplotlib, numpy and pandas: `make test-python` makes it.
pub(crate) fn test_venv() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    let bin = cache.join("greenroom/test-venv/bin");
    assert!(
        bin.join("python3").exists(),
        "no Python for the tests in {}: type `make test-python`",
        bin.display()
    );
    bin
}

pub(crate) fn config(dir: &Path) -> AgentConfig {
    AgentConfig {
        work_dir: dir.to_string_lossy().into_owned(),
        guest_uid: None,
        ..AgentConfig::default()
    }
}

pub(crate) fn quarters(config: &AgentConfig, bin: &Path) -> Quarters {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display());
    Quarters::new(config, env!("CARGO_BIN_EXE_greenroom-agent").into()).with_path(path)
}

/// A kernel that was not started yet.
pub(crate) fn kernel(language: Language, config: &AgentConfig, bin: &Path) -> Box<dyn Kernel> {
    kernel::all(config, quarters(config, bin))
        .into_iter()
        .find(|kernel| kernel.language() == language)
        .unwrap()
}

/// Inside a sandbox all that a kernel has started ends with it. Here what the kernel's own process would end is killed.
impl Drop for Bench {
    fn drop(&mut self) {
        let place = self.dir.path().as_os_str().as_encoded_bytes();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            // It may have ended meanwhile, which is what is wanted.
            let environ = fs::read(process.path().join("environ")).unwrap_or_default();
            let is_ours = environ.windows(place.len()).any(|part| part == place);
            if let Some(pid) = pid.and_then(Pid::from_raw).filter(|_| is_ours) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Bench {
    pub(crate) async fn python() -> Self {
        Self::start(Language::Python, &test_venv(), |_| {}).await
    }

    /// Python as it comes, without a package.
    pub(crate) async fn plain_python() -> Self {
        let venv = TempDir::new().unwrap();
        let made = Command::new(test_venv().join("python3"))
            .args(["-m", "venv", "--without-pip"])
            .arg(venv.path())
            .status()
            .unwrap();
        assert!(made.success());
        Self::start(Language::Python, &venv.path().join("bin"), |_| {}).await
    }

    pub(crate) async fn bash() -> Self {
        Self::start(Language::Bash, Path::new("/usr/bin"), |_| {}).await
    }

    /// The shell of an image that has dash, what every system has beside it, and no bash.
    pub(crate) async fn sh() -> Self {
        let dir = TempDir::new().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink("/usr/bin/dash", bin.join("sh")).unwrap();
        for program in [
            "basename", "cat", "head", "mkdir", "printenv", "python3", "rm", "setsid", "sleep", "touch",
            "wc", "yes",
        ] {
            symlink(Path::new("/usr/bin").join(program), bin.join(program)).unwrap();
        }
        let config = config(dir.path());
        let quarters = Quarters::new(&config, env!("CARGO_BIN_EXE_greenroom-agent").into()).with_path(bin);
        let kernel = kernel::all(&config, quarters)
            .into_iter()
            .find(|kernel| kernel.language().is_shell())
            .unwrap();
        Self::begin(kernel, dir).await
    }

    pub(crate) async fn start(language: Language, bin: &Path, adjust: impl FnOnce(&mut AgentConfig)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut config = config(dir.path());
        adjust(&mut config);
        Self::begin(kernel(language, &config, bin), dir).await
    }

    async fn begin(mut kernel: Box<dyn Kernel>, dir: TempDir) -> Self {
        let version = timeout(SOON, kernel.start()).await.unwrap().unwrap();
        Self {
            kernel,
            dir,
            version,
            runs: 0,
        }
    }

    /// Runs code to its end.
    pub(crate) async fn run(&mut self, code: &str) -> Seen {
        self.run_and(code, |_, _| {}).await
    }

    /// Runs code, and tells of each event as it comes, with the means to stop the run.
    pub(crate) async fn run_and(
        &mut self,
        code: &str,
        mut watch: impl FnMut(&KernelEvent, &dyn KernelControl),
    ) -> Seen {
        self.runs += 1;
        let run = KernelRun {
            id: RunId(format!("run-{}", self.runs)),
            code: code.to_owned(),
        };
        let control = self.kernel.control();
        let (sender, mut receiver) = mpsc::channel(16);
        let running = async {
            let outcome = self.kernel.run(&run, &sender).await;
            drop(sender);
            outcome
        };
        let watching = async {
            let mut events = Vec::new();
            while let Some(event) = receiver.recv().await {
                watch(&event, &*control);
                events.push(event);
            }
            events
        };
        let (outcome, events) = timeout(SOON, async { tokio::join!(running, watching) })
            .await
            .unwrap_or_else(|_| panic!("this does not end: {code}"));
        Seen::new(outcome, events)
    }

    /// Runs code, and interrupts it once, so many turns of the runtime after it was handed over: wherever it is by then.
    pub(crate) async fn run_interrupted_after(&mut self, turns: u32, code: &str) -> Seen {
        let control = self.control();
        // The run is polled first, since this task goes on until it waits.
        let interrupting = tokio::spawn(async move {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            control.interrupt();
        });
        let seen = self.run(code).await;
        interrupting.await.unwrap();
        seen
    }

    /// Starts a run and hands over the means to stop it, before it is awaited.
    pub(crate) fn control(&self) -> Arc<dyn KernelControl> {
        self.kernel.control()
    }

    /// Starts the kernel again after its death.
    pub(crate) async fn restart(&mut self) {
        timeout(SOON, self.kernel.start()).await.unwrap().unwrap();
    }

    pub(crate) async fn died(&mut self) -> RunError {
        timeout(SOON, self.kernel.died()).await.unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Seen {
    fn new(outcome: KernelOutcome, events: Vec<KernelEvent>) -> Self {
        let mut seen = Self {
            outcome,
            stdout: String::new(),
            stderr: String::new(),
            late: String::new(),
            displays: Vec::new(),
            events: events.clone(),
        };
        for event in events {
            match event {
                KernelEvent::Output { text, late: true, .. } => seen.late.push_str(&text),
                KernelEvent::Output {
                    stream: Stream::Stdout,
                    text,
                    ..
                } => seen.stdout.push_str(&text),
                KernelEvent::Output {
                    stream: Stream::Stderr,
                    text,
                    ..
                } => seen.stderr.push_str(&text),
                KernelEvent::Display { data, path } => seen.displays.push((data, path)),
            }
        }
        seen
    }

    pub(crate) fn result(&self) -> &str {
        self.outcome.result.as_deref().unwrap_or("nothing")
    }

    pub(crate) fn error(&self) -> &RunError {
        self.outcome
            .error
            .as_ref()
            .unwrap_or_else(|| panic!("no error: {self:?}"))
    }

    /// Checks how the run ended, and shows all of it if it did not so.
    pub(crate) fn ended(self, ending: Ending) -> Self {
        assert_eq!(self.outcome.ending, ending, "{self:#?}");
        self
    }
}

/// Waits until something is so, looking again and again.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process lives: a zombie does not.
pub(crate) fn lives(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}
