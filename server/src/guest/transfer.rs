//! Files and tunnels: bytes that stream in and out over the second connection, and stall deadlines on them.

use std::{
    io,
    ops::{Bound, RangeBounds},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use greenroom_protocol::{
    MARK_HEADER, PACKED_HEADER, PIXELS_HEADER, Packed, Pixels, RefusalKind, SIZE_HEADER, limits,
};
use http::{
    HeaderMap, HeaderValue, Response,
    header::{CONTENT_TYPE, RANGE},
};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Either, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use super::{
    call::{next_data, read, refused, too_large},
    error::GuestError,
    link::Outgoing,
};

/// How long a transfer may go without a byte, whoever holds it up.
const STALL: Duration = Duration::from_secs(60);

/// Bytes that are there already are sent in pieces of this size, so that progress can be seen.
const PIECE: usize = 256 << 10;

/// A byte stream to a port inside. It takes one of its guest's streams until it is dropped.
#[derive(Debug)]
pub struct Tunnel {
    bytes: TokioIo<Upgraded>,
    _permit: OwnedSemaphorePermit,
}

impl Tunnel {
    pub(super) fn new(upgraded: Upgraded, permit: OwnedSemaphorePermit) -> Self {
        Self {
            bytes: TokioIo::new(upgraded),
            _permit: permit,
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(context, into)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write_vectored(context, slices)
    }
}

/// What writing does to a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// It is replaced, atomically.
    Replace,
    /// It grows.
    Append,
}

/// A file as it is read.
#[derive(Debug)]
pub struct FileRead {
    /// Bytes of the whole file.
    pub size: u64,
    /// The bytes that were asked for.
    pub body: FileBody,
}

/// Bytes of a file as they come in, exactly as many as were announced.
#[derive(Debug)]
pub struct FileBody {
    body: Incoming,
    left: u64,
}

impl FileBody {
    /// Bytes that are still to come.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes, or `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// [`GuestError`]; a file that ends early or late is [`GuestError::Protocol`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, GuestError> {
        let data = match timeout(STALL, next_data(&mut self.body)).await {
            Ok(data) => data?,
            Err(_) => return Err(stalled("a file's next bytes")),
        };
        let length = data.as_ref().map_or(0, |data| data.len() as u64);
        match self.left.checked_sub(length) {
            None => Err(GuestError::protocol("a file with more bytes than it announced")),
            Some(left) if data.is_none() && left > 0 => Err(GuestError::protocol(format!(
                "a file that ends {left} bytes early"
            ))),
            Some(left) => {
                self.left = left;
                Ok(data)
            }
        }
    }

    /// All that is left, if that is at most `limit` bytes.
    ///
    /// # Errors
    /// [`GuestError`]; too much is refused before it is read.
    pub async fn collect(mut self, limit: usize) -> Result<Vec<u8>, GuestError> {
        let length = usize::try_from(self.left).ok().filter(|length| *length <= limit);
        let Some(length) = length else {
            return Err(too_large(format!(
                "{} bytes at once, the limit is {limit}",
                self.left
            )));
        };
        // Announced by the inside: memory is taken as the bytes come.
        let mut bytes = Vec::with_capacity(length.min(PIECE));
        while let Some(data) = self.next().await? {
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, GuestError>> + Send + 'static {
        stream::try_unfold(self, async |mut body| {
            Ok(body.next().await?.map(|data| (data, body)))
        })
    }
}

/// The work directory as a tar archive, as it comes in. What it holds is whatever the inside says.
#[derive(Debug)]
pub struct Packing {
    /// As it was announced.
    pub packed: Packed,
    /// Names this state of the files.
    pub mark: String,
    body: Incoming,
    /// Bytes that may still come.
    left: u64,
}

impl Packing {
    pub(super) fn read(response: Response<Incoming>, max: u64) -> Result<Self, GuestError> {
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let packed = header(PACKED_HEADER)
            .and_then(Packed::parse)
            .ok_or_else(|| GuestError::protocol(format!("an archive without {PACKED_HEADER}")))?;
        let is_mark = |mark: &&str| {
            (1..=limits::MARK_BYTES).contains(&mark.len())
                && mark.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let mark = header(MARK_HEADER)
            .filter(is_mark)
            .ok_or_else(|| GuestError::protocol(format!("an archive without {MARK_HEADER}")))?;
        Ok(Self {
            packed,
            mark: mark.to_owned(),
            body: response.into_body(),
            left: max,
        })
    }

    /// The next bytes, or `None` at the end of what is a whole archive. Cancel safe.
    ///
    /// # Errors
    /// [`GuestError`]; more than was asked for is [`GuestError::Protocol`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, GuestError> {
        let data = match timeout(STALL, next_data(&mut self.body)).await {
            Ok(data) => data?,
            Err(_) => return Err(stalled("an archive's next bytes")),
        };
        let length = data.as_ref().map_or(0, |data| data.len() as u64);
        self.left = self
            .left
            .checked_sub(length)
            .ok_or_else(|| GuestError::protocol("an archive with more bytes than were asked for"))?;
        Ok(data)
    }
}

/// An image file made small enough to show, by the sandbox itself. Its bytes are whatever the inside says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// `image/png` or `image/jpeg`.
    pub mime: &'static str,
    /// Its size, and the file's.
    pub pixels: Pixels,
    /// At most [`limits::IMAGE_BYTES`].
    pub bytes: Bytes,
}

impl Picture {
    pub(super) async fn read(response: Response<Incoming>) -> Result<Self, GuestError> {
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let mime = match header(CONTENT_TYPE.as_str()) {
            Some("image/png") => "image/png",
            Some("image/jpeg") => "image/jpeg",
            _ => return Err(GuestError::protocol("a picture that is neither PNG nor JPEG")),
        };
        let pixels = header(PIXELS_HEADER)
            .and_then(Pixels::parse)
            .ok_or_else(|| GuestError::protocol(format!("a picture without {PIXELS_HEADER}")))?;
        let bytes = read(response.into_body(), limits::IMAGE_BYTES).await?;
        Ok(Self { mime, pixels, bytes })
    }
}

/// Which bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    start: u64,
    /// Exclusive.
    end: Option<u64>,
}

impl Extent {
    pub(super) fn of(range: &impl RangeBounds<u64>) -> Result<Self, GuestError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => Some(last.saturating_add(1)),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => None,
        };
        if end.is_some_and(|end| end <= start) {
            return Err(refused(RefusalKind::BadRequest, "an empty range of bytes".into()));
        }
        Ok(Self { start, end })
    }

    pub(super) fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = match self.end {
            None if self.start == 0 => return headers,
            None => format!("bytes={}-", self.start),
            Some(end) => format!("bytes={}-{}", self.start, end - 1),
        };
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(RANGE, value);
        }
        headers
    }

    /// The bytes of a file of `size` that it names.
    fn length(self, size: u64) -> u64 {
        self.end.unwrap_or(size).min(size).saturating_sub(self.start)
    }

    pub(super) fn read(self, response: Response<Incoming>) -> Result<FileRead, GuestError> {
        let size = response
            .headers()
            .get(SIZE_HEADER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .ok_or_else(|| GuestError::protocol(format!("a file without {SIZE_HEADER}")))?;
        let body = FileBody {
            body: response.into_body(),
            left: self.length(size),
        };
        Ok(FileRead { size, body })
    }
}

/// What is written to a file.
#[derive(Debug)]
pub struct Upload(Source);

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Streaming(UnsyncBoxBody<Bytes, io::Error>),
}

impl Upload {
    /// Bytes that stream in. An error of the stream leaves the file as it was.
    pub fn stream<S>(source: S) -> Self
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        use futures_util::TryStreamExt as _;
        let body = http_body_util::StreamBody::new(source.map_ok(Frame::data));
        Self(Source::Streaming(body.boxed_unsync()))
    }
}

impl<T: Into<Bytes>> From<T> for Upload {
    fn from(bytes: T) -> Self {
        Self(Source::Whole(bytes.into()))
    }
}

/// An upload on its way, and a count of what has left.
#[derive(Debug)]
struct Counted {
    source: Source,
    sent: Arc<AtomicU64>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let frame = match &mut self.source {
            Source::Whole(bytes) if bytes.is_empty() => None,
            Source::Whole(bytes) => Some(Ok(Frame::data(bytes.split_to(bytes.len().min(PIECE))))),
            Source::Streaming(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        if let Some(Ok(frame)) = &frame {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            // A count that one task reads now and then: nothing hangs on its order.
            self.sent.fetch_add(length, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Streaming(body) => body.is_end_stream(),
        }
    }
}

/// Makes an upload a request's body; the count grows as it leaves.
pub(super) fn outgoing(upload: Upload) -> (Outgoing, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let body = Counted {
        source: upload.0,
        sent: Arc::clone(&sent),
    };
    (Either::Right(body.boxed_unsync()), sent)
}

/// Waits for the answer to an upload, for as long as bytes leave.
pub(super) async fn while_moving<T>(
    sent: &AtomicU64,
    answer: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    let mut answer = pin!(answer);
    let mut before = 0;
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = sleep(STALL) => {
                let now = sent.load(Ordering::Relaxed);
                if now == before {
                    return Err(stalled("for an upload"));
                }
                before = now;
            }
        }
    }
}

fn stalled(what: &'static str) -> GuestError {
    GuestError::Timeout {
        what,
        seconds: STALL.as_secs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_name_bytes() {
        let header = |extent: Extent| {
            extent
                .headers()
                .get(RANGE)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        for (extent, expected, of_ten) in [
            (Extent::of(&..), None, 10),
            (Extent::of(&(3..)), Some("bytes=3-"), 7),
            (Extent::of(&(3..5)), Some("bytes=3-4"), 2),
            (Extent::of(&(8..=20)), Some("bytes=8-20"), 2),
            (Extent::of(&(12..20)), Some("bytes=12-19"), 0),
        ] {
            let extent = extent.unwrap();
            assert_eq!(header(extent).as_deref(), expected);
            assert_eq!(extent.length(10), of_ten);
        }
        assert!(Extent::of(&(5..5)).is_err());
    }
}
