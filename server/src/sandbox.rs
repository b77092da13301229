//! What a sandbox is to the rest of the server: its id, its kind, and how it ended.

mod dependencies;
mod start;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use greenroom_protocol::{AgentConfig, EndReason, RestartReason};
use serde::Serialize;

use crate::conversation::{PoolName, hex};

pub use self::{
    dependencies::{DebianPackage, Dependencies, Requirement, Requirements},
    start::{AppSpec, NoProgram, Program, Start},
};

/// A sandbox's id: minted here before the engine is asked for anything, so that a create that failed,
/// hung or was dropped can still be destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SandboxId(String);

impl SandboxId {
    /// A new random id, `grs-` and 24 hexadecimal digits.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn mint() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 12];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("grs-{}", hex(&bytes))))
    }

    /// Reads an id back from the engine's labels; anything that we would not mint is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("grs-")?;
        let fits = digits.len() == 24
            && digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        fits.then(|| Self(text.to_owned()))
    }

    /// The id as the engine stores it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a pool asks the engine for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The pool, as a label.
    pub pool: PoolName,
    /// The prepared image, as [`crate::engine::Engine::prepare`] named it.
    pub image: String,
    /// The runtime, such as `runsc-4g`: isolation and disk size in one.
    pub runtime: String,
    /// Processors in thousandths.
    pub cpu_millis: u32,
    /// Memory with everything in it, tmpfs too, in bytes.
    pub memory_bytes: u64,
    /// Host tasks of the sandbox as a backstop.
    pub pids: u32,
    /// Processes of the guest's user inside.
    pub nproc: u32,
    /// Open files of a process inside.
    pub nofile: u32,
    /// How long it may stay created, warm and running.
    pub stay: Stay,
    /// What its agent is told.
    pub agent: AgentConfig,
}

/// How long a sandbox may stay created, warm and running. It is written on the sandbox, so that every server sweeps it by the configuration
/// that it was made under, and a server whose configuration has changed since ends no session early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Not started after this, nobody is booting it any more.
    pub created: Duration,
    /// Running and nobody's after this, no keeper has it in its hand.
    pub warm: Duration,
    /// Running after this, its agent has failed to end it.
    pub running: Duration,
}

impl Stay {
    /// Of a sandbox that does not say.
    const UNKNOWN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

    /// The three times in seconds, as one word.
    #[must_use]
    pub fn to_word(self) -> String {
        [self.created, self.warm, self.running]
            .map(|time| time.as_secs().to_string())
            .join("/")
    }

    /// Reads that word.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        let times: Option<Vec<_>> = word
            .split('/')
            .map(|time| time.parse().ok().map(Duration::from_secs))
            .collect();
        match times?[..] {
            [created, warm, running] => Some(Self {
                created,
                warm,
                running,
            }),
            _ => None,
        }
    }
}

impl Default for Stay {
    fn default() -> Self {
        Self {
            created: Duration::from_secs(40),
            warm: Self::UNKNOWN,
            running: Self::UNKNOWN,
        }
    }
}

/// How a sandbox ended, as the engine knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// PID 1's exit code.
    pub exit_code: i64,
    /// Whether the engine saw the memory limit hit.
    pub oom_killed: bool,
    /// When.
    pub finished_at: SystemTime,
}

impl Fate {
    /// The reason that the session's caller hears. `None`: it ended itself unbound, so there was no session.
    #[must_use]
    pub fn reason(&self) -> Option<RestartReason> {
        match EndReason::from_exit_code(self.exit_code) {
            Some(end) => restart_reason(end),
            None if self.oom_killed => Some(RestartReason::OutOfMemory),
            None => Some(RestartReason::EndedInside),
        }
    }
}

/// What a session's caller hears of an agent that ended its sandbox. `None`: there was no session.
#[must_use]
pub const fn restart_reason(end: EndReason) -> Option<RestartReason> {
    match end {
        EndReason::Unbound | EndReason::Failed => None,
        EndReason::Idle => Some(RestartReason::Idle),
        EndReason::Lifetime => Some(RestartReason::Lifetime),
        EndReason::Reset => Some(RestartReason::Reset),
        EndReason::Evicted => Some(RestartReason::Evicted),
        EndReason::Exited => Some(RestartReason::Exited),
        EndReason::Unhealthy => Some(RestartReason::Unhealthy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fate_names_its_reason() {
        let fate = |exit_code, oom_killed| Fate {
            exit_code,
            oom_killed,
            finished_at: SystemTime::UNIX_EPOCH,
        };
        for (exit_code, oom_killed, reason) in [
            (80, false, None),
            (81, false, Some(RestartReason::Idle)),
            (82, false, Some(RestartReason::Lifetime)),
            (83, false, Some(RestartReason::Reset)),
            (84, false, Some(RestartReason::Evicted)),
            (85, false, None),
            (86, false, Some(RestartReason::Exited)),
            (87, false, Some(RestartReason::Unhealthy)),
            (137, true, Some(RestartReason::OutOfMemory)),
            (137, false, Some(RestartReason::EndedInside)),
            (0, false, Some(RestartReason::EndedInside)),
        ] {
            assert_eq!(
                fate(exit_code, oom_killed).reason(),
                reason,
                "{exit_code} {oom_killed}"
            );
        }
    }

    #[test]
    fn only_our_own_ids_are_read_back() {
        let id = SandboxId::mint().unwrap();
        assert_eq!(SandboxId::parse(id.as_str()), Some(id));
        for text in [
            "",
            "grs-",
            "grs-xyz",
            "grs-0123456789abcdef01234567x",
            "gr-0123456789abcdef01234567",
        ] {
            assert_eq!(SandboxId::parse(text), None, "{text}");
        }
    }
}
