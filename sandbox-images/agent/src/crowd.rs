//! A process table that is full: what is ended so that there is room in it again.
//!
//! A fork bomb that a run has left in the background takes every place that the guest has: no shell can fork,
//! and no kernel can be brought back. What ends it must need no place itself, and must win a race against forks,
//! since each process that is killed makes room for another: where killing alone does not win it, all of them are
//! stopped first, and killed then.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::{Pid, Resource, Signal, getpid, getrlimit, kill_process};
use tokio::time::{Instant, sleep};

use crate::{
    child,
    processes::{self, Process, State},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
/// How long it may take: each round leaves fewer that can fork.
const PATIENCE: Duration = Duration::from_secs(3);
/// Looks that kill at once. Most of what is left in the background forks no more; and gVisor takes a kernel's group of
/// processes for an orphaned one when the first orphan in it ends, and sends SIGHUP to all of it, the kernel included, if
/// one is stopped then.
const PLAIN: u32 = 5;
/// Looks without a victim after which there is none: what was just being forked is seen by the next.
const QUIET: u32 = 2;

/// A kernel that is at work, and since when: what it started before is left behind by earlier runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Working {
    pub(crate) pid: i32,
    /// In the clock ticks of the process table.
    pub(crate) since: u64,
}

/// Whether the guest has so many processes that a shell or a kernel may not get the few that it needs.
pub(crate) fn is_full() -> bool {
    let limit = getrlimit(Resource::Nproc).current;
    limit.is_some_and(|limit| is_nearly(processes::all().len() as u64, limit))
}

const fn is_nearly(count: u64, limit: u64) -> bool {
    count >= limit - limit / 8
}

/// Ends what nobody waits for: orphans, and what earlier runs of a working kernel left behind, with all that
/// descends from them. Answers how many there were.
pub(crate) async fn thin(working: Option<Working>) -> u32 {
    let deadline = Instant::now() + PATIENCE;
    let (mut seen, mut quiet, mut looks) = (BTreeSet::new(), 0, 0);
    while quiet < QUIET && Instant::now() < deadline {
        let table = processes::all();
        // After the table: a child of ours that stands in it is known by now.
        let victims = leftovers(&table, &child::owned(), working);
        let fresh = victims.iter().filter(|victim| seen.insert(**victim)).count();
        looks += 1;
        let signal = if looks <= PLAIN || fresh == 0 {
            Signal::KILL
        } else {
            Signal::STOP
        };
        quiet = if victims.is_empty() { quiet + 1 } else { 0 };
        for (pid, _) in &victims {
            send(*pid, signal);
        }
        sleep(PAUSE).await;
    }
    for (pid, _) in leftovers(&processes::all(), &child::owned(), working) {
        send(pid, Signal::KILL);
    }
    u32::try_from(seen.len()).unwrap_or(u32::MAX)
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // One that is gone meanwhile is what was wanted.
        let _ = kill_process(pid, signal);
    }
}

/// Pid and start of the living that nobody waits for.
fn leftovers(table: &[Process], owned: &BTreeSet<i32>, working: Option<Working>) -> Vec<(i32, u64)> {
    let own = getpid().as_raw_nonzero().get();
    let is_left = |process: &Process| {
        let orphan = process.parent == own && !owned.contains(&process.pid);
        let earlier =
            working.is_some_and(|kernel| process.parent == kernel.pid && process.started < kernel.since);
        process.pid != own && (orphan || earlier)
    };
    let left = table
        .iter()
        .filter(|process| is_left(process))
        .map(|process| process.pid)
        .collect();
    let left = processes::with_descendants(table, left);
    let living = table.iter().filter(|process| process.state == State::Alive);
    living
        .filter(|process| left.contains(&process.pid))
        .map(|process| (process.pid, process.started))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, started: u64) -> Process {
        Process {
            pid,
            parent,
            group: parent,
            state: State::Alive,
            started,
        }
    }

    #[test]
    fn only_what_nobody_waits_for_is_left_over() {
        let own = getpid().as_raw_nonzero().get();
        let table = [
            process(own, 0, 0),
            process(-5, own, 5),  // a kernel of ours
            process(-6, own, 6),  // an orphan
            process(-8, -7, 8),   // listed before its parent
            process(-7, -6, 7),   // the orphan's child
            process(-9, -5, 9),   // left by an earlier run
            process(-10, -5, 20), // of the run at work
            process(-11, 0, 3),   // from outside: a channel
        ];
        let pids = |working| {
            let left = leftovers(&table, &BTreeSet::from([-5]), working);
            left.into_iter().map(|(pid, _)| pid).collect::<Vec<_>>()
        };
        assert_eq!(pids(None), [-6, -8, -7]);
        assert_eq!(pids(Some(Working { pid: -5, since: 20 })), [-6, -8, -7, -9]);
    }

    #[test]
    fn full_is_an_eighth_before_the_limit() {
        for (count, limit, full) in [(111, 128, false), (112, 128, true), (7, 8, true), (6, 8, false)] {
            assert_eq!(is_nearly(count, limit), full, "{count} of {limit}");
        }
    }
}
