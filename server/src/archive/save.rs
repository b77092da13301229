//! One archive from a sandbox into the store.

use std::time::{Duration, SystemTime};

use greenroom_protocol::{NO_MARK, RefusalKind};
use tokio::time::{Instant, timeout};

use super::{
    ArchiveEvent, Shared,
    forget::millis,
    seal::{Sealer, Stamp},
    store::{StoreError, Writing},
};
use crate::{
    conversation::SessionName,
    guest::{Guest, GuestError, Packing},
};

/// One archive as a whole, and its wait for others. At 256 MiB it takes ten seconds on a machine with little to do;
/// a sandbox that gives its files slowly on purpose is not to hold up the others for long.
pub(super) const SAVE: Duration = Duration::from_secs(90);
/// Time that a sandbox has in any case to give its files …
const HEAD_START: Duration = Duration::from_secs(15);
/// … and what it must give in each second after that: a few that dawdle would take the turns of all.
const PACE: u64 = 1 << 20;

/// How far an agent is believed that says that nothing has changed since an archive. It goes by the files' times, and
/// under gVisor what is written through a mapping (`numpy.memmap`) changes none, so that before an end files are packed
/// once more, unless it is known that nothing has run since they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    /// What it says of changes.
    Changes,
    /// Nothing: all is packed.
    None,
}

/// What came of making an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is in the store.
    Stored,
    /// The one in the store is as good; where there is none, there is nothing to keep.
    Unchanged,
    /// Another server's is newer.
    Yielded,
}

/// Why there is no new archive.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The sandbox did not give its files.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The store did not take them.
    #[error("the store of archives failed: {0}")]
    Store(String),
    /// It took too long.
    #[error("they were not archived within {0} s")]
    Slow(u64),
    /// The session's files were to be forgotten meanwhile.
    #[error("they were to be forgotten meanwhile")]
    Forgotten,
    /// The sandbox gives them too slowly.
    #[error("the sandbox gives its files too slowly")]
    Dawdles,
}

impl From<StoreError> for SaveError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

impl SaveError {
    /// Whether the sandbox gives its files to somebody else just now.
    pub(super) fn is_busy(&self) -> bool {
        self.outcome() == "busy"
    }

    /// Whether the sandbox cannot be asked for its files: it hangs, is another version's, or is ending.
    pub(crate) const fn is_of_the_sandbox(&self) -> bool {
        match self {
            Self::Guest(GuestError::Refused(refusal)) => matches!(
                refusal.kind,
                RefusalKind::NotFound | RefusalKind::Internal | RefusalKind::BadRequest
            ),
            Self::Guest(_) => true,
            Self::Forgotten | Self::Dawdles | Self::Store(_) | Self::Slow(_) => false,
        }
    }

    /// Whether the same files may be archived later.
    pub(super) fn may_pass(&self) -> bool {
        // One that is slow may have had too little of the processors.
        matches!(self, Self::Dawdles | Self::Forgotten) || matches!(self.outcome(), "busy" | "store")
    }

    fn outcome(&self) -> &'static str {
        match self {
            Self::Guest(GuestError::Refused(refusal)) => match refusal.kind {
                RefusalKind::TooLarge => "too_large",
                RefusalKind::Conflict => "busy",
                RefusalKind::BadRequest
                | RefusalKind::BadPath
                | RefusalKind::NotFound
                | RefusalKind::QueueFull
                | RefusalKind::DiskFull
                | RefusalKind::NoKernel
                | RefusalKind::Internal => "lost",
            },
            Self::Guest(_) | Self::Dawdles => "lost",
            Self::Forgotten => "forgotten",
            Self::Store(_) | Self::Slow(_) => "store",
        }
    }
}

impl Shared {
    pub(super) async fn save(
        &self,
        name: &SessionName,
        guest: &Guest,
        belief: Belief,
    ) -> Result<Saved, SaveError> {
        let started = Instant::now();
        let saved = match timeout(SAVE, self.save_in_turn(name, guest, belief)).await {
            Ok(saved) => saved,
            Err(_) => Err(SaveError::Slow(SAVE.as_secs())),
        };
        let outcome = match &saved {
            Ok(Saved::Stored) => "stored",
            Ok(Saved::Unchanged) => "unchanged",
            Ok(Saved::Yielded) => "yielded",
            Err(error) => error.outcome(),
        };
        let took = started.elapsed();
        self.observer.observe(ArchiveEvent::Save { outcome, took });
        match &saved {
            Err(error @ (SaveError::Store(_) | SaveError::Slow(_))) => {
                tracing::warn!(session = name.short(), %error, "files were not archived");
            }
            Err(error) => tracing::info!(session = name.short(), %error, "files were not archived"),
            Ok(saved) => tracing::debug!(session = name.short(), ?saved, ?took, "archived"),
        }
        saved
    }

    async fn save_in_turn(
        &self,
        name: &SessionName,
        guest: &Guest,
        belief: Belief,
    ) -> Result<Saved, SaveError> {
        // Never closed.
        let _turn = self.saves.acquire().await;
        let known = self.known(name).await?;
        let as_of_ms = millis(SystemTime::now());
        let since = known.as_ref().map(|known| match belief {
            Belief::Changes => known.mark.as_str(),
            Belief::None => NO_MARK,
        });
        let watched = self.watched_by(guest);
        let stirred = watched.as_ref().map(|watched| watched.stirrings());
        let Some(mut packing) = guest.pack(self.allowance.session.bytes(), since).await? else {
            return Ok(Saved::Unchanged);
        };
        let stamp = Stamp {
            as_of_ms,
            packed: packing.packed,
            mark: packing.mark.clone(),
            owner: self.owner(name).or(known.and_then(|known| known.owner)),
        };
        let mut writing = self.store.write(name);
        let may_come = match self.seal_into(&mut writing, name, &stamp, &mut packing).await {
            Ok(()) => self.may_come(name, &stamp).await,
            Err(error) => Err(error),
        };
        if !matches!(may_come, Ok(true)) {
            writing.abandon().await;
            return may_come.map(|_| Saved::Yielded);
        }
        writing.finish().await?;
        match self.remove_forgotten(name).await {
            Ok(false) => {}
            Ok(true) => return Err(SaveError::Forgotten),
            // Whoever would restore it looks as well.
            Err(error) => {
                tracing::debug!(session = name.short(), %error, "not seen whether it was forgotten")
            }
        }
        if let Some((watched, stirred)) = watched.zip(stirred) {
            watched.packed(stirred);
        }
        self.written.notify_one();
        Ok(Saved::Stored)
    }

    /// Whether an archive may take its place.
    ///
    /// Races: a sandbox packs for one server at a time, so another's newer archive can only have come between our
    /// last byte and this look. And its session may have been reset while it was written: files that somebody wanted
    /// gone do not come back, so that is looked at once more when it has its place.
    async fn may_come(&self, name: &SessionName, stamp: &Stamp) -> Result<bool, SaveError> {
        if self.is_forgotten(name, stamp.as_of_ms).await? {
            return Err(SaveError::Forgotten);
        }
        let there = self.stamped(name).await?;
        Ok(there.is_none_or(|there| there.as_of_ms <= stamp.as_of_ms))
    }

    async fn seal_into(
        &self,
        writing: &mut Writing,
        name: &SessionName,
        stamp: &Stamp,
        packing: &mut Packing,
    ) -> Result<(), SaveError> {
        let mut nonce = [0; 19];
        getrandom::fill(&mut nonce).map_err(|error| SaveError::Store(error.to_string()))?;
        let sealing = |error: super::seal::SealError| SaveError::Store(error.to_string());
        let (header, mut sealer) = Sealer::new(&self.secret, name, stamp, nonce);
        writing.push(&header).await?;
        let (mut waited, mut given) = (Duration::ZERO, 0);
        loop {
            // The sandbox's own time only: a store may be slow as well.
            let asked = Instant::now();
            let next = timeout(patience(given).saturating_sub(waited), packing.next()).await;
            waited += asked.elapsed();
            let Some(bytes) = next.map_err(|_| SaveError::Dawdles)?? else {
                break;
            };
            given += bytes.len() as u64;
            writing.push(&sealer.push(&bytes).map_err(sealing)?).await?;
        }
        writing.push(&sealer.finish().map_err(sealing)?).await?;
        Ok(())
    }
}

/// How long a sandbox may have taken that has given so much. Pure.
const fn patience(given: u64) -> Duration {
    HEAD_START.saturating_add(Duration::from_secs(given / PACE))
}
