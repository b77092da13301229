//! Files past the model: links for a person, and the folder that a person shares.

use std::io;

use greenroom_protocol::{FileEntry, FileKind};
use http::{HeaderMap, header};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::{
    super::{
        arguments::WorkPath,
        render::{self, Reach},
    },
    Call, Outcome, Stop, Tools,
    files::about,
    refused, with_news,
};
use crate::{
    error::{Failure, FailureKind},
    guest::{Depth, Guest, GuestError, Upload, WriteMode},
    links::{Good, Link},
    sessions::Session,
    share::{Saving, Share, ShareError},
};

/// Bytes that are read from the shared folder at a time.
const PIECE: usize = 256 << 10;

impl Tools {
    /// A link by which a person uploads a file.
    pub(super) async fn upload_link(&self, call: &Call<'_>, path: &WorkPath) -> Result<Outcome, Stop> {
        let session = self.open(call).await?;
        let (link, reach) = self.link(call, &session, Good::Upload, path).await?;
        let standing = session.standing.clone();
        let limit = self.ways.links.upload_limit();
        let answer = render::upload_link(&call.found(&session), path.as_str(), &link, limit, reach);
        Ok(with_news(answer, session, &standing))
    }

    /// A link by which a person downloads a file.
    pub(super) async fn download_link(&self, call: &Call<'_>, path: &WorkPath) -> Result<Outcome, Stop> {
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there is no such file"));
        };
        let entry = file(&session.guest, path)
            .await
            .map_err(|failure| refused(&session, about(path, failure)))?;
        let (link, reach) = self.link(call, &session, Good::Download, path).await?;
        Ok(Outcome {
            answer: render::download_link(&call.found(&session), &entry, &link, reach),
            news: None,
        })
    }

    async fn link(
        &self,
        call: &Call<'_>,
        session: &Session,
        good: Good,
        path: &WorkPath,
    ) -> Result<(Link, Reach), Stop> {
        let origin = call.caller.headers.and_then(origin);
        let reach = match call.caller.headers {
            Some(_) => Reach::Server,
            None => Reach::Process,
        };
        let made = self.ways.links.make(good, &session.name, path.as_str(), origin);
        match made.await {
            Ok(link) => Ok((link, reach)),
            Err(error) => {
                tracing::warn!(%error, "no link could be made");
                let text = "no link could be made: this machine gave no port to serve it on";
                Err(refused(
                    session,
                    Failure::new(FailureKind::Unavailable, text.to_owned()),
                ))
            }
        }
    }

    /// Copies a file of the shared folder into the sandbox.
    pub(super) async fn upload_from(
        &self,
        call: &Call<'_>,
        path: &WorkPath,
        source: String,
    ) -> Result<Outcome, Stop> {
        let limit = self.ways.links.upload_limit();
        let (file, size) = shared(self.share()?, move |share| share.read(&source)).await?;
        if size > limit.bytes() {
            let text = format!("the file has {size} bytes, the limit is {limit} (limit links.upload)");
            return Err(Failure::bad_argument(text).into());
        }
        let session = self.open(call).await?;
        // What it grows by meanwhile is not asked for.
        let file = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), size);
        let body = Upload::stream(ReaderStream::with_capacity(file, PIECE));
        let written = session
            .guest
            .write_file(path.as_str(), WriteMode::Replace, body)
            .await;
        let entry = written.map_err(|error| refused(&session, about(path, (&error).into())))?;
        let standing = session.standing.clone();
        let answer = render::uploaded(&call.found(&session), &entry);
        Ok(with_news(answer, session, &standing))
    }

    /// Copies a file of the sandbox into the shared folder.
    pub(super) async fn download_to(
        &self,
        call: &Call<'_>,
        path: &WorkPath,
        save_to: String,
    ) -> Result<Outcome, Stop> {
        let share = self.share()?;
        let Some(session) = self.look(call).await? else {
            return Ok(call.nothing("there is no such file"));
        };
        let limit = self.ways.links.upload_limit();
        let failed = |error: &GuestError| refused(&session, about(path, error.into()));
        let mut read = session
            .guest
            .read_file(path.as_str(), ..)
            .await
            .map_err(|error| failed(&error))?;
        if read.size > limit.bytes() {
            let text = format!(
                "the file has {} bytes, the limit is {limit} (limit links.upload)",
                read.size
            );
            return Err(refused(&session, Failure::bad_argument(text)));
        }
        let saved_as = share.path().join(&save_to).display().to_string();
        let saving = shared(share, move |share| share.save(&save_to)).await?;
        let file = saving.file.try_clone().map_err(|error| unsaved(&error))?;
        let mut file = tokio::fs::File::from_std(file);
        while let Some(piece) = read.body.next().await.map_err(|error| failed(&error))? {
            file.write_all(&piece).await.map_err(|error| unsaved(&error))?;
        }
        file.flush().await.map_err(|error| unsaved(&error))?;
        keep(saving).await?;
        Ok(Outcome {
            answer: render::saved(&call.found(&session), path.as_str(), read.size, &saved_as),
            news: None,
        })
    }

    fn share(&self) -> Result<&Share, Failure> {
        // The arguments that lead here are offered only where there is one.
        let none = || Failure::bad_argument("no folder is shared".to_owned());
        self.ways.share.as_ref().ok_or_else(none)
    }
}

/// Does something with the shared folder, on a thread that may block.
async fn shared<T: Send + 'static>(
    share: &Share,
    act: impl FnOnce(&Share) -> Result<T, ShareError> + Send + 'static,
) -> Result<T, Failure> {
    let share = share.clone();
    match tokio::task::spawn_blocking(move || act(&share)).await {
        Ok(done) => done.map_err(|error| Failure::bad_argument(error.to_string())),
        Err(error) => Err(unsaved(&io::Error::other(error))),
    }
}

async fn keep(saving: Saving) -> Result<(), Failure> {
    match tokio::task::spawn_blocking(move || saving.keep()).await {
        Ok(kept) => kept.map_err(|error| Failure::bad_argument(error.to_string())),
        Err(error) => Err(unsaved(&io::Error::other(error))),
    }
}

fn unsaved(error: &io::Error) -> Failure {
    let text = format!("the shared folder cannot be written to: {error}");
    Failure::new(FailureKind::Unavailable, text)
}

/// What a path leads to, if that is a file.
async fn file(guest: &Guest, path: &WorkPath) -> Result<FileEntry, Failure> {
    let list = guest.list_files(path.as_str(), Depth::One).await;
    let list = list.map_err(|error| Failure::from(&error))?;
    let entry = list.entries.into_iter().next();
    entry
        .filter(|entry| entry.path == path.as_str() && entry.kind == FileKind::File)
        .ok_or_else(|| {
            let text = "it is no file: pack a folder first, for example with tar in bash";
            Failure::new(FailureKind::Conflict, text.to_owned())
        })
}

/// The address by which the caller reached this server.
fn origin(headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    // What a proxy in front says. It is believed by whoever sent it, who gets the link.
    let proto = headers.get("x-forwarded-proto");
    let scheme = match proto.and_then(|proto| proto.to_str().ok()) {
        Some("https") => "https",
        _ => "http",
    };
    Some(format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_back_by_the_way_that_the_caller_came() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            HeaderMap::from_iter(pairs.iter().map(|(name, value)| {
                (
                    header::HeaderName::from_static(name),
                    header::HeaderValue::from_static(value),
                )
            }))
        };
        for (sent, expected) in [
            (headers(&[]), None),
            (
                headers(&[("host", "localhost:8484")]),
                Some("http://localhost:8484"),
            ),
            (
                headers(&[("host", "greenroom.example"), ("x-forwarded-proto", "https")]),
                Some("https://greenroom.example"),
            ),
            (
                headers(&[("host", "localhost"), ("x-forwarded-proto", "javascript")]),
                Some("http://localhost"),
            ),
        ] {
            assert_eq!(origin(&sent).as_deref(), expected);
        }
    }
}
