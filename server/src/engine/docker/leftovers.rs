//! Processes that the engine has forgotten: a failed or hung start can leave gVisor running for ever under
//! a container id that Docker no longer knows. They are found by their cgroups, which are all below ours, and by their
//! shims, which are below none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    shims::{Shim, Shims},
    whereabouts::Whereabouts,
};
use crate::conversation::hex;

/// How long a cgroup or a shim must have been seen without an owner: a container that is being created or removed
/// is listed and has them at slightly different times.
const SECOND_LOOK: Duration = Duration::from_secs(30);
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// The cgroup that all sandboxes of one deployment on one engine are below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    name: String,
}

impl Parent {
    /// Names it, so that a person sees whose it is. The engine's own id is part of it, because two engines
    /// on one host see each other's cgroups and not each other's containers.
    pub(super) fn new(
        prefix: &str,
        deployment: &str,
        fingerprint: &str,
        engine_id: &str,
        systemd: bool,
    ) -> Self {
        let hash = Sha256::digest(format!("{deployment}\n{fingerprint}\n{engine_id}"));
        // No dashes: systemd takes one for a level of the hierarchy.
        let shown: String = deployment
            .chars()
            .take(48)
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        let name = format!("{prefix}_{shown}_{}", hex(&hash[..4]));
        Self {
            name: if systemd { format!("{name}.slice") } else { name },
        }
    }

    /// As the engine takes it.
    pub(super) fn as_str(&self) -> &str {
        &self.name
    }
}

/// What is on this machine of containers without an owner.
#[derive(Debug)]
pub(super) struct Leftovers {
    parent: Parent,
    root: PathBuf,
    shims: Shims,
    cgroups_seen: Seen,
    shims_seen: Seen,
}

/// Containers without an owner, and since when.
#[derive(Debug, Default)]
struct Seen(Mutex<HashMap<String, Instant>>);

impl Leftovers {
    pub(super) fn new(parent: Parent) -> Self {
        Self {
            parent,
            root: CGROUPS.into(),
            shims: Shims::default(),
            cgroups_seen: Seen::default(),
            shims_seen: Seen::default(),
        }
    }

    /// The cgroup parent.
    pub(super) const fn parent(&self) -> &Parent {
        &self.parent
    }

    /// The parent's directories: below the roots, where the engine itself stands there, and where it was found to be.
    fn parents(&self, found: Option<&Whereabouts>) -> io::Result<Vec<PathBuf>> {
        let name = &self.parent.name;
        let rooted = hierarchies(&self.root)?
            .into_iter()
            .map(|hierarchy| hierarchy.join(name));
        let found = found.into_iter().flat_map(|found| found.all.iter().cloned());
        let found = found.filter(|place| place.file_name() == Some(name.as_ref()));
        // One may be there by two names.
        let there: BTreeSet<PathBuf> = rooted
            .chain(found)
            .filter_map(|place| fs::canonicalize(place).ok())
            .collect();
        Ok(there.into_iter().collect())
    }

    /// The containers that have a cgroup, by their id, with all its directories.
    pub(super) fn on_disk(&self, found: Option<&Whereabouts>) -> io::Result<BTreeMap<String, Vec<PathBuf>>> {
        let mut containers: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for parent in self.parents(found)? {
            let Ok(entries) = fs::read_dir(parent) else {
                continue;
            };
            for entry in entries {
                let entry = entry?;
                if let Some(id) = entry.file_name().to_str().and_then(container_id) {
                    containers.entry(id.to_owned()).or_default().push(entry.path());
                }
            }
        }
        Ok(containers)
    }

    /// Kills what is in a container's cgroups, and its shims. The engine notices, and clears up behind them.
    pub(super) fn kill(&self, container: &str, found: Option<&Whereabouts>) -> io::Result<()> {
        let on_disk = self.on_disk(found)?;
        self.kill_all(container, on_disk.get(container).map_or(&[], Vec::as_slice));
        Ok(())
    }

    /// Kills everything in these cgroups and the shims of that container, and removes the directories. A
    /// directory whose processes are still dying stays, and is met again by the next sweep.
    pub(super) fn end(&self, container: &str, directories: &[PathBuf]) {
        self.kill_all(container, directories);
        for directory in directories {
            if let Err(error) = fs::remove_dir(directory) {
                tracing::debug!(container, %error, "a cgroup without an owner is still busy");
            }
        }
    }

    fn kill_all(&self, container: &str, directories: &[PathBuf]) {
        for directory in directories {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|line| line.parse().ok()).for_each(kill);
        }
        let shims = self.shims.running();
        shims
            .filter(|shim| shim.container == container)
            .for_each(|shim| kill(shim.pid));
    }

    /// Removes the parent where nothing is in it any more; where something is, the kernel refuses. A start
    /// that races with this fails once and is tried again.
    pub(super) fn remove_parent(&self, found: Option<&Whereabouts>) {
        for parent in self.parents(found).unwrap_or_default() {
            if let Err(error) = fs::remove_dir(parent) {
                tracing::debug!(%error, "the cgroup of all sandboxes stays");
            }
        }
    }

    /// Those on disk that have been seen without an owner for long enough. What has an owner again, or is
    /// gone, is forgotten.
    pub(super) fn due(&self, on_disk: HashSet<String>, owned: &HashSet<String>) -> Vec<String> {
        self.cgroups_seen.due(on_disk, owned)
    }

    /// The shims that run on this machine, whoever's they are.
    pub(super) fn shims(&self) -> Vec<Shim> {
        self.shims.running().collect()
    }

    /// The containers among them that are ours, that the engine has not listed, and that have been seen so for long
    /// enough. Whose a shim is its bundle says: the parent is named for one deployment on one engine.
    pub(super) fn due_shims(&self, shims: Vec<Shim>, listed: &HashSet<String>) -> Vec<String> {
        let forgotten = shims.into_iter().filter(|shim| !listed.contains(&shim.container));
        let ours = forgotten.filter(|shim| shim.is_below(&self.parent));
        let ours = ours.map(|shim| shim.container).collect();
        self.shims_seen.due(ours, listed)
    }
}

impl Seen {
    fn due(&self, there: HashSet<String>, owned: &HashSet<String>) -> Vec<String> {
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|id, _| there.contains(id) && !owned.contains(id));
        there
            .into_iter()
            .filter(|id| !owned.contains(id))
            .filter(|id| now - *seen.entry(id.clone()).or_insert(now) >= SECOND_LOOK)
            .collect()
    }
}

fn kill(pid: i32) {
    // 0 and 1 would be our own group and the host's init: no cgroup of ours has them.
    if let Some(pid) = (pid > 1).then(|| Pid::from_raw(pid)).flatten()
        && let Err(error) = kill_process(pid, Signal::KILL)
    {
        tracing::debug!(?pid, %error, "a leftover is already gone");
    }
}

/// Where the cgroup directories hang: one place for version 2, one for each controller for version 1.
fn hierarchies(root: &Path) -> io::Result<Vec<PathBuf>> {
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut controllers = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        // Symbolic links are second names, such as `cpu` for `cpu,cpuacct`.
        if entry.file_type()?.is_dir() {
            controllers.push(entry.path());
        }
    }
    Ok(controllers)
}

/// The container's id in a cgroup's name: bare with cgroupfs, `docker-<id>.scope` with systemd.
pub(super) fn container_id(name: &str) -> Option<&str> {
    let id = name
        .strip_prefix("docker-")
        .and_then(|rest| rest.strip_suffix(".scope"))
        .unwrap_or(name);
    let fits = id.len() == 64
        && id
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    fits.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn leftovers(root: &Path) -> Leftovers {
        Leftovers {
            root: root.to_owned(),
            ..Leftovers::new(Parent::new("greenroom", "ours", "f00d", "engine", false))
        }
    }

    #[test]
    fn a_parent_is_named_for_its_driver_and_its_engine() {
        let name = |engine, systemd| Parent::new("greenroom", "my-own", "f00d", engine, systemd).name;
        assert_eq!(name("a", true), format!("{}.slice", name("a", false)));
        assert_ne!(name("a", false), name("b", false));
        assert!(name("a", true).starts_with("greenroom_my_own_"));
        assert!(!name("a", true).contains('-'));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_second_look_condemns() {
        let leftovers = leftovers(Path::new("/nowhere"));
        let disk = || HashSet::from([id('a'), id('b')]);
        let owned = HashSet::from([id('b')]);
        assert!(leftovers.due(disk(), &owned).is_empty());
        tokio::time::advance(SECOND_LOOK / 2).await;
        // It has an owner after all, so that the clock starts anew.
        assert!(leftovers.due(disk(), &disk()).is_empty());
        assert!(leftovers.due(disk(), &owned).is_empty());
        tokio::time::advance(SECOND_LOOK - Duration::from_millis(1)).await;
        assert!(leftovers.due(disk(), &owned).is_empty());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(leftovers.due(disk(), &owned), [id('a')]);
    }

    #[test]
    fn both_versions_and_both_drivers_are_read() {
        let one = tempfile::tempdir().unwrap();
        let reader = leftovers(one.path());
        let parent = reader.parent().as_str().to_owned();
        for controller in ["memory", "pids"] {
            fs::create_dir_all(one.path().join(controller).join(&parent).join(id('a'))).unwrap();
        }
        fs::create_dir_all(one.path().join("memory").join(&parent).join("not-an-id")).unwrap();
        let found = reader.on_disk(None).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&id('a')]);
        assert_eq!(found[&id('a')].len(), 2);

        let two = tempfile::tempdir().unwrap();
        fs::write(two.path().join("cgroup.controllers"), "memory pids").unwrap();
        let scope = format!("docker-{}.scope", id('c'));
        fs::create_dir_all(two.path().join(&parent).join(scope)).unwrap();
        let reader = leftovers(two.path());
        let found = reader.on_disk(None).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&id('c')]);
        reader.remove_parent(None);
        assert_eq!(reader.on_disk(None).unwrap(), found, "a parent in use stays");
        fs::remove_dir(&found[&id('c')][0]).unwrap();
        reader.remove_parent(None);
        assert!(!two.path().join(&parent).exists());
    }

    #[test]
    fn what_is_where_the_engine_stands_is_read() {
        let root = tempfile::tempdir().unwrap();
        let reader = leftovers(root.path());
        let place = |controller: &str, name: &str| root.path().join(controller).join("docker/x").join(name);
        let all = ["memory", "cpu", "pids"].map(|controller| place(controller, reader.parent().as_str()));
        for folder in &all {
            fs::create_dir_all(folder.join(id('a'))).unwrap();
        }
        let theirs = place("memory", "theirs");
        fs::create_dir_all(theirs.join(id('b'))).unwrap();
        let found = Whereabouts {
            memory: all[0].clone(),
            processors: all[1].clone(),
            time: all[1].clone(),
            // One by two names, one of somebody else, and one that is not there.
            all: [
                &all[..],
                &[root
                    .path()
                    .join("cpu/../cpu/docker/x")
                    .join(reader.parent().as_str())],
                &[theirs, place("blkio", reader.parent().as_str())],
            ]
            .concat(),
        };
        assert!(reader.on_disk(None).unwrap().is_empty());
        let containers = reader.on_disk(Some(&found)).unwrap();
        assert_eq!(containers.keys().collect::<Vec<_>>(), [&id('a')]);
        assert_eq!(containers[&id('a')].len(), 3);
        reader.remove_parent(Some(&found));
        assert!(all.iter().all(|folder| folder.is_dir()), "a parent in use stays");
        for folder in &all {
            fs::remove_dir(folder.join(id('a'))).unwrap();
        }
        reader.remove_parent(Some(&found));
        assert!(!all.iter().any(|folder| folder.exists()));
        assert!(place("memory", "theirs").is_dir());
    }
}
