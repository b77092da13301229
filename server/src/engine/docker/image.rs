//! Images made ready: create a container (never started), put the agent in, commit it under a name that
//! says what is in it.

mod stale;

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use bollard::{
    Docker,
    models::{ContainerConfig, ContainerCreateBody, HealthConfig, HostConfig, ImageInspect},
    query_parameters::{
        CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder,
        ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveContainerOptionsBuilder,
        UploadToContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use greenroom_protocol::{AGENT_PATH, SOCKET_PATH, WORK_DIR};
use tokio::sync::Semaphore;

use super::call::{Failure, IMAGE, LIST, PREPARE, REMOVE, bounded};
use crate::{
    conversation::hex,
    engine::{EngineError, injection::Agent},
    sandbox::Program,
};

const REPOSITORY: &str = "greenroom/prepared";
/// Label of prepared images: the image as configured that they were made from. Sandboxes inherit it.
pub(super) const SOURCE: &str = "greenroom.source";
/// Label of prepared images: what their own program is, which is not to be seen any more in their configuration.
const PROGRAM: &str = "greenroom.program";
/// First part of the names of containers that an image is prepared in. They have no label: a commit would
/// hand it on to every sandbox.
const PREPARING: &str = "greenroom-prepare";
/// Enough of a volume's archive to see whether there is a second entry in it.
const VOLUME_GLANCE: usize = 16 << 10;

/// Prepares images, one at a time.
#[derive(Debug)]
pub(super) struct Images {
    docker: Docker,
    agent: PathBuf,
    fingerprint: String,
    /// Single flight: pools of one image wait here for the first, and then find it done.
    one_at_a_time: Semaphore,
    /// VOLUMEs by prepared image. A name stands for its content, so this never goes stale.
    volumes: Mutex<HashMap<String, Arc<[String]>>>,
}

impl Images {
    pub(super) fn new(docker: Docker, agent: PathBuf, fingerprint: String) -> Self {
        Self {
            docker,
            agent,
            fingerprint,
            one_at_a_time: Semaphore::new(1),
            volumes: Mutex::default(),
        }
    }

    async fn agent(&self) -> Result<Agent, EngineError> {
        let agent = Agent::read(&self.agent).await;
        agent.map_err(|bad| EngineError::BadAgent(bad.to_string()))
    }

    /// See [`super::DockerEngine::check_agent`].
    pub(super) async fn check_agent(&self) -> Result<String, EngineError> {
        let architecture = self.agent().await?.architecture();
        Ok(format!("{}, static, for {architecture}", self.agent.display()))
    }

    /// See [`crate::engine::Engine::prepare`]. Two servers that prepare the same at the same time both
    /// succeed: the later commit takes the name over, with the same content.
    pub(super) async fn prepare(&self, image: &str) -> Result<String, EngineError> {
        let agent = self.agent().await?;
        let source = self.inspect(image).await?;
        let source_id = source.id.clone().unwrap_or_default();
        let volumes = volumes_of(image, &source)?;
        check_architecture(image, &source, &agent)?;
        let tag = agent.prepared(&source_id);
        let prepared = format!("{REPOSITORY}:{tag}");

        let _turn = self.one_at_a_time.acquire().await;
        match self.inspect(&prepared).await {
            Ok(_) => {}
            Err(EngineError::NoImage { .. }) => {
                tracing::info!(image, prepared, "preparing the image");
                let archive = agent.into_archive();
                let making = Making {
                    image,
                    source_id: &source_id,
                    tag: &tag,
                    volumes: &volumes,
                    program: program_of(&source),
                };
                self.build(&making, archive).await?;
            }
            Err(error) => return Err(error),
        }
        if let Err(failure) = self.remove_stale(image, &prepared).await {
            tracing::warn!(reason = failure.message(), "old prepared images stay for now");
        }
        Ok(prepared)
    }

    /// The VOLUMEs of a prepared image.
    pub(super) async fn volumes(&self, prepared: &str) -> Result<Arc<[String]>, EngineError> {
        let lock = || self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(prepared) {
            return Ok(Arc::clone(known));
        }
        let volumes: Arc<[String]> = volumes_of(prepared, &self.inspect(prepared).await?)?.into();
        lock().insert(prepared.to_owned(), Arc::clone(&volumes));
        Ok(volumes)
    }

    async fn inspect(&self, image: &str) -> Result<ImageInspect, EngineError> {
        inspect(&self.docker, image).await
    }

    /// See [`crate::engine::Engine::program`].
    pub(super) async fn program(&self, prepared: &str) -> Result<Program, EngineError> {
        let inspected = self.inspect(prepared).await?;
        let labels = inspected.config.and_then(|config| config.labels);
        let label = labels.and_then(|labels| labels.get(PROGRAM).cloned());
        Ok(label
            .and_then(|label| serde_json::from_str(&label).ok())
            .unwrap_or_default())
    }

    async fn build(&self, making: &Making<'_>, archive: Vec<u8>) -> Result<(), EngineError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| EngineError::Refused {
            what: PREPARE.what(),
            reason: error.to_string(),
        })?;
        let name = format!("{PREPARING}-{}-{}", self.fingerprint, hex(&random));
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        let body = ContainerCreateBody {
            image: Some(making.source_id.to_owned()),
            entrypoint: Some(vec![AGENT_PATH.to_owned()]),
            host_config: Some(HostConfig {
                network_mode: Some("none".into()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        PREPARE
            .run(self.docker.create_container(Some(options), body))
            .await?;
        let built = self.fill(making, &name, archive).await;
        // Whatever came of it; what is left after this is found by its name later.
        let removed = remove(&self.docker, &name).await;
        built.and(removed.map_err(EngineError::from))
    }

    async fn fill(&self, making: &Making<'_>, container: &str, archive: Vec<u8>) -> Result<(), EngineError> {
        let image = making.image;
        for volume in making.volumes {
            if self.has_content(container, volume).await? {
                return Err(bad(
                    image,
                    format!("it has files in its VOLUME {volume}, where a sandbox gets an empty directory"),
                ));
            }
        }
        let options = UploadToContainerOptionsBuilder::default().path("/").build();
        let body = bollard::body_full(archive.into());
        PREPARE
            .run(self.docker.upload_to_container(container, Some(options), body))
            .await?;
        let options = CommitContainerOptionsBuilder::default()
            .container(container)
            .repo(REPOSITORY)
            .tag(making.tag)
            .pause(false)
            .build();
        // Strings always serialise.
        let program = serde_json::to_string(&making.program).unwrap_or_default();
        let config = ContainerConfig {
            user: Some("0:0".into()),
            working_dir: Some(WORK_DIR.into()),
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".into()]),
                ..HealthConfig::default()
            }),
            labels: Some(HashMap::from([
                (SOURCE.to_owned(), image.to_owned()),
                (PROGRAM.to_owned(), program),
            ])),
            ..ContainerConfig::default()
        };
        PREPARE.run(self.docker.commit_container(options, config)).await?;
        Ok(())
    }

    /// Whether a directory of a container has anything in it: one look at the head of its archive.
    async fn has_content(&self, container: &str, directory: &str) -> Result<bool, EngineError> {
        let options = DownloadFromContainerOptionsBuilder::default()
            .path(directory)
            .build();
        let glance = async {
            let mut archive = self.docker.download_from_container(container, Some(options));
            let mut head = Vec::new();
            while head.len() < VOLUME_GLANCE {
                match archive.try_next().await? {
                    Some(chunk) => head.extend_from_slice(&chunk),
                    None => break,
                }
            }
            Ok(head)
        };
        let head = PREPARE.run(glance).await?;
        Ok(second_entry(&head).unwrap_or(true))
    }

    /// Removes what earlier agents and earlier servers left: images that were prepared from the same image
    /// and that no container uses, and containers of preparations that never ended.
    async fn remove_stale(&self, image: &str, current: &str) -> Result<(), Failure> {
        let all = ListContainersOptionsBuilder::default().all(true).build();
        let containers = LIST.run(self.docker.list_containers(Some(all))).await?;
        let filter = HashMap::from([("label", vec![format!("{SOURCE}={image}")])]);
        let options = ListImagesOptionsBuilder::default().filters(&filter).build();
        let images = LIST.run(self.docker.list_images(Some(options))).await?;

        let now = SystemTime::now();
        let prefix = format!("{PREPARING}-{}-", self.fingerprint);
        for name in stale::preparations(&containers, &prefix, now) {
            remove(&self.docker, &name).await?;
        }
        futures_util::stream::iter(stale::images(&images, &containers, current, now))
            .for_each(|id| async move {
                // Not by force: the engine refuses if a container has come to use it meanwhile.
                let removal =
                    self.docker
                        .remove_image(id, None::<bollard::query_parameters::RemoveImageOptions>, None);
                match REMOVE.run(removal).await {
                    Ok(_) => tracing::info!(id, "removed an old prepared image"),
                    Err(failure) => tracing::debug!(id, reason = failure.message(), "an old image stays"),
                }
            })
            .await;
        Ok(())
    }
}

/// Shows an image. Nothing is pulled here: a name that is missing on this host may be anybody's at a registry.
pub(super) async fn inspect(docker: &Docker, image: &str) -> Result<ImageInspect, EngineError> {
    let answer = IMAGE.run(docker.inspect_image(image)).await;
    answer.map_err(|failure| match failure.status() {
        Some(400 | 404) => EngineError::NoImage {
            image: image.to_owned(),
            reason: failure.message().to_owned(),
        },
        _ => failure.into(),
    })
}

/// An image that is being prepared.
struct Making<'a> {
    image: &'a str,
    source_id: &'a str,
    tag: &'a str,
    volumes: &'a [String],
    program: Program,
}

/// What an image says of its program.
fn program_of(source: &ImageInspect) -> Program {
    let Some(config) = source.config.clone() else {
        return Program::default();
    };
    let home = config
        .env
        .iter()
        .flatten()
        .find_map(|variable| variable.strip_prefix("HOME="));
    Program {
        home: home.map(str::to_owned),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        work_dir: config.working_dir.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
    }
}

pub(super) fn bad(image: &str, reason: String) -> EngineError {
    EngineError::BadImage {
        image: image.to_owned(),
        reason,
    }
}

fn check_architecture(image: &str, source: &ImageInspect, agent: &Agent) -> Result<(), EngineError> {
    match source.architecture.as_deref() {
        Some(other) if !other.is_empty() && other != agent.architecture() => Err(bad(
            image,
            format!(
                "it is for {}, the agent is for {}",
                bounded(other),
                agent.architecture()
            ),
        )),
        _ => Ok(()),
    }
}

/// The image's VOLUMEs, in order. Refuses those that would hide what every sandbox needs.
pub(super) fn volumes_of(image: &str, source: &ImageInspect) -> Result<Vec<String>, EngineError> {
    let config = source.config.as_ref();
    let mut volumes = config
        .and_then(|config| config.volumes.clone())
        .unwrap_or_default();
    volumes.sort_unstable();
    for volume in &volumes {
        let below = format!("{}/", volume.trim_end_matches('/'));
        let odd = !volume.starts_with('/') || volume.split('/').any(|part| part == "..");
        if let Some(hidden) = [AGENT_PATH, SOCKET_PATH, WORK_DIR]
            .into_iter()
            .find(|needed| odd || needed.starts_with(&below))
        {
            return Err(bad(
                image,
                format!("its VOLUME {} would hide {hidden}", bounded(volume)),
            ));
        }
    }
    Ok(volumes)
}

/// Whether an archive, cut off somewhere, goes on after its first entry.
fn second_entry(archive: &[u8]) -> io::Result<bool> {
    let mut archive = tar::Archive::new(archive);
    Ok(archive.entries()?.nth(1).is_some())
}

/// Removes a container by force. One that is gone, or going, is none.
pub(super) async fn remove(docker: &Docker, name: &str) -> Result<(), Failure> {
    // The volumes go with it: the engine made one for each VOLUME.
    let options = RemoveContainerOptionsBuilder::default()
        .force(true)
        .v(true)
        .build();
    match REMOVE.run(docker.remove_container(name, Some(options))).await {
        Err(failure) if !matches!(failure.status(), Some(404 | 409)) => Err(failure),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ImageConfig;

    use super::*;

    fn with_volumes(volumes: &[&str]) -> ImageInspect {
        ImageInspect {
            config: Some(ImageConfig {
                volumes: Some(volumes.iter().map(|&volume| volume.to_owned()).collect()),
                ..ImageConfig::default()
            }),
            ..ImageInspect::default()
        }
    }

    #[test]
    fn a_volume_may_not_hide_what_a_sandbox_needs() {
        let fine = ["/var/lib/db", "/mnt/data", "/tmp", "/mnt/data/x"];
        let volumes = volumes_of("image", &with_volumes(&fine)).unwrap();
        assert_eq!(volumes, ["/mnt/data", "/mnt/data/x", "/tmp", "/var/lib/db"]);
        for hiding in [
            "/",
            "/mnt",
            "/mnt/",
            "/run",
            "/.greenroom",
            "/a/../mnt",
            "relative",
        ] {
            let error = volumes_of("image", &with_volumes(&[hiding])).unwrap_err();
            assert!(matches!(error, EngineError::BadImage { .. }), "{hiding}");
        }
        assert!(volumes_of("image", &ImageInspect::default()).unwrap().is_empty());
    }

    fn archive(files: &[&str]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        archive.append_data(&mut header, "volume/", io::empty()).unwrap();
        for file in files {
            let content = vec![7; 40_000];
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, file, &content[..]).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn content_is_seen_at_the_head_of_an_archive() {
        assert!(!second_entry(&archive(&[])).unwrap());
        let full = archive(&["volume/a", "volume/b"]);
        assert!(second_entry(&full).unwrap());
        assert!(second_entry(&full[..VOLUME_GLANCE]).unwrap());
    }
}
