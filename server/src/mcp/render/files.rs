//! Files as answers: listed, uploaded, downloaded, deleted.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use greenroom_protocol::{Deleted, FileEntry, FileKind, FileList};
use greenroom_tool_schemas::FileMeta;

use super::{
    Answer, Heading, Image, absolute,
    text::{name, size, thousands},
};

/// Renders as much of a listing as `budget` characters hold, and counts the rest.
pub(crate) fn listed(heading: &Heading, path: &str, list: &FileList, budget: usize) -> Answer {
    let mut lines = String::new();
    let mut shown = 0;
    for line in list.entries.iter().map(line) {
        if lines.len() + line.len() > budget {
            break;
        }
        lines += &line;
        shown += 1;
    }
    let mut text = heading.lines(&format!("{} entries in {}", list.entries.len(), folder(path)));
    text += &lines;
    let omitted = list.omitted.saturating_add((list.entries.len() - shown) as u64);
    if omitted > 0 {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n… at least {} more are not listed: name a folder below",
            thousands(omitted)
        );
    }
    let mut meta = heading.meta();
    meta.files = Some(list.entries[..shown].iter().map(entry_meta).collect());
    Answer {
        text,
        meta,
        ..Answer::default()
    }
}

fn line(entry: &FileEntry) -> String {
    let (path, size) = (name(&entry.path), size(entry.size));
    match entry.kind {
        FileKind::File => format!("\n{path} ({size})"),
        FileKind::Directory => format!("\n{path}/"),
        FileKind::Symlink => format!("\n{path} (symbolic link)"),
        FileKind::Other => format!("\n{path} (neither file nor folder)"),
    }
}

fn folder(path: &str) -> String {
    match path.trim_start_matches("./").trim_matches('/') {
        "" | "." => greenroom_protocol::WORK_DIR.to_owned(),
        path if path.starts_with("mnt/data") => format!("/{}", name(path)),
        path => absolute(path),
    }
}

fn entry_meta(entry: &FileEntry) -> FileMeta {
    let kind = match entry.kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Other => "other",
    };
    FileMeta {
        path: entry.path.clone(),
        size: entry.size,
        change: None,
        kind: Some(kind.to_owned()),
    }
}

/// Renders an upload.
pub(crate) fn uploaded(heading: &Heading, entry: &FileEntry) -> Answer {
    let mut answer = heading.sentence(
        "ok",
        &format!(
            "{} is written: it has {} bytes now.",
            absolute(&entry.path),
            thousands(entry.size)
        ),
    );
    answer.meta.files = Some(vec![entry_meta(entry)]);
    answer
}

/// Renders a deletion.
pub(crate) fn deleted(heading: &Heading, path: &str, deleted: &Deleted) -> Answer {
    let what = match deleted.kind {
        FileKind::File => "the file",
        FileKind::Directory => "the folder",
        FileKind::Symlink => "the symbolic link",
        FileKind::Other => "the entry",
    };
    let rest = format!(
        "{what} {:?} is deleted, {} in all.",
        path,
        thousands(deleted.count)
    );
    heading.sentence("ok", &rest)
}

/// A part of a file, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// As text.
    Text(String),
    /// As an image block.
    Image(Vec<u8>, &'static str),
    /// As base64 in the text.
    Bytes(Vec<u8>),
}

impl Content {
    /// Bytes of the file that it holds.
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Image(bytes, _) | Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// Renders a download: the bytes from `offset` of a file of `whole` bytes.
pub(crate) fn downloaded(heading: &Heading, path: &str, offset: u64, whole: u64, content: Content) -> Answer {
    let (len, shown) = (content.len(), name(path));
    let end = offset + len;
    let mut status = format!("ok · {shown} · ");
    let _ = if offset == 0 && end >= whole {
        write!(status, "{} bytes", thousands(whole))
    } else {
        write!(
            status,
            "bytes {}–{} of {}",
            thousands(offset),
            thousands(end),
            thousands(whole)
        )
    };
    if matches!(content, Content::Bytes(_)) {
        status.push_str(" as base64");
    }
    let mut text = heading.lines(&status);
    if end < whole {
        let _ = write!(text, "\nnote: this is a part; the next begins at offset {end}.");
    }
    let mut images = Vec::new();
    match content {
        Content::Text(content) => {
            text.push_str("\n\n");
            text.push_str(&content);
        }
        Content::Image(bytes, mime) => images.push(Image {
            data: STANDARD.encode(bytes),
            mime,
        }),
        Content::Bytes(bytes) => {
            text.push_str("\n\n");
            text.push_str(&STANDARD.encode(bytes));
        }
    }
    let mut meta = heading.meta();
    meta.files = Some(vec![FileMeta {
        path: path.to_owned(),
        size: whole,
        change: None,
        kind: Some("file".to_owned()),
    }]);
    Answer {
        text,
        images,
        meta,
        is_error: false,
    }
}
