//! Files in the shape of each dialect.

use greenroom_protocol::{FileEntry, FileKind};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::{address::Dialect, news::time};

/// What a file is that has no name that tells.
const BYTES: &str = "application/octet-stream";

/// Dialect B's file or folder.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileObject {
    name: String,
    r#type: FileType,
    content_type: String,
    size_in_bytes: u64,
    last_modified_at: String,
    /// The folder that it is in, as seen from the one that was asked for; `.` for that one.
    directory: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum FileType {
    File,
    Directory,
}

/// Dialect B's folder.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Files {
    value: Vec<FileObject>,
    /// Always null: a listing has one page.
    next_link: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    greenroom: Option<Omitted>,
}

/// What a listing left out.
#[derive(Serialize, JsonSchema)]
struct Omitted {
    /// Entries.
    omitted: u64,
}

/// Dialect A's files.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FilesA")]
pub(crate) struct Listing {
    #[serde(rename = "$id")]
    id: &'static str,
    value: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    greenroom: Option<Omitted>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FileA")]
struct Listed {
    #[serde(rename = "$id")]
    id: String,
    properties: ListedFile,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "FileAProperties")]
struct ListedFile {
    #[serde(rename = "$id")]
    id: String,
    filename: String,
    size: u64,
    last_modified_time: String,
}

/// Dialect A0's files; after an upload with the last of them beside.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FilesA0")]
pub(crate) struct OldFiles {
    #[serde(rename = "$id")]
    id: &'static str,
    #[serde(rename = "$values")]
    values: Vec<OldFile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    greenroom: Option<Omitted>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FileA0")]
struct OldFile {
    #[serde(rename = "$id")]
    id: String,
    filename: String,
    size: u64,
    bytes: u64,
    last_modified_time: String,
}

/// The answer to an upload.
pub(crate) fn uploaded(dialect: Dialect, entries: &[FileEntry]) -> Value {
    match (dialect, entries) {
        (Dialect::B, [.., last]) => value(&object(last, parent(&last.path))),
        (Dialect::A0, [.., last]) => value(&OldFiles {
            filename: Some(last.path.clone()),
            bytes: Some(last.size),
            ..oldest(entries, 0)
        }),
        (Dialect::A0, []) => value(&oldest(entries, 0)),
        (Dialect::A, _) | (Dialect::B, []) => value(&old(entries, 0)),
    }
}

/// The answer to a listing of a folder. Dialects A0 and A know regular files directly in the work directory.
pub(crate) fn listed(dialect: Dialect, folder: &str, entries: &[FileEntry], omitted: u64) -> Value {
    let is_listed = |entry: &&FileEntry| entry.kind == FileKind::File && !entry.path.contains('/');
    let files = || entries.iter().filter(is_listed);
    match dialect {
        Dialect::A0 => value(&oldest(files(), omitted)),
        Dialect::A => value(&old(files(), omitted)),
        Dialect::B => {
            let mut files: Vec<&FileEntry> = entries
                .iter()
                .filter(|entry| entry.kind != FileKind::Other)
                .collect();
            files.sort_by(|one, other| {
                name(&one.path)
                    .cmp(name(&other.path))
                    .then_with(|| one.path.cmp(&other.path))
            });
            value(&Files {
                value: files.into_iter().map(|entry| object(entry, folder)).collect(),
                next_link: None,
                greenroom: Omitted::of(omitted),
            })
        }
    }
}

/// The answer to the question what one file is.
pub(crate) fn described(dialect: Dialect, entry: &FileEntry) -> Value {
    match dialect {
        Dialect::A0 => value(&oldest([entry], 0)),
        Dialect::A => value(&old([entry], 0)),
        Dialect::B => value(&object(entry, parent(&entry.path))),
    }
}

/// The type that a file's name says, with its encoding where that is text.
pub(crate) fn content_type(path: &str) -> String {
    match mime_guess::from_path(path).first_raw() {
        Some(text) if text.starts_with("text/") => format!("{text}; charset=utf-8"),
        Some(other) => other.to_owned(),
        None => BYTES.to_owned(),
    }
}

impl Omitted {
    fn of(omitted: u64) -> Option<Self> {
        (omitted > 0).then_some(Self { omitted })
    }
}

/// Strings and numbers: there is nothing in it that cannot be written.
fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

/// Dialect A numbers its objects, the outermost first.
fn old<'a>(entries: impl IntoIterator<Item = &'a FileEntry>, omitted: u64) -> Listing {
    let entries = entries.into_iter().zip((2_usize..).step_by(2));
    Listing {
        id: "1",
        value: entries
            .map(|(entry, id)| Listed {
                id: id.to_string(),
                properties: ListedFile {
                    id: (id + 1).to_string(),
                    filename: entry.path.clone(),
                    size: entry.size,
                    last_modified_time: time(entry.modified_ms),
                },
            })
            .collect(),
        greenroom: Omitted::of(omitted),
    }
}

/// Dialect A0, too.
fn oldest<'a>(entries: impl IntoIterator<Item = &'a FileEntry>, omitted: u64) -> OldFiles {
    let entries = entries.into_iter().zip(2_usize..);
    OldFiles {
        id: "1",
        values: entries
            .map(|(entry, id)| OldFile {
                id: id.to_string(),
                filename: entry.path.clone(),
                size: entry.size,
                bytes: entry.size,
                last_modified_time: time(entry.modified_ms),
            })
            .collect(),
        filename: None,
        bytes: None,
        greenroom: Omitted::of(omitted),
    }
}

/// Dialect B's object; its folder is told as seen from another.
fn object(entry: &FileEntry, from: &str) -> FileObject {
    let folder = parent(&entry.path);
    let below = folder
        .strip_prefix(from)
        .unwrap_or(folder)
        .trim_start_matches('/');
    let (r#type, content_type) = match entry.kind {
        FileKind::Directory => (FileType::Directory, BYTES.to_owned()),
        FileKind::File | FileKind::Symlink | FileKind::Other => (FileType::File, content_type(&entry.path)),
    };
    FileObject {
        name: name(&entry.path).to_owned(),
        r#type,
        content_type,
        size_in_bytes: entry.size,
        last_modified_at: time(entry.modified_ms),
        directory: if below.is_empty() { "." } else { below }.to_owned(),
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TIME: &str = "2026-11-23T12:45:27.000Z";

    fn entry(path: &str, kind: FileKind, size: u64) -> FileEntry {
        FileEntry {
            path: path.to_owned(),
            kind,
            size,
            modified_ms: 1_795_437_927_000,
        }
    }

    #[test]
    fn uploads_are_answered_as_each_dialect_says() {
        let stored = [entry("a b.txt", FileKind::File, 3)];
        for (dialect, answer) in [
            (
                Dialect::A,
                json!({ "$id": "1", "value": [{ "$id": "2", "properties":
                    { "$id": "3", "filename": "a b.txt", "size": 3, "lastModifiedTime": TIME } }] }),
            ),
            (
                Dialect::A0,
                json!({ "$id": "1", "filename": "a b.txt", "bytes": 3, "$values":
                    [{ "$id": "2", "filename": "a b.txt", "size": 3, "bytes": 3, "last_modified_time": TIME }] }),
            ),
            (
                Dialect::B,
                json!({ "name": "a b.txt", "type": "file", "contentType": "text/plain; charset=utf-8", "sizeInBytes": 3,
                    "lastModifiedAt": TIME, "directory": "." }),
            ),
        ] {
            assert_eq!(uploaded(dialect, &stored), answer);
        }
    }

    #[test]
    fn listings_are_what_each_dialect_knows() {
        let entries = [
            entry("sub", FileKind::Directory, 4096),
            entry("sub/b.png", FileKind::File, 9),
            entry("a b.txt", FileKind::File, 3),
            entry("pipe", FileKind::Other, 0),
        ];
        let object = |name: &str, kind: &str, mime: &str, size: u64, directory: &str| {
            json!({ "name": name, "type": kind, "contentType": mime, "sizeInBytes": size, "lastModifiedAt": TIME,
                "directory": directory })
        };
        assert_eq!(
            listed(Dialect::B, "", &entries, 0),
            json!({ "value": [
                object("a b.txt", "file", "text/plain; charset=utf-8", 3, "."),
                object("b.png", "file", "image/png", 9, "sub"),
                object("sub", "directory", BYTES, 4096, "."),
            ], "nextLink": null })
        );
        let below = listed(Dialect::B, "sub", &entries[1..2], 7);
        assert_eq!(
            (&below["value"][0]["directory"], &below["greenroom"]["omitted"]),
            (&json!("."), &json!(7))
        );
        assert_eq!(
            listed(Dialect::A, "", &entries, 0)["value"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
        assert_eq!(
            listed(Dialect::A0, "", &[], 0),
            json!({ "$id": "1", "$values": [] })
        );
    }

    #[test]
    fn one_file_is_a_list_of_one_or_an_object() {
        let file = entry("sub/a.txt", FileKind::File, 3);
        assert_eq!(
            described(Dialect::A, &file)["value"][0]["properties"]["filename"],
            "sub/a.txt"
        );
        let object = described(Dialect::B, &file);
        assert_eq!(
            (&object["name"], &object["directory"]),
            (&json!("a.txt"), &json!("."))
        );
    }
}
