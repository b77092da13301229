//! Files as resources: what a client may list, and read, of its own conversations. Nothing is created or told.

use greenroom_protocol::FileKind;
use tokio::time::timeout;

use super::{
    super::{
        arguments::{DOWNLOAD_BYTES, WorkPath},
        conversation::{Asked, Origin},
    },
    Tools, busy,
    files::part,
};
use crate::{
    auth::Scope,
    conversation::{ConversationId, SessionKey},
    error::{Failure, FailureKind},
    guest::Depth,
    places::Place,
    sessions::Session,
};

/// What every address begins with.
const SCHEME: &str = "greenroom://";
/// What stands between the conversation and the path.
const FILES: &str = "/files/";
/// Files of one page of a list.
const PAGE: usize = 500;

/// Where resources are, as a template (RFC 6570): the path may have slashes.
pub(in crate::mcp) const TEMPLATE: &str = "greenroom://{conversation}/files/{+path}";

/// A file as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mcp) struct Listed {
    pub uri: String,
    /// Relative to the work directory.
    pub path: String,
    pub size: u64,
    pub mime: Option<&'static str>,
}

/// One page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::mcp) struct Page {
    pub files: Vec<Listed>,
    /// Where the next page begins, if there is one.
    pub next: Option<usize>,
}

/// A file as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mcp) struct Contents {
    pub bytes: Vec<u8>,
    pub mime: Option<&'static str>,
}

impl Tools {
    /// The files of the conversation that a request belongs to by its host or by the way it came. A request that
    /// belongs to none has no list: there is no telling which conversations are its caller's.
    pub(in crate::mcp) async fn list_resources(
        &self,
        asked: &Asked<'_>,
        from: usize,
    ) -> Result<Page, Failure> {
        let _place = self.place(asked)?;
        let Some((key, shown)) = self.shelf(asked)? else {
            return Ok(Page::default());
        };
        let Some(session) = self.at(&key).await? else {
            return Ok(Page::default());
        };
        let list = session.guest.list_files("", Depth::All).await;
        let list = list.map_err(|error| Failure::from(&error))?;
        let all: Vec<_> = list
            .entries
            .into_iter()
            .filter(|entry| entry.kind == FileKind::File)
            .collect();
        let next = from.saturating_add(PAGE);
        Ok(Page {
            next: (next < all.len()).then_some(next),
            files: all
                .into_iter()
                .skip(from)
                .take(PAGE)
                .map(|entry| Listed {
                    uri: format!(
                        "{SCHEME}{}{FILES}{}",
                        encoded(shown.as_str(), ""),
                        encoded(&entry.path, "/")
                    ),
                    size: entry.size,
                    mime: mime(&entry.path),
                    path: entry.path,
                })
                .collect(),
        })
    }

    /// Reads a file by its address. `None`: there is no such resource for this caller, whoever else's it may be.
    pub(in crate::mcp) async fn read_resource(
        &self,
        asked: &Asked<'_>,
        uri: &str,
    ) -> Result<Option<Contents>, Failure> {
        let Some((conversation, path)) = address(uri) else {
            return Ok(None);
        };
        let asked = Asked {
            argument: Some(&conversation),
            ..*asked
        };
        let _place = self.place(&asked)?;
        // An id that no conversation can have is one that does not exist.
        let Ok(Some((key, _))) = self.shelf(&asked) else {
            return Ok(None);
        };
        let Some(session) = self.at(&key).await? else {
            return Ok(None);
        };
        let (size, bytes) = match part(&session.guest, &path, 0..DOWNLOAD_BYTES).await {
            Err(failure) if matches!(failure.kind, FailureKind::NotFound | FailureKind::Conflict) => {
                return Ok(None);
            }
            // Of an empty file there is no range.
            Err(failure) if failure.kind == FailureKind::BadArgument => (0, Vec::new()),
            read => read?,
        };
        if size > DOWNLOAD_BYTES {
            return Err(Failure::bad_argument(format!(
                "{path} has {size} bytes, a resource at most {DOWNLOAD_BYTES}: use download_file, in parts or with link"
            )));
        }
        let mime = mime(path.as_str());
        Ok(Some(Contents { bytes, mime }))
    }

    /// A place among the calls in flight, of whoever shows the credential: the users of one host share its part.
    fn place(&self, asked: &Asked<'_>) -> Result<Place, Failure> {
        self.in_flight.take(&asked.identity.principal).map_err(busy)
    }

    /// Which session a request is about; `None` where it says of none.
    fn shelf(&self, asked: &Asked<'_>) -> Result<Option<(SessionKey, ConversationId)>, Failure> {
        asked.identity.may(Scope::Files).map_err(Failure::forbidden)?;
        let (pool, _) = self.pool(None, &asked.identity.pools)?;
        let resolved = self
            .resolver
            .resolve(asked)
            .map_err(|bad| Failure::bad_argument(bad.to_string()))?;
        if resolved.origin == Origin::JustMinted {
            return Ok(None);
        }
        let key = SessionKey {
            pool,
            principal: resolved.principal,
            conversation: resolved.key,
        };
        Ok(Some((key, resolved.shown)))
    }

    async fn at(&self, key: &SessionKey) -> Result<Option<Session>, Failure> {
        match timeout(self.config.patience, self.sessions.look(key)).await {
            Ok(found) => found.map_err(|error| Failure::from(&error)),
            Err(_) => Err(Failure::new(
                FailureKind::Unavailable,
                "the sandbox did not answer: try again in a moment".to_owned(),
            )),
        }
    }
}

/// Reads an address.
fn address(uri: &str) -> Option<(String, WorkPath)> {
    let (conversation, path) = uri.strip_prefix(SCHEME)?.split_once(FILES)?;
    let path = WorkPath::parse(&decoded(path)?).ok()?;
    (!path.as_str().is_empty()).then_some((decoded(conversation)?, path))
}

/// The type of a file by its name.
fn mime(path: &str) -> Option<&'static str> {
    mime_guess::from_path(path).first_raw()
}

/// Percent-encodes all but what never needs it, and `kept`.
fn encoded(text: &str, kept: &str) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut uri, byte| {
            let plain =
                byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.as_bytes().contains(&byte);
            if plain {
                uri.push(byte.into());
            } else {
                uri.push_str(&format!("%{byte:02X}"));
            }
            uri
        })
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits)
                .ok()
                .filter(|digits| !digits.starts_with('+'))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_one_file_of_one_conversation() {
        for (uri, expected) in [
            ("greenroom://gr-x/files/a/b%20c", Some(("gr-x", "a/b c"))),
            ("greenroom://a%2Fb/files/%C3%A4", Some(("a/b", "ä"))),
            ("greenroom://gr-x/files/", None),
            ("greenroom://gr-x/files/../etc/passwd", None),
            ("greenroom://gr-x/files/%2e%2e/etc", None),
            ("greenroom://gr-x/files/a%00", None),
            ("greenroom://gr-x/files/a%zz", None),
            ("greenroom://gr-x/files/a%+1", None),
            ("greenroom://gr-x/files/a%f", None),
            ("greenroom://gr-x/other/a", None),
            ("file:///etc/passwd", None),
            ("", None),
        ] {
            let found = address(uri);
            let found = found
                .as_ref()
                .map(|(conversation, path)| (conversation.as_str(), path.as_str()));
            assert_eq!(found, expected, "{uri}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for text in ["a/b", "%41 ?#", "größe\n\u{1b}", ""] {
            assert_eq!(decoded(&encoded(text, "/")).as_deref(), Some(text));
            assert!(!encoded(text, "").contains('/'));
        }
    }
}
