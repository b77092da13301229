//! Who uses the processors gives way to who does not: a conversation whose code burns for minutes is not to be felt in
//! the calls of the others.
//!
//! Once a second the sandboxes' processor time is looked at. Those that used about as much as the mean or more are
//! put into the kernel's idle class among their siblings (`cpu.idle`, Linux 5.15): whenever another sandbox wakes, it
//! runs at once. The class counts below our own cgroup only, so that all sandboxes together keep their share of the host.
//! One that is starved has used less than the mean, and is back among the others a second later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::leftovers::{CGROUPS, container_id};

/// Below this part of one processor nobody is in anybody's way.
const LIGHT: f64 = 0.1;
/// Who has used this part of the mean or more, has used as much as the others. Without it those who share alike would
/// take turns.
const ALIKE: f64 = 0.75;
/// Who has used less than this part of one processor does nothing.
const ASLEEP: f64 = 0.01;

/// Puts sandboxes into the idle class and takes them out again.
#[derive(Debug)]
pub(super) struct Yielding {
    root: PathBuf,
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
    pub(super) fn new() -> Self {
        Self {
            root: CGROUPS.into(),
            seen: Mutex::default(),
        }
    }

    /// One look, and what follows from it. `parent` is the cgroup of all sandboxes, of whichever controller.
    ///
    /// # Errors
    /// This process may not put sandboxes into another class.
    pub(super) fn look(&self, parent: &Path, now: Instant) -> io::Result<()> {
        let used = used(&self.beside(parent, "cpuacct"))?;
        let class = self.beside(parent, "cpu");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.take();
        let mut yielding = BTreeSet::new();
        if let Some(before) = before {
            let lasted = now - before.at;
            let spent = used.iter().map(|(id, used)| {
                let before = before.used.get(id).copied().unwrap_or(*used);
                (id.as_str(), used.saturating_sub(before))
            });
            yielding = heavy(&spent.collect(), lasted);
            for id in before.yielding.symmetric_difference(&yielding) {
                put(&class, id, yielding.contains(id))?;
            }
        }
        *seen = Some(Seen {
            at: now,
            used,
            yielding,
        });
        Ok(())
    }

    /// The same cgroup under another controller. Version 2 has one tree for all.
    fn beside(&self, parent: &Path, controller: &str) -> PathBuf {
        let below = parent.strip_prefix(&self.root).unwrap_or(parent);
        if self.root.join("cgroup.controllers").exists() {
            return self.root.join(below);
        }
        let path: PathBuf = below.components().skip(1).collect();
        self.root.join(controller).join(path)
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

fn put(parent: &Path, name: &str, idle: bool) -> io::Result<()> {
    match fs::OpenOptions::new()
        .write(true)
        .open(parent.join(name).join("cpu.idle"))
    {
        Ok(mut class) => class.write_all(if idle { b"1" } else { b"0" }),
        // It is gone, or the kernel has no such class and all go on alike.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
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

/// Those who have used about as much as the mean or more, of what is worth sharing.
fn heavy(spent: &BTreeMap<&str, Duration>, lasted: Duration) -> BTreeSet<String> {
    let awake = spent.values().filter(|spent| **spent > lasted.mul_f64(ASLEEP));
    let (count, all) = awake.fold((0, Duration::ZERO), |(count, all), spent| {
        (count + 1, all + *spent)
    });
    let mean = all.checked_div(count).unwrap_or_default();
    let least = mean.mul_f64(ALIKE).max(lasted.mul_f64(LIGHT));
    spent
        .iter()
        .filter(|(_, spent)| **spent >= least)
        .map(|(id, _)| (*id).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_uses_more_than_its_share_gives_way() {
        for (spent, expected) in [
            (&[][..], &[][..]),
            (&[("a", 0), ("b", 5)], &[]),
            // Nobody is in anybody's way.
            (&[("a", 90), ("b", 20)], &[]),
            (&[("a", 990)], &["a"]),
            // Four that burn on two processors, and a quiet one.
            (
                &[("a", 470), ("b", 490), ("c", 480), ("d", 440), ("q", 90)],
                &["a", "b", "c", "d"],
            ),
            // The same when the quiet one sleeps: they are alike, and stay so.
            (
                &[("a", 500), ("b", 500), ("c", 510), ("d", 490), ("q", 0)],
                &["a", "b", "c", "d"],
            ),
            // One that is starved by many that are awake comes to the front, and they go back.
            (
                &[
                    ("a", 400),
                    ("b", 400),
                    ("c", 400),
                    ("d", 400),
                    ("e", 380),
                    ("s", 15),
                ],
                &["a", "b", "c", "d", "e"],
            ),
            (
                &[
                    ("a", 200),
                    ("b", 200),
                    ("c", 200),
                    ("d", 200),
                    ("e", 200),
                    ("s", 990),
                ],
                &["s"],
            ),
        ] {
            let spent = spent
                .iter()
                .map(|(id, millis)| (*id, Duration::from_millis(*millis)))
                .collect();
            let found = heavy(&spent, SECOND);
            assert_eq!(
                found.iter().map(String::as_str).collect::<Vec<_>>(),
                expected,
                "{spent:?}"
            );
        }
    }

    fn cgroup(root: &Path, controller: &str, id: &str, file: &str, text: &str) {
        let folder = root.join(controller).join("greenroom_a").join(id);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }

    #[test]
    fn classes_follow_what_was_used() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        for version in [1, 2] {
            let root = tempfile::tempdir().unwrap();
            let root = root.path();
            let (class, time) = if version == 1 {
                ("cpu", "cpuacct")
            } else {
                ("", "")
            };
            if version == 2 {
                fs::write(root.join("cgroup.controllers"), "cpu").unwrap();
            }
            let spend = |id: &str, millis: u64| match version {
                1 => cgroup(
                    root,
                    time,
                    id,
                    "cpuacct.usage",
                    &format!("{}\n", millis * 1_000_000),
                ),
                _ => cgroup(
                    root,
                    time,
                    id,
                    "cpu.stat",
                    &format!("usage_usec {}\nuser_usec 1\n", millis * 1000),
                ),
            };
            let class_of = |id: &str| {
                fs::read_to_string(root.join(class).join("greenroom_a").join(id).join("cpu.idle")).unwrap()
            };
            let parent = root
                .join(if version == 1 { "memory" } else { "" })
                .join("greenroom_a");
            let yielding = Yielding {
                root: root.to_owned(),
                ..Yielding::new()
            };
            let now = Instant::now();
            assert!(yielding.look(&parent, now).is_ok(), "there is no sandbox yet");
            for id in [&a, &b] {
                spend(id, 5_000);
                cgroup(root, class, id, "cpu.idle", "0");
            }
            yielding.look(&parent, now + SECOND).unwrap();
            assert_eq!(
                class_of(&a),
                "0",
                "what it had used before it was seen is no use of a second"
            );
            spend(&a, 5_900);
            yielding.look(&parent, now + 2 * SECOND).unwrap();
            assert_eq!((class_of(&a), class_of(&b)), ("1".into(), "0".into()));
            yielding.look(&parent, now + 3 * SECOND).unwrap();
            assert_eq!(class_of(&a), "0");
            spend(&b, 5_800);
            fs::remove_dir_all(root.join(class).join("greenroom_a").join(&b)).unwrap();
            assert!(
                yielding.look(&parent, now + 4 * SECOND).is_ok(),
                "it is gone meanwhile"
            );
        }
    }
}
