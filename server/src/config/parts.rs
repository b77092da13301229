//! What the configuration means to the parts that it configures.

use std::path::{Path, PathBuf};

use greenroom_protocol::{AgentConfig, Language};

use super::{ArchiveConfig, ArchivePlace, Config, ContainerConfig, PoolConfig, PoolKind};
use crate::{
    archive::{Allowance, Bucket, Place},
    conversation::PoolName,
    engine::docker::DockerConfig,
    sandbox::{AppSpec, SandboxSpec, Start, Stay},
};

/// The agent's file name where it lies beside the server's own executable.
const AGENT: &str = "greenroom-agent";

/// The folder of archives in the state directory.
const ARCHIVES: &str = "archives";

impl Config {
    /// The agent's binary: as configured, or beside this executable.
    #[must_use]
    pub fn agent_binary(&self) -> PathBuf {
        self.agent.clone().unwrap_or_else(|| {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name(AGENT)
        })
    }

    /// The Docker engine, for a server that calls itself `creator`; `fingerprint` is the secret's.
    #[must_use]
    pub fn docker(&self, fingerprint: &str, creator: &str) -> DockerConfig {
        DockerConfig {
            socket: self.engine.socket.clone(),
            fingerprint: fingerprint.to_owned(),
            deployment: self.engine.deployment.clone(),
            creator: creator.to_owned(),
            agent: self.agent_binary(),
            cgroup_parent: "greenroom".to_owned(),
            installers: self.engine.installers.clone(),
        }
    }
}

impl ArchiveConfig {
    /// Where archives lie, if anywhere.
    #[must_use]
    pub fn place(&self, state_dir: &Path) -> Option<Place> {
        match &self.place {
            ArchivePlace::Off => None,
            ArchivePlace::StateDir => Some(Place::Folder(state_dir.join(ARCHIVES))),
            ArchivePlace::Folder(folder) => Some(Place::Folder(folder.clone())),
            ArchivePlace::S3 { bucket, prefix } => Some(Place::S3(Bucket {
                name: bucket.clone(),
                prefix: prefix.clone(),
                endpoint: (!self.endpoint.is_empty()).then(|| self.endpoint.clone()),
                region: (!self.region.is_empty()).then(|| self.region.clone()),
            })),
        }
    }

    /// What may be kept, and for how long.
    #[must_use]
    pub const fn allowance(&self) -> Allowance {
        Allowance {
            session: self.session,
            total: self.total,
            keep: self.keep,
        }
    }
}

impl PoolConfig {
    /// What each sandbox is told at its start.
    #[must_use]
    pub fn start(&self) -> Start {
        let app = self.container().map(|container| AppSpec {
            command: container.command.clone(),
            args: container.args.clone(),
            user: container.user.clone(),
            startup: container.startup.clone(),
            liveness: container.liveness.clone(),
        });
        Start {
            env: self.env.clone(),
            app,
        }
    }

    /// What only a pool of containers has.
    #[must_use]
    pub const fn container(&self) -> Option<&ContainerConfig> {
        match &self.kind {
            PoolKind::Container(container) => Some(container),
            PoolKind::Interpreter => None,
        }
    }

    /// What code is written in that does not say. Most images have a shell, whatever else they have.
    #[must_use]
    pub fn language(&self) -> Language {
        self.languages.first().copied().unwrap_or(Language::Sh)
    }

    /// What this pool asks its engine for. The image is the one configured, not prepared yet.
    #[must_use]
    pub fn sandbox(&self, pool: &PoolName) -> SandboxSpec {
        SandboxSpec {
            pool: pool.clone(),
            image: self.image.clone(),
            runtime: self.runtime.clone(),
            cpu_millis: self.cpus.millis,
            memory_bytes: self.memory.0,
            pids: self.pids,
            nproc: self.nproc,
            nofile: self.nofile,
            // The pool knows.
            stay: Stay::default(),
            agent: AgentConfig {
                port: self.container().and_then(|container| container.port),
                begin: self.start().begin(),
                ready: self.languages.clone(),
                preload: self.preload.clone(),
                spill_bytes: self.spill.0,
                ..AgentConfig::default()
            },
        }
    }
}
