//! Files as answers: listed, uploaded, downloaded, deleted.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::DateTime;
use greenroom_protocol::{Deleted, FileEntry, FileKind, FileList, Pixels};
use greenroom_tool_schemas::FileMeta;

use super::{
    Answer, Heading, Image, absolute,
    text::{name, size, thousands},
};
use crate::guest::Picture;

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
    let count = match list.entries.len() {
        1 => "1 entry".to_owned(),
        more => format!("{more} entries"),
    };
    let mut text = heading.lines(&format!("{count} in {}", folder(path)));
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
        FileKind::File => match time(entry.modified_ms, "%Y-%m-%d %H:%M") {
            Some(time) => format!("\n{path} ({size}, {time})"),
            None => format!("\n{path} ({size})"),
        },
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
        kind: Some(kind.to_owned()),
        mime: (entry.kind == FileKind::File)
            .then(|| mime(&entry.path))
            .flatten(),
        modified: time(entry.modified_ms, "%Y-%m-%dT%H:%M:%SZ"),
        ..FileMeta::default()
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
    let rest = match deleted.count {
        0 | 1 => format!("{what} {path:?} is deleted."),
        2 => format!("{what} {path:?} is deleted, with the one entry in it."),
        count => format!(
            "{what} {path:?} is deleted, with the {} entries in it.",
            thousands(count - 1)
        ),
    };
    heading.sentence("ok", &rest)
}

/// A part of a file, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// As text.
    Text(Text),
    /// The whole file as an image block.
    Image(Picture),
    /// As base64 in the text.
    Bytes(Vec<u8>),
}

/// A part of a file that is text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    /// Decoded.
    pub text: String,
    /// Bytes of the file that it holds.
    pub bytes: u64,
    /// What it was decoded from, where that is not UTF-8.
    pub encoding: Option<&'static str>,
}

/// Renders a download: the bytes from `offset` of a file of `whole` bytes.
pub(crate) fn downloaded(heading: &Heading, path: &str, offset: u64, whole: u64, content: Content) -> Answer {
    let (len, how) = match &content {
        Content::Text(text) => (
            text.bytes,
            text.encoding.map(|from| format!(" · decoded from {from}")),
        ),
        Content::Image(picture) => (whole, Some(dimensions(picture.pixels))),
        Content::Bytes(bytes) => (bytes.len() as u64, Some(" as base64".to_owned())),
    };
    let (end, shown) = (offset + len, name(path));
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
    status += &how.unwrap_or_default();
    let mut text = heading.lines(&status);
    if end < whole {
        let _ = write!(text, "\nnote: this is a part; the next begins at offset {end}.");
    }
    let mut images = Vec::new();
    match content {
        Content::Text(content) => {
            text.push_str("\n\n");
            text.push_str(&content.text);
        }
        Content::Image(picture) => images.push(Image {
            data: STANDARD.encode(picture.bytes),
            mime: picture.mime,
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
        kind: Some("file".to_owned()),
        mime: mime(path),
        ..FileMeta::default()
    }]);
    Answer {
        text,
        images,
        meta,
        ..Answer::default()
    }
}

/// Width and height, and those of the picture where it is smaller.
fn dimensions(pixels: Pixels) -> String {
    let ([width, height], [wide, high]) = (pixels.file, pixels.sent);
    if pixels.file == pixels.sent {
        format!(" · image of {width} × {height}")
    } else {
        format!(" · image of {width} × {height}, shown as {wide} × {high}")
    }
}

/// The type of a file by its name.
fn mime(path: &str) -> Option<String> {
    mime_guess::from_path(path).first_raw().map(str::to_owned)
}

/// A time of the sandbox as programs and people read it; nothing where it is none.
fn time(modified_ms: u64, format: &str) -> Option<String> {
    let time = DateTime::from_timestamp_millis(i64::try_from(modified_ms).ok()?)?;
    // The guest sets times as it likes: chrono writes no year beyond its own bounds.
    Some(time.format(format).to_string())
}
