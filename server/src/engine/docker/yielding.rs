//! Who uses the processors gives way to who does not: a conversation whose code burns for minutes is not to be felt in
//! the calls of the others.
//!
//! Once a second the sandboxes' processor time is looked at. Those that used about as much as the mean or more are
//! put into the kernel's idle class among their siblings (`cpu.idle`, Linux 5.15): whenever another sandbox wakes, it
//! runs at once. The class counts below our own cgroup only, so that all sandboxes together keep their share of the host.
//! One that is starved has used far less than the mean, and is back among the others a second later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{leftovers::container_id, whereabouts::Whereabouts};

/// Below this part of one processor nobody is in anybody's way.
const LIGHT: f64 = 0.1;
/// Who has used this part of the mean or more, has used as much as the others.
const ALIKE: f64 = 0.75;
/// Who gives way already and has used less than this part of the mean, is starved or has done its work. Those who
/// only had less than one that did not give way yet would take turns with it for ever.
const STARVED: f64 = 0.2;
/// Who has used less than this part of one processor does nothing.
const ASLEEP: f64 = 0.01;

/// Puts sandboxes into the idle class and takes them out again.
#[derive(Debug, Default)]
pub(super) struct Yielding {
    seen: Mutex<Option<Seen>>,
}

/// The last look.
#[derive(Debug)]
struct Seen {
    at: Instant,
    used: BTreeMap<String, Duration>,
    yielding: BTreeSet<String>,
}

impl Yielding {
    /// One look at all sandboxes, and what follows from it.
    ///
    /// # Errors
    /// This process may not put sandboxes into another class.
    pub(super) fn look(&self, all: &Whereabouts, now: Instant) -> io::Result<()> {
        let used = used(&all.time)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, yielding) = match seen.take() {
            Some(before) => {
                let lasted = now - before.at;
                let spent = used.iter().map(|(id, used)| {
                    let before = before.used.get(id).copied().unwrap_or(*used);
                    (id.as_str(), used.saturating_sub(before))
                });
                let yielding = heavy(&spent.collect(), &before.yielding, lasted);
                (before.yielding, yielding)
            }
            // Another server may have been here before, or this one may have been killed since.
            None => (
                used.keys()
                    .filter(|id| is_idle(&all.processors, id))
                    .cloned()
                    .collect(),
                BTreeSet::new(),
            ),
        };
        let changes: Vec<_> = before.symmetric_difference(&yielding).cloned().collect();
        let written = changes
            .iter()
            .map(|id| put(&all.processors, id, yielding.contains(id)));
        let written = written.collect::<Vec<_>>();
        *seen = Some(Seen {
            at: now,
            used,
            yielding,
        });
        written.into_iter().collect()
    }
}

fn used(parent: &Path) -> io::Result<BTreeMap<String, Duration>> {
    let mut used = BTreeMap::new();
    let entries = match fs::read_dir(parent) {
        // It goes with the last sandbox.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(used),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| container_id(name).is_some()) else {
            continue;
        };
        // It may be gone by now.
        if let Some(time) = processor_time(&parent.join(name)) {
            used.insert(name.to_owned(), time);
        }
    }
    Ok(used)
}

fn is_idle(parent: &Path, name: &str) -> bool {
    fs::read_to_string(parent.join(name).join("cpu.idle")).is_ok_and(|class| class.trim() == "1")
}

fn put(parent: &Path, name: &str, idle: bool) -> io::Result<()> {
    let class = OpenOptions::new()
        .write(true)
        .open(parent.join(name).join("cpu.idle"));
    let written = class.and_then(|mut class| class.write_all(if idle { b"1" } else { b"0" }));
    match written {
        // It is gone, or the kernel has no such class and all go on alike.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // It went between the two calls.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(()),
        written => written,
    }
}

/// What a cgroup has used since it was made.
fn processor_time(cgroup: &Path) -> Option<Duration> {
    if let Ok(text) = fs::read_to_string(cgroup.join("cpuacct.usage")) {
        return text.trim().parse().ok().map(Duration::from_nanos);
    }
    let text = fs::read_to_string(cgroup.join("cpu.stat")).ok()?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    usage.trim().parse().ok().map(Duration::from_micros)
}

/// Those who have used about as much as the mean or more, of what is worth sharing, and those who go on giving way.
fn heavy(spent: &BTreeMap<&str, Duration>, before: &BTreeSet<String>, lasted: Duration) -> BTreeSet<String> {
    let awake = spent.values().filter(|spent| **spent > lasted.mul_f64(ASLEEP));
    let (count, all) = awake.fold((0, Duration::ZERO), |(count, all), spent| {
        (count + 1, all + *spent)
    });
    let mean = all.checked_div(count).unwrap_or_default();
    let least = |id: &str| match before.contains(id) {
        true => mean.mul_f64(STARVED).max(lasted.mul_f64(ASLEEP)),
        false => mean.mul_f64(ALIKE).max(lasted.mul_f64(LIGHT)),
    };
    spent
        .iter()
        .filter(|(id, spent)| **spent >= least(id))
        .map(|(id, _)| (*id).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_uses_more_than_its_share_gives_way() {
        for (before, spent, expected) in [
            ("", &[][..], ""),
            ("", &[("a", 0), ("b", 5)], ""),
            // Nobody is in anybody's way.
            ("", &[("a", 90), ("b", 20)], ""),
            ("", &[("a", 990)], "a"),
            // Four that burn on two processors, and a quiet one.
            (
                "",
                &[("a", 470), ("b", 490), ("c", 480), ("d", 440), ("q", 90)],
                "abcd",
            ),
            // One of them was not among them yet, and so had more: now all are alike.
            (
                "abc",
                &[("a", 330), ("b", 330), ("c", 330), ("d", 990), ("q", 90)],
                "abcd",
            ),
            (
                "abcd",
                &[("a", 480), ("b", 500), ("c", 510), ("d", 490), ("q", 0)],
                "abcd",
            ),
            // It has done its work.
            ("abcd", &[("a", 20), ("b", 660), ("c", 660), ("d", 640)], "bcd"),
            // One that is starved by many comes to the front, and those who had as much as others give way to it.
            (
                "s",
                &[
                    ("a", 400),
                    ("b", 400),
                    ("c", 400),
                    ("d", 400),
                    ("e", 380),
                    ("s", 15),
                ],
                "abcde",
            ),
            // The last one does nothing any more.
            ("a", &[("a", 5)], ""),
        ] {
            let spent = spent
                .iter()
                .map(|(id, millis)| (*id, Duration::from_millis(*millis)))
                .collect();
            let before = before.chars().map(String::from).collect();
            let found = heavy(&spent, &before, SECOND);
            assert_eq!(found.into_iter().collect::<String>(), expected, "{spent:?}");
        }
    }

    #[test]
    fn classes_follow_what_was_used() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        for version in [1, 2] {
            let root = tempfile::tempdir().unwrap();
            let below = |controller: &str| root.path().join(if version == 1 { controller } else { "" });
            let all = Whereabouts {
                memory: below("memory"),
                processors: below("cpu"),
                time: below("cpuacct"),
                all: Vec::new(),
            };
            let write = |folder: &Path, id: &str, file: &str, text: &str| {
                fs::create_dir_all(folder.join(id)).unwrap();
                fs::write(folder.join(id).join(file), text).unwrap();
            };
            let spend = |id: &str, millis: u64| match version {
                1 => write(
                    &all.time,
                    id,
                    "cpuacct.usage",
                    &format!("{}\n", millis * 1_000_000),
                ),
                _ => write(
                    &all.time,
                    id,
                    "cpu.stat",
                    &format!("usage_usec {}\nuser_usec 1\n", millis * 1000),
                ),
            };
            let class_of = |id: &str| fs::read_to_string(all.processors.join(id).join("cpu.idle")).unwrap();
            let yielding = Yielding::default();
            let now = Instant::now();
            assert!(yielding.look(&all, now).is_ok(), "there is no sandbox yet");
            for id in [&a, &b] {
                spend(id, 5_000);
                write(&all.processors, id, "cpu.idle", "0");
            }
            yielding.look(&all, now + SECOND).unwrap();
            assert_eq!(
                class_of(&a),
                "0",
                "what it had used before it was seen is no use of a second"
            );
            spend(&a, 5_900);
            yielding.look(&all, now + 2 * SECOND).unwrap();
            assert_eq!((class_of(&a), class_of(&b)), ("1".into(), "0".into()));
            yielding.look(&all, now + 3 * SECOND).unwrap();
            assert_eq!(class_of(&a), "0");
            spend(&b, 5_800);
            fs::remove_dir_all(all.processors.join(&b)).unwrap();
            assert!(
                yielding.look(&all, now + 4 * SECOND).is_ok(),
                "it is gone meanwhile"
            );
        }
    }
}
