//! Containers that are removed however things go.

use bollard::Docker;

use super::super::image::remove;

/// A container that goes when this does. What cannot be removed now is found by its name or label later.
pub(super) struct Scrap {
    docker: Docker,
    name: String,
    removed: bool,
}

impl Scrap {
    /// Takes a container on before it is created: a create that is dropped may come true all the same.
    pub(super) const fn new(docker: Docker, name: String) -> Self {
        Self {
            docker,
            name,
            removed: false,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes it, and waits until it is gone.
    pub(super) async fn remove(mut self) {
        if let Err(failure) = remove(&self.docker, &self.name).await {
            tracing::warn!(container = self.name, reason = failure.message(), "stays for now");
        }
        self.removed = true;
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let (docker, name) = (self.docker.clone(), std::mem::take(&mut self.name));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(async move {
                if let Err(failure) = remove(&docker, &name).await {
                    tracing::warn!(container = name, reason = failure.message(), "stays for now");
                }
            }));
        }
    }
}
