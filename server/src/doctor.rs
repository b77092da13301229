//! `greenroom doctor`: finds out whether this host can do what it is configured for, by doing it once.
//!
//! Each check that fails says what to type. What depends on it is left out: it would only fail the same way.

mod report;
mod trial;

use std::sync::Arc;

use self::report::Found;
pub use self::report::Report;
use crate::{
    config::{Config, PoolConfig},
    conversation::Secret,
    engine::{
        Engine as _, EngineError, ListedState,
        docker::{DockerConfig, DockerEngine},
    },
    pool::{PoolSpec, prepare_image},
    serve,
    state_dir::{self, StateDir, StateError},
};

/// Sets the host up; idempotent.
const SETUP: &str = "make setup";

/// Checks everything that a server with this configuration needs, and boots one sandbox of each pool. Nothing
/// stays behind, and a server that runs meanwhile is not disturbed: the trial has a deployment of its own.
pub async fn run(config: &Config) -> Report {
    let mut report = Report::default();
    let Some(secret) = secret(config, &mut report) else {
        return report;
    };
    let trial = DockerConfig {
        deployment: format!("{}-doctor", config.engine.deployment),
        ..config.docker(&secret.fingerprint(), "doctor")
    };
    let engine = match DockerEngine::connect(trial).await {
        Ok(engine) => Arc::new(engine),
        Err(error) => {
            report.bad("engine", error, SETUP);
            return report;
        }
    };
    agent(&engine, &mut report).await;
    let Some(runtimes) = facts(&engine, &mut report).await else {
        return report;
    };
    clear(&engine).await;
    for (name, pool) in &config.pools {
        let spec = serve::spec(config, name, pool);
        if let Some(image) = image(&engine, pool, &spec, &runtimes, &mut report).await {
            trial::boot(&engine, config, name, pool, image, &mut report).await;
        }
    }
    // The trial's cgroup goes as well.
    if let Err(error) = engine.sweep().await {
        tracing::debug!(%error, "a trial's cgroup stays");
    }
    report
}

fn secret(config: &Config, report: &mut Report) -> Option<Secret> {
    let read = || -> Result<Secret, StateError> {
        let state = StateDir::open(&config.state_dir)?;
        match &config.secret_file {
            Some(file) => state_dir::read(file),
            None => state.secret(),
        }
    };
    match read() {
        Ok(secret) => {
            let place = config.state_dir.display();
            report.good("state", format!("{place}, secret {}", secret.fingerprint()));
            Some(secret)
        }
        Err(error) => {
            report.bad(
                "state",
                error,
                "give this user the state directory, or set state_dir",
            );
            None
        }
    }
}

/// What the engine says of itself; answers its runtimes.
async fn facts(engine: &DockerEngine, report: &mut Report) -> Option<Vec<String>> {
    let facts = match engine.facts().await {
        Ok(facts) => facts,
        Err(error) => {
            report.bad("engine", error, SETUP);
            return None;
        }
    };
    let (driver, version) = &facts.cgroups;
    report.good(
        "engine",
        format!(
            "Docker {}, API {}, cgroups v{version} by {driver}",
            facts.version, facts.api
        ),
    );
    if !facts.live_restore {
        let text = "is off: when the engine restarts, every sandbox is lost (set it in daemon.json)";
        report.add("live-restore", Found::Note(text.to_owned()));
    }
    Some(facts.runtimes)
}

async fn agent(engine: &DockerEngine, report: &mut Report) {
    match engine.check_agent().await {
        Ok(text) => report.good("agent", text),
        Err(error) => report.bad("agent", error, "make agent, or set `agent` to where it is"),
    }
}

/// Removes what an earlier trial left that was cut short. One that still runs may be under way beside this.
async fn clear(engine: &DockerEngine) {
    for one in engine.list().await.unwrap_or_default() {
        if matches!(one.state, ListedState::Exited(_)) {
            trial::destroy(engine, &one.id).await;
        }
    }
}

/// Whether a pool's runtime and image are there; answers the prepared image. What the pool adds to it is installed if no
/// server has done it yet.
async fn image(
    engine: &DockerEngine,
    pool: &PoolConfig,
    spec: &PoolSpec,
    runtimes: &[String],
    report: &mut Report,
) -> Option<String> {
    let line = format!("pool {}", spec.name());
    if !runtimes.contains(&pool.runtime) {
        let problem = EngineError::NoRuntime(pool.runtime.clone());
        report.bad(line, problem, SETUP);
        return None;
    }
    match prepare_image(engine, spec).await {
        Ok(image) => {
            report.good(line, format!("{} on {}, {image}", pool.image, pool.runtime));
            Some(image)
        }
        Err(error) => {
            report.bad(line, &error, image_repair(&error, &pool.image));
            None
        }
    }
}

fn image_repair(error: &EngineError, image: &str) -> String {
    match error {
        EngineError::NoImage { .. } if image.starts_with("greenroom/") => "make image".to_owned(),
        EngineError::NoImage { .. } => format!("docker pull {image}, or set the pool's image"),
        EngineError::BadAgent(_) => "make agent".to_owned(),
        EngineError::BadImage { .. } => "set the pool's image to another one".to_owned(),
        EngineError::Install { .. } => {
            "correct the pool's packages, apt or requirements, or how their index is reached: \
             docs/configuration.md"
                .to_owned()
        }
        EngineError::Unreachable(_)
        | EngineError::Timeout { .. }
        | EngineError::NoRuntime(_)
        | EngineError::NoSandbox(_)
        | EngineError::Refused { .. } => SETUP.to_owned(),
    }
}
