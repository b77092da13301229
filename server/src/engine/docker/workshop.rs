//! Images with packages on top of another: installed in a container that runs as sandboxes do, copied out of it as an
//! archive, and committed under a name that says what was wished for.
//!
//! ```text
//! builder: create · put in certificates and requirements · start (it sleeps) · exec each step ─┐ exec tar
//! keeper:  create, never started ◀──────────────── put archive, as it comes ──────────────────┘ · commit
//! ```
//! # Why not the engine's own builder
//! Packages run code of their own at their installation, and a builder runs it under the engine's default runtime, which
//! shares the host's kernel. A container of the pool's runtime keeps it where a sandbox's code is. It has a network of its
//! own there (gVisor's stack on the engine's bridge): gVisor refuses the host's.
//!
//! What is written in it lies in gVisor's own overlay, which the engine does not see and cannot commit. So it is copied:
//! whatever was changed since the start but for what no image keeps. That is safer, too: neither the environment of
//! installers (an index's password, a proxy) nor what they leave lying about has a way into an image's configuration.
//! A file that an installer *removes* stays; pip keeps to the guest's own environment in our image, and apt replaces.
//!
//! # What cannot go wrong
//! A name is given by the commit, the last step, so there is never a half of an image. Two servers that make the same
//! both succeed, and the later one takes the name over. A builder whose server died ends itself at its deadline, and a
//! sweep removes it; it has no sandbox's id, so it is never one of `max`.

mod exec;
mod scrap;
mod steps;
mod unused;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use bollard::{
    Docker,
    models::{ContainerConfig, ContainerCreateBody, HostConfig},
    query_parameters::{
        CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, StartContainerOptions,
        UploadToContainerOptions, UploadToContainerOptionsBuilder,
    },
};
use greenroom_protocol::Masked;
use tokio::{
    io::AsyncReadExt as _,
    sync::Semaphore,
    time::{Instant, timeout},
};

use self::{
    exec::{Words, layer},
    scrap::{Removed, Scrap},
    steps::{Environment, Failed, Step, Surroundings, Trusts},
};
use super::{
    call::{self, bounded},
    image::{bad, inspect, volumes_of},
    listing,
};
use crate::{
    conversation::hex,
    engine::{Derivation, EngineError},
};

const REPOSITORY: &str = "greenroom/derived";
/// Label of derived images, and of what is prepared from them: the secret's fingerprint of whose they are.
pub(super) const DERIVED: &str = "greenroom.derived";
/// Label of derived images: the image as configured that they stand on.
const BASE: &str = "greenroom.base";
/// Label of containers that install: how many seconds they may take. No image is made of these, so nobody inherits it.
const BUILDER: &str = "greenroom.builder";
/// First part of their names.
const BUILDING: &str = "greenroom-build";
/// First part of the names of containers that images are committed from. They have no label, so a sweep goes by this.
const KEEPING: &str = "greenroom-keep";

/// The certificates that Debian and its kin trust.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The certificates of a host: a quarter of a megabyte.
const CERTIFICATES_BYTES: u64 = 4 << 20;

/// How installers reach what they install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installers {
    /// The engine's network that they are in.
    pub network: String,
    /// Variables that they get.
    pub env: Vec<(String, Masked)>,
    /// Files with the certificates that they trust: the first that is there. Without any, those of the image.
    pub certificates: Vec<PathBuf>,
}

impl Default for Installers {
    fn default() -> Self {
        Self {
            network: "bridge".to_owned(),
            env: Vec::new(),
            certificates: vec![PathBuf::from(SYSTEM_CERTIFICATES)],
        }
    }
}

/// Where images are derived, one at a time.
#[derive(Debug)]
pub(super) struct Workshop {
    docker: Docker,
    fingerprint: String,
    deployment: String,
    cgroup_parent: String,
    installers: Installers,
    /// Single flight: pools with the same wishes wait here for the first, and then find it done.
    one_at_a_time: Semaphore,
    removed: Removed,
}

impl Workshop {
    pub(super) fn new(
        docker: Docker,
        fingerprint: &str,
        deployment: &str,
        cgroup_parent: &str,
        installers: Installers,
    ) -> Self {
        Self {
            // Its calls have deadlines of their own, and a large layer takes longer than any other.
            docker: docker.with_timeout(call::LAYER.deadline()),
            fingerprint: fingerprint.to_owned(),
            deployment: deployment.to_owned(),
            cgroup_parent: cgroup_parent.to_owned(),
            installers,
            one_at_a_time: Semaphore::new(1),
            removed: Removed::default(),
        }
    }

    /// The containers that were removed since this was last asked, by the engine's ids.
    pub(super) fn removed(&self) -> Vec<String> {
        self.removed.take()
    }

    /// See [`crate::engine::Engine::derive`].
    pub(super) async fn derive(&self, order: &Derivation) -> Result<String, EngineError> {
        let source = inspect(&self.docker, &order.image).await?;
        let source_id = source.id.clone().unwrap_or_default();
        let tag = order.dependencies.digest(&source_id);
        let derived = name_of(&tag);
        let _turn = self.one_at_a_time.acquire().await;
        match inspect(&self.docker, &derived).await {
            Ok(_) => return Ok(derived),
            Err(EngineError::NoImage { .. }) => {}
            Err(error) => return Err(error),
        }
        let began = Instant::now();
        tracing::info!(pool = %order.pool, image = order.image, derived, "installing the pool's packages");
        let config = source.config.as_ref();
        let making = Making {
            order,
            volumes: volumes_of(&order.image, &source)?,
            // An image without a program cannot be made a container of, and does not get one by this.
            program: config.is_some_and(|config| {
                let some =
                    |words: &Option<Vec<String>>| words.as_ref().is_some_and(|words| !words.is_empty());
                some(&config.cmd) || some(&config.entrypoint)
            }),
            source_id,
            tag,
        };
        self.make(&making).await?;
        tracing::info!(pool = %order.pool, derived, seconds = began.elapsed().as_secs(), "installed the pool's packages");
        Ok(derived)
    }

    /// Both containers are gone when this is over, however it went.
    async fn make(&self, making: &Making<'_>) -> Result<(), EngineError> {
        let certificates = self.certificates().await;
        let trusts = match certificates {
            Some(_) => Trusts::TheHosts,
            None => Trusts::ItsOwn,
        };
        let builder = self.builder(making, trusts).await?;
        let mut keeper = None;
        let order = making.order;
        let install = async {
            self.begin(making, builder.name(), certificates).await?;
            self.install(making, builder.name(), &mut keeper)
                .await
                .map_err(|error| late(&order.image, error))
        };
        let made = timeout(order.deadline, install).await;
        builder.remove().await;
        if let Some(keeper) = keeper {
            keeper.remove().await;
        }
        made.unwrap_or_else(|_| {
            Err(EngineError::Install {
                image: order.image.clone(),
                command: "installing packages".to_owned(),
                outcome: format!(
                    "was not done within {} s (limit install_timeout)",
                    order.deadline.as_secs()
                ),
                words: Vec::new(),
            })
        })
    }

    /// Installs, and keeps what came of it.
    async fn install(
        &self,
        making: &Making<'_>,
        builder: &str,
        keeper: &mut Option<Scrap>,
    ) -> Result<(), EngineError> {
        let wished = &making.order.dependencies;
        for step in steps::debian(wished) {
            self.take(making, builder, &step).await?;
        }
        // Before the first Python package: it may write what is asked here.
        let said = self.take(making, builder, &steps::survey(wished)).await?;
        for step in steps::python(wished, &Environment::of(&said)) {
            self.take(making, builder, &step).await?;
        }
        let keeper = keeper.insert(self.keeper(making).await?);
        self.keep(making, builder, keeper.name()).await
    }

    /// A container to install in.
    async fn builder(&self, making: &Making<'_>, trusts: Trusts) -> Result<Scrap, EngineError> {
        let labels = [
            (listing::DEPLOYMENT, self.deployment.clone()),
            (BUILDER, making.order.deadline.as_secs().to_string()),
        ];
        let env = self.installers.env.iter();
        let around = Surroundings {
            image_id: &making.source_id,
            volumes: &making.volumes,
            network: &self.installers.network,
            cgroup_parent: &self.cgroup_parent,
            labels: labels.map(|(label, value)| (label.to_owned(), value)).into(),
            env: env
                .map(|(name, value)| (name.clone(), value.reveal().to_owned()))
                .collect(),
            trusts,
        };
        self.create(BUILDING, steps::body(making.order, around)).await
    }

    /// Gives it what it needs, starts it, and takes the first step.
    async fn begin(
        &self,
        making: &Making<'_>,
        builder: &str,
        certificates: Option<Vec<u8>>,
    ) -> Result<(), EngineError> {
        let order = making.order;
        let gifts = steps::gifts(&order.dependencies, certificates.as_deref()).map_err(|error| {
            EngineError::Refused {
                what: call::PREPARE.what(),
                reason: error.to_string(),
            }
        })?;
        let gifts = bollard::body_full(gifts.into());
        let put = self.docker.upload_to_container(builder, Some(at_root()), gifts);
        call::PREPARE.run(put).await?;
        let start = self
            .docker
            .start_container(builder, None::<StartContainerOptions>);
        match call::START.run(start).await {
            // The engine's words for a program that is not there differ by runtime and version.
            Err(failure) if failure.message().contains("sleep") => {
                let reason = "it lacks `sleep`, and packages cannot be installed without";
                return Err(bad(&order.image, reason.to_owned()));
            }
            started => started?,
        }
        self.take(making, builder, &steps::stamp()).await?;
        Ok(())
    }

    /// A container that an image is committed from. It is never started, and has no label: whoever stands on the image
    /// would inherit it.
    async fn keeper(&self, making: &Making<'_>) -> Result<Scrap, EngineError> {
        let body = ContainerCreateBody {
            image: Some(making.source_id.clone()),
            // Left out, these are the image's own, and so the commit's.
            cmd: (!making.program).then(|| vec!["sh".to_owned()]),
            host_config: Some(HostConfig {
                network_mode: Some("none".into()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        self.create(KEEPING, body).await
    }

    async fn create(&self, prefix: &str, body: ContainerCreateBody) -> Result<Scrap, EngineError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| EngineError::Refused {
            what: call::PREPARE.what(),
            reason: error.to_string(),
        })?;
        let runtime = body.host_config.as_ref().and_then(|host| host.runtime.clone());
        let name = format!("{prefix}-{}-{}", self.fingerprint, hex(&random));
        let mut scrap = Scrap::new(self.docker.clone(), name, self.removed.clone());
        let options = CreateContainerOptionsBuilder::default()
            .name(scrap.name())
            .build();
        match call::PREPARE
            .run(self.docker.create_container(Some(options), body))
            .await
        {
            Ok(created) => {
                scrap.is(created.id);
                Ok(scrap)
            }
            Err(failure) if failure.message().contains("nknown") && failure.message().contains("runtime") => {
                Err(EngineError::NoRuntime(runtime.unwrap_or_default()))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Takes one step, and answers its last words; or tells of a failure what kind it was.
    async fn take(
        &self,
        making: &Making<'_>,
        builder: &str,
        step: &Step,
    ) -> Result<Vec<String>, EngineError> {
        let pool = &making.order.pool;
        let shown = shown(&step.argv);
        if step.failed == Failed::Said {
            tracing::info!(%pool, command = shown, "installing");
        }
        let words = Words::default();
        let ended = self.run(builder, step, &words, |line| {
            tracing::info!(%pool, command = shown, line, "still installing");
        });
        making.judge(step, ended.await?, &words)?;
        Ok(words.lines())
    }

    /// Copies what was changed from the one container to the other, as it comes, and commits it.
    async fn keep(&self, making: &Making<'_>, builder: &str, keeper: &str) -> Result<(), EngineError> {
        let step = steps::archive();
        let words = Arc::new(Words::default());
        let (exec, output) = self.exec(builder, &step).await?;
        let layer = bollard::body_try_stream(layer(output, Arc::clone(&words)));
        let put = self.docker.upload_to_container(keeper, Some(at_root()), layer);
        call::LAYER.run(put).await?;
        // One that broke off looks whole to the engine if it broke off well.
        making.judge(&step, self.exit_code(&exec).await?, &words)?;
        let options = CommitContainerOptionsBuilder::default()
            .container(keeper)
            .repo(REPOSITORY)
            .tag(&making.tag)
            .pause(false)
            .build();
        let config = ContainerConfig {
            labels: Some(HashMap::from([
                (DERIVED.to_owned(), self.fingerprint.clone()),
                (BASE.to_owned(), making.order.image.clone()),
            ])),
            ..ContainerConfig::default()
        };
        call::LAYER
            .run(self.docker.commit_container(options, config))
            .await?;
        Ok(())
    }

    /// The certificates that this host trusts.
    async fn certificates(&self) -> Option<Vec<u8>> {
        for path in &self.installers.certificates {
            let Ok(file) = tokio::fs::File::open(path).await else {
                continue;
            };
            let mut certificates = Vec::new();
            let read = file.take(CERTIFICATES_BYTES).read_to_end(&mut certificates).await;
            if read.is_ok_and(|bytes| bytes > 0) {
                return Some(certificates);
            }
        }
        None
    }
}

/// An image that is being made.
struct Making<'a> {
    order: &'a Derivation,
    source_id: String,
    tag: String,
    volumes: Vec<String>,
    /// Whether the image says what it runs.
    program: bool,
}

impl Making<'_> {
    /// Whether a step did what it should. 126 and 127 are a container engine's and a shell's *not found*.
    fn judge(&self, step: &Step, code: i64, words: &Words) -> Result<(), EngineError> {
        match (code, step.failed) {
            (0, _) | (_, Failed::NoMatter) => Ok(()),
            (_, Failed::Lacks(what)) if words.lines().is_empty() || matches!(code, 126 | 127) => {
                Err(bad(&self.order.image, format!("it lacks {what}")))
            }
            (_, Failed::Lacks(what)) => {
                let said = words.lines().join(" | ");
                Err(bad(&self.order.image, format!("it lacks {what}: {said}")))
            }
            (code, Failed::Said) => Err(EngineError::Install {
                image: self.order.image.clone(),
                command: format!("`{}`", shown(&step.argv)),
                outcome: format!("ended with exit code {code}"),
                words: words.lines(),
            }),
        }
    }
}

/// A failure after the first step, as one of the installation: whatever it was, to try again is to fetch and build
/// everything again, which is done ever more slowly.
fn late(image: &str, error: EngineError) -> EngineError {
    if matches!(error, EngineError::Install { .. } | EngineError::BadImage { .. }) {
        return error;
    }
    EngineError::Install {
        image: image.to_owned(),
        command: "installing packages".to_owned(),
        outcome: format!("broke off: {error}"),
        words: Vec::new(),
    }
}

fn name_of(tag: &str) -> String {
    format!("{REPOSITORY}:{tag}")
}

fn at_root() -> UploadToContainerOptions {
    UploadToContainerOptionsBuilder::default().path("/").build()
}

/// A command as a log shows it.
fn shown(argv: &[String]) -> String {
    bounded(&argv.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_fails_once_something_was_installed_is_a_failed_installation() {
        let failures = [
            (call::LAYER.timed_out(), "broke off: "),
            (EngineError::Unreachable("gone".to_owned()), "gone"),
            (
                bad("image", "it lacks pip".to_owned()),
                "cannot be used: it lacks pip",
            ),
        ];
        for (failure, says) in failures {
            let was_bad = matches!(failure, EngineError::BadImage { .. });
            let error = late("image", failure);
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(
                matches!(error, EngineError::Install { .. }),
                !was_bad,
                "{error:?}"
            );
        }
        let already = late("image", late("image", call::LAYER.timed_out())).to_string();
        assert_eq!(already.matches("broke off").count(), 1, "{already}");
    }
}
