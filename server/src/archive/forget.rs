//! Files that somebody wanted gone stay gone, also where another server is archiving them just now.
//!
//! Beside the removed archive stands a mark that says up to when the session's files are forgotten. An archive of an
//! earlier time that comes later is as good as none: whoever writes one looks for the mark, and so does whoever would
//! restore it. The times are the servers' own, as those of archives are.

use std::{
    mem,
    time::{Duration, SystemTime},
};

use super::{
    Shared,
    save::SAVE,
    seal::{Stamp, stamp},
    store::{Listing, Mark, StoreError},
};
use crate::conversation::SessionName;

/// How long a mark stands: no archive takes nearly so long.
const MARKED: Duration = Duration::from_secs(3600);
const _: () = assert!(MARKED.as_secs() > 2 * SAVE.as_secs());

impl Shared {
    /// Forgets the files as they were up to that time.
    pub(super) async fn forget(&self, name: &SessionName, up_to: SystemTime) -> Result<(), StoreError> {
        let up_to = millis(up_to);
        let before = self.store.marked(name).await.ok().flatten();
        // First: what is written once the archive is gone is to be measured by it.
        let marked = self
            .store
            .mark(name, before.map_or(up_to, |before| before.max(up_to)));
        let marked = marked.await;
        // Race: the next sandbox may have been archived already.
        let there = self.stamped(name).await;
        if matches!(there, Ok(Some(stamp)) if stamp.as_of_ms > up_to) {
            return marked;
        }
        // All the same where there can be no mark: what is there goes.
        self.store.remove(name).await.and(marked)
    }

    /// Whether files of that time were to be forgotten.
    pub(super) async fn is_forgotten(&self, name: &SessionName, as_of_ms: u64) -> Result<bool, StoreError> {
        let up_to = self.store.marked(name).await?;
        Ok(up_to.is_some_and(|up_to| as_of_ms <= up_to))
    }

    /// What the archive in the store says of itself, if it is one to be restored.
    pub(super) async fn known(&self, name: &SessionName) -> Result<Option<Stamp>, StoreError> {
        match self.stamped(name).await? {
            Some(stamp) if self.is_forgotten(name, stamp.as_of_ms).await? => Ok(None),
            stamp => Ok(stamp),
        }
    }

    /// What whatever lies in the store says of itself. What is damaged says nothing, and is replaced.
    pub(super) async fn stamped(&self, name: &SessionName) -> Result<Option<Stamp>, StoreError> {
        let header = self.store.header(name).await?;
        Ok(header.and_then(|header| stamp(&self.secret, name, &header).ok()))
    }

    /// Removes what lies in the store if it was to be forgotten. Answers whether it was.
    pub(super) async fn remove_forgotten(&self, name: &SessionName) -> Result<bool, StoreError> {
        let is_one = match self.stamped(name).await? {
            Some(stamp) => self.is_forgotten(name, stamp.as_of_ms).await?,
            None => false,
        };
        if is_one {
            self.store.remove(name).await?;
        }
        Ok(is_one)
    }

    /// Clears the marks that have stood long enough, and first what a server had written and was killed before it
    /// looked for the mark.
    ///
    /// # Errors
    /// The first failure; the other marks are cleared all the same.
    pub(super) async fn clear_marks(&self, listing: &mut Listing) -> Result<(), StoreError> {
        let mut first = Ok(());
        for Mark { name, written } in mem::take(&mut listing.marks) {
            if !is_old(written) {
                continue;
            }
            match self.clear(&name).await {
                Ok(Cleared::WithArchive) => {
                    let gone = name.to_string();
                    listing.archives.retain(|archive| archive.name != gone);
                }
                Ok(Cleared::Mark | Cleared::Nothing) => {}
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    async fn clear(&self, name: &SessionName) -> Result<Cleared, StoreError> {
        // Race: it may have been written anew since it was listed.
        match self.store.mark_written(name).await? {
            Some(written) if is_old(written) => {}
            Some(_) | None => return Ok(Cleared::Nothing),
        }
        let with_archive = self.remove_forgotten(name).await?;
        self.store.remove_mark(name).await?;
        Ok(if with_archive {
            Cleared::WithArchive
        } else {
            Cleared::Mark
        })
    }
}

/// What came of clearing a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cleared {
    /// It went.
    Mark,
    /// With an archive that was to be forgotten.
    WithArchive,
    /// It was not old any more.
    Nothing,
}

fn is_old(mark: SystemTime) -> bool {
    // One of the future, by the store's clock, is a new one.
    mark.elapsed().unwrap_or_default() > MARKED
}

/// As archives and marks count time.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
