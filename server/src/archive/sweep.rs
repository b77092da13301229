//! Keeping the store in bounds: archives that are too old or too many go, and with them what servers have left half
//! done. What has to go is decided in [`super::quota`].

use std::time::{Duration, SystemTime};

use tokio::time::{sleep, timeout};

use super::{
    Allowance, ArchiveEvent, Shared,
    owners::Owners,
    quota::{Kept, outdated, size_of, too_many},
    store::StoreError,
};

/// Between two sweeps of the store …
const SWEEP: Duration = Duration::from_secs(600);
/// … and at least, where archives are written meanwhile.
const SWEEP_AGAIN: Duration = Duration::from_secs(10);

impl Shared {
    pub(super) async fn keep_swept(&self) {
        let mut owners = Owners::default();
        loop {
            if let Err(error) = self.sweep(&mut owners).await {
                tracing::warn!(%error, "the archives could not be swept");
            }
            sleep(SWEEP_AGAIN).await;
            // Either way it is time: archives were written, or some have become old.
            let _ = timeout(SWEEP, self.written.notified()).await;
        }
    }

    /// # Errors
    /// The first failure. Where only one archive cannot be read or removed the others are swept.
    async fn sweep(&self, owners: &mut Owners) -> Result<(), StoreError> {
        let mut listing = self.store.list().await?;
        let cleared = self.clear_marks(&mut listing).await;
        let archives = listing.archives;
        let mut left = size_of(&archives);
        let (go, chosen) = self.choose(owners, archives).await;
        let (mut gone, mut removed) = (0, Ok(()));
        for archive in &go {
            match self.store.remove_named(&archive.name).await {
                Ok(()) => {
                    gone += 1;
                    left -= u128::from(archive.bytes);
                }
                // One that stays keeps no other.
                Err(error) => removed = removed.and(Err(error)),
            }
        }
        if gone > 0 {
            tracing::info!(
                count = gone,
                "archives that were too old or too many were removed"
            );
        }
        let bytes = u64::try_from(left).unwrap_or(u64::MAX);
        self.observer.observe(ArchiveEvent::Swept { bytes, gone });
        if let Err(error) = self.store.clear_drafts().await {
            tracing::debug!(%error, "drafts of archives could not be cleared");
        }
        cleared.and(chosen).and(removed)
    }

    /// Those that have to go, as far as can be told.
    async fn choose(&self, owners: &mut Owners, mut kept: Vec<Kept>) -> (Vec<Kept>, Result<(), StoreError>) {
        let Allowance { total, keep, .. } = self.allowance;
        let mut go = outdated(&mut kept, keep, SystemTime::now());
        if size_of(&kept) <= u128::from(total.bytes()) {
            return (go, Ok(()));
        }
        let known = self.look_up(owners, &kept).await;
        if known.is_ok() {
            // Those that nobody could read just now stay, and take their room.
            let unread: Vec<_> = kept.extract_if(.., |archive| !owners.knows(archive)).collect();
            let room = u128::from(total.bytes()).saturating_sub(size_of(&unread));
            let room = u64::try_from(room).unwrap_or(u64::MAX);
            go.extend(too_many(kept, room, |archive| owners.of(archive)));
        }
        (go, known)
    }
}
