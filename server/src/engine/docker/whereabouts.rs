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
    /// In each hierarchy, whatever that is for.
    pub(super) all: Vec<PathBuf>,
}

impl Whereabouts {
    /// The parent of the cgroup that a sandbox's process is in.
    pub(super) fn by(pid: i64) -> Option<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
    }

    /// The cgroup of this name that any of these processes (of `/proc`) is below: the engine may have forgotten all that
    /// runs there.
    pub(super) fn among(processes: &Path, name: &str) -> Option<Self> {
        let cgroups = fs::read_dir(processes).ok()?.flatten();
        let mut found = cgroups
            .filter_map(|process| Self::read(&fs::read_to_string(process.path().join("cgroup")).ok()?));
        found.find(|found| found.is_called(name))
    }

    /// Whether it is the cgroup of this name, and not somebody else's.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.memory.file_name() == Some(name.as_ref())
    }

    fn read(cgroups: &str) -> Option<Self> {
        Some(Self {
            memory: place(cgroups, "memory")?,
            processors: place(cgroups, "cpu")?,
            time: place(cgroups, "cpuacct")?,
            all: cgroups.lines().filter_map(everywhere).collect(),
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
    parent(hierarchy, place)
}

/// The parent's directory by one line: a number, what the hierarchy is for, and the place in it.
fn everywhere(line: &str) -> Option<PathBuf> {
    let (controllers, place) = line.split_once(':')?.1.split_once(':')?;
    // Of two controllers each is a name of their hierarchy; one without any has a name of its own.
    let hierarchy = controllers.split(',').next().unwrap_or_default();
    parent(hierarchy.trim_start_matches("name="), place)
}

fn parent(hierarchy: &str, place: &str) -> Option<PathBuf> {
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

    #[test]
    fn a_parent_is_found_by_any_process_below_it() {
        let folder = tempfile::tempdir().unwrap();
        for (pid, cgroups) in [
            ("1", "0::/init"),
            (
                "2",
                "5:name=systemd:/x/ours/id\n4:memory:/x/ours/id\n3:cpu,cpuacct:/x/ours/id\n",
            ),
            ("3", "4:memory:/x/theirs/id\n3:cpu,cpuacct:/x/theirs/id\n"),
        ] {
            fs::create_dir(folder.path().join(pid)).unwrap();
            fs::write(folder.path().join(pid).join("cgroup"), cgroups).unwrap();
        }
        let found = Whereabouts::among(folder.path(), "ours").unwrap();
        let all = ["systemd", "memory", "cpu"].map(|one| Path::new(CGROUPS).join(one).join("x/ours"));
        assert_eq!((&found.memory, found.all), (&all[1], all.to_vec()));
        assert_eq!(Whereabouts::among(folder.path(), "nobodys"), None);
    }
}
