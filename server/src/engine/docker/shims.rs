//! Shims: containerd's children that each wait for one container, outside of its cgroup; found among all processes.

use std::{
    fs::{self, File},
    io::Read as _,
    path::PathBuf,
};

use serde::Deserialize;

use super::leftovers::{Parent, container_id};

/// A bundle's configuration: the engine's is 10 KB, and an image's environment is in it.
const CONFIG_BYTES: u64 = 4 << 20;

/// Where shims are looked for.
#[derive(Debug)]
pub(super) struct Shims {
    processes: PathBuf,
}

/// One that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shim {
    pub(super) pid: i32,
    /// The engine's id of whom it waits for.
    pub(super) container: String,
    process: PathBuf,
}

impl Default for Shims {
    fn default() -> Self {
        Self {
            processes: "/proc".into(),
        }
    }
}

impl Shims {
    /// All that run on this machine, whichever engine's.
    pub(super) fn running(&self) -> impl Iterator<Item = Shim> {
        let processes = fs::read_dir(&self.processes).into_iter().flatten().flatten();
        processes.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let process = entry.path();
            let line = fs::read(process.join("cmdline")).ok()?;
            let container = container_of(&line)?;
            Some(Shim {
                pid,
                container,
                process,
            })
        })
    }
}

impl Shim {
    /// Whether its container was made to be below this cgroup. A shim works in its container's bundle; where that is gone,
    /// nothing says whose it is.
    pub(super) fn is_below(&self, parent: &Parent) -> bool {
        let mut config = Vec::new();
        let read = File::open(self.process.join("cwd/config.json"))
            .and_then(|file| file.take(CONFIG_BYTES).read_to_end(&mut config));
        let bundle: Option<Bundle> = read.ok().and_then(|_| serde_json::from_slice(&config).ok());
        let Some(cgroup) = bundle.and_then(|bundle| bundle.linux?.cgroups_path) else {
            return false;
        };
        // `parent/id` with cgroupfs, `parent.slice:docker:id` with systemd.
        let mut parts = cgroup.trim_start_matches('/').split(['/', ':']);
        parts.next() == Some(parent.as_str()) && parts.next_back() == Some(self.container.as_str())
    }
}

/// What is read of a bundle's `config.json`.
#[derive(Deserialize)]
struct Bundle {
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

/// The container that a process waits for, if it is a shim.
fn container_of(command_line: &[u8]) -> Option<String> {
    let arguments: Vec<&[u8]> = command_line.split(|&byte| byte == 0).collect();
    let program = arguments[0].rsplit(|&byte| byte == b'/').next()?;
    if !program.starts_with(b"containerd-shim") {
        return None;
    }
    let pair = arguments.windows(2).find(|pair| pair[0] == b"-id")?;
    let id = std::str::from_utf8(pair[1]).ok()?;
    (container_id(id) == Some(id)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn line(program: &str, id: &str) -> String {
        format!("{program}\0-namespace\0moby\0-id\0{id}\0-address\0x\0")
    }

    fn process(processes: &Path, pid: u32, line: &str, cgroup: Option<&str>) {
        let process = processes.join(pid.to_string());
        fs::create_dir_all(process.join("cwd")).unwrap();
        fs::write(process.join("cmdline"), line).unwrap();
        if let Some(cgroup) = cgroup {
            let config = format!(r#"{{"ociVersion":"1.2.0","linux":{{"cgroupsPath":"{cgroup}"}}}}"#);
            fs::write(process.join("cwd/config.json"), config).unwrap();
        }
    }

    #[test]
    fn shims_are_known_by_their_command_line() {
        let of = |program: &str, id: &str| container_of(line(program, id).as_bytes());
        let a = id('a');
        assert_eq!(of("/usr/bin/containerd-shim-runc-v2", &a), Some(a.clone()));
        assert_eq!(of("/bin/sleep", &a), None);
        assert_eq!(of("containerd-shim-runc-v2", "../a"), None);
        assert_eq!(container_of(b""), None);
        assert_eq!(container_of(b"containerd-shim\0-id"), None);
    }

    #[test]
    fn a_shim_is_whose_its_bundle_says() {
        let folder = tempfile::tempdir().unwrap();
        let shim = line("containerd-shim-runsc-v1", &id('a'));
        let parent = |engine, systemd| Parent::new("greenroom", "ours", "f00d", engine, systemd);
        let ours = parent("engine", false);
        let slice = parent("engine", true);
        let (mine, another) = (ours.as_str(), parent("another", false));
        let a = id('a');
        for (pid, cgroup, of_cgroupfs, of_systemd) in [
            (1, Some(format!("{mine}/{a}")), true, false),
            (2, Some(format!("/{mine}/{a}")), true, false),
            (3, Some(format!("{}:docker:{a}", slice.as_str())), false, true),
            (4, Some(format!("{}/{a}", another.as_str())), false, false),
            (5, Some(format!("docker/{mine}/{a}")), false, false),
            (6, Some(format!("{mine}/{}", id('b'))), false, false),
            (7, Some(mine.to_owned()), false, false),
            (8, Some(String::new()), false, false),
            (9, None, false, false),
        ] {
            process(folder.path(), pid, &shim, cgroup.as_deref());
            let shims = Shims {
                processes: folder.path().to_owned(),
            };
            let shim = shims.running().find(|shim| shim.pid == pid as i32).unwrap();
            assert_eq!(shim.container, a);
            assert_eq!(
                (shim.is_below(&ours), shim.is_below(&slice)),
                (of_cgroupfs, of_systemd),
                "{cgroup:?}"
            );
        }
    }
}
