//! Where the cgroup of all sandboxes is. Docker takes a parent's name as relative to where the engine itself stands, which
//! with version 1 of cgroups may be another place for each controller; so it is found from within, by a process.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::leftovers::CGROUPS;

/// The cgroup of all sandboxes, under each controller that is used here. With version 2 all are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whereabouts {
    /// Where memory is counted and limited.
    pub(super) memory: PathBuf,
    /// Where the class of who may use the processors is said.
    pub(super) processors: PathBuf,
    /// Where the time that processors were used is counted.
    pub(super) time: PathBuf,
}

impl Whereabouts {
    /// The parent of the cgroup that a sandbox's process is in.
    pub(super) fn by(pid: i64) -> Option<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
    }

    fn read(cgroups: &str) -> Option<Self> {
        Some(Self {
            memory: place(cgroups, "memory")?,
            processors: place(cgroups, "cpu")?,
            time: place(cgroups, "cpuacct")?,
        })
    }
}

/// The parent's directory under a controller.
fn place(cgroups: &str, controller: &str) -> Option<PathBuf> {
    let lines = cgroups
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let mut places = lines.filter_map(|(controllers, place)| {
        let has_it = controllers.split(',').any(|one| one == controller);
        let hierarchy = if has_it { controller } else { "" };
        (has_it || controllers.is_empty()).then_some((hierarchy, place))
    });
    // That of version 1 comes first, if there is one: the kernel lists the newest hierarchy first and version 2 last.
    let (hierarchy, place) = places.next()?;
    let sandbox = Path::new(CGROUPS)
        .join(hierarchy)
        .join(place.trim_start_matches('/'));
    Some(sandbox.parent()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_with_either_version() {
        for (cgroups, expected) in [
            (
                "8:pids:/\n4:memory:/a/b/c\n3:cpuacct:/b/c\n2:cpu:/b/c\n0::/\n",
                Some(["memory/a/b", "cpu/b", "cpuacct/b"]),
            ),
            (
                "6:cpu,cpuacct:/b/c\n4:memory:/a/b/c\n",
                Some(["memory/a/b", "cpu/b", "cpuacct/b"]),
            ),
            ("0::/a/b\n", Some(["a", "a", "a"])),
            ("8:pids:/\n", None),
            ("4:memory:/a/b\n2:cpu:/b/c\n", None),
            ("", None),
        ] {
            let found = Whereabouts::read(cgroups).map(|found| [found.memory, found.processors, found.time]);
            let expected = expected.map(|paths| paths.map(|path| Path::new(CGROUPS).join(path)));
            assert_eq!(found, expected, "{cgroups:?}");
        }
    }
}
