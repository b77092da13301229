//! What this machine shows where the engine is on it: the cgroup of all sandboxes, and what runs without a container.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::Path,
    sync::{MutexGuard, PoisonError},
};

use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};

use super::{
    DockerEngine, call,
    listing::{self, Doing},
    memory,
    whereabouts::Whereabouts,
};
use crate::engine::EngineError;

impl DockerEngine {
    /// Limits what all sandboxes together may have, where this process may. Docker makes their cgroup with the first
    /// sandbox, so the limit comes with the second boot.
    pub(super) async fn limit_all(&self, bytes: u64) {
        let Some(found) = self.find_whereabouts().await else {
            return;
        };
        if let Err(error) = memory::limit(&found.memory, bytes) {
            tracing::debug!(%error, "all sandboxes together have no limit on memory");
        }
    }

    /// Where all sandboxes are, as it was found once, or is found now by one of them.
    async fn find_whereabouts(&self) -> Option<Whereabouts> {
        let known = self.whereabouts().clone();
        if let Some(known) = known.filter(|known| known.memory.is_dir()) {
            return Some(known);
        }
        let found = self.find_parent().await;
        self.whereabouts().clone_from(&found);
        found
    }

    pub(super) fn whereabouts(&self) -> MutexGuard<'_, Option<Whereabouts>> {
        self.whereabouts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine does not remove it after the last sandbox. Where something is in it still, it stays known.
    fn remove_parent(&self, found: Option<&Whereabouts>) {
        self.leftovers.remove_parent(found);
        if found.is_some_and(|found| !found.memory.is_dir()) {
            self.whereabouts().take();
        }
    }

    /// The cgroup of all sandboxes: by one that runs, or by what the engine has forgotten and runs on.
    async fn find_parent(&self) -> Option<Whereabouts> {
        let name = self.leftovers.parent().as_str();
        let found = self.by_one_that_runs().await;
        // Else it would be somebody else's cgroup that is limited.
        let found = found.filter(|found| found.is_called(name));
        found.or_else(|| Whereabouts::among(Path::new("/proc"), name))
    }

    async fn by_one_that_runs(&self) -> Option<Whereabouts> {
        let ours = format!("{}={}", listing::DEPLOYMENT, self.deployment);
        let rows = self.rows("label", vec![ours]).await.ok()?;
        let running = rows.into_iter().find(|row| row.doing == Doing::Running)?;
        let look = self
            .docker
            .inspect_container(&running.container, None::<InspectContainerOptions>);
        let pid = call::INSPECT.run(look).await.ok()?.state?.pid?;
        Whereabouts::by(pid)
    }

    /// Kills the processes of a sandbox that the engine has not ended in time. Any other failure is passed on.
    pub(super) fn end_from_outside(&self, container: &str, failure: EngineError) -> Result<(), EngineError> {
        if !self.local || !matches!(failure, EngineError::Timeout { .. }) {
            return Err(failure);
        }
        tracing::warn!(container, "a sandbox that hangs is killed from outside");
        self.kill_all_of(container).map_err(|error| {
            tracing::warn!(container, %error, "its processes could not be found");
            failure
        })
    }

    fn kill_all_of(&self, container: &str) -> io::Result<()> {
        let found = self.whereabouts().clone();
        self.leftovers.kill(container, found.as_ref())
    }

    /// Ends what may run on of a container that is gone: an engine that was killed while it started one does not know
    /// that it runs, nor ends what does.
    pub(super) fn end_rest_of(&self, container: &str) {
        if self.local
            && let Err(error) = self.kill_all_of(container)
        {
            tracing::debug!(container, %error, "what may run of it could not be found");
        }
    }

    /// Ends what runs on this machine without a container, and answers how many.
    pub(super) async fn sweep_leftovers(&self) -> Result<usize, EngineError> {
        if !self.local {
            return Ok(0);
        }
        let found = self.find_whereabouts().await;
        let unreadable = |error: io::Error| EngineError::Refused {
            what: "read its cgroups",
            reason: error.to_string(),
        };
        let mut on_disk = self.leftovers.on_disk(found.as_ref()).map_err(unreadable)?;
        let shims = self.leftovers.shims();
        // After the cgroups and the shims, so that whatever came to be in between has an owner.
        let all = ListContainersOptionsBuilder::default().all(true).build();
        let containers = call::LIST.run(self.docker.list_containers(Some(all))).await?;
        if !containers.iter().any(|one| listing::is_of(one, &self.deployment)) {
            self.remove_parent(found.as_ref());
        }
        let listed: HashSet<String> = containers.iter().filter_map(|one| one.id.clone()).collect();
        // An engine that was killed may take one for ended that runs on.
        let running = containers.into_iter().filter(listing::has_processes);
        let owned: HashSet<String> = running.filter_map(|one| one.id).collect();
        let mut due: BTreeSet<String> = self.leftovers.due_shims(shims, &listed).into_iter().collect();
        due.extend(self.leftovers.due(on_disk.keys().cloned().collect(), &owned));
        for container in &due {
            tracing::warn!(container, "ending what the engine left behind");
            self.leftovers
                .end(container, &on_disk.remove(container).unwrap_or_default());
        }
        Ok(due.len())
    }
}
