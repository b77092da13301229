//! An engine in memory: real agents behind duplex streams, faults by script, all on tokio's clock.
//!
//! It keeps the promises of the `Engine` trait as Docker does, which `contract.rs` checks on both. What it
//! does not have is images: every name but one is there, and prepared as `<name>+agent`,
//! and every package but one.

mod script;
mod world;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use greenroom::{
    conversation::SessionName,
    engine::{Adoption, Channel, Derivation, Engine, EngineError, Found, Listed, Place, Tombstone, Usage},
    sandbox::{Fate, Program, SandboxId, SandboxSpec},
};
use greenroom_agent::kernel::Kernel;
use greenroom_protocol::{Language, LastWords, Platform, RELAY_PREFACE};
use tokio::{
    io::AsyncWriteExt as _,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

pub use self::script::{Fault, Op};
use self::world::{Sandbox, World};
use super::{
    contract::{MISSING_IMAGE, MISSING_PACKAGE},
    kernel::Scripted,
};

/// What every call takes. Long enough that calls interleave, and that one may be dropped half-way.
const CALL: Duration = Duration::from_millis(1);
/// The deadline of every call, as the real engine has one.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a channel holds in each direction, about a pipe.
const CHANNEL_BYTES: usize = 64 << 10;
/// How long a test waits for a state, on its own clock.
const PATIENCE: Duration = Duration::from_secs(600);

type Kernels = dyn Fn(&SandboxSpec) -> Vec<Box<dyn Kernel>> + Send + Sync;

/// An engine as one server process sees it. Clones are the same; [`FakeEngine::seen_by`] is another
/// process's, and [`FakeEngine::of`] another deployment's.
#[derive(Clone)]
pub struct FakeEngine {
    world: Arc<World>,
    kernels: Arc<Kernels>,
    platform: Platform,
    deployment: String,
    creator: String,
}

impl FakeEngine {
    /// An empty engine, whose sandboxes have scripted kernels for Python and bash and prove gVisor.
    pub fn new() -> Self {
        let platform = Platform {
            gvisor: true,
            kernel: "Linux version 4.4.0 (fake)".to_owned(),
            cpus: 1,
            memory_bytes: 512 << 20,
            disk_bytes: 4 << 30,
        };
        Self {
            world: World::new(),
            kernels: Arc::new(|_| {
                [Language::Python, Language::Bash]
                    .map(|language| Box::new(Scripted::new(language)) as Box<dyn Kernel>)
                    .into()
            }),
            platform,
            deployment: "ours".to_owned(),
            creator: "server-1".to_owned(),
        }
    }

    /// The kernels of each sandbox that is started from now on through this handle.
    #[must_use]
    pub fn kernels(
        mut self,
        make: impl Fn(&SandboxSpec) -> Vec<Box<dyn Kernel>> + Send + Sync + 'static,
    ) -> Self {
        self.kernels = Arc::new(make);
        self
    }

    /// Sandboxes that are started through this handle prove nothing.
    #[must_use]
    pub fn without_gvisor(mut self) -> Self {
        self.platform.gvisor = false;
        self
    }

    /// The same engine, seen by another server process.
    #[must_use]
    pub fn seen_by(&self, creator: &str) -> Self {
        Self {
            creator: creator.to_owned(),
            ..self.clone()
        }
    }

    /// The same engine, seen by another deployment.
    #[must_use]
    pub fn of(&self, deployment: &str) -> Self {
        Self {
            deployment: deployment.to_owned(),
            ..self.clone()
        }
    }

    /// The next calls of this kind go wrong like this, in order; those after them go well.
    pub fn script(&self, op: Op, faults: impl IntoIterator<Item = Fault>) {
        self.world.with(|state| state.script.add(op, faults));
    }

    /// Calls of this kind so far.
    pub fn calls(&self, op: Op) -> usize {
        self.world.with(|state| state.script.calls(op))
    }

    /// Whether it can be reached; while it cannot, every call is refused.
    pub fn reachable(&self, reachable: bool) {
        self.world.change(|state| state.reachable = reachable);
    }

    /// What the host has left for sandboxes; unknown unless this was called.
    pub fn memory(&self, spare: u64) {
        self.world.change(|state| state.memory = Some(spare));
    }

    /// Ends a sandbox from outside, or as the kernel of the host would.
    pub fn kill(&self, id: &SandboxId, exit_code: i64, oom_killed: bool) {
        self.world.end(id, exit_code, oom_killed);
    }

    /// Removes a sandbox behind everybody's back.
    pub fn remove(&self, id: &SandboxId) {
        self.world.change(|state| state.sandboxes.remove(id));
    }

    /// Gives a sandbox another name behind everybody's back.
    pub fn displace(&self, id: &SandboxId) {
        let name = format!("moved-{id}");
        self.world
            .change(|state| state.rename(id, name).expect("nobody has it"));
    }

    /// Pauses a sandbox as far as the engine goes: the agent inside is not stopped.
    pub fn pause(&self, id: &SandboxId) {
        self.world.change(|state| state.pause(id));
    }

    /// Breaks every open channel, as a restart of the engine does.
    pub fn break_channels(&self) {
        self.world
            .change(|state| state.sandboxes.values_mut().for_each(Sandbox::break_channels));
    }

    /// The sandboxes that there are, by name, whoever's they are.
    pub fn names(&self) -> BTreeSet<String> {
        self.world
            .with(|state| state.sandboxes.values().map(|s| s.name.clone()).collect())
    }

    /// Channels that are open to a sandbox.
    pub fn channels(&self, id: &SandboxId) -> usize {
        self.world
            .with(|state| state.sandboxes.get(id).map_or(0, Sandbox::channels))
    }

    /// Waits until the engine is as it should be.
    ///
    /// # Panics
    /// It never is.
    pub async fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let mut changes = self.world.changes();
        let wait = async {
            while !is(self) {
                changes.changed().await.expect("the engine is gone");
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("never: {what}\n{self:#?}");
        }
    }

    /// The end of every test: waits until there is no sandbox, and no fault that was scripted in vain.
    ///
    /// # Panics
    /// Something is left.
    pub async fn assert_nothing_left(&self) {
        self.until("no sandbox is left", |engine| engine.names().is_empty())
            .await;
        let unused = self.world.with(|state| state.script.unused());
        assert!(unused.is_empty(), "scripted and never met: {unused:?}");
    }

    /// One call: its moment, its fault if one is scripted, its effect.
    async fn call<T: Send + 'static>(
        &self,
        op: Op,
        effect: impl FnOnce(&World) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (reachable, fault) = self.world.with(|state| (state.reachable, state.script.next(op)));
        sleep(CALL).await;
        if !reachable {
            return Err(EngineError::Unreachable("scripted".to_owned()));
        }
        match fault {
            Fault::None | Fault::DiesAfter(..) => effect(&self.world),
            Fault::Refused => Err(EngineError::Refused {
                what: op.name(),
                reason: "scripted".to_owned(),
            }),
            Fault::Panics => panic!("scripted"),
            Fault::NoImage => Err(EngineError::NoImage {
                image: "scripted".to_owned(),
                reason: "no such image".to_owned(),
            }),
            Fault::NotInstalled => Err(not_installed("scripted".to_owned())),
            Fault::Hangs => late(op).await,
            Fault::HappensLate(after) => {
                let world = Arc::clone(&self.world);
                // Not tied to the call: it happens even if that is dropped.
                drop(tokio::spawn(async move {
                    sleep(after).await;
                    drop(effect(&world));
                }));
                late(op).await
            }
            Fault::HappensUnheard => {
                drop(effect(&self.world));
                late(op).await
            }
        }
    }
}

fn not_installed(image: String) -> EngineError {
    EngineError::Install {
        image,
        command: "`pip install`".to_owned(),
        outcome: "ended with exit code 1".to_owned(),
        words: vec!["No matching distribution found".to_owned()],
    }
}

async fn late<T>(op: Op) -> Result<T, EngineError> {
    sleep(DEADLINE).await;
    Err(EngineError::Timeout {
        what: op.name(),
        seconds: DEADLINE.as_secs(),
    })
}

impl fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.world.with(|state| state.fmt(f))
    }
}

impl FakeEngine {
    async fn name(&self, op: Op, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError> {
        let (id, name) = (id.clone(), name.to_string());
        self.call(op, move |world| {
            world.changing(|state| {
                state.there(&id)?;
                Ok(match state.rename(&id, name) {
                    Ok(()) => Adoption::Adopted,
                    Err(_taken) => Adoption::Taken,
                })
            })
        })
        .await
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn prepare(&self, image: &str) -> Result<String, EngineError> {
        let image = image.to_owned();
        self.call(Op::Prepare, move |_| {
            if image == MISSING_IMAGE {
                return Err(EngineError::NoImage {
                    image,
                    reason: "no such image".to_owned(),
                });
            }
            Ok(format!("{image}+agent"))
        })
        .await
    }

    async fn derive(&self, order: &Derivation) -> Result<String, EngineError> {
        let Derivation {
            image, dependencies, ..
        } = order.clone();
        self.call(Op::Derive, move |_| {
            if image == MISSING_IMAGE {
                return Err(EngineError::NoImage {
                    image,
                    reason: "no such image".to_owned(),
                });
            }
            let mut wished = dependencies.python().iter();
            if wished.any(|package| package.as_str() == MISSING_PACKAGE) {
                return Err(not_installed(image));
            }
            Ok(format!("{image}+{}", dependencies.digest(&image)))
        })
        .await
    }

    async fn unused_images(&self, _: &[Derivation]) -> Result<Vec<String>, EngineError> {
        Ok(Vec::new())
    }

    async fn remove_image(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }

    async fn program(&self, _: &str) -> Result<Program, EngineError> {
        Ok(Program::default())
    }

    async fn last_words(&self, _: &SandboxId) -> Result<Option<LastWords>, EngineError> {
        Ok(None)
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), EngineError> {
        let (id, spec) = (id.clone(), spec.clone());
        let (deployment, creator) = (self.deployment.clone(), self.creator.clone());
        self.call(Op::Create, move |world| {
            world.create(&id, spec, deployment, creator)
        })
        .await
    }

    async fn start(&self, id: &SandboxId) -> Result<(), EngineError> {
        let death = self.world.with(|state| state.script.death());
        let (id, kernels, platform) = (id.clone(), Arc::clone(&self.kernels), self.platform.clone());
        self.call(Op::Start, move |world| {
            world.start(&id, |spec| kernels(spec), platform)?;
            if let Some((after, exit_code)) = death {
                world.doom(&id, after, exit_code);
            }
            Ok(())
        })
        .await
    }

    async fn open(&self, id: &SandboxId) -> Result<Channel, EngineError> {
        let id = id.clone();
        self.call(Op::Open, move |world| {
            let (ours, mut theirs) = tokio::io::duplex(CHANNEL_BYTES);
            world.changing(|state| {
                let running = state.running(&id)?;
                let agent = running.agent.clone();
                let relay = tokio::spawn(async move {
                    if theirs.write_all(RELAY_PREFACE).await.is_ok() {
                        agent.serve(theirs).await;
                    }
                });
                running.relays.push(AbortOnDropHandle::new(relay));
                Ok(Box::new(ours) as Channel)
            })
        })
        .await
    }

    async fn adopt(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError> {
        self.name(Op::Adopt, id, name).await
    }

    async fn put_back(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError> {
        self.name(Op::PutBack, id, name).await
    }

    async fn strays(&self) -> Result<Vec<SandboxId>, EngineError> {
        let deployment = self.deployment.clone();
        self.call(Op::Strays, move |world| {
            Ok(world.with(|state| state.strays(&deployment)))
        })
        .await
    }

    async fn find(&self, name: &SessionName) -> Result<Found, EngineError> {
        let (own, aside) = (name.to_string(), format!("{name}."));
        let deployment = self.deployment.clone();
        self.call(Op::Find, move |world| {
            world.changing(|state| {
                let id = state.named(&own);
                let place = id.map_or(Place::Absent, |id| match state.wake(&id) {
                    None => Place::Running(id),
                    Some(fate) => Place::Exited(Tombstone { id, fate }),
                });
                let tombstone = state
                    .sandboxes
                    .iter()
                    .filter(|(_, sandbox)| sandbox.name.starts_with(&aside))
                    .filter_map(|(id, sandbox)| Some((id.clone(), sandbox.fate()?)))
                    .map(|(id, fate): (SandboxId, Fate)| Tombstone { id, fate })
                    .max_by_key(|tombstone| tombstone.fate.finished_at);
                let strays = state.strays(&deployment);
                Ok(Found {
                    place,
                    tombstone,
                    strays,
                })
            })
        })
        .await
    }

    async fn set_aside(&self, id: &SandboxId, name: &SessionName) -> Result<(), EngineError> {
        let (id, aside) = (id.clone(), format!("{name}.{id}"));
        self.call(Op::SetAside, move |world| {
            world.changing(|state| match state.sandboxes.get(&id) {
                Some(sandbox) if sandbox.name != aside => {
                    state.rename(&id, aside).map_err(|taken| EngineError::Refused {
                        what: Op::SetAside.name(),
                        reason: taken,
                    })
                }
                _ => Ok(()),
            })
        })
        .await
    }

    async fn end(&self, id: &SandboxId) -> Result<(), EngineError> {
        let id = id.clone();
        self.call(Op::End, move |world| {
            world.end(&id, 137, false);
            Ok(())
        })
        .await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError> {
        let id = id.clone();
        self.call(Op::Destroy, move |world| {
            world.change(|state| state.sandboxes.remove(&id));
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        let deployment = self.deployment.clone();
        self.call(Op::List, move |world| {
            Ok(world.with(|state| {
                state
                    .sandboxes
                    .iter()
                    .filter(|(_, sandbox)| sandbox.deployment == deployment)
                    .map(|(id, sandbox)| sandbox.listed(id))
                    .collect()
            }))
        })
        .await
    }

    async fn spare_memory(&self) -> Result<Option<u64>, EngineError> {
        self.call(Op::Memory, |world| Ok(world.with(|state| state.memory)))
            .await
    }

    async fn usage(&self, id: &SandboxId) -> Result<Usage, EngineError> {
        let id = id.clone();
        self.call(Op::Usage, move |world| {
            world.changing(|state| state.running(&id).map(|_| Usage::default()))
        })
        .await
    }

    async fn sweep(&self) -> Result<usize, EngineError> {
        self.call(Op::Sweep, |_| Ok(0)).await
    }
}
