//! A server process that can die at any moment: its view of an engine, which stops in mid-call.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use greenroom::{
    conversation::SessionName,
    engine::{Adoption, Channel, Derivation, Engine, EngineError, Found, Listed, Place, Tombstone, Usage},
    sandbox::{Program, SandboxId, SandboxSpec},
};
use greenroom_protocol::LastWords;
use tokio::{
    io::{copy_bidirectional, duplex},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    fake_engine::{FakeEngine, Op},
    hostile::Hostile,
};

/// What a channel's copy holds in each direction.
const CHANNEL_BYTES: usize = 64 << 10;

/// On which side of a call a server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The call is never made.
    Before,
    /// It takes effect, and nobody hears of it.
    After,
}

/// The engine as one server process sees it. Once the process is dead none of its calls has an effect or
/// comes back, and its channels are closed: what tasks it has left do nothing any more.
#[derive(Clone, Debug)]
pub struct Mortal {
    engine: FakeEngine,
    dead: CancellationToken,
    doom: Arc<Mutex<Option<(Op, When)>>>,
    impostor: Arc<Mutex<Option<(SandboxId, Hostile)>>>,
    ending: Arc<Mutex<Option<Instant>>>,
}

impl Mortal {
    /// A live process.
    pub fn new(engine: &FakeEngine, creator: &str) -> Self {
        Self {
            engine: engine.seen_by(creator),
            dead: CancellationToken::new(),
            doom: Arc::default(),
            impostor: Arc::default(),
            ending: Arc::default(),
        }
    }

    /// It dies now.
    pub fn kill(&self) {
        self.dead.cancel();
    }

    /// It will die at its next call of this kind.
    pub fn dies(&self, op: Op, when: When) {
        *self.doom.lock().unwrap() = Some((op, when));
    }

    pub fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Channels to this sandbox reach another agent than its own.
    pub fn impostor(&self, id: &SandboxId, agent: Hostile) {
        *self.impostor.lock().unwrap() = Some((id.clone(), agent));
    }

    /// For so long, what runs or has ended shows as being on its way out.
    pub fn shows_ending(&self, long: Duration) {
        *self.ending.lock().unwrap() = Some(Instant::now() + long);
    }

    async fn call<T>(
        &self,
        op: Op,
        call: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let doom = self.doom.lock().unwrap().filter(|(doomed, _)| *doomed == op);
        if doom == Some((op, When::Before)) {
            self.kill();
        }
        let outcome = tokio::select! {
            biased;
            () = self.dead.cancelled() => std::future::pending().await,
            outcome = call => outcome,
        };
        if doom.is_some() {
            self.kill();
            std::future::pending().await
        }
        outcome
    }
}

#[async_trait]
impl Engine for Mortal {
    async fn prepare(&self, image: &str) -> Result<String, EngineError> {
        self.call(Op::Prepare, self.engine.prepare(image)).await
    }

    async fn derive(&self, order: &Derivation) -> Result<String, EngineError> {
        self.call(Op::Derive, self.engine.derive(order)).await
    }

    async fn unused_images(&self, wanted: &[Derivation]) -> Result<Vec<String>, EngineError> {
        self.engine.unused_images(wanted).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        self.engine.remove_image(name).await
    }

    async fn program(&self, prepared: &str) -> Result<Program, EngineError> {
        self.engine.program(prepared).await
    }

    async fn last_words(&self, id: &SandboxId) -> Result<Option<LastWords>, EngineError> {
        self.engine.last_words(id).await
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), EngineError> {
        self.call(Op::Create, self.engine.create(id, spec)).await
    }

    async fn start(&self, id: &SandboxId) -> Result<(), EngineError> {
        self.call(Op::Start, self.engine.start(id)).await
    }

    async fn open(&self, id: &SandboxId) -> Result<Channel, EngineError> {
        let impostor = self.impostor.lock().unwrap().clone();
        let mut channel = match impostor.filter(|(whose, _)| whose == id) {
            Some((_, agent)) => self.call(Op::Open, agent.open(id)).await?,
            None => self.call(Op::Open, self.engine.open(id)).await?,
        };
        let (ours, mut theirs) = duplex(CHANNEL_BYTES);
        let dead = self.dead.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = dead.cancelled() => {}
                _ = copy_bidirectional(&mut channel, &mut theirs) => {}
            }
        });
        Ok(Box::new(ours) as Channel)
    }

    async fn adopt(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError> {
        self.call(Op::Adopt, self.engine.adopt(id, name)).await
    }

    async fn put_back(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError> {
        self.call(Op::PutBack, self.engine.put_back(id, name)).await
    }

    async fn strays(&self) -> Result<Vec<SandboxId>, EngineError> {
        self.call(Op::Strays, self.engine.strays()).await
    }

    async fn find(&self, name: &SessionName) -> Result<Found, EngineError> {
        let mut found = self.call(Op::Find, self.engine.find(name)).await?;
        let until = *self.ending.lock().unwrap();
        if until.is_some_and(|until| Instant::now() < until) {
            found.place = match found.place {
                Place::Running(id) | Place::Exited(Tombstone { id, .. }) => Place::Ending(id),
                other @ (Place::Absent | Place::Ending(_)) => other,
            };
        }
        Ok(found)
    }

    async fn set_aside(&self, id: &SandboxId, name: &SessionName) -> Result<(), EngineError> {
        self.call(Op::SetAside, self.engine.set_aside(id, name)).await
    }

    async fn end(&self, id: &SandboxId) -> Result<(), EngineError> {
        self.call(Op::End, self.engine.end(id)).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError> {
        self.call(Op::Destroy, self.engine.destroy(id)).await
    }

    async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        self.call(Op::List, self.engine.list()).await
    }

    async fn spare_memory(&self) -> Result<Option<u64>, EngineError> {
        self.call(Op::Memory, self.engine.spare_memory()).await
    }

    async fn usage(&self, id: &SandboxId) -> Result<Usage, EngineError> {
        self.call(Op::Usage, self.engine.usage(id)).await
    }

    async fn sweep(&self) -> Result<usize, EngineError> {
        self.call(Op::Sweep, self.engine.sweep()).await
    }
}
