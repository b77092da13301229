//! A pool's image, made ready: what the pool adds to it is installed, then the engine prepares what came of that.

use std::time::Duration;

use tokio::time::timeout;

use super::PoolSpec;
use crate::{
    engine::{Derivation, Engine, EngineError},
    sandbox::Dependencies,
};

/// Preparing an image copies it at most once; the largest take minutes.
const PREPARE: Duration = Duration::from_secs(600);

/// What installers have at least: they run once, and a compiler wants more than a sandbox does. Processors are the
/// pool's, since an engine refuses more than there are.
const MEMORY_BYTES: u64 = 2 << 30;

/// What a pool adds to its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Packages.
    pub dependencies: Dependencies,
    /// How long their installation may take.
    pub deadline: Duration,
}

/// Makes a pool's image ready and answers its name, or why there is none: the whole truth about whether the pool could
/// have sandboxes, and all that has to be known before it takes calls. Cheap where it was done before, by whomever;
/// otherwise it may take as long as the pool's [`Install::deadline`]. Dropped, it leaves nothing behind.
///
/// # Errors
/// [`EngineError::Install`] where packages cannot be installed; the rest as [`Engine::prepare`].
pub async fn prepare_image(engine: &dyn Engine, spec: &PoolSpec) -> Result<String, EngineError> {
    let image = match derivation(spec) {
        // The engine bounds it by the deadline.
        Some(order) => engine.derive(&order).await?,
        None => spec.sandbox.image.clone(),
    };
    let overdue = EngineError::Timeout {
        what: "prepare its image",
        seconds: PREPARE.as_secs(),
    };
    timeout(PREPARE, engine.prepare(&image))
        .await
        .unwrap_or(Err(overdue))
}

/// What a pool orders of an engine, where it adds anything to its image.
pub(crate) fn derivation(spec: &PoolSpec) -> Option<Derivation> {
    let install = spec.install.as_ref()?;
    Some(Derivation {
        pool: spec.name().clone(),
        image: spec.sandbox.image.clone(),
        dependencies: install.dependencies.clone(),
        runtime: spec.sandbox.runtime.clone(),
        cpu_millis: spec.sandbox.cpu_millis,
        memory_bytes: spec.sandbox.memory_bytes.max(MEMORY_BYTES),
        deadline: install.deadline,
    })
}
