//! A sandbox's files and archives, as its agent is asked for them. What changes files is counted.

use std::{ops::RangeBounds, time::Duration};

use greenroom_protocol::{Deleted, FileEntry, FileList, RefusalKind, Unpacked, limits};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{Either, Full};
use serde::de::DeserializeOwned;

use super::{
    CALL, FileRead, Guest, GuestError, Packing, Picture, Upload, WriteMode,
    call::{Ask, LIST, SMALL, Slashes, encode, parse, read, refused, request, send, target, within},
    link::Link,
    transfer::{Extent, outgoing, while_moving},
};

/// How long decoding an image may take.
const PICTURE: Duration = Duration::from_secs(30);

/// How long an agent may look at its files before it packs the first: 20,000 take a second.
const PACK: Duration = Duration::from_secs(60);

/// How far down a listing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The folder itself.
    One,
    /// Every folder below it.
    All,
}

/// Stirs at the end of what may change files, however that comes.
struct Stirs<'a>(&'a Guest);

impl Drop for Stirs<'_> {
    fn drop(&mut self) {
        self.0.stir(|stirrings| stirrings.changes += 1);
    }
}

impl Guest {
    /// The files below a path, sorted.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn list_files(&self, path: &str, depth: Depth) -> Result<FileList, GuestError> {
        check_path(path)?;
        let path = encode(path, Slashes::Encoded);
        let recursive = depth == Depth::All;
        let ask = Ask::new(
            "for its files",
            Method::GET,
            target(&format!("/files?path={path}&recursive={recursive}")),
        );
        self.heed(ask.answer(&self.shared.bulk, LIST).await)
    }

    /// Reads a file, or a range of its bytes.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn read_file(&self, path: &str, range: impl RangeBounds<u64>) -> Result<FileRead, GuestError> {
        let extent = Extent::of(&range)?;
        let target = file_target(path)?;
        let open = async {
            let wire = self.shared.bulk.wire().await?;
            let empty = Either::Left(Full::default());
            send(&wire, request(Method::GET, &target, extent.headers(), empty)?).await
        };
        let response = self.note(within("for a file", CALL, open).await)?;
        extent.read(response)
    }

    /// A picture of an image file, with no side longer than `side` pixels, decoded and scaled inside.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Refused`] with [`RefusalKind::BadRequest`] where it cannot be decoded.
    pub async fn picture(&self, path: &str, side: u32) -> Result<Picture, GuestError> {
        let target = format!("{}?picture={side}", file_target(path)?);
        let make = async {
            let wire = self.shared.bulk.wire().await?;
            let empty = Either::Left(Full::default());
            let response = send(&wire, request(Method::GET, &target, HeaderMap::new(), empty)?).await?;
            Picture::read(response).await
        };
        self.note(within("for a picture", CALL + PICTURE, make).await)
    }

    /// Writes a file; nothing of it is seen until all of it is there.
    ///
    /// # Errors
    /// [`GuestError`]; where the channel broke, [`GuestError::Lost`] leaves open whether it was written.
    pub async fn write_file(
        &self,
        path: &str,
        mode: WriteMode,
        upload: impl Into<Upload>,
    ) -> Result<FileEntry, GuestError> {
        let mut target = file_target(path)?;
        if mode == WriteMode::Append {
            target.push_str("?append=true");
        }
        self.write_to(&target, upload.into()).await
    }

    /// Writes a file under a mark of hexadecimal digits that is good for one upload: the sandbox remembers it.
    ///
    /// # Errors
    /// As [`write_file`](Self::write_file); [`GuestError::Refused`] with [`RefusalKind::Conflict`] where the mark
    /// was used before.
    pub async fn write_file_once(
        &self,
        path: &str,
        mark: &str,
        upload: impl Into<Upload>,
    ) -> Result<FileEntry, GuestError> {
        let mark = encode(mark, Slashes::Encoded);
        let target = format!("{}?once={mark}", file_target(path)?);
        self.write_to(&target, upload.into()).await
    }

    /// Unpacks a tar archive into the work directory, all of it or none. The one transfer that needs no lease.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Refused`] says what is wrong with it.
    pub async fn unpack(&self, archive: impl Into<Upload>) -> Result<Unpacked, GuestError> {
        self.write_to(&target("/archive"), archive.into()).await
    }

    /// Fills a sandbox that is nobody's yet with an earlier one's files, as they were at a time in milliseconds
    /// since 1970. What was in its work directory goes, and its lease's first answers tell of it.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    pub async fn fill(
        &self,
        archive: impl Into<Upload>,
        as_of_ms: u64,
        left_out: u64,
    ) -> Result<Unpacked, GuestError> {
        let path = format!("/archive?as_of={as_of_ms}&left_out={left_out}");
        self.write_over(&self.shared.runs, &target(&path), archive.into())
            .await
    }

    /// The work directory as a tar archive of at most `max` bytes. `None`: nothing has changed since the one with
    /// this mark, or, if that is another sandbox's, since this one was filled.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Refused`] with [`RefusalKind::TooLarge`], or with [`RefusalKind::Conflict`]
    /// where it is being packed already.
    pub async fn pack(&self, max: u64, since: Option<&str>) -> Result<Option<Packing>, GuestError> {
        let mut path = format!("/archive?max={max}");
        if let Some(mark) = since {
            path = path + "&since=" + &encode(mark, Slashes::Encoded);
        }
        let open = async {
            let wire = self.shared.runs.wire().await?;
            let empty = Either::Left(Full::default());
            send(
                &wire,
                request(Method::GET, &target(&path), HeaderMap::new(), empty)?,
            )
            .await
        };
        let response = self.note(within("for an archive", CALL + PACK, open).await)?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        Packing::read(response, max).map(Some)
    }

    async fn write_to<T: DeserializeOwned>(&self, target: &str, upload: Upload) -> Result<T, GuestError> {
        let _stirs = Stirs(self);
        self.write_over(&self.shared.bulk, target, upload).await
    }

    async fn write_over<T: DeserializeOwned>(
        &self,
        link: &Link,
        target: &str,
        upload: Upload,
    ) -> Result<T, GuestError> {
        let (body, sent) = outgoing(upload);
        let write = async {
            let wire = link.wire().await?;
            let answer = send(&wire, request(Method::PUT, target, HeaderMap::new(), body)?).await?;
            parse(&read(answer.into_body(), SMALL).await?)
        };
        self.note(while_moving(&sent, write).await)
    }

    /// Deletes a file, or a folder with all that is in it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn delete_file(&self, path: &str) -> Result<Deleted, GuestError> {
        let ask = Ask::new("to delete a file", Method::DELETE, file_target(path)?)
            .waiting(Duration::from_secs(limits::DELETE_SECS));
        let _stirs = Stirs(self);
        self.note(ask.answer(&self.shared.bulk, SMALL).await)
    }
}

fn check_path(path: &str) -> Result<(), GuestError> {
    if path.len() > limits::PATH_BYTES {
        return Err(refused(
            RefusalKind::BadPath,
            format!(
                "a path of {} bytes, the limit is {}",
                path.len(),
                limits::PATH_BYTES
            ),
        ));
    }
    Ok(())
}

fn file_target(path: &str) -> Result<String, GuestError> {
    check_path(path)?;
    Ok(target(&format!("/files/{}", encode(path, Slashes::Kept))))
}
