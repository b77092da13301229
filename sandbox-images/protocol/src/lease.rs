//! Whose a sandbox is, for how long, and how it ended.

use serde::{Deserialize, Serialize};

/// The session's HMAC name as 64 hexadecimal digits: what binds a sandbox to a session without the
/// agent learning which conversation that is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyDigest(pub String);

/// `POST /lease`: bind this sandbox, or find it bound to the same key already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The session.
    pub key: KeyDigest,
    /// Ends after this long without a run, tunnel or transfer. A repeated request may change it.
    pub idle_ms: u64,
    /// Ends this long after it was bound, whatever happens. Fixed by the first request.
    pub lifetime_ms: u64,
    /// Set where an earlier sandbox of this session is gone: the news that the first answers carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<RestartReason>,
    /// Beside `restarted`: what became of that sandbox's files. Where this one was filled with them, it knows
    /// better.
    #[serde(default)]
    pub files: FilesFate,
}

/// The agent's answer to a lease that it grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// What the session's caller must hear.
    pub standing: Standing,
    /// [`crate::Hello::boot`] of the agent that granted it.
    pub boot: String,
}

/// How a call found its session. `new` and `restarted` are repeated until told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "standing", rename_all = "lowercase")]
pub enum Standing {
    /// Nothing from earlier exists.
    New,
    /// The session goes on.
    Existing,
    /// An earlier sandbox of this session is gone, and with it its variables.
    Restarted {
        /// Why it is gone.
        reason: RestartReason,
        /// What became of its files. Elsewhere a standing stands beside the files that a run has changed.
        #[serde(default, rename = "files_fate")]
        files: FilesFate,
    },
}

impl Standing {
    /// The word on the wire and for programs, without the reason.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Existing => "existing",
            Self::Restarted { .. } => "restarted",
        }
    }
}

/// What became of the files of an earlier sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum FilesFate {
    /// They are gone: nothing of them was archived.
    #[default]
    Gone,
    /// This sandbox was filled with them.
    Kept {
        /// When they were as they are, in milliseconds since 1970.
        as_of_ms: u64,
        /// Files and folders that are gone, because they could not be read.
        left_out: u64,
    },
    /// They are gone: there is an archive, and it was refused as a whole.
    Refused {
        /// What is wrong with it.
        fault: ArchiveFault,
    },
}

/// Why an archive of files was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveFault {
    /// It is not what was written: damaged, cut off, or somebody else's.
    Corrupt,
    /// It holds more than sessions may have archived.
    TooLarge,
    /// It cannot be read: the store does not answer.
    Unreadable,
    /// The new sandbox did not take it.
    NotUnpacked,
}

/// Why an earlier sandbox of a session is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartReason {
    /// Nothing ran in it for longer than the pool's idle time.
    Idle,
    /// It reached the pool's lifetime.
    Lifetime,
    /// The caller asked for it.
    Reset,
    /// It made room for another session.
    Evicted,
    /// The memory limit ended it as a whole.
    OutOfMemory,
    /// Something inside ended it: PID 1 was killed, or the platform under it gave up.
    EndedInside,
    /// Somebody or something outside removed it, or the host restarted.
    Removed,
    /// It stopped answering and was destroyed.
    Unresponsive,
    /// The image's own program ended.
    Exited,
    /// The image's own program stopped answering its liveness probe.
    Unhealthy,
    /// The session existed, and no record says how it ended.
    NoLongerOnRecord,
}

impl RestartReason {
    /// The word on the wire and for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::Reset => "reset",
            Self::Evicted => "evicted",
            Self::OutOfMemory => "out_of_memory",
            Self::EndedInside => "ended_inside",
            Self::Removed => "removed",
            Self::Unresponsive => "unresponsive",
            Self::Exited => "exited",
            Self::Unhealthy => "unhealthy",
            Self::NoLongerOnRecord => "no_longer_on_record",
        }
    }
}

/// The lease as `GET /lease` and [`crate::Hello`] show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum LeaseState {
    /// Nobody's yet.
    Unbound,
    /// A session's.
    Bound(LeaseView),
    /// It has decided to end and grants nothing any more.
    Ending(Ended),
}

/// A bound lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// The session that holds it.
    pub key: KeyDigest,
    /// What the next answer must say.
    #[serde(flatten)]
    pub standing: Standing,
    /// Milliseconds since it was bound.
    pub age_ms: u64,
    /// Milliseconds without a run, tunnel or transfer.
    pub idle_ms: u64,
    /// Milliseconds until it ends if nothing more happens.
    pub ends_in_ms: u64,
    /// What would end it then.
    pub ends_by: EndReason,
}

/// Why an agent ended its sandbox; each has its own exit code, so that the engine can say it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Unbound, and no server held a channel to it.
    Unbound,
    /// Idle for too long.
    Idle,
    /// Lifetime over.
    Lifetime,
    /// `reset_session`.
    Reset,
    /// Made room for another session.
    Evicted,
    /// The agent itself failed to start, or the program of a sandbox that was nobody's yet has ended.
    Failed,
    /// The image's own program ended.
    Exited,
    /// The image's own program stopped answering its liveness probe.
    Unhealthy,
}

impl EndReason {
    /// Every reason, for the table that maps exit codes back.
    pub const ALL: [Self; 8] = [
        Self::Unbound,
        Self::Idle,
        Self::Lifetime,
        Self::Reset,
        Self::Evicted,
        Self::Failed,
        Self::Exited,
        Self::Unhealthy,
    ];

    /// The exit code of PID 1. From 80 on: below the shell's 126–128+n, above what programs use.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Unbound => 80,
            Self::Idle => 81,
            Self::Lifetime => 82,
            Self::Reset => 83,
            Self::Evicted => 84,
            Self::Failed => 85,
            Self::Exited => 86,
            Self::Unhealthy => 87,
        }
    }

    /// The reason behind an exit code, if it is one of ours.
    #[must_use]
    pub fn from_exit_code(code: i64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| i64::from(reason.exit_code()) == code)
    }

    /// The name in queries and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::Reset => "reset",
            Self::Evicted => "evicted",
            Self::Failed => "failed",
            Self::Exited => "exited",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// 410's body: the sandbox has decided to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_an_exit_code_of_its_own() {
        for reason in EndReason::ALL {
            assert_eq!(
                EndReason::from_exit_code(i64::from(reason.exit_code())),
                Some(reason)
            );
        }
        assert_eq!(EndReason::from_exit_code(137), None);
    }

    #[test]
    fn a_bound_lease_survives_the_wire() {
        let state = LeaseState::Bound(LeaseView {
            key: KeyDigest("ab".into()),
            standing: Standing::Restarted {
                reason: RestartReason::OutOfMemory,
                files: FilesFate::Kept {
                    as_of_ms: 7,
                    left_out: 0,
                },
            },
            age_ms: 1,
            idle_ms: 2,
            ends_in_ms: 3,
            ends_by: EndReason::Idle,
        });
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(
            serde_json::from_str::<LeaseState>(&text).unwrap(),
            state,
            "{text}"
        );
    }
}
