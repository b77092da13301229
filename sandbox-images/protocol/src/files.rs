//! Files as they are listed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `GET /files`: sorted by path, bounded by [`crate::limits::LIST_ENTRIES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileList {
    /// The entries, relative to the work directory.
    pub entries: Vec<FileEntry>,
    /// Entries left out because of the bound; at least this many.
    pub omitted: u64,
}

/// One file, folder or other thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the work directory; bytes that are not UTF-8 are shown as `\xNN`.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Bytes; 0 for what has no size.
    pub size: u64,
    /// Milliseconds since 1970.
    pub modified_ms: u64,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link, not followed.
    Symlink,
    /// A FIFO, socket or device: listed, never opened.
    Other,
}

/// What a deletion took away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// What was at the path.
    pub kind: FileKind,
    /// Files and folders that went, the path itself included.
    pub count: u64,
}

/// What an archive held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// What is in an archive of the work directory: [`crate::PACKED_HEADER`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Files and folders that could not be read, and are not in it.
    pub left_out: u64,
}

impl Packed {
    /// Reads three numbers.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        let packed = Self {
            entries: next()?,
            bytes: next()?,
            left_out: next()?,
        };
        numbers.next().is_none().then_some(packed)
    }
}

impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.entries, self.bytes, self.left_out)
    }
}

/// Width and height of an image file, and of the picture that was made of it: [`crate::PIXELS_HEADER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Of the file.
    pub file: [u32; 2],
    /// As sent.
    pub sent: [u32; 2],
}

impl Pixels {
    /// Reads four numbers.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        let pixels = Self {
            file: [next()?, next()?],
            sent: [next()?, next()?],
        };
        numbers.next().is_none().then_some(pixels)
    }
}

impl fmt::Display for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([width, height], [wide, high]) = (self.file, self.sent);
        write!(f, "{width} {height} {wide} {high}")
    }
}
