//! What breaks, and how it is broken from outside.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use greenroom_integration::{Answer, Docker, Era, Greenroom, PrivateEngine};
use tokio::{process::Command, time::sleep};

/// Something that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL of a server, wherever it stands; it is started again.
    KillServer,
    /// `docker rm -f` of a sandbox: no record of it is left.
    Remove,
    /// `docker pause` of a sandbox, and nobody thaws it.
    Pause,
    /// `docker kill` of a sandbox.
    Kill,
    /// The host's end of a channel dies.
    CutChannel,
    /// All that code inside may kill.
    KillInside,
    /// SIGKILL of the engine; it is started again.
    KillEngine,
    /// The engine stands still for a while.
    StallEngine,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] = [
        Self::KillServer,
        Self::Remove,
        Self::Pause,
        Self::Kill,
        Self::CutChannel,
        Self::KillInside,
        Self::KillEngine,
        Self::StallEngine,
    ];

    /// How often it is drawn, next to the others: what takes half a minute to be found out is drawn less.
    pub(crate) const fn weight(self) -> u32 {
        match self {
            Self::KillServer | Self::Kill | Self::CutChannel | Self::KillInside => 4,
            Self::Remove | Self::KillEngine | Self::StallEngine => 2,
            Self::Pause => 1,
        }
    }

    /// Breaks it, and repairs what does not come back by itself. With what conversation 0 was told, where it was that
    /// which broke its sandbox.
    pub(crate) async fn strike(
        self,
        engine: &mut PrivateEngine,
        server: &mut Greenroom,
    ) -> Result<Option<Answer>> {
        if self == Self::KillInside {
            let client = server.client(Era::Modern).await?;
            return client.bash("chaos-conversation-0", "kill -9 -1").await.map(Some);
        }
        self.strike_from_outside(engine, server).await.map(|()| None)
    }

    async fn strike_from_outside(self, engine: &mut PrivateEngine, server: &mut Greenroom) -> Result<()> {
        match self {
            Self::KillServer => server.kill_and_restart().await,
            // It may be gone, or not started, by the time that it is struck: then nothing breaks, which is fine.
            Self::Remove => {
                if let Some((docker, id)) = any_sandbox(engine, server).await? {
                    drop(docker.remove(&id).await);
                }
                Ok(())
            }
            Self::Pause => {
                if let Some((docker, id)) = any_sandbox(engine, server).await? {
                    drop(docker.api().pause_container(&id).await);
                }
                Ok(())
            }
            Self::Kill => {
                if let Some((docker, id)) = any_sandbox(engine, server).await? {
                    drop(docker.api().kill_container(&id, None).await);
                }
                Ok(())
            }
            Self::CutChannel => match any_sandbox(engine, server).await? {
                Some((_, id)) => cut_channels(&id).await,
                None => Ok(()),
            },
            // From inside.
            Self::KillInside => Ok(()),
            Self::KillEngine => engine.kill_and_restart().await,
            Self::StallEngine => engine.stall(Duration::from_secs(3)).await,
        }
    }
}

/// One of the deployment's sandboxes, if it has any. The engine lists by a random id, so the first one is any one.
async fn any_sandbox(engine: &PrivateEngine, server: &Greenroom) -> Result<Option<(Docker, String)>> {
    let docker = engine.docker().await?;
    let id = docker.ids(server.deployment()).await?.pop_first();
    Ok(id.map(|id| (docker, id)))
}

/// Kills the host's `runsc exec` of every channel into a sandbox.
async fn cut_channels(id: &str) -> Result<()> {
    for process in fs::read_dir("/proc").context("/proc")? {
        let process = process?.path();
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let is_exec = line.contains("runsc") && line.contains("\0exec\0") && line.contains(id);
        if let (true, Some(pid)) = (is_exec, process.file_name()) {
            Command::new("kill").arg("-KILL").arg(pid).status().await?;
        }
    }
    sleep(Duration::from_millis(10)).await;
    Ok(())
}
