//! Ending everything that descends from a kernel: found by its environment's tag and by its parents, again
//! and again until nothing is left, so that neither `setsid` nor a fork meanwhile helps.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    child::{Quarters, spawn},
    errand::Errand,
    processes::{self, Process, State, with_descendants},
};

/// The variable that marks a kernel's descent.
pub(crate) const TAG: &str = "GREENROOM_KERNEL";
/// Killing is a race against forks that each round wins by more; one that is not won by now never will be.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for the killed to die before the next look.
const PAUSE: Duration = Duration::from_millis(2);

/// Kills whatever carries the tag `value` or descends from `root`, until nothing of it is left. Answers
/// whether that was reached in time.
pub(crate) async fn end(value: &str, root: Option<i32>) -> bool {
    let tag = format!("{TAG}={value}");
    let deadline = Instant::now() + PATIENCE;
    let mut family = Family::new(root);
    loop {
        let victims = family.find(&processes::all(), |pid| processes::carries(pid, tag.as_bytes()));
        if victims.is_empty() {
            return true;
        }
        for pid in victims.iter().filter_map(|&pid| Pid::from_raw(pid)) {
            // One that has died meanwhile is what was wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(PAUSE).await;
    }
}

/// As [`end`], for an agent that may not look into the guest's processes: it follows the parents itself,
/// which takes nothing but leaves out orphans, and sends a child after the tag.
pub(crate) async fn end_from(quarters: &Quarters, value: &str, root: Option<i32>) -> bool {
    let followed = end(value, root).await;
    if !quarters.is_apart() {
        return followed;
    }
    let mut command = quarters.errand(Errand::Descent, [value]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut child) = spawn(command) else {
        return false;
    };
    matches!(timeout(2 * PATIENCE, child.wait()).await, Ok(Ok(status)) if status.success())
}

/// The child's part of [`end_from`].
pub(crate) fn errand(value: &str) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.is_ok_and(|runtime| runtime.block_on(end(value, None)))
}

/// A kernel's process and all that ever was seen to descend from it.
#[derive(Debug)]
struct Family {
    /// The first one's pid, until it was seen.
    root: Option<i32>,
    /// Pid and start, so that a pid used anew is nobody's relative.
    seen: BTreeSet<(i32, u64)>,
}

impl Family {
    fn new(root: Option<i32>) -> Self {
        Self {
            root,
            seen: BTreeSet::new(),
        }
    }

    /// The living members by this look at the process table.
    fn find(&mut self, table: &[Process], carries: impl Fn(i32) -> bool) -> Vec<i32> {
        if let Some(first) = self
            .root
            .take()
            .and_then(|root| table.iter().find(|p| p.pid == root))
        {
            self.seen.insert((first.pid, first.started));
        }
        for process in table.iter().filter(|process| process.state == State::Alive) {
            if carries(process.pid) {
                self.seen.insert((process.pid, process.started));
            }
        }
        let known = table
            .iter()
            .filter(|process| self.seen.contains(&(process.pid, process.started)))
            .map(|process| process.pid)
            .collect();
        let members = with_descendants(table, known);
        for process in table.iter().filter(|process| members.contains(&process.pid)) {
            self.seen.insert((process.pid, process.started));
        }
        table
            .iter()
            .filter(|process| process.state == State::Alive)
            .filter(|process| self.seen.contains(&(process.pid, process.started)))
            .map(|process| process.pid)
            .collect()
    }
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
    fn a_family_is_found_by_parents_and_by_tag() {
        let table = [
            process(1, 0, 0),
            process(9, 5, 9),   // listed before its parent
            process(5, 1, 5),   // the kernel
            process(6, 5, 6),   // its child
            process(7, 1, 7),   // an orphan with the tag
            process(8, 7, 8),   // the orphan's child, tag cleared
            process(20, 1, 20), // a neighbour
            process(21, 20, 21),
        ];
        let mut family = Family::new(Some(5));
        assert_eq!(family.find(&table, |pid| pid == 7), [9, 5, 6, 7, 8]);
    }

    #[test]
    fn an_orphan_that_was_seen_stays_family_and_a_reused_pid_does_not() {
        let mut family = Family::new(Some(5));
        assert_eq!(
            family.find(&[process(5, 1, 5), process(6, 5, 6)], |_| false),
            [5, 6]
        );
        let later = [process(6, 1, 6), process(5, 1, 50), process(7, 5, 70)];
        assert_eq!(family.find(&later, |_| false), [6]);
    }

    #[test]
    fn the_dead_are_not_waited_for() {
        let mut dead = process(5, 1, 5);
        dead.state = State::Zombie;
        assert!(Family::new(Some(5)).find(&[dead], |_| false).is_empty());
    }
}
