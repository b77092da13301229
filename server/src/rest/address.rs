//! What a request is: its pool, its operation, its dialect, read from method, path and query.

use crate::{
    auth::Scope,
    conversation::ConversationId,
    rest::fault::{Code, Fault},
};

/// Characters of an identifier.
const IDENTIFIER: std::ops::RangeInclusive<usize> = 4..=128;

/// Dialect A ends with the api-version of this day.
const LAST_OF_A: &str = "2024-08-02";

/// From this api-version on an execution that is not over is answered with 200.
const OK_FROM: &str = "2025-10-02";

/// The folder that paths are relative to.
const ROOT: &str = "mnt/data";

/// What the `api-supported-versions` header says.
pub(crate) const VERSIONS: &str =
    "2024-02-02-preview, 2024-08-02-preview, 2024-10-02-preview, 2025-02-02-preview, 2025-10-02-preview";

/// Which shape answers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `python/…`, of 2023.
    A0,
    /// Up to 2024-08-02.
    A,
    /// Since 2024-10-02.
    B,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Execute,
    /// An execution's state.
    Poll(String),
    /// Files of a form.
    Upload,
    /// One file, which is the body: ours.
    Put(FilePath),
    List,
    /// What a file is.
    Describe(FilePath),
    Download(FilePath),
    Delete(FilePath),
    Session,
    Sessions,
    /// Ends a session; 204.
    EndSession,
    /// The same as of custom pools; 200 and a line of text.
    StopSession,
    /// What the pool is.
    Pool,
    /// What a container's program has written: ours.
    Log,
}

impl Operation {
    /// What an operation's caller has to be allowed. A session that is named is its caller's own, so ending it is as running
    /// in it, on whatever path; what a pool is may be known by everybody who may use it.
    pub(crate) const fn scope(&self) -> Option<Scope> {
        match self {
            Self::Execute | Self::Poll(_) | Self::Session | Self::EndSession | Self::StopSession => {
                Some(Scope::Run)
            }
            Self::Upload
            | Self::Put(_)
            | Self::List
            | Self::Describe(_)
            | Self::Download(_)
            | Self::Delete(_) => Some(Scope::Files),
            Self::Sessions | Self::Log => Some(Scope::Admin),
            Self::Pool => None,
        }
    }
}

/// A request below a pool's address, before anything of it is known but that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Below<'a> {
    pub(crate) pool: String,
    /// As it came, without the rest.
    pub(crate) prefix: &'a str,
    /// As it came; empty, or begins with a slash.
    pub(crate) rest: &'a str,
}

impl<'a> Below<'a> {
    /// Splits a path.
    pub(crate) fn read(path: &'a str) -> Option<Self> {
        let before = if path.trim_start_matches('/').starts_with("pools/") {
            1
        } else {
            5
        };
        let mut at = 0;
        let mut name = "";
        for _ in 0..=before {
            at += path[at..].len() - path[at..].trim_start_matches('/').len();
            name = path[at..].split('/').next()?;
            at += name.len();
        }
        let pool = decode(name, Plus::Literal).ok().filter(|name| !name.is_empty())?;
        let (prefix, rest) = path.split_at(at);
        Some(Self { pool, prefix, rest })
    }

    /// The first segment of the rest that is one.
    pub(crate) fn first(&self) -> &str {
        let mut segments = self.rest.split('/').filter(|segment| !segment.is_empty());
        segments.next().unwrap_or_default()
    }

    /// The port of `tunnel/{port}`.
    pub(crate) fn tunnel(&self) -> Option<u16> {
        let segments: Vec<&str> = self
            .rest
            .split('/')
            .filter(|segment| !segment.is_empty())
            .collect();
        match segments.as_slice() {
            ["tunnel", port] if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                port.parse().ok().filter(|port| *port != 0)
            }
            _ => None,
        }
    }
}

/// The parameter that a forwarded request must have; the others are its program's.
///
/// # Errors
/// A [`Fault`] of status 400.
pub(crate) fn identifier_in(query: &str) -> Result<Option<String>, Fault> {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name.eq_ignore_ascii_case("identifier") {
            return decode(value, Plus::Literal).map(Some);
        }
    }
    Ok(None)
}

/// A file or folder relative to the work directory, without `.` or `..`; empty for the work directory itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilePath(String);

impl FilePath {
    /// Reads a path as clients write it: with or without the work directory before it, doubled slashes and all.
    ///
    /// # Errors
    /// [`Code::PathInvalid`].
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        let invalid =
            |why: &str| Fault::new(Code::PathInvalid, why).of(text.chars().take(200).collect::<String>());
        if text.chars().any(char::is_control) {
            return Err(invalid("a path has no control characters"));
        }
        let mut segments: Vec<&str> = text.split('/').filter(|segment| !segment.is_empty()).collect();
        if text.starts_with('/') {
            match segments.get(..2) {
                Some(["mnt", "data"]) => drop(segments.drain(..2)),
                _ if segments.is_empty() => {}
                _ => return Err(invalid("an absolute path begins with /mnt/data")),
            }
        }
        if segments.iter().any(|segment| matches!(*segment, "." | "..")) {
            return Err(invalid("a path has no . and no .."));
        }
        Ok(Self(segments.join("/")))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// A path below this one. One that names the work directory itself stays where it says.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub(crate) fn below(&self, name: &str) -> Result<Self, Fault> {
        let below = Self::parse(name)?;
        let is_absolute =
            name.trim_start_matches('/').len() < name.len() && name.trim_start_matches('/').starts_with(ROOT);
        Ok(match (self.0.as_str(), below.0.as_str()) {
            ("", _) => below,
            _ if is_absolute => below,
            (_, "") => self.clone(),
            (folder, name) => Self(format!("{folder}/{name}")),
        })
    }

    /// The folder that it is in.
    pub(crate) fn parent(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(parent, _)| parent)
    }
}

/// A request's parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) identifier: Option<String>,
    /// As it was sent, and known to be a date.
    pub(crate) version: Option<String>,
    /// `path`: the folder.
    pub(crate) folder: FilePath,
    pub(crate) filename: Option<String>,
    pub(crate) recursive: bool,
    pub(crate) skip: usize,
}

/// A request but for its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) pool: String,
    pub(crate) dialect: Dialect,
    pub(crate) operation: Operation,
    pub(crate) query: Query,
}

impl Address {
    /// Reads a request's line. The path is as it came, not decoded: it is split first.
    ///
    /// # Errors
    /// A [`Fault`] of status 400.
    pub(crate) fn read(method: &str, path: &str, query: Option<&str>) -> Result<Self, Fault> {
        let raw: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let (pool, raw) = match raw.as_slice() {
            ["pools", pool, rest @ ..] => (pool, rest),
            [
                "subscriptions",
                _,
                "resourceGroups",
                _,
                "sessionPools",
                pool,
                rest @ ..,
            ] => (pool, rest),
            _ => return Err(unknown(method)),
        };
        let pool = decode(pool, Plus::Literal)?;
        let segments = raw
            .iter()
            .map(|segment| decode(segment, Plus::Literal))
            .collect::<Result<Vec<_>, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let query = Query::read(query.unwrap_or_default())?;
        let (dialect, operation) = route(if method == "HEAD" { "GET" } else { method }, &segments, &query)?;
        Ok(Self {
            pool,
            dialect,
            operation,
            query,
        })
    }
}

impl Address {
    /// Of a request that is not ours to read.
    pub(crate) fn forwarded(pool: &str) -> Self {
        Self {
            pool: pool.to_owned(),
            dialect: Dialect::B,
            operation: Operation::Session,
            query: Query::default(),
        }
    }
}

impl Query {
    fn read(text: &str) -> Result<Self, Fault> {
        let mut query = Self::default();
        let (mut folder, mut recursive, mut skip) = (None, None, None);
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, Plus::Space)?.to_ascii_lowercase();
            let plus = if name == "identifier" {
                Plus::Literal
            } else {
                Plus::Space
            };
            let place = match name.as_str() {
                "identifier" => &mut query.identifier,
                "api-version" => &mut query.version,
                "path" => &mut folder,
                "filename" => &mut query.filename,
                "recursive" => &mut recursive,
                "skip" => &mut skip,
                _ => continue,
            };
            if place.is_none() {
                *place = Some(decode(value, plus)?);
            }
        }
        query.version = query.version.filter(|version| !version.is_empty());
        if let Some(version) = &query.version {
            check_version(version)?;
        }
        query.folder = FilePath::parse(folder.as_deref().unwrap_or_default())?;
        query.recursive = recursive.is_some_and(|flag| flag.eq_ignore_ascii_case("true") || flag == "1");
        query.skip = match skip.as_deref() {
            None | Some("") => 0,
            Some(digits) => digits
                .parse()
                .map_err(|_| Fault::bad("skip is a number").of("skip"))?,
        };
        Ok(query)
    }

    /// The dialect where the path leaves it open.
    fn dialect(&self) -> Dialect {
        match &self.version {
            Some(version) if &version[..LAST_OF_A.len()] <= LAST_OF_A => Dialect::A,
            _ => Dialect::B,
        }
    }

    /// The status of an execution that is not over.
    pub(crate) fn unfinished(&self) -> u16 {
        match &self.version {
            Some(version) if &version[..OK_FROM.len()] < OK_FROM => 202,
            _ => 200,
        }
    }
}

fn check_version(version: &str) -> Result<(), Fault> {
    let shape = |at: usize, byte: u8| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    let is_date = version.len() >= 10
        && version
            .bytes()
            .take(10)
            .enumerate()
            .all(|(at, byte)| shape(at, byte));
    let is_marked = is_date
        && (version.len() == 10
            || version.as_bytes()[10] == b'-'
                && version[11..]
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    if is_marked {
        return Ok(());
    }
    Err(Fault::new(
        Code::InvalidApiVersion,
        format!("api-version is a date such as 2025-10-02-preview; supported are {VERSIONS}"),
    )
    .of("api-version"))
}

fn route(method: &str, segments: &[&str], query: &Query) -> Result<(Dialect, Operation), Fault> {
    use Dialect::{A, A0, B};
    let file = |segments: &[&str]| query.folder.below(&segments.join("/"));
    let routed = match (method, segments) {
        ("POST", ["python", "execute"]) => (A0, Operation::Execute),
        ("POST", ["code", "execute"]) => (A, Operation::Execute),
        ("POST", ["executions"]) => (B, Operation::Execute),
        ("GET", ["executions", id]) => (B, Operation::Poll((*id).to_owned())),
        ("POST", ["python", "uploadFile"]) => (A0, Operation::Upload),
        ("POST", ["files", "upload"]) => (A, Operation::Upload),
        ("POST", ["files"]) => (B, Operation::Upload),
        ("GET", ["python", "files"]) => (A0, Operation::List),
        ("GET", ["files"]) => (query.dialect(), Operation::List),
        ("GET", ["python", "downloadFile"]) => match &query.filename {
            Some(name) => (A0, Operation::Download(query.folder.below(name)?)),
            None => return Err(Fault::bad("the parameter filename is missing").of("filename")),
        },
        // The newer of two ways to ask; the older one has no meaning in it.
        ("GET", ["files", name @ .., "content"])
            if !name.is_empty() && (name[0] != "content" || query.dialect() == B) =>
        {
            (B, Operation::Download(file(name)?))
        }
        ("GET", ["files", "content", name @ ..]) if !name.is_empty() => (A, Operation::Download(file(name)?)),
        ("GET", ["files", name @ ..]) => (query.dialect(), Operation::Describe(file(name)?)),
        ("PUT", ["files", name @ ..]) if !name.is_empty() => (B, Operation::Put(file(name)?)),
        ("DELETE", ["files", name @ ..]) if !name.is_empty() => {
            (query.dialect(), Operation::Delete(file(name)?))
        }
        ("GET", ["session"]) | ("POST", [".management", "getSession"]) => (B, Operation::Session),
        ("DELETE", ["session"]) => (B, Operation::EndSession),
        ("GET", ["listSessions"]) | ("POST", [".management", "listSessions"]) => (B, Operation::Sessions),
        ("POST", [".management", "stopSession"]) => (B, Operation::StopSession),
        ("GET", ["metadata"]) => (B, Operation::Pool),
        ("GET", [".management", "logs"]) => (B, Operation::Log),
        _ => return Err(unknown(method)),
    };
    Ok(routed)
}

fn unknown(method: &str) -> Fault {
    Fault::new(
        Code::NotSupported,
        format!(
            "a code interpreter pool has no such {method} request: docs/rest.md lists those that there are"
        ),
    )
}

/// Reads an identifier.
///
/// # Errors
/// It says nothing of the identifier itself.
pub(crate) fn identifier(text: &str) -> Result<ConversationId, Fault> {
    let fits =
        IDENTIFIER.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let parsed = fits.then(|| ConversationId::parse(text).ok()).flatten();
    parsed.ok_or_else(|| {
        Fault::bad(format!(
            "an identifier has {} to {} letters, digits and punctuation, without spaces and backslashes",
            IDENTIFIER.start(),
            IDENTIFIER.end()
        ))
        .of("identifier")
    })
}

/// What a `+` means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Literal,
    Space,
}

/// Decodes percents. One that encodes nothing is itself, since clients send identifiers and names raw.
fn decode(text: &str, plus: Plus) -> Result<String, Fault> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| byte == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            digits
                .bytes()
                .all(|b| b.is_ascii_hexdigit())
                .then(|| u8::from_str_radix(digits, 16).ok())?
        });
        rest = after;
        match digits {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            None if byte == b'+' && plus == Plus::Space => bytes.push(b' '),
            None => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| Fault::bad("path and query are UTF-8, percent-encoded"))
}

/// Encodes what goes into a query.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
