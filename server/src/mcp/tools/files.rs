//! `upload_file`, `list_files`, `download_file`, `delete_file`.

use bytes::Bytes;
use greenroom_protocol::RefusalKind;

use super::{
    super::{
        arguments::{DOWNLOAD_BYTES, WorkPath},
        render::{self, Content},
    },
    Call, Outcome, Stop, Tools, refused, with_news,
};
use crate::{
    error::{Failure, FailureKind},
    guest::{Depth, Guest, GuestError, WriteMode},
};

/// JSON may need six characters for one; a text that grows beyond this is cut further.
const JSON_BYTES: usize = 850_000;

impl Tools {
    pub(super) async fn upload(
        &self,
        call: &Call<'_>,
        path: &WorkPath,
        content: Bytes,
        mode: WriteMode,
    ) -> Result<Outcome, Stop> {
        let mut session = self.open(call).await?;
        let mut written = self.write(&session.guest, path, content.clone(), mode).await;
        // As for a run: a session that was answered from memory may be gone. Appending twice would not do, so only
        // what is written as a whole is written again.
        if written.as_ref().is_err_and(GuestError::is_gone) && mode == WriteMode::Replace {
            session = self.open(call).await?;
            written = self.write(&session.guest, path, content, mode).await;
        }
        let entry = written.map_err(|error| refused(&session, about(path, &error)))?;
        let standing = session.standing.clone();
        Ok(with_news(
            render::uploaded(&call.found(&session), &entry),
            session,
            &standing,
        ))
    }

    async fn write(
        &self,
        guest: &Guest,
        path: &WorkPath,
        content: Bytes,
        mode: WriteMode,
    ) -> Result<greenroom_protocol::FileEntry, GuestError> {
        if mode == WriteMode::Append {
            let limit = self.config.limits.upload;
            let size = match guest.read_file(path.as_str(), 0..1).await {
                Ok(read) => read.size,
                Err(GuestError::Refused(_)) => 0,
                Err(error) => return Err(error),
            };
            if size + content.len() as u64 > limit.bytes() {
                return Err(GuestError::Refused(greenroom_protocol::Refusal {
                    kind: RefusalKind::TooLarge,
                    message: format!(
                        "a file has at most {} bytes by uploads (limit upload = {limit})",
                        limit.bytes()
                    ),
                }));
            }
        }
        guest.write_file(path.as_str(), mode, content).await
    }

    pub(super) async fn list(&self, call: &Call<'_>, path: &WorkPath, depth: Depth) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there are no files"));
        };
        let list = session.guest.list_files(path.as_str(), depth).await;
        let list = list.map_err(|error| refused(&session, about(path, &error)))?;
        Ok(Outcome {
            answer: render::listed(
                &call.found(&session),
                path.as_str(),
                &list,
                self.config.limits.output_chars,
            ),
            news: None,
        })
    }

    pub(super) async fn download(
        &self,
        call: &Call<'_>,
        path: &WorkPath,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there is no such file"));
        };
        let end = offset.saturating_add(length.unwrap_or(DOWNLOAD_BYTES));
        let (size, bytes) = async {
            let read = session.guest.read_file(path.as_str(), offset..end).await?;
            let limit = usize::try_from(DOWNLOAD_BYTES).unwrap_or(usize::MAX);
            Ok((read.size, read.body.collect(limit).await?))
        }
        .await
        .map_err(|error| refused(&session, about(path, &error)))?;
        let chars = match length {
            Some(_) => usize::MAX,
            None => self.config.limits.output_chars,
        };
        let content = content(bytes, offset, size, chars).map_err(|what| {
            let text = format!(
                "{path} {what}. Make a smaller copy of it with execute_code, or pass length for its bytes"
            );
            refused(&session, Failure::bad_argument(text))
        })?;
        let answer = render::downloaded(&call.found(&session), path.as_str(), offset, size, content);
        Ok(Outcome { answer, news: None })
    }

    pub(super) async fn delete(&self, call: &Call<'_>, path: &WorkPath) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there is nothing to delete"));
        };
        let deleted = session.guest.delete_file(path.as_str()).await;
        let deleted = deleted.map_err(|error| refused(&session, about(path, &error)))?;
        Ok(Outcome {
            answer: render::deleted(&call.found(&session), path.as_str(), &deleted),
            news: None,
        })
    }
}

/// A failure that says which path it is about.
fn about(path: &WorkPath, error: &GuestError) -> Failure {
    let failure = Failure::from(error);
    if failure.text.contains(path.as_str()) {
        return failure;
    }
    match failure.kind {
        FailureKind::NotFound | FailureKind::BadArgument | FailureKind::Conflict | FailureKind::DiskFull => {
            Failure {
                text: format!("{:?}: {}", path.as_str(), failure.text),
                ..failure
            }
        }
        FailureKind::Capacity
        | FailureKind::Busy
        | FailureKind::NoKernel
        | FailureKind::Unavailable
        | FailureKind::Generation
        | FailureKind::Lost
        | FailureKind::Internal => failure,
    }
}

/// How bytes of a file are sent: a whole image as an image, text as text, the rest as base64; not more than
/// `chars` characters of either.
///
/// # Errors
/// An image that does not fit, and was not asked for by length.
fn content(mut bytes: Vec<u8>, offset: u64, size: u64, chars: usize) -> Result<Content, String> {
    if let Some(mime) = image(&bytes).filter(|_| offset == 0) {
        if bytes.len() as u64 == size {
            return Ok(Content::Image(bytes, mime));
        }
        if chars != usize::MAX {
            return Err(format!(
                "is an image of {size} bytes, and an answer holds {DOWNLOAD_BYTES}"
            ));
        }
    }
    let valid = match std::str::from_utf8(&bytes) {
        Ok(_) => bytes.len(),
        // A character that the range cuts in two belongs to the next part.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => 0,
    };
    if bytes.contains(&0) || (valid == 0 && !bytes.is_empty()) {
        bytes.truncate(chars / 4 * 3);
        return Ok(Content::Bytes(bytes));
    }
    bytes.truncate(valid);
    let mut text = String::from_utf8(bytes).map_err(|_| "is no text".to_owned())?;
    if let Some((end, _)) = text.char_indices().nth(chars) {
        text.truncate(end);
    }
    while serde_json::to_string(&text).map_or(0, |json| json.len()) > JSON_BYTES {
        text.truncate(text.floor_char_boundary(text.len() / 2));
    }
    Ok(Content::Text(text))
}

/// The image formats that models are shown, by their first bytes.
fn image(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n rest";

    #[test]
    fn files_are_sent_as_what_they_are() {
        let whole = |bytes: &[u8]| content(bytes.to_vec(), 0, bytes.len() as u64, 100).unwrap();
        assert_eq!(whole("größe\n".as_bytes()), Content::Text("größe\n".into()));
        assert_eq!(whole(b""), Content::Text(String::new()));
        assert_eq!(whole(PNG), Content::Image(PNG.to_vec(), "image/png"));
        assert_eq!(
            whole(b"\xff\xd8\xff\xe0"),
            Content::Image(b"\xff\xd8\xff\xe0".to_vec(), "image/jpeg")
        );
        for binary in [&b"a\0b"[..], b"\xff\xfe", b"caf\xe9 au lait"] {
            assert_eq!(whole(binary), Content::Bytes(binary.to_vec()));
        }
    }

    #[test]
    fn parts_end_between_characters_and_within_the_budget() {
        let part = content("größe".as_bytes()[..3].to_vec(), 0, 7, 100).unwrap();
        assert_eq!(part, Content::Text("gr".into()));
        assert_eq!(
            content(vec![b'x'; 500], 0, 500, 100).unwrap(),
            Content::Text("x".repeat(100))
        );
        assert_eq!(
            content(vec![0; 500], 0, 500, 100).unwrap(),
            Content::Bytes(vec![0; 75])
        );
        let Content::Text(text) = content(vec![1; 600_000], 0, 600_000, usize::MAX).unwrap() else {
            panic!("control characters are text")
        };
        assert!(serde_json::to_string(&text).unwrap().len() <= JSON_BYTES);
    }

    #[test]
    fn an_image_that_does_not_fit_says_so() {
        let refused = content(PNG.to_vec(), 0, 5_000_000, 100).unwrap_err();
        assert!(refused.contains("5000000"), "{refused}");
        assert_eq!(
            content(PNG.to_vec(), 0, 5_000_000, usize::MAX).unwrap(),
            Content::Bytes(PNG.to_vec())
        );
        assert_eq!(
            content(PNG.to_vec(), 9, 5_000_000, 100).unwrap(),
            Content::Bytes(PNG.to_vec())
        );
    }
}
