//! One archive from the store into a fresh sandbox.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _, stream};
use greenroom_protocol::{ArchiveFault, FilesFate};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ArchiveEvent, Shared,
    seal::{Opener, SealError},
    store::{Reading, StoreError},
};
use crate::{
    conversation::SessionName,
    guest::{Guest, GuestError, Upload},
};

/// One archive as a whole: less than an opening may take.
const RESTORE: Duration = Duration::from_secs(60);
/// How long the store may take to say whether there is one.
const LOOK: Duration = Duration::from_secs(5);
/// Before a store that has failed is asked once more: what is refused now is replaced by what the new sandbox has.
const AGAIN: Duration = Duration::from_secs(2);

/// What came of looking for a session's files.
#[derive(Debug)]
pub enum Restored {
    /// There are none.
    Nothing,
    /// The sandbox is filled with them.
    Kept {
        /// What the session's caller is to hear.
        fate: FilesFate,
        /// How long ago they were so.
        age: Duration,
    },
    /// There is an archive, and it was refused as a whole. The sandbox is as it was.
    Refused(ArchiveFault),
    /// The sandbox was lost over it.
    Lost(GuestError),
}

/// A tar archive that is made as it is read, and what was found to be wrong with it.
struct Opening {
    reading: Reading,
    opener: Option<Opener>,
    fault: Arc<OnceLock<ArchiveFault>>,
}

impl Shared {
    pub(super) async fn restore(&self, name: &SessionName, fresh: impl FnMut() -> Guest) -> Restored {
        let started = Instant::now();
        let restored = self.restore_in_turn(name, fresh).await;
        let outcome = match &restored {
            Restored::Nothing => "none",
            Restored::Kept { .. } => "kept",
            Restored::Refused(fault) => match fault {
                ArchiveFault::Corrupt => "corrupt",
                ArchiveFault::TooLarge => "too_large",
                ArchiveFault::Unreadable => "unreadable",
                ArchiveFault::NotUnpacked => "not_unpacked",
            },
            Restored::Lost(_) => "lost",
        };
        let took = started.elapsed();
        self.observer.observe(ArchiveEvent::Restore { outcome, took });
        match &restored {
            Restored::Nothing => {}
            Restored::Kept { .. } => tracing::debug!(session = name.short(), ?took, "files were restored"),
            Restored::Refused(_) | Restored::Lost(_) => {
                tracing::warn!(session = name.short(), outcome, "an archive was not restored");
            }
        }
        restored
    }

    async fn restore_in_turn(&self, name: &SessionName, fresh: impl FnMut() -> Guest) -> Restored {
        // Most sessions have none, and wait for nobody.
        let answers = match timeout(LOOK, self.store.header(name)).await {
            Ok(Ok(None)) => return Restored::Nothing,
            Ok(Ok(Some(_))) => true,
            Ok(Err(_)) | Err(_) => false,
        };
        // Never closed.
        let turn = self.restores.acquire();
        let restored = if answers {
            // Waited for outside of the time: after a host's restart all come at once, and nothing is wrong with the
            // last.
            let _turn = turn.await;
            timeout(RESTORE, self.restore_or_again(name, fresh)).await
        } else {
            // A store that fails is to harm no call.
            timeout(RESTORE - LOOK, async {
                let _turn = turn.await;
                self.restore_or_again(name, fresh).await
            })
            .await
        };
        restored.unwrap_or(Restored::Refused(ArchiveFault::Unreadable))
    }

    /// A store that fails at once is asked once more, not one that lets us wait.
    async fn restore_or_again(&self, name: &SessionName, mut fresh: impl FnMut() -> Guest) -> Restored {
        let began = Instant::now();
        let restored = self.restore_now(name, &mut fresh).await;
        let has_failed = matches!(restored, Restored::Refused(ArchiveFault::Unreadable));
        if !has_failed || began.elapsed() > AGAIN {
            return restored;
        }
        sleep(AGAIN).await;
        self.restore_now(name, &mut fresh).await
    }

    async fn restore_now(&self, name: &SessionName, fresh: &mut impl FnMut() -> Guest) -> Restored {
        let reading = match self.store.read(name).await {
            Ok(Some(reading)) => reading,
            Ok(None) => return Restored::Nothing,
            Err(error) => return unreadable(name, &error),
        };
        let limit = self.allowance.session.bytes();
        let (stamp, opener) = match Opener::new(&self.secret, name, &reading.header, limit) {
            Ok(opened) => opened,
            Err(error) => return Restored::Refused(fault(error)),
        };
        match self.is_forgotten(name, stamp.as_of_ms).await {
            Ok(false) => {}
            Ok(true) => return Restored::Nothing,
            Err(error) => return unreadable(name, &error),
        }
        let found = Arc::new(OnceLock::new());
        let opening = Opening {
            reading,
            opener: Some(opener),
            fault: Arc::clone(&found),
        };
        let left_out = stamp.packed.left_out;
        let filled = fresh()
            .fill(Upload::stream(opening.into_stream()), stamp.as_of_ms, left_out)
            .await;
        match (filled, found.get()) {
            (Ok(_), _) => Restored::Kept {
                fate: FilesFate::Kept {
                    as_of_ms: stamp.as_of_ms,
                    left_out,
                },
                age: age(stamp.as_of_ms),
            },
            // The body that broke off was ours, and the sandbox has kept nothing of it.
            (Err(_), Some(fault)) => Restored::Refused(*fault),
            (Err(error), None) if error.is_gone() => Restored::Lost(error),
            (Err(error), None) => {
                tracing::info!(session = name.short(), %error, "an archive was not unpacked");
                Restored::Refused(ArchiveFault::NotUnpacked)
            }
        }
    }
}

impl Opening {
    /// It fails where the archive is not what was sealed, at its end if need be: the sandbox unpacks all of it or
    /// nothing.
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold((self, VecDeque::new()), async |(mut opening, mut ready)| {
            loop {
                if let Some(bytes) = ready.pop_front() {
                    return Ok(Some((bytes, (opening, ready))));
                }
                match opening.next().await {
                    Ok(Some(bytes)) if bytes.is_empty() => {}
                    Ok(Some(bytes)) => ready.push_back(bytes),
                    Ok(None) => return Ok(None),
                    Err(fault) => {
                        // It is set once: nothing is read after the first fault.
                        let _ = opening.fault.set(fault);
                        return Err(io::Error::other("the archive is not whole"));
                    }
                }
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ArchiveFault> {
        let Some(opener) = &mut self.opener else {
            return Ok(None);
        };
        match self.reading.rest.try_next().await {
            Ok(Some(sealed)) => opener
                .push(&sealed)
                .map(|opened| Some(opened.freeze()))
                .map_err(fault),
            Ok(None) => {
                let whole = self.opener.take().map_or(Ok(()), Opener::finish);
                whole.map(|()| None).map_err(fault)
            }
            Err(error) => {
                tracing::warn!(%error, "the store of archives failed");
                Err(ArchiveFault::Unreadable)
            }
        }
    }
}

fn unreadable(name: &SessionName, error: &StoreError) -> Restored {
    tracing::warn!(session = name.short(), %error, "the store of archives failed");
    Restored::Refused(ArchiveFault::Unreadable)
}

const fn fault(error: SealError) -> ArchiveFault {
    match error {
        SealError::Corrupt | SealError::TooLong => ArchiveFault::Corrupt,
        SealError::TooLarge => ArchiveFault::TooLarge,
    }
}

fn age(as_of_ms: u64) -> Duration {
    let then = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(as_of_ms));
    then.and_then(|then| SystemTime::now().duration_since(then).ok())
        .unwrap_or_default()
}
