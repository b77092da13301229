//! The process table, as `/proc` shows it.

use std::{collections::BTreeSet, fs, time::Duration};

use tokio::time::sleep;

/// Between two looks at a process that is about to exit.
const LOOK: Duration = Duration::from_millis(2);

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) state: State,
    /// Clock ticks since boot: with the pid, it names a process for good.
    pub(crate) started: u64,
}

/// All that matters of a process's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Alive,
    /// Dead, and not yet waited for.
    Zombie,
}

/// Every process that can be seen now.
pub(crate) fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // One that ended between the listing and this look is no loss.
            parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        })
        .collect()
}

/// Waits until a process has exited. Cancel safe.
pub(crate) async fn gone(pid: i32) {
    let runs = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse(pid, &stat).filter(|process| process.state == State::Alive)
    };
    while runs().is_some() {
        sleep(LOOK).await;
    }
}

/// These processes and all that the table shows to descend from them.
pub(crate) fn with_descendants(table: &[Process], mut family: BTreeSet<i32>) -> BTreeSet<i32> {
    // Parents may come after their children in the table, so until a pass adds nobody.
    loop {
        let before = family.len();
        for process in table {
            if family.contains(&process.parent) {
                family.insert(process.pid);
            }
        }
        if family.len() == before {
            return family;
        }
    }
}

/// Clock ticks since boot, as [`Process::started`] counts them, of a moment that is just over: whatever starts from
/// here on has as many or more. gVisor rounds the text to the nearest tick, and cuts what it says of a process.
pub(crate) fn just_now() -> Option<u64> {
    just_before(&fs::read_to_string("/proc/uptime").ok()?)
}

/// One less than the ticks, a hundred a second, that the text of `/proc/uptime` says.
fn just_before(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    let ticks = seconds.checked_mul(100)? + hundredths.get(..2)?.parse::<u64>().ok()?;
    Some(ticks.saturating_sub(1))
}

/// Whether a process was started with `tag`, a whole `NAME=value`, in its environment. False where that may
/// not be looked at.
pub(crate) fn carries(pid: i32, tag: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|entry| entry == tag))
}

/// Whether this process ignores SIGINT. Where that cannot be seen it does not.
pub(crate) fn ignores_interrupts() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignored(&status, 2))
}

/// Whether a signal is among those that the text of `/proc/PID/status` calls ignored.
fn ignored(status: &str, signal: u32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Resident bytes of a process, if it can be seen.
pub(crate) fn resident(pid: i32) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// Bytes of memory that the machine has, or that its limit leaves it.
pub(crate) fn machine_memory() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// The value of a line such as `VmRSS:   1024 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Reads a line of `/proc/<pid>/stat`. The name in it may hold anything, spaces and brackets included.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = match fields.next()? {
        "Z" | "X" => State::Zombie,
        _ => State::Alive,
    };
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let started = fields.nth(16)?.trim().parse().ok()?;
    Some(Process {
        pid,
        parent,
        group,
        state,
        started,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_gone_once_it_has_exited_though_nobody_waits_for_it() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id().cast_signed();
        let early = tokio::time::timeout(Duration::from_millis(50), gone(pid)).await;
        assert!(early.is_err(), "it runs");
        child.kill().unwrap();
        tokio::time::timeout(Duration::from_secs(30), gone(pid))
            .await
            .unwrap();
        child.wait().unwrap();
        gone(pid).await;
    }

    #[test]
    fn a_name_cannot_forge_the_other_fields() {
        let stat = "7 (a) Z 1 (b) S 3 7 7 0 -1 4194304 106 0 0 0 0 0 0 0 20 0 1 0 212862 3092480 437\n";
        assert_eq!(
            parse(7, stat),
            Some(Process {
                pid: 7,
                parent: 3,
                group: 7,
                state: State::Alive,
                started: 212_862
            })
        );
        assert_eq!(parse(7, "7 (cat"), None);
    }

    #[test]
    fn ignored_signals_are_bits() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001002\n";
        assert!(ignored(status, 2) && ignored(status, 13));
        assert!(!ignored(status, 1) && !ignored("Name:\tx\n", 2));
    }

    #[test]
    fn time_is_told_in_ticks() {
        // Rounded from 8123.066, at which a process starts whose entry says 812306.
        assert_eq!(just_before("8123.07 0.00\n"), Some(812_306));
        assert_eq!(just_before("0.00 0.00\n"), Some(0));
        assert_eq!(just_before("never"), None);
        let own = std::process::id().cast_signed();
        let started = all()
            .iter()
            .find(|process| process.pid == own)
            .map(|process| process.started);
        let (started, now) = (started.unwrap(), just_now().unwrap());
        assert!(
            started <= now + 1 && now < started + 100 * 3600,
            "{started} {now}"
        );
    }

    #[test]
    fn this_process_is_in_the_table() {
        let own = std::process::id().cast_signed();
        assert!(
            all()
                .iter()
                .any(|process| process.pid == own && process.state == State::Alive)
        );
        assert!(resident(own).is_some_and(|bytes| bytes > 100_000));
        assert!(machine_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
