//! Ending a session because its caller wants it, with its files or without.

use std::{sync::Arc, time::SystemTime};

use greenroom_protocol::{EndReason, RefusalKind, RestartReason};

use super::{OpenError, RESET, Sessions, Shared, table::Memory};
use crate::{
    archive::SaveError,
    conversation::{SessionKey, SessionName},
    engine::Place,
    guest::GuestError,
};

/// What a reset found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// A sandbox, which has ended.
    Ended,
    /// None.
    Nothing,
}

impl Sessions {
    /// Ends the session's sandbox, and returns once it has ended. The next opening gets a fresh one and says
    /// `restarted(reset)`. It ends any sandbox that has the session's name, one that hangs or that another
    /// version of Greenroom made too. Its files are forgotten.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn reset(&self, key: &SessionKey) -> Result<Reset, OpenError> {
        let name = self.shared.secret.session_name(key);
        // Before, in case that this server dies in between; and after, since up to its end a sandbox may be archived.
        self.shared.forget(&name, SystemTime::now()).await;
        let ending = self.end(&name).await?;
        self.shared
            .forget(&name, ending.unwrap_or_else(SystemTime::now))
            .await;
        Ok(ending.map_or(Reset::Nothing, |_| Reset::Ended))
    }

    /// The same, but the next sandbox gets the files of this one; where this one cannot be asked for them any more, as
    /// they were last archived. Where they cannot be kept nothing ends.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::NotKept`].
    pub async fn reset_keeping_files(&self, key: &SessionKey) -> Result<Reset, OpenError> {
        let name = self.shared.secret.session_name(key);
        let archive = self.shared.archive.as_ref().ok_or(OpenError::NoArchive)?;
        if let Place::Running(id) = self.shared.find_or_bring_back(&name).await?.place {
            let saved = match self.shared.reach(&name, &id).await {
                Ok(guest) => archive.save(&name, &guest).await.map(drop),
                Err(error) => Err(SaveError::from(error)),
            };
            match saved {
                Ok(()) => {}
                Err(error) if error.is_of_the_sandbox() && archive.has(&name).await => {
                    tracing::info!(session = name.short(), %error, "reset with its last archive");
                }
                Err(error) => return Err(OpenError::NotKept(Arc::new(error))),
            }
        }
        let ended = self.end(&name).await?;
        Ok(ended.map_or(Reset::Nothing, |_| Reset::Ended))
    }

    /// Ends the session's sandbox, if there is one. Answers since when it gives no files any more: a time at which no other
    /// can have had the session's name for long.
    async fn end(&self, name: &SessionName) -> Result<Option<SystemTime>, OpenError> {
        let id = match self.shared.find_or_bring_back(name).await?.place {
            Place::Running(id) | Place::Ending(id) => id,
            Place::Exited(_) | Place::Absent => return Ok(None),
        };
        let asked = match self.shared.reach(name, &id).await {
            Ok(guest) => guest.end(EndReason::Reset).await,
            Err(error) => Err(error),
        };
        let mut ending = SystemTime::now();
        match asked {
            Ok(()) | Err(GuestError::Ended(_)) => {
                if !self.shared.has_ended(name, &id, RESET).await? {
                    self.shared.engine.end(&id).await?;
                }
            }
            // Nobody's yet: a server died between its name and its lease. It has nothing to lose.
            Err(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::Conflict => {
                self.shared.engine.destroy(&id).await?;
            }
            Err(error) => {
                tracing::debug!(session = name.short(), sandbox = %id, %error, "does not end itself");
                self.shared.engine.end(&id).await?;
                ending = SystemTime::now();
            }
        }
        // Its exit code may not say why, so this server remembers.
        let fate = Some(RestartReason::Reset);
        let bond = None;
        self.shared.table.remember(name, Memory { id, fate, bond });
        Ok(Some(ending))
    }
}

impl Shared {
    async fn forget(&self, name: &SessionName, up_to: SystemTime) {
        if let Some(archive) = &self.archive {
            archive.forget(name, up_to).await;
        }
    }
}
