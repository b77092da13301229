//! Whose archives are, as their headers say: looked up once there are too many, and remembered.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{Shared, quota::Kept, store::StoreError};
use crate::conversation::{Owner, SessionName};

/// Headers that are read at a time.
const READS: usize = 8;
/// All of one sweep. What was read by then is remembered, and the next sweep goes on from there.
const LOOKED_UP: Duration = Duration::from_secs(120);

/// What was read so far, by name and when it was written.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<(String, SystemTime), Option<Owner>>);

impl Owners {
    /// Whether it was read.
    pub(super) fn knows(&self, archive: &Kept) -> bool {
        self.0.contains_key(&key(archive))
    }

    /// Whose it is, if it says so.
    pub(super) fn of(&self, archive: &Kept) -> Option<Owner> {
        self.0.get(&key(archive)).copied().flatten()
    }
}

fn key(archive: &Kept) -> (String, SystemTime) {
    (archive.name.clone(), archive.written)
}

impl Shared {
    /// Reads whose these are, as far as that is not known.
    ///
    /// # Errors
    /// Not all could be read in time: who has most is not known.
    pub(super) async fn look_up(&self, owners: &mut Owners, kept: &[Kept]) -> Result<(), StoreError> {
        let there: HashSet<_> = kept.iter().map(key).collect();
        owners.0.retain(|archive, _| there.contains(archive));
        let unknown: Vec<_> = there
            .into_iter()
            .filter(|archive| !owners.0.contains_key(archive))
            .collect();
        let mut read = stream::iter(unknown)
            .map(|archive| async move { (self.says(&archive.0).await, archive) })
            .buffer_unordered(READS);
        let all = timeout(LOOKED_UP, async {
            while let Some((owner, archive)) = read.next().await {
                // One that cannot be read now is read by the next sweep.
                if let Ok(owner) = owner {
                    owners.0.insert(archive, owner);
                }
            }
        });
        all.await.map_err(|_| StoreError::Slow(LOOKED_UP.as_secs()))
    }

    /// What an archive says of its owner. One that is damaged says nothing.
    async fn says(&self, name: &str) -> Result<Option<Owner>, StoreError> {
        let Some(name) = SessionName::parse(name) else {
            return Ok(None);
        };
        Ok(self.stamped(&name).await?.and_then(|stamp| stamp.owner))
    }
}
