//! Sandboxes as containers of a Docker engine. Nothing outside of this module knows that they are.
//!
//! | here | in Docker |
//! |---|---|
//! | sandbox id | first name of the container, and the label `greenroom.id` |
//! | session's name | name of the container, by a rename |
//! | tombstone | exited container, renamed once more |
//! | channel | exec stream of `agent relay` |
//! | derived image | image `greenroom/derived:<hash of what was wished for>` |
//! | prepared image | image `greenroom/prepared:<hash of what is in it>` |
//!
//! A container is addressed by Docker's own id of it once that is known, because names change hands, and
//! is destroyed by label, because a create that was given up may still come true.

mod call;
mod channel;
mod container;
mod image;
mod known;
mod leftovers;
mod listing;
mod lookup;
mod machine;
mod memory;
mod shims;
mod whereabouts;
mod words;
mod workshop;
mod yielding;

use std::{path::PathBuf, sync::Mutex};

use async_trait::async_trait;
use bollard::{
    API_DEFAULT_VERSION, Docker,
    exec::{CreateExecOptions, StartExecOptions},
    models::{ContainerSummaryStateEnum, SystemInfo, SystemInfoCgroupDriverEnum},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptions,
        RemoveContainerOptionsBuilder, RenameContainerOptionsBuilder, StartContainerOptions,
        StatsOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use greenroom_protocol::{AGENT_PATH, LastWords};

pub use self::workshop::Installers;
use self::{
    call::Failure,
    channel::ExecStream,
    image::Images,
    known::Known,
    leftovers::{Leftovers, Parent},
    listing::Doing,
    memory::Memory,
    whereabouts::Whereabouts,
    workshop::Workshop,
    yielding::Yielding,
};
use super::{Adoption, Channel, Derivation, Engine, EngineError, Found, Listed, Place, Tombstone, Usage};
use crate::{
    conversation::SessionName,
    sandbox::{Program, SandboxId, SandboxSpec},
};

/// The oldest API that has what is used here.
const OLDEST_API: (usize, usize) = (1, 41);
/// The client's own deadline. Each call has a shorter one; this ends what a dropped call left behind.
const CLIENT_SECONDS: u64 = 180;
/// Containers that are looked into at the same time.
const LOOKS: usize = 8;

/// How to reach a Docker engine, and as whom.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// `unix:///var/run/docker.sock`, or `tcp://host:port`.
    pub socket: String,
    /// [`crate::conversation::Secret::fingerprint`]: what has another one is never touched.
    pub fingerprint: String,
    /// Tells deployments apart that share a secret.
    pub deployment: String,
    /// This server process, as it calls itself.
    pub creator: String,
    /// The agent's static binary.
    pub agent: PathBuf,
    /// First part of the name of the cgroup that all sandboxes are below.
    pub cgroup_parent: String,
    /// How packages are reached that pools add to their images.
    pub installers: Installers,
}

/// What a Docker engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerFacts {
    /// Its version.
    pub version: String,
    /// The API that is spoken with it.
    pub api: String,
    /// The runtimes that it has, in order.
    pub runtimes: Vec<String>,
    /// `cgroupfs` or `systemd`, and `1` or `2`.
    pub cgroups: (String, String),
    /// Whether sandboxes outlive it.
    pub live_restore: bool,
}

/// Sandboxes on a Docker engine.
#[derive(Debug)]
pub struct DockerEngine {
    docker: Docker,
    deployment: String,
    creator: String,
    images: Images,
    workshop: Workshop,
    known: Known,
    leftovers: Leftovers,
    yielding: Yielding,
    /// Where all sandboxes are, once that was found.
    whereabouts: Mutex<Option<Whereabouts>>,
    /// Whether the engine's processes are this host's.
    local: bool,
}

impl DockerEngine {
    /// Reaches the engine and agrees on an API with it.
    ///
    /// # Errors
    /// It cannot be reached, or speaks no API that is new enough.
    pub async fn connect(config: DockerConfig) -> Result<Self, EngineError> {
        let local = !config.socket.starts_with("tcp://") && !config.socket.starts_with("http://");
        let connected = if local {
            Docker::connect_with_unix(&config.socket, CLIENT_SECONDS, API_DEFAULT_VERSION)
        } else {
            Docker::connect_with_http(&config.socket, CLIENT_SECONDS, API_DEFAULT_VERSION)
        };
        let negotiation = async { connected?.negotiate_version().await };
        let docker = call::ASK.run(negotiation).await?;
        let api = docker.client_version();
        if (api.major_version, api.minor_version) < OLDEST_API {
            return Err(EngineError::Unreachable(format!(
                "it speaks API {api}, and 1.41 (Docker 20.10) is the oldest that will do"
            )));
        }
        let info = call::ASK.run(docker.info()).await?;
        let deployment = format!("{}-{}", config.fingerprint, config.deployment);
        let parent = Parent::new(
            &config.cgroup_parent,
            &config.deployment,
            &config.fingerprint,
            info.id.as_deref().unwrap_or_default(),
            info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::SYSTEMD),
        );
        Ok(Self {
            workshop: Workshop::new(
                docker.clone(),
                &config.fingerprint,
                &deployment,
                parent.as_str(),
                config.installers,
            ),
            images: Images::new(docker.clone(), config.agent, config.fingerprint),
            docker,
            deployment,
            creator: config.creator,
            known: Known::default(),
            leftovers: Leftovers::new(parent),
            yielding: Yielding::default(),
            whereabouts: Mutex::default(),
            local,
        })
    }

    /// What the engine says of itself.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn facts(&self) -> Result<DockerFacts, EngineError> {
        let info: SystemInfo = call::ASK.run(self.docker.info()).await?;
        let mut runtimes: Vec<_> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort_unstable();
        let driver = info.cgroup_driver.map(|driver| driver.to_string());
        let version = info.cgroup_version.map(|version| version.to_string());
        Ok(DockerFacts {
            version: info.server_version.unwrap_or_default(),
            api: self.docker.client_version().to_string(),
            runtimes,
            cgroups: (driver.unwrap_or_default(), version.unwrap_or_default()),
            live_restore: info.live_restore_enabled.unwrap_or_default(),
        })
    }

    /// Whether the agent can be put into images; answers what it is.
    ///
    /// # Errors
    /// [`EngineError::BadAgent`] says what is wrong with it.
    pub async fn check_agent(&self) -> Result<String, EngineError> {
        self.images.check_agent().await
    }

    /// The cgroup that all sandboxes are below, for whoever checks that nothing is left.
    #[must_use]
    pub fn cgroup_parent(&self) -> &str {
        self.leftovers.parent().as_str()
    }

    async fn rename(&self, container: &str, name: &str) -> Result<(), Failure> {
        let options = RenameContainerOptionsBuilder::default().name(name).build();
        call::RENAME
            .run(self.docker.rename_container(container, options))
            .await
    }

    /// Removes a container by force, with its anonymous volumes.
    /// A sandbox whose kernel hangs cannot be ended through it, and holds the engine up: on this machine its processes
    /// are killed then, and the engine is asked once more.
    async fn remove(&self, container: &str, paused: bool) -> Result<(), EngineError> {
        if paused {
            self.unfreeze(container).await;
        }
        match self.try_to_remove(container).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.end_from_outside(container, error)?;
                self.try_to_remove(container).await
            }
        }
    }

    async fn try_to_remove(&self, container: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let removal = self.docker.remove_container(container, Some(options));
        match call::REMOVE.run(removal).await {
            Ok(()) => Ok(()),
            Err(failure) => match failure.status() {
                Some(404) => Ok(()),
                Some(409) => self.removed(container).await,
                _ => Err(failure.into()),
            },
        }
    }

    /// Killing a frozen container hangs. If this fails the killing will too, and that is what is told.
    async fn unfreeze(&self, container: &str) {
        if let Err(failure) = call::UNPAUSE.run(self.docker.unpause_container(container)).await {
            tracing::debug!(container, reason = failure.message(), "cannot be unpaused");
        }
    }

    /// Waits for a removal that another call has begun.
    async fn removed(&self, container: &str) -> Result<(), EngineError> {
        let options = WaitContainerOptionsBuilder::default()
            .condition("removed")
            .build();
        let mut wait = std::pin::pin!(self.docker.wait_container(container, Some(options)));
        // It ends with an exit code, which the client takes for an error, or with an error: the look tells.
        let waited = tokio::time::timeout(call::REMOVE.deadline(), wait.next()).await;
        let look = self
            .docker
            .inspect_container(container, None::<InspectContainerOptions>);
        match call::INSPECT.run(look).await {
            Err(failure) if failure.status() == Some(404) => Ok(()),
            Err(failure) => Err(failure.into()),
            Ok(_) if waited.is_err() => Err(call::REMOVE.timed_out()),
            Ok(_) => Err(EngineError::Refused {
                what: call::REMOVE.what(),
                reason: "another removal of it has failed".to_owned(),
            }),
        }
    }

    /// Starts a relay in the sandbox.
    async fn relay(&self, id: &SandboxId) -> Result<ExecStream, EngineError> {
        let container = self.container(id).await?;
        let command = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            user: Some("0:0"),
            cmd: Some(vec![AGENT_PATH, "relay"]),
            working_dir: Some("/"),
            ..CreateExecOptions::default()
        };
        let refused = |failure: Failure| match failure.status() {
            // Not there, and not running or paused.
            Some(404 | 409) => EngineError::NoSandbox(id.clone()),
            _ => failure.into(),
        };
        let exec = call::EXEC
            .run(self.docker.create_exec(&container, command))
            .await
            .map_err(refused)?;
        let options = StartExecOptions {
            output_capacity: Some(channel::READ_BYTES),
            ..StartExecOptions::default()
        };
        let started = call::EXEC
            .run(self.docker.start_exec(&exec.id, Some(options)))
            .await
            .map_err(refused)?;
        ExecStream::attached(started).ok_or_else(|| EngineError::Refused {
            what: call::EXEC.what(),
            reason: "it came detached".to_owned(),
        })
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn prepare(&self, image: &str) -> Result<String, EngineError> {
        self.images.prepare(image).await
    }

    async fn derive(&self, order: &Derivation) -> Result<String, EngineError> {
        self.workshop.derive(order).await
    }

    async fn unused_images(&self, wanted: &[Derivation]) -> Result<Vec<String>, EngineError> {
        self.workshop.unused(wanted).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        self.workshop.remove_image(name).await
    }

    async fn program(&self, prepared: &str) -> Result<Program, EngineError> {
        self.images.program(prepared).await
    }

    async fn last_words(&self, id: &SandboxId) -> Result<Option<LastWords>, EngineError> {
        self.left_behind(id).await
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), EngineError> {
        let agent = serde_json::to_string(&spec.agent).map_err(|error| EngineError::Refused {
            what: call::CREATE.what(),
            reason: error.to_string(),
        })?;
        let volumes = self.images.volumes(&spec.image).await?;
        let labels = listing::labels(id, &spec.pool, spec.stay, &self.deployment, &self.creator);
        let parent = self.leftovers.parent().as_str().to_owned();
        let body = container::body(spec, agent, &volumes, labels, parent);
        let options = CreateContainerOptionsBuilder::default().name(id.as_str()).build();
        let creation = self.docker.create_container(Some(options), body);
        match call::CREATE.run(creation).await {
            Ok(created) => {
                self.known.meet(id, &created.id);
                Ok(())
            }
            Err(failure) if failure.status() == Some(404) => Err(EngineError::NoImage {
                image: spec.image.clone(),
                reason: failure.message().to_owned(),
            }),
            // "Unknown runtime specified x", or "unknown or invalid runtime name: x", by its version.
            Err(failure) if failure.message().contains("nknown") && failure.message().contains("runtime") => {
                Err(EngineError::NoRuntime(spec.runtime.clone()))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn start(&self, id: &SandboxId) -> Result<(), EngineError> {
        let container = self.container(id).await?;
        let start = self
            .docker
            .start_container(&container, None::<StartContainerOptions>);
        match call::START.run(start).await {
            Err(failure) if failure.status() == Some(404) => Err(EngineError::NoSandbox(id.clone())),
            other => other.map_err(EngineError::from),
        }
    }

    async fn open(&self, id: &SandboxId) -> Result<Channel, EngineError> {
        match tokio::time::timeout(call::EXEC.deadline(), self.relay(id)).await {
            Ok(relay) => Ok(Box::new(relay?)),
            Err(_) => Err(call::EXEC.timed_out()),
        }
    }

    async fn adopt(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError> {
        let container = self.container(id).await?;
        match self.rename(&container, &name.to_string()).await {
            Ok(()) => Ok(Adoption::Adopted),
            Err(failure) => match failure.status() {
                Some(409) => Ok(Adoption::Taken),
                Some(404) => Err(EngineError::NoSandbox(id.clone())),
                _ => Err(failure.into()),
            },
        }
    }

    async fn put_back(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError> {
        match self.adopt(id, name).await {
            // The engine takes it for a mistake to be asked for the name that is there already.
            Err(refused @ EngineError::Refused { .. }) => match self.row(id).await? {
                Some(row) if row.name == name.to_string() => Ok(Adoption::Adopted),
                _ => Err(refused),
            },
            outcome => outcome,
        }
    }

    async fn strays(&self) -> Result<Vec<SandboxId>, EngineError> {
        let mut rows = self.rows("name", vec![listing::FOREIGN_NAMES.to_owned()]).await?;
        Ok(self.take_strays(&mut rows))
    }

    async fn find(&self, name: &SessionName) -> Result<Found, EngineError> {
        let names = vec![listing::name_filter(name), listing::FOREIGN_NAMES.to_owned()];
        let mut rows = self.rows("name", names).await?;
        let strays = self.take_strays(&mut rows);
        let (own, aside) = (name.to_string(), format!("{name}."));
        let place = match rows.iter().find(|row| row.name == own) {
            Some(row) => self.place(row).await?,
            None => Place::Absent,
        };
        let mut tombstone: Option<Tombstone> = None;
        for row in rows.iter().filter(|row| row.name.starts_with(&aside)) {
            // One that is being removed has been told of.
            if row.doing == Doing::Exited
                && let Some(fate) = self.fate(row).await?
                && tombstone
                    .as_ref()
                    .is_none_or(|newest| newest.fate.finished_at < fate.finished_at)
            {
                let id = row.id.clone();
                tombstone = Some(Tombstone { id, fate });
            }
        }
        Ok(Found {
            place,
            tombstone,
            strays,
        })
    }

    async fn set_aside(&self, id: &SandboxId, name: &SessionName) -> Result<(), EngineError> {
        let aside = listing::aside(name, id);
        match self.row(id).await? {
            Some(row) if row.name != aside => match self.rename(&row.container, &aside).await {
                Err(failure) if failure.status() != Some(404) => Err(failure.into()),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    async fn end(&self, id: &SandboxId) -> Result<(), EngineError> {
        let containers = self
            .containers("label", vec![format!("{}={id}", listing::ID)])
            .await?;
        for container in containers {
            let paused = container.state == Some(ContainerSummaryStateEnum::PAUSED);
            let Some(container) = container.id else { continue };
            if paused {
                self.unfreeze(&container).await;
            }
            let kill = self
                .docker
                .kill_container(&container, None::<KillContainerOptions>);
            match call::KILL.run(kill).await {
                Ok(()) => {}
                Err(failure) if matches!(failure.status(), Some(404 | 409)) => {}
                Err(failure) => self.end_from_outside(&container, failure.into())?,
            }
        }
        Ok(())
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError> {
        let containers = self
            .containers("label", vec![format!("{}={id}", listing::ID)])
            .await?;
        for container in containers {
            let paused = container.state == Some(ContainerSummaryStateEnum::PAUSED);
            let created = container.state == Some(ContainerSummaryStateEnum::CREATED);
            if let Some(container) = container.id {
                self.remove(&container, paused).await?;
                if created {
                    self.end_rest_of(&container);
                }
            }
        }
        self.known.forget(id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        let ours = format!("{}={}", listing::DEPLOYMENT, self.deployment);
        let rows = self.rows("label", vec![ours]).await?;
        self.known.keep_only(&rows.iter().map(|row| &row.id).collect());
        stream::iter(rows)
            .map(|row| self.listed(row))
            .buffered(LOOKS)
            .try_filter_map(|listed| async { Ok(listed) })
            .try_collect()
            .await
    }

    async fn spare_memory(&self) -> Result<Option<u64>, EngineError> {
        if !self.local {
            return Ok(None);
        }
        let memory = Memory::read().map_err(|error| EngineError::Refused {
            what: "say what memory there is",
            reason: error.to_string(),
        })?;
        self.limit_all(memory.limit()).await;
        Ok(Some(memory.spare()))
    }

    async fn usage(&self, id: &SandboxId) -> Result<Usage, EngineError> {
        let container = self.container(id).await?;
        let options = StatsOptionsBuilder::default()
            .stream(false)
            .one_shot(true)
            .build();
        let mut stats = std::pin::pin!(self.docker.stats(&container, Some(options)));
        let stats = async { stats.next().await.transpose() };
        let stats = call::STATS.run(stats).await?.unwrap_or_default();
        Ok(listing::usage(&stats))
    }

    async fn sweep(&self) -> Result<usize, EngineError> {
        // Neither waits for the other to succeed.
        let installing = self.workshop.sweep().await;
        for container in self.workshop.removed() {
            self.end_rest_of(&container);
        }
        let left = self.sweep_leftovers().await;
        Ok(installing? + left?)
    }

    async fn balance(&self) {
        let all = self.whereabouts().clone();
        if let Some(all) = all
            && let Err(error) = self.yielding.look(&all, tokio::time::Instant::now())
        {
            tracing::debug!(%error, "sandboxes that use the processors do not give way");
        }
    }
}
