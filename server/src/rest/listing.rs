//! Files in the shape of each dialect.

use greenroom_protocol::{FileEntry, FileKind};
use serde_json::{Value, json};

use super::{address::Dialect, news::time};

/// What a file is that has no name that tells.
const BYTES: &str = "application/octet-stream";

/// The answer to an upload.
pub(crate) fn uploaded(dialect: Dialect, entries: &[FileEntry]) -> Value {
    match (dialect, entries) {
        (Dialect::B, [.., last]) => object(last, parent(&last.path)),
        (Dialect::A0, [.., last]) => {
            let mut answer = old(dialect, entries);
            answer["filename"] = last.path.as_str().into();
            answer["bytes"] = last.size.into();
            answer
        }
        _ => old(dialect, entries),
    }
}

/// The answer to a listing of a folder. Dialects A0 and A know regular files directly in the work directory.
pub(crate) fn listed(dialect: Dialect, folder: &str, entries: &[FileEntry], omitted: u64) -> Value {
    let mut answer = match dialect {
        Dialect::A0 | Dialect::A => {
            let is_listed = |entry: &&FileEntry| entry.kind == FileKind::File && !entry.path.contains('/');
            let files: Vec<FileEntry> = entries.iter().filter(is_listed).cloned().collect();
            old(dialect, &files)
        }
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
            let value: Vec<Value> = files.into_iter().map(|entry| object(entry, folder)).collect();
            json!({ "value": value, "nextLink": null })
        }
    };
    if omitted > 0 {
        answer["greenroom"] = json!({ "omitted": omitted });
    }
    answer
}

/// The answer to the question what one file is.
pub(crate) fn described(dialect: Dialect, entry: &FileEntry) -> Value {
    match dialect {
        Dialect::A0 | Dialect::A => old(dialect, std::slice::from_ref(entry)),
        Dialect::B => object(entry, parent(&entry.path)),
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

fn old(dialect: Dialect, entries: &[FileEntry]) -> Value {
    let mut ids = 1_usize;
    let mut id = || {
        ids += 1;
        ids.to_string()
    };
    let entries: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let (path, size, time) = (&entry.path, entry.size, time(entry.modified_ms));
            if dialect == Dialect::A0 {
                return json!({ "$id": id(), "filename": path, "size": size, "bytes": size, "last_modified_time": time });
            }
            let outer = id();
            json!({ "$id": outer, "properties":
                { "$id": id(), "filename": path, "size": size, "lastModifiedTime": time } })
        })
        .collect();
    let member = if dialect == Dialect::A0 {
        "$values"
    } else {
        "value"
    };
    json!({ "$id": "1", member: entries })
}

/// Dialect B's object; its folder is told as seen from another.
fn object(entry: &FileEntry, from: &str) -> Value {
    let folder = parent(&entry.path);
    let below = folder
        .strip_prefix(from)
        .unwrap_or(folder)
        .trim_start_matches('/');
    let is_folder = entry.kind == FileKind::Directory;
    json!({
        "name": name(&entry.path),
        "type": if is_folder { "directory" } else { "file" },
        "contentType": if is_folder { BYTES.to_owned() } else { content_type(&entry.path) },
        "sizeInBytes": entry.size,
        "lastModifiedAt": time(entry.modified_ms),
        "directory": if below.is_empty() { "." } else { below },
    })
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
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
