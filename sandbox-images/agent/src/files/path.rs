//! Paths into the work directory as callers write them: checked once, then carried as a type.

use std::fmt;

use greenroom_protocol::{
    Refusal, RefusalKind,
    limits::{NAME_BYTES, PATH_BYTES},
};
use serde::{Deserialize, Serialize};

/// The agent's own folder in the work directory: spilled output and figures. It is listed when asked for
/// by path, and not otherwise.
pub(crate) const OWN_FOLDER: &str = ".greenroom";
/// How the names of files begin that are being written: beside their target, never listed.
pub(crate) const PART_PREFIX: &str = ".greenroom-part-";

/// A path below the work directory, or that directory itself: relative, without `.` and `..`, every
/// segment within its bound. What the segments *are* is another question: see `Beneath`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct WorkPath(String);

impl WorkPath {
    /// Reads a path that is relative to the work directory, or absolute and beneath it.
    ///
    /// # Errors
    /// `BadPath`, with the rule that was broken.
    pub(crate) fn parse(text: &str, work_dir: &str) -> Result<Self, Refusal> {
        if text.len() > PATH_BYTES {
            return Err(bad_path(format!(
                "the path has {} bytes, the limit is {PATH_BYTES}",
                text.len()
            )));
        }
        if text.contains('\0') {
            return Err(bad_path("a path cannot contain NUL"));
        }
        let mut segments = segments(text);
        if text.starts_with('/') {
            for expected in self::segments(work_dir) {
                if segments.next() != Some(expected) {
                    return Err(bad_path(format!(
                        "{text:?} is outside the work directory {work_dir}"
                    )));
                }
            }
        }
        let mut path = String::with_capacity(text.len());
        for segment in segments {
            if segment == ".." {
                return Err(bad_path(format!(
                    "{text:?} contains \"..\", which is not allowed"
                )));
            }
            if segment.len() > NAME_BYTES {
                return Err(bad_path(format!(
                    "a segment of the path has {} bytes, the limit is {NAME_BYTES}",
                    segment.len()
                )));
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(segment);
        }
        Ok(Self(path))
    }

    /// Relative to the work directory; empty for that directory itself.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Its segments, none for the work directory itself.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &str> {
        segments(&self.0)
    }
}

impl fmt::Display for WorkPath {
    /// For messages: quoted, control characters escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("the work directory")
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

impl fmt::Debug for WorkPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Shows a name from a directory: what is no UTF-8 becomes `\xNN`. A name that was escaped cannot be
/// opened by its shown form.
pub(crate) fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Joins a shown folder and a shown name.
pub(crate) fn joined(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

pub(crate) fn bad_path(message: impl Into<String>) -> Refusal {
    Refusal {
        kind: RefusalKind::BadPath,
        message: message.into(),
    }
}

fn segments(text: &str) -> impl Iterator<Item = &str> {
    text.split('/').filter(|segment| !matches!(*segment, "" | "."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIR: &str = "/mnt/data";

    fn parse(text: &str) -> Result<String, RefusalKind> {
        WorkPath::parse(text, DIR)
            .map(|path| path.as_str().to_owned())
            .map_err(|refusal| refusal.kind)
    }

    #[test]
    fn paths_mean_what_people_mean() {
        for (text, path) in [
            ("a.txt", "a.txt"),
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("", ""),
            (".", ""),
            ("/mnt/data", ""),
            ("/mnt/data/", ""),
            ("//mnt/./data/a", "a"),
            ("/mnt/data/ü/…", "ü/…"),
            ("...", "..."),
            (" a\n", " a\n"),
        ] {
            assert_eq!(parse(text), Ok(path.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn what_leads_out_or_is_too_long_is_refused() {
        let long_name = "n".repeat(256);
        let long_path = "p/".repeat(600);
        for text in [
            "..",
            "a/../b",
            "/mnt/data/..",
            "/mnt",
            "/",
            "/mnt/data2/a",
            "/etc/passwd",
            "/mnt/../mnt/data",
            "a\0b",
            &long_name,
            &long_path,
        ] {
            assert_eq!(parse(text), Err(RefusalKind::BadPath), "{text:?}");
        }
        assert!(parse(&"n".repeat(255)).is_ok());
        let message = WorkPath::parse(&long_path, DIR).unwrap_err().message;
        assert!(message.contains("1200") && message.contains("1024"), "{message}");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_escaped() {
        assert_eq!(shown("ü.txt".as_bytes()), "ü.txt");
        assert_eq!(shown(b"a\xff\xc3(b"), "a\\xff\\xc3(b");
        assert_eq!(joined("", "a"), "a");
        assert_eq!(joined("d", "a"), "d/a");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_stays_inside(text in r"(/mnt/data/)?([./a-c]|\.\./|\PC){0,40}") {
            if let Ok(path) = WorkPath::parse(&text, DIR) {
                prop_assert!(!path.as_str().starts_with('/'));
                for segment in path.segments() {
                    prop_assert!(segment != ".." && segment != "." && !segment.is_empty());
                    prop_assert!(segment.len() <= NAME_BYTES);
                }
                // Reading it again, relative or absolute, changes nothing.
                prop_assert_eq!(&WorkPath::parse(path.as_str(), DIR).unwrap(), &path);
                let absolute = format!("{DIR}/{}", path.as_str());
                prop_assert_eq!(&WorkPath::parse(&absolute, DIR).unwrap(), &path);
            } else {
                let mut segments = text.split('/');
                prop_assert!(text.starts_with('/') || segments.any(|segment| segment == ".."));
            }
        }
    }
}
