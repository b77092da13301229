//! Many processes of `greenroom stdio`, one Greenroom: started by the first, shared by all, replaced when it dies.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use greenroom_integration::{Client, Docker, Era, binary};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

/// The server stays for this long: no two processes come further apart on a busy machine.
const BETWEEN_PROCESSES: &str = "60s";

/// A state directory where no server runs yet.
struct Home {
    dir: TempDir,
    deployment: String,
}

impl Home {
    /// How long its server stays when the last process has ended.
    fn new(linger: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("greenroom-at-").tempdir()?;
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let home = Self {
            deployment: name.replace('.', "-"),
            dir,
        };
        let toml = format!(
            "state_dir = {:?}\nstdio_linger = \"{linger}\"\n[engine]\ndeployment = \"{}\"\n[pool.python]\nwarm = 1\nmax = 8\n\
             preload = []\nclaim_wait = \"50s\"\nboot_timeout = \"60s\"\n",
            home.state(),
            home.deployment
        );
        fs::write(home.config(), toml)?;
        Ok(home)
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("greenroom.toml")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    async fn client(&self, more: &[&str]) -> Result<Client> {
        let mut command = Command::new(binary()?);
        command.args(["stdio", "--config"]).arg(self.config()).args(more);
        Client::stdio(command, Era::Legacy).await
    }

    /// What the server in the background said.
    fn said(&self, log: &str) -> String {
        fs::read_to_string(self.dir.path().join(log)).unwrap_or_default()
    }

    /// Servers in the background, by their command lines.
    fn servers(&self) -> Result<Vec<u32>> {
        let config = self.config().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process may be gone by now.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains(&config) && line.contains("background") {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// Tells the servers to leave.
    fn end(&self) {
        for pid in self.servers().unwrap_or_default() {
            drop(std::process::Command::new("kill").arg(pid.to_string()).status());
        }
    }

    /// Waits until the server has left by itself, or was told to, then looks for what it left.
    async fn finish(self) -> Result<()> {
        let gone = timeout(Duration::from_secs(60), async {
            while !self.servers()?.is_empty() {
                sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, anyhow::Error>(())
        });
        gone.await
            .with_context(|| format!("the server stays: {}", self.said("state/background.log")))??;
        let docker = Docker::connect().await?;
        // What a killed server had warm ends by itself, half a minute after it.
        let ended = timeout(Duration::from_secs(90), async {
            while !docker.unadopted(&self.deployment).await?.is_empty() {
                sleep(Duration::from_millis(200)).await;
            }
            Ok::<_, anyhow::Error>(())
        });
        let ended = ended.await;
        docker.sweep(&self.deployment).await?;
        ended.with_context(|| format!("left behind: {}", self.said("state/background.log")))?
    }
}

/// A failed test leaves no server.
impl Drop for Home {
    fn drop(&mut self) {
        self.end();
    }
}

#[tokio::test]
async fn a_process_for_each_call_finds_its_conversation() -> Result<()> {
    let home = Home::new(BETWEEN_PROCESSES)?;
    for (code, session, result) in [
        ("x = 41", "new", ""),
        ("x + 1", "existing", "42"),
        ("x + 2", "existing", "43"),
    ] {
        let client = home.client(&["--conversation", "a-process-per-call"]).await?;
        let answer = client.call("execute_code", json!({ "code": code })).await?;
        assert_eq!(
            (answer.session(), answer.result()),
            (session, result),
            "{}",
            answer.text
        );
        client.close().await?;
    }
    assert_eq!(home.servers()?.len(), 1, "it outlives its processes for a while");
    assert_eq!(
        home.said("state/background.log")
            .matches("processes may attach")
            .count(),
        1
    );
    home.end();
    home.finish().await
}

#[tokio::test]
async fn twenty_at_once_start_one_server() -> Result<()> {
    let home = Home::new(BETWEEN_PROCESSES)?;
    let starts = (0..20).map(|_| async {
        let client = home.client(&[]).await?;
        let tools = client.tools().await?;
        client.close().await?;
        Ok::<_, anyhow::Error>(tools.len())
    });
    assert_eq!(try_join_all(starts).await?, vec![7; 20]);
    let log = home.said("state/background.log");
    assert_eq!(log.matches("processes may attach").count(), 1, "{log}");
    home.end();
    home.finish().await
}

#[tokio::test]
async fn a_server_that_dies_is_replaced_and_nothing_is_pretended() -> Result<()> {
    let home = Home::new("3s")?;
    let client = home.client(&[]).await?;
    let first = client
        .call("execute_code", json!({ "code": "x = 'still here'" }))
        .await?;
    assert_eq!(first.session(), "new", "{}", first.text);
    // Goes on until it is let, or for two minutes.
    let slow = "import os, time\nopen('begun', 'w').close()\nfor _ in range(1200):\n    \
                if os.path.exists('go'): break\n    time.sleep(0.1)\ny = 'ran on'";
    let call = client.call("execute_code", json!({ "code": slow }));
    let bash = async |command: &str| {
        let command = json!({ "language": "bash", "code": command });
        client.call("execute_code", command).await
    };
    let kill = async {
        let begun = async {
            while !bash("ls").await?.text.contains("begun") {}
            Ok::<_, anyhow::Error>(())
        };
        timeout(Duration::from_secs(60), begun)
            .await
            .context("the run does not begin")??;
        let [pid] = home.servers()?[..] else {
            bail!("one server")
        };
        Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status()
            .await?;
        Ok(())
    };
    let (lost, killed) = tokio::join!(call, kill);
    killed?;
    let lost = lost?;
    assert!(
        lost.is_error && lost.text.contains("ended before it answered"),
        "{}",
        lost.text
    );
    bash("touch go").await?;
    let after = client.call("execute_code", json!({ "code": "x, y" })).await?;
    assert_eq!(
        (after.result(), after.session()),
        ("('still here', 'ran on')", "existing"),
        "{}",
        after.text
    );
    assert_eq!(after.field("conversation_id"), first.field("conversation_id"));
    client.close().await?;
    home.finish().await
}

#[tokio::test]
async fn a_process_that_is_configured_otherwise_serves_by_itself() -> Result<()> {
    let home = Home::new("3s")?;
    let shared = home.client(&["--conversation", "asked-in-two-ways"]).await?;
    let other = home
        .client(&["--conversation", "asked-in-two-ways", "--set", "patience=9s"])
        .await?;
    let embedded = home
        .client(&["--conversation", "asked-in-two-ways", "--embedded"])
        .await?;
    // The conversation is the engine's, so it is the same by whatever way it is reached.
    let first = shared.call("execute_code", json!({ "code": "x = 1" })).await?;
    assert_eq!(first.session(), "new", "{}", first.text);
    for client in [other, embedded, shared] {
        let answer = client.call("execute_code", json!({ "code": "x" })).await?;
        assert_eq!(
            (answer.result(), answer.session()),
            ("1", "existing"),
            "{}",
            answer.text
        );
        client.close().await?;
    }
    let served = home.said("state/background.log").matches("answered tool").count();
    assert_eq!(served, 2, "those of the one that is attached");
    home.finish().await
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() -> Result<()> {
    let home = Home::new("3s")?;
    let mut command = Command::new(binary()?);
    command.args(["stdio", "--config"]).arg(home.config());
    command.args(["--set", "engine.socket=unix:///nowhere/docker.sock"]);
    let output = command.stdin(Stdio::piped()).output().await?;
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{says}");
    assert!(
        says.contains("/nowhere/docker.sock") && says.contains("greenroom doctor"),
        "{says}"
    );
    home.finish().await
}
