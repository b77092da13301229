//! What is on the engine, whoever asks: sandboxes, their names and what they do.

use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime},
};

use greenroom::{
    engine::{EngineError, Listed, ListedState},
    sandbox::{Fate, SandboxId, SandboxSpec},
};
use greenroom_agent::{
    Agent, Parts,
    child::Quarters,
    files::{FileUser, Files},
    kernel::Kernel,
};
use greenroom_protocol::Platform;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use super::script::Script;

/// The engine's state, and a bell that rings with every change of it.
pub(super) struct World {
    me: Weak<Self>,
    state: Mutex<State>,
    bell: watch::Sender<()>,
    /// The wall clock at the test's beginning. Time goes on from there as tokio's clock does.
    epoch: (SystemTime, Instant),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<SandboxId, Sandbox>,
    pub(super) script: Script,
    pub(super) reachable: bool,
    pub(super) memory: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) name: String,
    pub(super) deployment: String,
    spec: SandboxSpec,
    creator: String,
    doing: Doing,
    created_at: SystemTime,
    started_at: Option<SystemTime>,
}

#[derive(Debug)]
pub(super) enum Doing {
    Created,
    Running(Running),
    Paused(Running),
    Exited(Fate),
}

/// A live agent and what hangs on it.
pub(super) struct Running {
    pub(super) agent: Agent,
    pub(super) relays: Vec<AbortOnDropHandle<()>>,
    _watcher: AbortOnDropHandle<()>,
    _work_dir: TempDir,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            state: Mutex::new(State {
                sandboxes: BTreeMap::new(),
                script: Script::default(),
                reachable: true,
                memory: None,
            }),
            bell: watch::Sender::new(()),
            epoch: (SystemTime::now(), Instant::now()),
        })
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = self.with(change);
        self.bell.send_replace(());
        done
    }

    /// As [`World::change`], for changes that can be refused.
    pub(super) fn changing<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.change(change)
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }

    fn now(&self) -> SystemTime {
        self.epoch.0 + self.epoch.1.elapsed()
    }

    pub(super) fn create(
        &self,
        id: &SandboxId,
        spec: SandboxSpec,
        deployment: String,
        creator: String,
    ) -> Result<(), EngineError> {
        let sandbox = Sandbox {
            name: id.to_string(),
            deployment,
            spec,
            creator,
            doing: Doing::Created,
            created_at: self.now(),
            started_at: None,
        };
        self.changing(|state| {
            if state.named(id.as_str()).is_some() {
                return Err(EngineError::Refused {
                    what: "create a sandbox",
                    reason: format!("the name {id} is in use"),
                });
            }
            state.sandboxes.insert(id.clone(), sandbox);
            Ok(())
        })
    }

    pub(super) fn start(
        &self,
        id: &SandboxId,
        kernels: impl FnOnce(&SandboxSpec) -> Vec<Box<dyn Kernel>>,
        platform: Platform,
    ) -> Result<(), EngineError> {
        let now = self.now();
        self.changing(|state| {
            let sandbox = state.there(id)?;
            if !matches!(sandbox.doing, Doing::Created) {
                return Ok(());
            }
            let failed = |error: std::io::Error| EngineError::Refused {
                what: "start a sandbox",
                reason: error.to_string(),
            };
            let work_dir = TempDir::new().map_err(failed)?;
            let parts = Parts {
                kernels: kernels(&sandbox.spec),
                files: Files::start(&work_dir.path().to_string_lossy(), FileUser::Own).map_err(failed)?,
                quarters: Quarters::new(&sandbox.spec.agent, std::path::PathBuf::new()),
                platform,
            };
            let agent = Agent::start(&sandbox.spec.agent, parts);
            let watcher = tokio::spawn(watch_end(Weak::clone(&self.me), id.clone(), agent.clone()));
            sandbox.started_at = Some(now);
            sandbox.doing = Doing::Running(Running {
                agent,
                relays: Vec::new(),
                _watcher: AbortOnDropHandle::new(watcher),
                _work_dir: work_dir,
            });
            Ok(())
        })
    }

    /// Ends a sandbox after a while, if it is still there.
    pub(super) fn doom(&self, id: &SandboxId, after: Duration, exit_code: i64) {
        let (world, id) = (Weak::clone(&self.me), id.clone());
        drop(tokio::spawn(async move {
            sleep(after).await;
            if let Some(world) = world.upgrade() {
                world.end(&id, exit_code, false);
            }
        }));
    }

    pub(super) fn end(&self, id: &SandboxId, exit_code: i64, oom_killed: bool) {
        let fate = Fate {
            exit_code,
            oom_killed,
            finished_at: self.now(),
        };
        self.change(|state| {
            if let Some(sandbox) = state.sandboxes.get_mut(id)
                && matches!(sandbox.doing, Doing::Running(_) | Doing::Paused(_))
            {
                sandbox.doing = Doing::Exited(fate);
            }
        });
    }
}

/// Waits for PID 1 to exit.
async fn watch_end(world: Weak<World>, id: SandboxId, agent: Agent) {
    let reason = agent.ended().await;
    drop(agent);
    if let Some(world) = world.upgrade() {
        world.end(&id, i64::from(reason.exit_code()), false);
    }
}

impl State {
    pub(super) fn named(&self, name: &str) -> Option<SandboxId> {
        let mut all = self.sandboxes.iter();
        all.find(|(_, sandbox)| sandbox.name == name)
            .map(|(id, _)| id.clone())
    }

    /// What runs under a name that Greenroom gives to none.
    pub(super) fn strays(&self, deployment: &str) -> Vec<SandboxId> {
        let is_stray = |sandbox: &Sandbox| {
            let is_ours = sandbox.name.starts_with("gr-") || sandbox.name.starts_with("grs-");
            !is_ours && sandbox.deployment == deployment && matches!(sandbox.doing, Doing::Running(_))
        };
        let strays = self.sandboxes.iter().filter(|(_, sandbox)| is_stray(sandbox));
        strays.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn there(&mut self, id: &SandboxId) -> Result<&mut Sandbox, EngineError> {
        self.sandboxes
            .get_mut(id)
            .ok_or_else(|| EngineError::NoSandbox(id.clone()))
    }

    pub(super) fn running(&mut self, id: &SandboxId) -> Result<&mut Running, EngineError> {
        match &mut self.there(id)?.doing {
            Doing::Running(running) => Ok(running),
            Doing::Created | Doing::Paused(_) | Doing::Exited(_) => Err(EngineError::NoSandbox(id.clone())),
        }
    }

    /// Gives a sandbox another name, or says whose it is.
    pub(super) fn rename(&mut self, id: &SandboxId, name: String) -> Result<(), String> {
        if let Some(holder) = self.named(&name).filter(|holder| holder != id) {
            return Err(format!("{name} is the name of {holder}"));
        }
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.name = name;
        }
        Ok(())
    }

    pub(super) fn pause(&mut self, id: &SandboxId) {
        let sandbox = self.sandboxes.get_mut(id).expect("a sandbox to pause");
        sandbox.doing = match mem::replace(&mut sandbox.doing, Doing::Created) {
            Doing::Running(running) => Doing::Paused(running),
            other @ (Doing::Created | Doing::Paused(_) | Doing::Exited(_)) => other,
        };
    }

    /// Wakes a sandbox if it was paused; one that does not run has a fate. One that never ran has ended as
    /// far as a session goes, when it was created.
    pub(super) fn wake(&mut self, id: &SandboxId) -> Option<Fate> {
        let sandbox = self.sandboxes.get_mut(id).expect("a sandbox to wake");
        sandbox.doing = match mem::replace(&mut sandbox.doing, Doing::Created) {
            Doing::Paused(running) => Doing::Running(running),
            other @ (Doing::Created | Doing::Running(_) | Doing::Exited(_)) => other,
        };
        match sandbox.doing {
            Doing::Running(_) | Doing::Paused(_) => None,
            Doing::Exited(fate) => Some(fate),
            Doing::Created => Some(Fate {
                exit_code: 0,
                oom_killed: false,
                finished_at: sandbox.created_at,
            }),
        }
    }
}

impl Sandbox {
    pub(super) fn fate(&self) -> Option<Fate> {
        match self.doing {
            Doing::Exited(fate) => Some(fate),
            Doing::Created | Doing::Running(_) | Doing::Paused(_) => None,
        }
    }

    pub(super) fn listed(&self, id: &SandboxId) -> Listed {
        Listed {
            id: id.clone(),
            pool: self.spec.pool.clone(),
            creator: self.creator.clone(),
            state: match self.doing {
                Doing::Created => ListedState::Created,
                Doing::Running(_) | Doing::Paused(_) => ListedState::Running,
                Doing::Exited(fate) => ListedState::Exited(fate),
            },
            adopted: self.name != id.as_str(),
            created_at: self.created_at,
            stay: self.spec.stay,
            started_at: self.started_at,
        }
    }

    pub(super) fn break_channels(&mut self) {
        if let Doing::Running(running) | Doing::Paused(running) = &mut self.doing {
            running.relays.clear();
        }
    }

    pub(super) fn channels(&self) -> usize {
        match &self.doing {
            Doing::Running(running) | Doing::Paused(running) => {
                running.relays.iter().filter(|relay| !relay.is_finished()).count()
            }
            Doing::Created | Doing::Exited(_) => 0,
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("relays", &self.relays.len())
            .finish_non_exhaustive()
    }
}
