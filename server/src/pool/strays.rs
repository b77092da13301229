//! Sandboxes that somebody has renamed, and their way back: each says which session it is bound to.
//!
//! One that ends under a foreign name cannot say any more whose it was, and its conversation would be told `new`. So the
//! sweep asks them while they run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout};

use crate::{
    conversation::SessionName,
    engine::{Adoption, Engine, EngineError},
    guest::Guest,
    sandbox::SandboxId,
};

/// Strays that are asked in one pass, and at once.
const ASKED: usize = 16;
const PARALLEL: usize = 4;
/// How long one may take to say whose it is.
const ANSWER: Duration = Duration::from_secs(5);
/// One that could not be helped is left alone for so long: nobody's own ends half a minute after the last channel to it,
/// and one that says nothing is not to cost every pass its time.
const LEFT_ALONE: Duration = Duration::from_secs(300);

/// Strays that could not be helped, and since when.
#[derive(Debug, Default)]
pub(super) struct Strays {
    asked: BTreeMap<SandboxId, Instant>,
}

impl Strays {
    /// Gives those that say whose they are their names back, and answers how many.
    ///
    /// # Errors
    /// The first of the engine's failures; the others are seen to all the same.
    pub(super) async fn put_back(&mut self, engine: &Arc<dyn Engine>) -> Result<usize, EngineError> {
        let strays = engine.strays().await?;
        let due = self.due(strays, Instant::now());
        let outcomes: Vec<_> = stream::iter(due)
            .map(async |id| (see_to(engine, &id).await, id))
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut count = Ok(0);
        for (outcome, id) in outcomes {
            match outcome {
                Ok(Seen::PutBack) => {
                    // Should it be renamed again, it is asked again at once.
                    self.asked.remove(&id);
                    count = count.map(|count| count + 1);
                }
                Ok(Seen::Stays) => {}
                Err(error) => count = count.and(Err(error)),
            }
        }
        count
    }

    /// Those that are asked now.
    fn due(&mut self, strays: Vec<SandboxId>, now: Instant) -> Vec<SandboxId> {
        let there: BTreeSet<&SandboxId> = strays.iter().collect();
        self.asked
            .retain(|id, at| there.contains(id) && now - *at < LEFT_ALONE);
        let mut due = strays;
        due.retain(|id| !self.asked.contains_key(id));
        due.truncate(ASKED);
        self.asked.extend(due.iter().map(|id| (id.clone(), now)));
        due
    }
}

/// What came of asking one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    PutBack,
    /// It is nobody's, does not answer, or something else has its name.
    Stays,
}

async fn see_to(engine: &Arc<dyn Engine>, id: &SandboxId) -> Result<Seen, EngineError> {
    let hello = async {
        let guest = Guest::connect(Arc::clone(engine), id.clone()).await?;
        guest.hello().await
    };
    let lease = match timeout(ANSWER, hello).await {
        Ok(Ok(hello)) => hello.lease,
        // It has ended, hangs, or is of another version.
        Ok(Err(_)) | Err(_) => return Ok(Seen::Stays),
    };
    // It cannot claim to be another session's: only who was bound to that knows its digest.
    let Some(name) = SessionName::of(&lease) else {
        return Ok(Seen::Stays);
    };
    match engine.put_back(id, &name).await {
        Ok(Adoption::Adopted) => {
            tracing::warn!(session = name.short(), sandbox = %id, "somebody has renamed it; it gets its name back");
            Ok(Seen::PutBack)
        }
        Ok(Adoption::Taken) | Err(EngineError::NoSandbox(_)) => Ok(Seen::Stays),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_has_its_turn_and_is_left_alone_then() {
        let id = |n: usize| SandboxId::parse(&format!("grs-{n:024x}")).unwrap();
        let all = || (0..ASKED + 2).map(id).collect::<Vec<_>>();
        let (mut strays, now) = (Strays::default(), Instant::now());
        assert_eq!(strays.due(all(), now), all()[..ASKED]);
        assert_eq!(strays.due(all(), now), all()[ASKED..]);
        assert_eq!(strays.due(all(), now + LEFT_ALONE / 2), []);
        assert_eq!(strays.due(vec![], now + LEFT_ALONE / 2), []);
        assert_eq!(
            strays.due(vec![id(0)], now + LEFT_ALONE / 2),
            [id(0)],
            "it has strayed again"
        );
        assert_eq!(
            strays.due(all(), now + LEFT_ALONE),
            all()[1..=ASKED],
            "their time is over"
        );
    }
}
