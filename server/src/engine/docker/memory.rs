//! What the host can still give: how much memory sandboxes may take before the host's own programs would miss it, and
//! the limit on all sandboxes together that makes the kernel end one of them and not the engine or the server.

use std::{fs, io, path::Path};

/// Never less for the host: an engine, a server and a shell live in it.
const LEAST: u64 = 512 << 20;
/// Never more: what larger hosts run beside Greenroom does not grow with their memory.
const MOST: u64 = 4 << 30;

/// The host's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    total: u64,
    available: u64,
}

impl Memory {
    /// As the kernel counts it now.
    pub(super) fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        Self::parse(&text).ok_or_else(|| io::Error::other("/proc/meminfo does not say what there is"))
    }

    fn parse(text: &str) -> Option<Self> {
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line
                .trim_start_matches(':')
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()?;
            kib.checked_mul(1024)
        };
        Some(Self {
            total: of("MemTotal")?,
            available: of("MemAvailable")?,
        })
    }

    /// What is the host's own: a sixteenth, within bounds.
    fn reserve(self) -> u64 {
        (self.total / 16).clamp(LEAST, MOST)
    }

    /// What sandboxes may still take.
    pub(super) fn spare(self) -> u64 {
        self.available.saturating_sub(self.reserve())
    }

    /// What all sandboxes together may have.
    pub(super) fn limit(self) -> u64 {
        self.total.saturating_sub(self.reserve())
    }
}

/// Sets the limit of a cgroup in whichever hierarchy counts memory; one that has it already is left as it is.
pub(super) fn limit(directory: &Path, bytes: u64) -> io::Result<()> {
    // By these names with cgroups v1 and v2. The kernel rounds to pages.
    for file in ["memory.limit_in_bytes", "memory.max"] {
        let path = directory.join(file);
        let Ok(now) = fs::read_to_string(&path) else {
            continue;
        };
        if now.trim().parse().is_ok_and(|now: u64| now <= bytes) {
            return Ok(());
        }
        return fs::write(path, bytes.to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_is_the_hosts_own() {
        let text = "MemTotal:       24000000 kB\nMemFree:  1 kB\nMemAvailable:   2000000 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!(memory.limit(), 22_500_000 * 1024);
        assert_eq!(memory.spare(), 500_000 * 1024);
        for (total, reserve) in [(1 << 30, LEAST), (16 << 30, 1 << 30), (256 << 30, MOST)] {
            let memory = Memory { total, available: 0 };
            assert_eq!((memory.reserve(), memory.spare()), (reserve, 0), "{total}");
        }
        assert_eq!(Memory::parse("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_limit_is_set_once_and_only_lowered() {
        for file in ["memory.limit_in_bytes", "memory.max"] {
            let cgroup = tempfile::tempdir().unwrap();
            let path = cgroup.path().join(file);
            for (before, after) in [("max", "1000"), ("9223372036854771712", "1000"), ("500", "500")] {
                fs::write(&path, before).unwrap();
                limit(cgroup.path(), 1000).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), after, "{file} {before}");
            }
        }
        let no_memory_here = tempfile::tempdir().unwrap();
        limit(no_memory_here.path(), 1000).unwrap();
        assert_eq!(fs::read_dir(no_memory_here.path()).unwrap().count(), 0);
    }
}
