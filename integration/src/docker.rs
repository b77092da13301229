//! The engine seen from outside: what a deployment left on it, and how to break it.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use anyhow::{Context, Result};
use bollard::{
    API_DEFAULT_VERSION, Docker as Api,
    errors::Error,
    models::{ContainerSummary, ContainerSummaryStateEnum},
    query_parameters::{
        ListContainersOptionsBuilder, ListImagesOptions, RemoveContainerOptionsBuilder,
        RemoveImageOptionsBuilder,
    },
};

/// For one request to a private engine.
const TIMEOUT_SECONDS: u64 = 60;

/// A connection to the engine that the server under test uses as well.
#[derive(Debug)]
pub struct Docker(Api);

/// What an engine knows of a deployment's containers.
pub(crate) struct Known {
    /// By its ids, those that run or may begin to.
    pub(crate) running: BTreeSet<String>,
    /// Whether each was started.
    pub(crate) begun: bool,
}

impl Docker {
    /// Connects, and says what to type where there is no engine.
    ///
    /// # Errors
    /// No engine answers.
    pub async fn connect() -> Result<Self> {
        let api = Api::connect_with_defaults()?;
        api.ping()
            .await
            .context("no Docker engine answers: type `make setup`")?;
        Ok(Self(api))
    }

    /// Connects to another engine.
    ///
    /// # Errors
    /// No engine answers there.
    pub async fn at(socket: &Path) -> Result<Self> {
        let socket = socket.to_str().context("a path in UTF-8")?;
        let api = Api::connect_with_unix(socket, TIMEOUT_SECONDS, API_DEFAULT_VERSION)?
            .negotiate_version()
            .await?;
        Ok(Self(api))
    }

    /// Every container of a deployment, by its names.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn containers(&self, deployment: &str) -> Result<Vec<ContainerSummary>> {
        let filters = HashMap::from([("label", vec!["greenroom.id"])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let all = self.0.list_containers(Some(options)).await?;
        Ok(all.into_iter().filter(|c| belongs(c, deployment)).collect())
    }

    /// Takes images away by their names, whoever uses them.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn untag(&self, prefix: &str) -> Result<()> {
        let all = self.0.list_images(None::<ListImagesOptions>).await?;
        let names = all.iter().flat_map(|image| &image.repo_tags);
        for name in names.filter(|name| name.starts_with(prefix)) {
            let force = RemoveImageOptionsBuilder::new().force(true).build();
            self.0.remove_image(name, Some(force), None).await?;
        }
        Ok(())
    }

    /// The engine's ids of every container of a deployment.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn ids(&self, deployment: &str) -> Result<BTreeSet<String>> {
        let containers = self.containers(deployment).await?;
        Ok(containers
            .into_iter()
            .filter_map(|container| container.id)
            .collect())
    }

    /// Those of them that have not ended, or have not begun: an engine that was killed may be wrong about others.
    ///
    /// # Errors
    /// The engine does not answer.
    pub(crate) async fn known(&self, deployment: &str) -> Result<Known> {
        use ContainerSummaryStateEnum as State;
        let containers = self.containers(deployment).await?;
        let running = containers
            .iter()
            .filter(|one| !matches!(one.state, Some(State::EXITED | State::DEAD)));
        Ok(Known {
            running: running.filter_map(|one| one.id.clone()).collect(),
            begun: containers.iter().all(|one| one.state != Some(State::CREATED)),
        })
    }

    /// How many containers of a deployment run.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn running(&self, deployment: &str) -> Result<usize> {
        let mut containers = self.containers(deployment).await?;
        containers.retain(|container| container.state == Some(ContainerSummaryStateEnum::RUNNING));
        Ok(containers.len())
    }

    /// Running containers of a deployment that no conversation ever had.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn unadopted(&self, deployment: &str) -> Result<Vec<String>> {
        let mut containers = self.containers(deployment).await?;
        containers.retain(|container| container.state == Some(ContainerSummaryStateEnum::RUNNING));
        Ok(containers
            .iter()
            .filter_map(name)
            .filter(|name| name.starts_with("grs-"))
            .collect())
    }

    /// Removes every container of a deployment.
    ///
    /// # Errors
    /// One could not be removed.
    pub async fn sweep(&self, deployment: &str) -> Result<()> {
        for container in self.containers(deployment).await? {
            self.remove(&container.id.unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Removes one container as `docker rm -f` does, and thaws it first: else what is in it would stay.
    ///
    /// # Errors
    /// The engine refused.
    pub async fn remove(&self, id: &str) -> Result<()> {
        // Mostly it is not frozen, and that is what the engine says.
        drop(self.0.unpause_container(id).await);
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.0.remove_container(id, Some(options)).await {
            // Gone, or on its way: whoever else removes it was first.
            Err(Error::DockerResponseServerError {
                status_code: 404 | 409,
                ..
            }) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// The engine's own API, for what a test breaks by hand.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.0
    }
}

fn belongs(container: &ContainerSummary, deployment: &str) -> bool {
    let labels = container.labels.as_ref();
    labels
        .and_then(|l| l.get("greenroom.deployment"))
        .is_some_and(|label| label.contains(deployment))
}

fn name(container: &ContainerSummary) -> Option<String> {
    Some(
        container
            .names
            .as_ref()?
            .first()?
            .trim_start_matches('/')
            .to_owned(),
    )
}
