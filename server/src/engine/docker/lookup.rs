//! What containers there are, and what became of them.

use std::{collections::HashMap, time::SystemTime};

use bollard::{
    models::ContainerSummary,
    query_parameters::{InspectContainerOptions, KillContainerOptions, ListContainersOptionsBuilder},
};

use super::{
    DockerEngine,
    call::{self, Failure},
    listing::{self, Doing, Row},
};
use crate::{
    engine::{EngineError, Listed, ListedState, Place, Tombstone},
    sandbox::{Fate, SandboxId},
};

impl DockerEngine {
    /// Containers in any state, by one of Docker's filters: any of its values will do.
    pub(super) async fn containers(
        &self,
        filter: &str,
        values: Vec<String>,
    ) -> Result<Vec<ContainerSummary>, Failure> {
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&HashMap::from([(filter, values)]))
            .build();
        call::LIST.run(self.docker.list_containers(Some(options))).await
    }

    /// The containers of ours among them.
    pub(super) async fn rows(&self, filter: &str, values: Vec<String>) -> Result<Vec<Row>, Failure> {
        let containers = self.containers(filter, values).await?;
        let rows: Vec<Row> = containers.into_iter().filter_map(Row::read).collect();
        for row in &rows {
            self.known.meet(&row.id, &row.container);
        }
        Ok(rows)
    }

    pub(super) async fn row(&self, id: &SandboxId) -> Result<Option<Row>, Failure> {
        let rows = self.rows("label", vec![format!("{}={id}", listing::ID)]).await?;
        Ok(rows.into_iter().next())
    }

    /// Takes those under foreign names out, and answers the running ones of this deployment.
    pub(super) fn take_strays(&self, rows: &mut Vec<Row>) -> Vec<SandboxId> {
        let strays = rows.extract_if(.., |row| listing::is_foreign(&row.name));
        let strays = strays.filter(|row| row.doing == Doing::Running && row.deployment == self.deployment);
        strays.map(|row| row.id).collect()
    }

    /// The container of a sandbox.
    pub(super) async fn container(&self, id: &SandboxId) -> Result<String, EngineError> {
        if let Some(container) = self.known.container(id) {
            return Ok(container);
        }
        let row = self.row(id).await?;
        row.map(|row| row.container)
            .ok_or_else(|| EngineError::NoSandbox(id.clone()))
    }

    /// How an ended sandbox ended; `None` if it is gone by now.
    pub(super) async fn fate(&self, row: &Row) -> Result<Option<Fate>, EngineError> {
        if let Some(fate) = self.known.fate(&row.id) {
            return Ok(Some(fate));
        }
        let look = self
            .docker
            .inspect_container(&row.container, None::<InspectContainerOptions>);
        match call::INSPECT.run(look).await {
            Ok(inspected) => {
                let fate = listing::fate(&inspected.state.unwrap_or_default(), row.created_at);
                self.known.ended(&row.id, fate);
                Ok(Some(fate))
            }
            Err(failure) if failure.status() == Some(404) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// When a running sandbox was started. Unknown if the engine is busy with it: one that hangs must not
    /// hold up the list of all the others.
    async fn started_at(&self, row: &Row) -> Option<SystemTime> {
        if let Some(at) = self.known.started_at(&row.id) {
            return Some(at);
        }
        let look = self
            .docker
            .inspect_container(&row.container, None::<InspectContainerOptions>);
        let inspected = call::INSPECT.run(look).await.ok()?;
        let at = listing::started_at(&inspected.state?)?;
        self.known.started(&row.id, at);
        Some(at)
    }

    /// One entry of the list; `None` if the sandbox is gone by now.
    pub(super) async fn listed(&self, row: Row) -> Result<Option<Listed>, EngineError> {
        let (state, started_at) = match row.doing {
            Doing::Created => (ListedState::Created, None),
            Doing::Running | Doing::Paused => (ListedState::Running, self.started_at(&row).await),
            Doing::Ending => (ListedState::Ending, None),
            Doing::Exited => match self.fate(&row).await? {
                Some(fate) => (ListedState::Exited(fate), None),
                None => return Ok(None),
            },
        };
        Ok(Some(Listed {
            adopted: row.adopted(),
            id: row.id,
            pool: row.pool,
            creator: row.creator,
            state,
            created_at: row.created_at,
            started_at,
            stay: row.stay,
        }))
    }

    /// What stands under a session's name. One that was created and never started cannot serve it: it has
    /// ended as far as the session goes.
    pub(super) async fn place(&self, row: &Row) -> Result<Place, EngineError> {
        let id = row.id.clone();
        match row.doing {
            Doing::Running => Ok(Place::Running(id)),
            Doing::Paused => self.thaw(row).await,
            Doing::Ending => Ok(Place::Ending(id)),
            Doing::Created | Doing::Exited => Ok(match self.fate(row).await? {
                Some(fate) => Place::Exited(Tombstone { id, fate }),
                None => Place::Absent,
            }),
        }
    }

    /// Wakes a sandbox that somebody has paused. One that cannot be woken is killed rather than removed:
    /// so its session still hears that it is gone.
    async fn thaw(&self, row: &Row) -> Result<Place, EngineError> {
        let unpaused = call::UNPAUSE
            .run(self.docker.unpause_container(&row.container))
            .await;
        match unpaused {
            Ok(()) => Ok(Place::Running(row.id.clone())),
            Err(failure) => {
                tracing::warn!(sandbox = %row.id, reason = failure.message(), "cannot be unpaused, killing it");
                let kill = self
                    .docker
                    .kill_container(&row.container, None::<KillContainerOptions>);
                call::REMOVE.run(kill).await?;
                Ok(Place::Ending(row.id.clone()))
            }
        }
    }
}
