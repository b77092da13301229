//! A pool over the fake engine, and how a story about it ends.

use std::{
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use greenroom::{
    conversation::{ConversationId, PoolName, Principal, Secret, SessionKey, SessionName},
    engine::{Engine, Listed},
    pool::{Census, Pool, PoolEvent, PoolObserver, PoolSpec},
    sandbox::SandboxId,
};
use tokio::time::{Instant, timeout};

use super::fake_engine::FakeEngine;

/// How long a state is waited for, on the test's own clock.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A pool named `python` that keeps `warm`, of at most `max`, two boots at a time.
pub fn pool_spec(warm: usize, max: usize) -> PoolSpec {
    PoolSpec {
        warm,
        max,
        parallel_boots: 2,
        ..PoolSpec::new(super::spec())
    }
}

/// Remembers what it heard.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Vec<PoolEvent>>);

impl PoolObserver for Heard {
    fn observe(&self, event: PoolEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Heard {
    pub fn count(&self, is: impl Fn(&PoolEvent) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| is(event)).count()
    }
}

/// A pool under test.
#[derive(Debug)]
pub struct Bench {
    pub engine: FakeEngine,
    pub pool: Pool,
    pub heard: Arc<Heard>,
}

impl Bench {
    pub fn start(engine: &FakeEngine, spec: PoolSpec) -> Self {
        let heard = Arc::new(Heard::default());
        let observer = Arc::clone(&heard) as Arc<dyn PoolObserver>;
        Self {
            engine: engine.clone(),
            pool: Pool::start(spec, Arc::new(engine.clone()), observer),
            heard,
        }
    }

    pub fn census(&self) -> Census {
        self.pool.census().borrow().clone()
    }

    /// Waits until the census is as it should be.
    ///
    /// # Panics
    /// It never is.
    pub async fn until(&self, what: &str, is: impl FnMut(&Census) -> bool) -> Census {
        let mut census = self.pool.census();
        match timeout(PATIENCE, census.wait_for(is)).await {
            Ok(Ok(seen)) => seen.clone(),
            Ok(Err(_)) => panic!("the keeper is gone, waiting for: {what}"),
            Err(_) => panic!("never: {what}\n{:#?}\n{:#?}", self.census(), self.engine),
        }
    }

    /// Waits until as many are warm as are kept, and nothing else is held.
    pub async fn settled(&self) -> Census {
        let warm = self.pool.spec().warm;
        self.until("settled", |census| {
            census.counts.warm == warm && census.counts.held() == warm && census.waiting == 0
        })
        .await
    }

    /// Claims one, waiting for as long as the spec lets it.
    pub async fn claim(&self) -> Result<greenroom::pool::Claim, greenroom::pool::ClaimError> {
        self.pool
            .claim(&Principal::Local, Instant::now() + PATIENCE)
            .await
    }

    /// Claims one and makes it a session's.
    pub async fn adopted(&self, conversation: &str) -> greenroom::guest::Guest {
        let claim = self.claim().await.unwrap();
        claim.adopt(&session(conversation)).await.unwrap()
    }

    /// Every sandbox on the engine.
    pub async fn listed(&self) -> Vec<Listed> {
        self.engine.list().await.unwrap()
    }

    /// Ends the conversations of a story.
    pub async fn end_sessions(&self) {
        for sandbox in self.listed().await {
            if sandbox.adopted {
                self.engine.destroy(&sandbox.id).await.unwrap();
            }
        }
    }

    /// The end of every story: the pool is closed, its books add up, and nothing is left.
    pub async fn end(self) {
        let last = self.pool.close(PATIENCE).await;
        assert_eq!(last.counts.held(), 0, "{last:#?}");
        let out = last.counts.adopted + last.counts.let_go + last.counts.gone;
        assert_eq!(last.counts.begun, out, "{last:#?}");
        self.engine.assert_nothing_left().await;
    }
}

/// The name of a conversation's session.
pub fn session(conversation: &str) -> SessionName {
    Secret::new([7; 32]).session_name(&SessionKey {
        pool: PoolName::parse("python").unwrap(),
        principal: Principal::Local,
        conversation: ConversationId::parse(conversation).unwrap(),
    })
}

/// The ids of a list, sorted.
pub fn ids(listed: &[Listed]) -> Vec<SandboxId> {
    let mut ids: Vec<_> = listed.iter().map(|sandbox| sandbox.id.clone()).collect();
    ids.sort();
    ids
}

/// Drops a future after it was polled so often, unless it is done by then.
pub async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        let Some(rest) = left.checked_sub(1) else {
            return Poll::Ready(None);
        };
        left = rest;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
