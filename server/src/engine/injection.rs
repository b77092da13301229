//! What is put into an image so that it can be a sandbox: the agent, checked, and the directories it needs.

use std::{io, path::Path};

use greenroom_protocol::{AGENT_PATH, GUEST_UID, SOCKET_PATH, WORK_DIR};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::conversation::hex;

/// Home of the guest's user.
const HOME: &str = "/home/sandbox";

/// Keeps `/tmp` from being empty: over an empty one gVisor mounts a tmpfs without a limit, which counts as
/// memory, so that a large temporary file would kill the sandbox. On the disk it meets the disk's limit.
const TMP_IN_USE: &str = "/tmp/.greenroom";

/// The agent's binary, found fit to run in any image, and what is put there with it.
#[derive(Debug)]
pub(super) struct Agent {
    archive: Vec<u8>,
    digest: [u8; 32],
    architecture: &'static str,
}

/// Why a file cannot be the agent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadAgent {
    /// The file is not there, or cannot be read.
    #[error("the agent {path} cannot be read: {reason}; `make agent` builds it")]
    Unreadable { path: String, reason: String },
    /// It is no program for Linux.
    #[error("the agent {path} is not a 64-bit Linux program for x86-64 or arm64")]
    NotElf { path: String },
    /// It needs a loader, which an image may lack.
    #[error(
        "the agent {path} is linked dynamically and would not start in every image; `make agent` builds a static one"
    )]
    Dynamic { path: String },
}

impl Agent {
    /// Reads the binary and checks that it needs nothing of the image it will run in.
    pub(super) async fn read(path: &Path) -> Result<Self, BadAgent> {
        let shown = || path.display().to_string();
        let binary = tokio::fs::read(path)
            .await
            .map_err(|error| BadAgent::Unreadable {
                path: shown(),
                reason: error.to_string(),
            })?;
        let elf = Elf::read(&binary).ok_or_else(|| BadAgent::NotElf { path: shown() })?;
        if elf.interpreted {
            return Err(BadAgent::Dynamic { path: shown() });
        }
        let archive = archive(&binary).map_err(|error| BadAgent::Unreadable {
            path: shown(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            digest: Sha256::digest(&archive).into(),
            architecture: elf.architecture,
            archive,
        })
    }

    /// The architecture it runs on, in the words of image formats.
    pub(super) const fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Names what comes of putting this agent into that image: equal names, equal content.
    pub(super) fn prepared(&self, image_id: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.digest);
        hash.update(image_id.as_bytes());
        hex(&hash.finalize()[..16])
    }

    /// A tar archive to unpack at the image's root.
    pub(super) fn into_archive(self) -> Vec<u8> {
        self.archive
    }
}

/// The agent and the directories of a sandbox, each with owner and mode, which an image that has them
/// already gets as well.
fn archive(agent: &[u8]) -> io::Result<Vec<u8>> {
    let guest = u64::from(GUEST_UID);
    let mut archive = Builder::new(Vec::with_capacity(agent.len() + (16 << 10)));
    directory(&mut archive, parent(AGENT_PATH), 0, 0o755)?;
    // The guest may run it: whatever the agent starts of itself as the guest is the same file.
    entry(&mut archive, AGENT_PATH, EntryType::Regular, 0, 0o755, agent)?;
    directory(&mut archive, parent(SOCKET_PATH), 0, 0o700)?;
    directory(&mut archive, "/tmp", 0, 0o1777)?;
    directory(&mut archive, TMP_IN_USE, 0, 0o755)?;
    directory(&mut archive, HOME, guest, 0o755)?;
    directory(&mut archive, WORK_DIR, guest, 0o755)?;
    archive.into_inner()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(parent, _)| parent)
}

fn directory(archive: &mut Builder<Vec<u8>>, path: &str, owner: u64, mode: u32) -> io::Result<()> {
    entry(archive, path, EntryType::Directory, owner, mode, &[])
}

fn entry(
    archive: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    owner: u64,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path.trim_start_matches('/'), content)
}

/// The little of an ELF file that decides whether it starts anywhere.
struct Elf {
    architecture: &'static str,
    /// It names a program interpreter, the dynamic loader.
    interpreted: bool,
}

impl Elf {
    /// Reads a 64-bit little-endian file's header and its program headers (elf(5)).
    fn read(file: &[u8]) -> Option<Self> {
        const PT_INTERP: u32 = 3;
        let u16_at = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?));
        if file.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let architecture = match u16_at(18)? {
            62 => "amd64",
            183 => "arm64",
            _ => return None,
        };
        let table = usize::try_from(u64_at(32)?).ok()?;
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        let mut interpreted = false;
        for index in 0..count {
            let at = table.checked_add(index.checked_mul(size)?)?;
            file.get(at..at.checked_add(size)?)?;
            interpreted |= u32_at(at)? == PT_INTERP;
        }
        Some(Self {
            architecture,
            interpreted,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A file of one program header of the given type.
    fn elf(machine: u16, header: u32) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&header.to_le_bytes());
        file
    }

    async fn read(content: &[u8]) -> Result<Agent, BadAgent> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        std::fs::write(&path, content).unwrap();
        Agent::read(&path).await
    }

    #[tokio::test]
    async fn only_a_static_program_can_be_the_agent() {
        assert_eq!(read(&elf(62, 1)).await.unwrap().architecture(), "amd64");
        assert_eq!(read(&elf(183, 1)).await.unwrap().architecture(), "arm64");
        assert!(matches!(read(&elf(62, 3)).await, Err(BadAgent::Dynamic { .. })));
        let cut = &elf(62, 1)[..100];
        for bad in [&elf(8, 1)[..], b"#!/bin/sh\n", b"", cut] {
            assert!(matches!(read(bad).await, Err(BadAgent::NotElf { .. })));
        }
        let missing = Agent::read(Path::new("/nowhere/agent")).await;
        assert!(matches!(missing, Err(BadAgent::Unreadable { .. })));
    }

    #[tokio::test]
    async fn this_test_itself_is_linked_dynamically() {
        let myself = std::env::current_exe().unwrap();
        assert!(matches!(
            Agent::read(&myself).await,
            Err(BadAgent::Dynamic { .. })
        ));
    }

    #[tokio::test]
    async fn a_name_changes_with_everything_that_goes_into_it() {
        let (one, other) = (read(&elf(62, 1)).await.unwrap(), read(&elf(62, 2)).await.unwrap());
        assert_eq!(one.prepared("sha256:a"), one.prepared("sha256:a"));
        assert_ne!(one.prepared("sha256:a"), one.prepared("sha256:b"));
        assert_ne!(one.prepared("sha256:a"), other.prepared("sha256:a"));
    }

    #[tokio::test]
    async fn the_archive_says_whose_everything_is() {
        let archive = read(&elf(62, 1)).await.unwrap().into_archive();
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let header = entry.header();
            seen.push((path.clone(), header.uid().unwrap(), header.mode().unwrap()));
            if path == ".greenroom/agent" {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                assert_eq!(content, elf(62, 1));
            }
        }
        let expected = [
            (".greenroom", 0, 0o755),
            (".greenroom/agent", 0, 0o755),
            ("run/greenroom", 0, 0o700),
            ("tmp", 0, 0o1777),
            ("tmp/.greenroom", 0, 0o755),
            ("home/sandbox", 65_532, 0o755),
            ("mnt/data", 65_532, 0o755),
        ];
        assert_eq!(
            seen,
            expected.map(|(path, uid, mode)| (path.to_owned(), uid, mode))
        );
    }
}
