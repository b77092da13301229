//! `session_info`.

use std::{fmt::Write as _, time::Duration};

use greenroom_protocol::{KernelState, LeaseState, Packages, RunState};

use super::{super::render::span, Call, Outcome, Stop, Tools, refused};
use crate::{config::Size, error::Failure};

impl Tools {
    pub(super) async fn info(&self, call: &Call<'_>) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there is nothing to tell of it"));
        };
        let failed = |error| refused(&session, Failure::from(&error));
        let hello = session.guest.hello().await.map_err(failed)?;
        let runs = session.guest.runs().await.map_err(failed)?.runs;
        let packages = session.guest.packages().await.map_err(failed)?;
        let (pool, limits) = (&call.pool, &hello.platform);
        let mut text = format!("pool: {}\nlanguages:", call.key.pool);
        for kernel in &hello.kernels {
            let state = match kernel.state {
                KernelState::Dormant => "starts with its first run",
                KernelState::Starting => "starting",
                KernelState::Idle => "idle",
                KernelState::Busy => "busy",
                KernelState::Absent => "not in this image",
            };
            let version = kernel.version.as_deref().unwrap_or("version not known yet");
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {} ({version}): {state}", kernel.language);
        }
        let _ = write!(
            text,
            "\nlimits: {} processor(s), {} MiB memory, {}, {} processes, no network\nruns: at most {} each, {} if not said \
             otherwise",
            pool.cpus,
            limits.memory_bytes >> 20,
            disk(pool.disk, hello.disk_used_bytes),
            pool.nproc,
            span(pool.run_timeout_max),
            span(pool.run_timeout),
        );
        let going = runs
            .iter()
            .filter(|run| !matches!(run.state, RunState::Finished(_)))
            .count();
        let _ = write!(text, "; {} kept, {going} of them not over", runs.len());
        if let LeaseState::Bound(lease) = &hello.lease {
            let millis = Duration::from_millis;
            let _ = write!(
                text,
                "\nage: {}, idle for {}; it ends in {} ({})",
                span(millis(lease.age_ms)),
                span(millis(lease.idle_ms)),
                span(millis(lease.ends_in_ms)),
                lease.ends_by.as_str(),
            );
        }
        text += &listed(&packages);
        Ok(Outcome {
            answer: call.found(&session).sentence("ok", &text),
            news: None,
        })
    }
}

/// The limit, and how much of it is in use.
fn disk(limit: Size, used: Option<u64>) -> String {
    match used {
        Some(used) => format!("{limit} disk of which {} MiB are used", used >> 20),
        None => format!("{limit} disk"),
    }
}

/// The packages of the image's languages, a line each; the system's own are found with `dpkg --list`.
fn listed(packages: &Packages) -> String {
    let mut text = String::new();
    for language in ["python", "r"] {
        let of_it = packages
            .packages
            .iter()
            .filter(|package| package.kind == language);
        let names: Vec<String> = of_it
            .map(|package| format!("{} {}", package.name, package.version))
            .collect();
        if !names.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{language} packages: {}", names.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::Package;

    use super::*;

    #[test]
    fn packages_are_listed_by_language() {
        let package = |kind: &str, name: &str| Package {
            kind: kind.into(),
            name: name.into(),
            version: "1.0".into(),
        };
        let packages = vec![
            package("debian", "bash"),
            package("python", "numpy"),
            package("python", "scipy"),
        ];
        assert_eq!(
            listed(&Packages { packages }),
            "\npython packages: numpy 1.0, scipy 1.0"
        );
        assert_eq!(listed(&Packages::default()), "");
    }
}
