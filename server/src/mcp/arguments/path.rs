//! A path that a call names, checked as far as a text can be.

use std::fmt;

use greenroom_protocol::{WORK_DIR, limits};

use super::shown;

/// A path below the work directory, relative, in UTF-8, without `..` or NUL. Where it really leads, symbolic
/// links included, is the agent's to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mcp) struct WorkPath(String);

impl WorkPath {
    /// Reads a path, relative to the work directory or absolute and below it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(in crate::mcp) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > limits::PATH_BYTES {
            return Err(format!(
                "a path has at most {} bytes, this one has {}",
                limits::PATH_BYTES,
                text.len()
            ));
        }
        if text.contains('\0') {
            return Err("a path has no NUL character".to_owned());
        }
        let relative = match text.strip_prefix(WORK_DIR) {
            Some("") => "",
            Some(rest) if rest.starts_with('/') => rest,
            _ if text.starts_with('/') => {
                return Err(format!(
                    "files are below {WORK_DIR} only; {:?} is not",
                    shown(text)
                ));
            }
            _ => text,
        };
        let mut parts = Vec::new();
        for part in relative.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(format!("a path has no \"..\"; {:?} does", shown(text))),
                part if part.len() > limits::NAME_BYTES => {
                    return Err(format!(
                        "a name in a path has at most {} bytes, one has {}",
                        limits::NAME_BYTES,
                        part.len()
                    ));
                }
                part => parts.push(part),
            }
        }
        Ok(Self(parts.join("/")))
    }

    pub(in crate::mcp) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
