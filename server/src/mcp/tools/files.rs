//! `upload_file`, `list_files`, `download_file`, `delete_file`.

use std::ops::Range;

use bytes::Bytes;
use greenroom_protocol::RefusalKind;

use super::{
    super::{
        arguments::{DOWNLOAD_BYTES, Download, WorkPath},
        render::{self, Content},
    },
    Call, Outcome, Stop, Tools,
    content::{self, Part},
    refused, with_news,
};
use crate::{
    error::{Failure, FailureKind},
    guest::{Depth, Guest, GuestError, WriteMode},
};

/// Bytes of a file's beginning that tell its encoding.
const HEAD_BYTES: u64 = 16 << 10;

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
        let entry = written.map_err(|error| refused(&session, about(path, (&error).into())))?;
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
        let list = list.map_err(|error| refused(&session, about(path, (&error).into())))?;
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

    pub(super) async fn download(&self, call: &Call<'_>, download: &Download) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there is no such file"));
        };
        let answer = self.read(&session.guest, download).await;
        let (size, content) = answer.map_err(|failure| refused(&session, about(&download.path, failure)))?;
        let heading = call.found(&session);
        let answer = render::downloaded(&heading, download.path.as_str(), download.offset, size, content);
        Ok(Outcome { answer, news: None })
    }

    async fn read(&self, guest: &Guest, download: &Download) -> Result<(u64, Content), Failure> {
        let Download {
            path,
            offset,
            length,
            side,
        } = download;
        let end = offset.saturating_add(length.unwrap_or(DOWNLOAD_BYTES));
        let (size, bytes) = part(guest, path, *offset..end).await?;
        let is_whole = *offset == 0 && length.is_none();
        if is_whole && content::is_image(&bytes) {
            let picture = guest.picture(path.as_str(), *side).await.map_err(|error| {
                let mut failure = Failure::from(&error);
                failure.text += "; pass length to read its bytes";
                failure
            })?;
            return Ok((size, Content::Image(picture)));
        }
        let mut part = Part {
            bytes: &bytes,
            head: &bytes,
            is_first: *offset == 0,
            is_last: offset + bytes.len() as u64 >= size,
        };
        let head = if content::needs_head(part) {
            self::part(guest, path, 0..HEAD_BYTES).await?.1
        } else {
            Vec::new()
        };
        if !part.is_first {
            part.head = &head;
        }
        let chars = match length {
            Some(_) => usize::MAX,
            None => self.config.limits.output_chars,
        };
        Ok((size, content::content(part, chars)))
    }

    pub(super) async fn delete(&self, call: &Call<'_>, path: &WorkPath) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there is nothing to delete"));
        };
        let deleted = session.guest.delete_file(path.as_str()).await;
        let deleted = deleted.map_err(|error| refused(&session, about(path, (&error).into())))?;
        Ok(Outcome {
            answer: render::deleted(&call.found(&session), path.as_str(), &deleted),
            news: None,
        })
    }
}

/// Bytes of a part of a file, and how large the whole is.
pub(super) async fn part(
    guest: &Guest,
    path: &WorkPath,
    range: Range<u64>,
) -> Result<(u64, Vec<u8>), Failure> {
    let limit = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let read = async {
        let read = guest.read_file(path.as_str(), range).await?;
        Ok((read.size, read.body.collect(limit).await?))
    };
    read.await.map_err(|error: GuestError| Failure::from(&error))
}

/// A failure that says which path it is about.
pub(super) fn about(path: &WorkPath, failure: Failure) -> Failure {
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
        FailureKind::Forbidden
        | FailureKind::Capacity
        | FailureKind::Busy
        | FailureKind::NoKernel
        | FailureKind::Unavailable
        | FailureKind::Generation
        | FailureKind::Lost
        | FailureKind::Internal => failure,
    }
}
