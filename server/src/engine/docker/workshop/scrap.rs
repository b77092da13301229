//! Containers that are removed however things go, and which were.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bollard::Docker;

use super::super::image::remove;

/// Removed containers that are remembered: a sweep takes them every half minute, and one is made at a time.
const REMEMBERED: usize = 64;

/// Containers that were removed, by the engine's ids, for whoever looks whether something of them runs on: an engine that
/// was killed while it started one does not know that it runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Removed(Arc<Mutex<VecDeque<String>>>);

impl Removed {
    pub(super) fn note(&self, container: String) {
        let mut removed = self.lock();
        if removed.len() == REMEMBERED {
            removed.pop_front();
        }
        removed.push_back(container);
    }

    pub(super) fn take(&self) -> Vec<String> {
        self.lock().drain(..).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container that goes when this does. What cannot be removed now is found by its name or label later.
pub(super) struct Scrap {
    docker: Docker,
    name: String,
    /// The engine's id of it, once that is known.
    container: Option<String>,
    removed: Removed,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    SeenTo,
}

impl Scrap {
    /// Takes a container on before it is created: a create that is dropped may come true all the same.
    pub(super) const fn new(docker: Docker, name: String, removed: Removed) -> Self {
        Self {
            docker,
            name,
            container: None,
            removed,
            state: State::Held,
        }
    }

    /// It was created.
    pub(super) fn is(&mut self, container: String) {
        self.container = Some(container);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes it, and waits until it is gone.
    pub(super) async fn remove(mut self) {
        clear(&self.docker, &self.name, self.container.take(), &self.removed).await;
        self.state = State::SeenTo;
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        if self.state == State::SeenTo {
            return;
        }
        let (docker, removed) = (self.docker.clone(), self.removed.clone());
        let (name, container) = (std::mem::take(&mut self.name), self.container.take());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(async move { clear(&docker, &name, container, &removed).await }));
        }
    }
}

async fn clear(docker: &Docker, name: &str, container: Option<String>, removed: &Removed) {
    match (remove(docker, name).await, container) {
        (Ok(()), Some(container)) => removed.note(container),
        (Ok(()), None) => {}
        (Err(failure), _) => {
            tracing::warn!(container = name, reason = failure.message(), "stays for now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_until_they_are_taken() {
        let removed = Removed::default();
        for n in 0..=REMEMBERED {
            removed.note(n.to_string());
        }
        let taken = removed.take();
        assert_eq!((taken.len(), taken[0].as_str()), (REMEMBERED, "1"));
        assert!(removed.take().is_empty());
    }
}
