//! What the machine under the sandbox is, as seen from inside before any guest code ran.
//!
//! Whether this is gVisor is told by three marks that are independent of each other, and only all three
//! together count. The kernel's ring buffer would be a fourth; reading it takes a system call that has no
//! safe binding, and says nothing that these do not.
//!
//! | mark | gVisor | Linux |
//! |---|---|---|
//! | `uname(2)` | the build stamp of every gVisor since 2018, in newer ones also `-gvisor` | its own build time |
//! | `/proc/filesystems` | neither `pipefs` nor `sockfs`: pipes and sockets are the sentry's own | both, in every kernel |
//! | `/proc/self/status` | no `SigQ:` line | one, in every kernel since 2.6 |

use std::{fs, io::Read, num::NonZeroUsize, thread::available_parallelism};

use greenroom_protocol::Platform;

/// `Linux version …`: longer is not for people.
const KERNEL_BYTES: usize = 256;
/// The date that gVisor has compiled in as its kernel's build time.
const GVISOR_STAMP: &str = "Sun Jan 10 15:06:54 PST 2016";
/// More than any of the files under `/proc` that are read here has.
const PROC_BYTES: u64 = 64 << 10;

/// Looks at the machine. Call it before the first guest process starts: nothing inside can have bent
/// what is seen then. What cannot be read counts as absent, and an absent mark proves nothing.
#[must_use]
pub fn look() -> Platform {
    let marks = Marks {
        uname: {
            let uname = rustix::system::uname();
            format!(
                "{} {}",
                uname.release().to_string_lossy(),
                uname.version().to_string_lossy()
            )
        },
        filesystems: read("/proc/filesystems"),
        status: read("/proc/self/status"),
    };
    Platform {
        gvisor: marks.say_gvisor(),
        kernel: bounded(read("/proc/version").trim()),
        cpus: available_parallelism().map_or(1, NonZeroUsize::get) as u32,
        memory_bytes: total_memory(&read("/proc/meminfo")).unwrap_or(0),
        disk_bytes: rustix::fs::statvfs("/").map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize)),
    }
}

/// What guests have written to the root filesystem: all that its upper layer holds.
#[must_use]
pub fn disk_used() -> Option<u64> {
    let disk = rustix::fs::statvfs("/").ok()?;
    Some(
        disk.f_blocks
            .saturating_sub(disk.f_bfree)
            .saturating_mul(disk.f_frsize),
    )
}

/// What the proof rests on, as text.
struct Marks {
    uname: String,
    filesystems: String,
    status: String,
}

impl Marks {
    fn say_gvisor(&self) -> bool {
        let stamped = self.uname.contains(GVISOR_STAMP) || self.uname.contains("gvisor");
        let own_filesystems = lists_any(&self.filesystems, "proc")
            && !lists_any(&self.filesystems, "pipefs")
            && !lists_any(&self.filesystems, "sockfs");
        let own_status = self.status.contains("\nPid:") && !self.status.contains("\nSigQ:");
        stamped && own_filesystems && own_status
    }
}

fn lists_any(filesystems: &str, name: &str) -> bool {
    filesystems
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(name))
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn read(path: &str) -> String {
    let mut text = Vec::new();
    // What cannot be read is an absent mark; see `look`.
    drop(fs::File::open(path).and_then(|file| file.take(PROC_BYTES).read_to_end(&mut text)));
    String::from_utf8_lossy(&text).into_owned()
}

fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(KERNEL_BYTES);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GVISOR_FILESYSTEMS: &str =
        "nodev\tdevpts\nnodev\t9p\nnodev\toverlay\nnodev\tproc\nnodev\tsysfs\nnodev\ttmpfs\n";
    const LINUX_FILESYSTEMS: &str =
        "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tsockfs\nnodev\tpipefs\n\text4\n";
    const GVISOR_STATUS: &str =
        "Name:\tcat\nState:\tR (running)\nTgid:\t11\nPid:\t11\nPPid:\t1\nThreads:\t1\n";
    const LINUX_STATUS: &str = "Name:\tcat\nUmask:\t0022\nTgid:\t16\nPid:\t16\nThreads:\t1\nSigQ:\t0/96365\n";
    const GVISOR_UNAME: &str = "4.19.0-gvisor #1 SMP Sun Jan 10 15:06:54 PST 2016";
    const OLD_GVISOR_UNAME: &str = "4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016";
    const LINUX_UNAME: &str = "6.12.9-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.12.9-1";

    #[test]
    fn only_all_marks_together_say_gvisor() {
        for (uname, filesystems, status, gvisor) in [
            (GVISOR_UNAME, GVISOR_FILESYSTEMS, GVISOR_STATUS, true),
            (OLD_GVISOR_UNAME, GVISOR_FILESYSTEMS, GVISOR_STATUS, true),
            (LINUX_UNAME, LINUX_FILESYSTEMS, LINUX_STATUS, false),
            (LINUX_UNAME, GVISOR_FILESYSTEMS, GVISOR_STATUS, false),
            (GVISOR_UNAME, LINUX_FILESYSTEMS, GVISOR_STATUS, false),
            (GVISOR_UNAME, GVISOR_FILESYSTEMS, LINUX_STATUS, false),
            (GVISOR_UNAME, "", GVISOR_STATUS, false),
            (GVISOR_UNAME, GVISOR_FILESYSTEMS, "", false),
        ] {
            let marks = Marks {
                uname: uname.to_owned(),
                filesystems: filesystems.to_owned(),
                status: status.to_owned(),
            };
            assert_eq!(marks.say_gvisor(), gvisor, "{uname} / {filesystems} / {status}");
        }
    }

    #[test]
    fn this_machine_is_seen_and_bounded() {
        let platform = look();
        assert!(
            platform.kernel.starts_with("Linux version"),
            "{}",
            platform.kernel
        );
        assert!(platform.kernel.len() <= KERNEL_BYTES);
        assert!(platform.cpus >= 1);
        assert!(platform.memory_bytes > 1 << 20);
        assert!(platform.disk_bytes > 1 << 20);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(
            total_memory("MemFree: 1 kB\nMemTotal:         524288 kB\n"),
            Some(512 << 20)
        );
        assert_eq!(total_memory("MemTotal: lots\n"), None);
        assert_eq!(total_memory(""), None);
    }
}
