//! What is in the work directory, before any of it is archived: how much, and a digest that tells whether it has
//! changed.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use greenroom_protocol::{Packed, limits::ARCHIVE_ENTRIES};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use sha2::{Digest, Sha256};

use super::{is_hidden, path::shown};

/// Bytes of a tar header, and what the content of an entry is rounded up to.
const BLOCK: u64 = 512;
/// Bytes of a name that fit into a header, with the NUL after it.
pub(super) const NAME_FIELD: usize = 99;

/// Names in one folder, those that are left out included.
const NAMES: usize = 2 * ARCHIVE_ENTRIES as usize;

/// Everything that an archive has room for.
#[derive(Debug)]
pub(super) struct Weighed {
    /// Each folder after what is in it, so that one that may not be written to can be filled.
    pub(super) items: Vec<Item>,
    pub(super) packed: Packed,
    /// Of names, kinds, sizes, modes and times: 32 hexadecimal digits.
    pub(super) digest: String,
}

/// A file, folder or link as it was seen.
#[derive(Debug)]
pub(super) struct Item {
    /// Relative to the work directory.
    pub(super) path: PathBuf,
    pub(super) kind: ItemKind,
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) modified: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ItemKind {
    File,
    Folder,
    Link,
}

/// Why there is no archive.
#[derive(Debug)]
pub(super) enum TooMuch {
    /// It would be over this limit.
    Limit(String),
    /// The work directory itself cannot be read.
    Unreadable(io::Error),
}

/// Looks at everything below a folder that an archive of `max` bytes should have.
///
/// Left out are the agent's own folder, files that are being written, and FIFOs, sockets and devices. What cannot
/// be read is left out too, and counted. A file with holes counts as what it would be without.
pub(super) fn weigh(folder: &Path, max: u64) -> Result<Weighed, TooMuch> {
    let mut scale = Scale {
        root: folder,
        max,
        items: Vec::new(),
        // Two empty blocks are the end of every archive.
        bytes: 2 * BLOCK,
        left_out: 0,
        digest: Sha256::new(),
    };
    let names = names(folder).map_err(TooMuch::Unreadable)?;
    scale.enter(Path::new(""), names)?;
    let digest = scale.digest.finalize();
    Ok(Weighed {
        packed: Packed {
            entries: scale.items.len() as u64,
            bytes: scale.bytes,
            left_out: scale.left_out,
        },
        items: scale.items,
        digest: hex(&digest[..16]),
    })
}

/// The digest of a work directory with nothing in it.
pub(super) fn empty() -> String {
    hex(&Sha256::digest(b"")[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Scale<'a> {
    root: &'a Path,
    max: u64,
    items: Vec<Item>,
    bytes: u64,
    left_out: u64,
    digest: Sha256,
}

impl Scale<'_> {
    /// Deep folders are no danger: a path has 4,096 bytes at most, and what lies deeper cannot be looked at.
    fn enter(&mut self, folder: &Path, names: Vec<Vec<u8>>) -> Result<(), TooMuch> {
        if names.len() > NAMES {
            return Err(too_many());
        }
        let shown_folder = shown(folder.as_os_str().as_bytes());
        for name in names {
            if is_hidden(&name, &shown_folder) {
                continue;
            }
            let path = folder.join(std::ffi::OsStr::from_bytes(&name));
            let there = self.root.join(&path);
            let meta = match there.symlink_metadata() {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => {
                    self.left_out += 1;
                    continue;
                }
            };
            if meta.is_dir() {
                match self::names(&there) {
                    Ok(names) => self.enter(&path, names)?,
                    Err(_) => self.left_out += 1,
                }
                self.take(path, ItemKind::Folder, &meta, 0)?;
            } else if meta.is_symlink() {
                self.take(path, ItemKind::Link, &meta, 0)?;
            } else if meta.is_file() && accessat(CWD, &there, Access::READ_OK, AtFlags::empty()).is_err() {
                self.left_out += 1;
            } else if meta.is_file() {
                self.take(path, ItemKind::File, &meta, meta.len())?;
            }
        }
        Ok(())
    }

    fn take(&mut self, path: PathBuf, kind: ItemKind, meta: &fs::Metadata, size: u64) -> Result<(), TooMuch> {
        let mut blocks = BLOCK + size.next_multiple_of(BLOCK) + lengthy(path.as_os_str().len());
        if kind == ItemKind::Link {
            // A link's size is the length of what it leads to.
            blocks += lengthy(usize::try_from(meta.len()).unwrap_or(usize::MAX));
        }
        self.bytes = self.bytes.saturating_add(blocks);
        if self.bytes > self.max {
            let max = self.max;
            return Err(TooMuch::Limit(format!("the files come to more than {max} bytes")));
        }
        if self.items.len() as u64 == ARCHIVE_ENTRIES {
            return Err(too_many());
        }
        self.note(&path, kind, meta);
        self.items.push(Item {
            path,
            kind,
            mode: meta.mode() & 0o7777,
            modified: u64::try_from(meta.mtime()).unwrap_or(0),
        });
        Ok(())
    }

    /// The guest can set everything back but the last change of the inode.
    fn note(&mut self, path: &Path, kind: ItemKind, meta: &fs::Metadata) {
        let path = path.as_os_str().as_bytes();
        self.digest.update((path.len() as u64).to_be_bytes());
        self.digest.update(path);
        self.digest.update([kind as u8]);
        self.digest.update(meta.mode().to_be_bytes());
        self.digest.update(meta.len().to_be_bytes());
        for time in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
            self.digest.update(time.to_be_bytes());
        }
    }
}

fn too_many() -> TooMuch {
    TooMuch::Limit(format!("there are more than {ARCHIVE_ENTRIES} files and folders"))
}

/// Blocks for a name that does not fit into its header.
fn lengthy(length: usize) -> u64 {
    if length <= NAME_FIELD {
        0
    } else {
        BLOCK + (length as u64 + 1).next_multiple_of(BLOCK)
    }
}

/// The names in a folder, sorted, so that the same folder has the same digest.
fn names(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().as_bytes().to_vec());
        if names.len() > NAMES {
            break;
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn paths(weighed: &Weighed) -> Vec<&str> {
        weighed
            .items
            .iter()
            .map(|item| item.path.to_str().unwrap())
            .collect()
    }

    #[test]
    fn an_archive_has_what_is_the_conversations_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in [".greenroom", "a", "a/.greenroom"] {
            fs::create_dir(at(folder)).unwrap();
        }
        for file in [
            ".greenroom/spill",
            ".greenroom-part-7",
            "a/.greenroom/own",
            "a/f",
            "z",
        ] {
            fs::write(at(file), "x").unwrap();
        }
        let _socket = UnixListener::bind(at("socket")).unwrap();
        rustix::fs::mknodat(CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink("/etc", at("link")).unwrap();
        let weighed = weigh(dir.path(), u64::MAX).unwrap();
        assert_eq!(
            paths(&weighed),
            ["a/.greenroom/own", "a/.greenroom", "a/f", "a", "link", "z"]
        );
        assert_eq!(weighed.packed.left_out, 0);
    }

    #[test]
    fn nothing_has_a_digest_too() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(weigh(dir.path(), u64::MAX).unwrap().digest, empty());
    }

    #[test]
    fn holes_weigh_and_so_do_many_entries() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("holes")).unwrap();
        file.set_len(1 << 40).unwrap();
        let limit = |max| match weigh(dir.path(), max) {
            Err(TooMuch::Limit(message)) => message,
            other => panic!("{other:?}"),
        };
        assert!(limit(256 << 20).contains("268435456 bytes"));
        assert!(weigh(dir.path(), 1 << 41).is_ok());
        for n in 0..ARCHIVE_ENTRIES {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        assert!(limit(u64::MAX).contains("20000 files"));
    }
}
