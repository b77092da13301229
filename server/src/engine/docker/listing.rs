//! What the Docker engine lists, read in our words: labels, names, states and times.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use bollard::models::{ContainerState, ContainerStatsResponse, ContainerSummary, ContainerSummaryStateEnum};
use greenroom_protocol::GENERATION;

use crate::{
    conversation::{PoolName, SessionName},
    engine::Usage,
    sandbox::{Fate, SandboxId, Stay},
};

/// The sandbox's id, as the caller minted it.
pub(super) const ID: &str = "greenroom.id";
/// The pool that it was created for.
pub(super) const POOL: &str = "greenroom.pool";
/// Whose it is: a server lists and sweeps nothing else.
pub(super) const DEPLOYMENT: &str = "greenroom.deployment";
/// The server process that created it.
pub(super) const CREATOR: &str = "greenroom.creator";
/// How long it may stay created, warm and running.
pub(super) const STAY: &str = "greenroom.stay";
/// The protocol that its agent speaks.
pub(super) const PROTOCOL: &str = "greenroom.generation";

/// The labels of a new sandbox. Docker cannot change them later, so nothing here may ever change.
pub(super) fn labels(
    id: &SandboxId,
    pool: &PoolName,
    stay: Stay,
    deployment: &str,
    creator: &str,
) -> HashMap<String, String> {
    [
        (ID, id.as_str()),
        (POOL, pool.as_str()),
        (STAY, &stay.to_word()),
        (DEPLOYMENT, deployment),
        (CREATOR, creator),
        (PROTOCOL, &GENERATION.to_string()),
    ]
    .map(|(label, value)| (label.to_owned(), value.to_owned()))
    .into()
}

/// A container of ours as one line of the list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: SandboxId,
    /// Docker's id of it: what it is addressed by, since its name changes.
    pub(super) container: String,
    pub(super) name: String,
    pub(super) pool: PoolName,
    pub(super) creator: String,
    pub(super) deployment: String,
    pub(super) doing: Doing,
    pub(super) created_at: SystemTime,
    pub(super) stay: Stay,
}

impl Row {
    /// Reads a line. `None` for what is not ours, or what we would not have written.
    pub(super) fn read(summary: ContainerSummary) -> Option<Self> {
        let mut labels = summary.labels?;
        let created = u64::try_from(summary.created?).ok()?;
        // A container that is linked to has further names, each with a `/` inside; ours are not, and come first.
        let name = summary.names?.into_iter().next()?;
        Some(Self {
            id: SandboxId::parse(labels.get(ID)?)?,
            container: summary.id?,
            name: name.trim_start_matches('/').to_owned(),
            pool: PoolName::parse(labels.get(POOL)?).ok()?,
            creator: labels.remove(CREATOR)?,
            deployment: labels.remove(DEPLOYMENT)?,
            doing: Doing::read(summary.state?),
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(created),
            stay: labels
                .get(STAY)
                .and_then(|word| Stay::read(word))
                .unwrap_or_default(),
        })
    }

    /// Whether it has a session's name, or had it until it was set aside.
    pub(super) fn adopted(&self) -> bool {
        self.name != self.id.as_str()
    }
}

/// Docker's states, as far as they differ for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Created,
    Running,
    Paused,
    Ending,
    Exited,
}

impl Doing {
    /// The one table of Docker's states. `restarting` is never ours to have (no restart policy), and what
    /// was inside is lost anyway; `dead` is a removal that failed half-way, whatever ran has ended.
    const fn read(state: ContainerSummaryStateEnum) -> Self {
        use ContainerSummaryStateEnum as Docker;
        match state {
            Docker::CREATED => Self::Created,
            Docker::RUNNING => Self::Running,
            Docker::PAUSED => Self::Paused,
            Docker::RESTARTING | Docker::REMOVING | Docker::STOPPING => Self::Ending,
            Docker::EXITED | Docker::DEAD | Docker::EMPTY => Self::Exited,
        }
    }
}

/// Whether a container may have a cgroup with something in it, as far as the engine knows.
pub(super) fn has_processes(summary: &ContainerSummary) -> bool {
    summary
        .state
        .is_none_or(|state| Doing::read(state) != Doing::Exited)
}

/// What a container uses, as `docker stats` counts it.
pub(super) fn usage(stats: &ContainerStatsResponse) -> Usage {
    let cpu = stats
        .cpu_stats
        .as_ref()
        .and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage);
    let memory = stats.memory_stats.as_ref();
    let of = |name: &str| memory.and_then(|memory| memory.stats.as_ref()?.get(name).copied());
    // By these names with cgroups v1 and v2.
    let cache = of("total_inactive_file")
        .or_else(|| of("inactive_file"))
        .unwrap_or(0);
    let used = memory.and_then(|memory| memory.usage).unwrap_or(0);
    Usage {
        cpu: Duration::from_nanos(cpu.unwrap_or(0)),
        memory_bytes: used.saturating_sub(cache),
    }
}

/// Whether a container is a deployment's.
pub(super) fn is_of(container: &ContainerSummary, deployment: &str) -> bool {
    let labels = container.labels.as_ref();
    labels
        .and_then(|labels| labels.get(DEPLOYMENT))
        .is_some_and(|own| own == deployment)
}

/// The name of a tombstone that was set aside.
pub(super) fn aside(name: &SessionName, id: &SandboxId) -> String {
    format!("{name}.{id}")
}

/// A name filter (a Go regular expression) for the session's sandbox and its tombstones. The slash is
/// there or not, by the engine's version.
pub(super) fn name_filter(name: &SessionName) -> String {
    format!(r"^/?{name}(\.|$)")
}

/// A name filter for what neither a sandbox nor a session is called; Go's expressions cannot say *not*.
pub(super) const FOREIGN_NAMES: &str = r"^/?([^g/]|g[^r]|gr[^s-]|grs[^-])";

/// Whether Greenroom gives no such name.
pub(super) fn is_foreign(name: &str) -> bool {
    !name.starts_with("gr-") && !name.starts_with("grs-")
}

/// When a container was started, if it was.
pub(super) fn started_at(state: &ContainerState) -> Option<SystemTime> {
    time(state.started_at.as_deref()?)
}

/// How a container ended. One that never ran "ended" when it was created.
pub(super) fn fate(state: &ContainerState, created_at: SystemTime) -> Fate {
    Fate {
        exit_code: state.exit_code.unwrap_or(-1),
        oom_killed: state.oom_killed.unwrap_or(false),
        finished_at: state.finished_at.as_deref().and_then(time).unwrap_or(created_at),
    }
}

/// Reads a time of Docker's; its zero, the year 1, is none.
fn time(text: &str) -> Option<SystemTime> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    (time.timestamp() > 0).then(|| time.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(state: ContainerSummaryStateEnum) -> ContainerSummary {
        let id = SandboxId::parse("grs-0123456789abcdef01234567").unwrap();
        let pool = PoolName::parse("python").unwrap();
        ContainerSummary {
            id: Some("c0ffee".into()),
            names: Some(vec![format!("/{id}")]),
            created: Some(5),
            labels: Some(labels(&id, &pool, Stay::default(), "ours", "me")),
            state: Some(state),
            ..ContainerSummary::default()
        }
    }

    #[test]
    fn every_state_of_dockers_is_one_of_ours() {
        use ContainerSummaryStateEnum as Docker;
        for (docker, doing) in [
            (Docker::CREATED, Doing::Created),
            (Docker::RUNNING, Doing::Running),
            (Docker::PAUSED, Doing::Paused),
            (Docker::RESTARTING, Doing::Ending),
            (Docker::STOPPING, Doing::Ending),
            (Docker::REMOVING, Doing::Ending),
            (Docker::EXITED, Doing::Exited),
            (Docker::DEAD, Doing::Exited),
        ] {
            assert_eq!(Row::read(summary(docker)).unwrap().doing, doing, "{docker}");
        }
    }

    #[test]
    fn a_line_is_read_whole_or_not_at_all() {
        let whole = summary(ContainerSummaryStateEnum::RUNNING);
        let row = Row::read(whole.clone()).unwrap();
        assert_eq!(row.container, "c0ffee");
        assert_eq!(row.creator, "me");
        assert!(!row.adopted());
        for label in [ID, POOL, CREATOR] {
            let mut cut = whole.clone();
            cut.labels.as_mut().unwrap().remove(label);
            assert_eq!(Row::read(cut), None, "without {label}");
        }
        let mut strange = whole;
        strange.labels.as_mut().unwrap().insert(ID.into(), "../x".into());
        assert_eq!(Row::read(strange), None);
    }

    #[test]
    fn dockers_times_are_read() {
        let at =
            |text| time(text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos());
        assert_eq!(at("0001-01-01T00:00:00Z"), None);
        assert_eq!(at("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
        assert_eq!(at("1970-01-01T02:00:01+02:00"), Some(1_000_000_000));
        assert_eq!(at("yesterday"), None);
    }
}
