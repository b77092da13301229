//! A multipart form as it streams in: part by part, in memory that does not grow with it.
//!
//! Our own reader, since a part's headers have to be bounded, a body that calls itself JSON has to be read, and a
//! part has to move into an upload and back.

use std::{io, time::Duration};

use axum::body::BodyDataStream;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use memchr::memmem::{Finder, find};
use tokio::{sync::oneshot, time::timeout};

use crate::rest::form::boundary;

/// Bytes of a part's headers, and of what comes before the first part.
const HEADERS: usize = 16 << 10;

/// How long a client may take over its next bytes.
const STALL: Duration = Duration::from_secs(60);

/// Why a form cannot be read further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the body is no multipart form: neither Content-Type nor its first line has a boundary")]
    NoBoundary,
    #[error("the body broke off before the form's end")]
    Ended,
    #[error("the headers of a part have at most {HEADERS} bytes")]
    Headers,
    #[error("the body stalled for {} s", STALL.as_secs())]
    Stalled,
    #[error("the body cannot be read")]
    Unread,
}

/// A form, before a part or its end.
#[derive(Debug)]
pub(super) struct Form {
    body: BodyDataStream,
    buffer: BytesMut,
    /// What stands before each part and at the end.
    delimiter: Finder<'static>,
}

/// Where a part that was given away comes back.
pub(super) type Returned = oneshot::Receiver<Form>;

impl Form {
    /// Reads up to the first delimiter.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) async fn begin(content_type: Option<&str>, body: BodyDataStream) -> Result<Self, Broken> {
        let mut form = Self {
            body,
            // The first delimiter needs no line before it.
            buffer: BytesMut::from(&b"\r\n"[..]),
            delimiter: Finder::new(b"").into_owned(),
        };
        while !form.buffer[2..].contains(&b'\n') && form.buffer.len() < HEADERS && form.fill().await? {}
        let boundary = boundary(content_type, &form.buffer[2..]).ok_or(Broken::NoBoundary)?;
        form.delimiter = Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        loop {
            if let Some(at) = form.delimiter.find(&form.buffer) {
                drop(form.buffer.split_to(at + form.delimiter.needle().len()));
                return Ok(form);
            }
            if form.buffer.len() > HEADERS {
                return Err(Broken::NoBoundary);
            }
            form.filled().await?;
        }
    }

    /// The headers of the next part; `None` after the last.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) async fn part(&mut self) -> Result<Option<Bytes>, Broken> {
        const END: &[u8] = b"\r\n\r\n";
        while self.buffer.len() < 2 {
            self.filled().await?;
        }
        if self.buffer.starts_with(b"--") {
            return Ok(None);
        }
        loop {
            // A part without headers ends them with the delimiter's own line.
            if let Some(at) = find(&self.buffer, END) {
                let headers = self.buffer.split_to(at + END.len()).freeze();
                return Ok(Some(headers));
            }
            if self.buffer.len() > HEADERS {
                return Err(Broken::Headers);
            }
            self.filled().await?;
        }
    }

    /// The next bytes of the part; `None` at its end.
    ///
    /// # Errors
    /// [`Broken`].
    async fn data(&mut self) -> Result<Option<Bytes>, Broken> {
        let length = self.delimiter.needle().len();
        loop {
            match self.delimiter.find(&self.buffer) {
                Some(0) => {
                    drop(self.buffer.split_to(length));
                    return Ok(None);
                }
                Some(at) => return Ok(Some(self.buffer.split_to(at).freeze())),
                // The last bytes may be the beginning of a delimiter.
                None if self.buffer.len() >= length => {
                    let sure = self.buffer.len() - (length - 1);
                    return Ok(Some(self.buffer.split_to(sure).freeze()));
                }
                None => self.filled().await?,
            }
        }
    }

    /// Passes over the part.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) async fn skip(&mut self) -> Result<(), Broken> {
        while self.data().await?.is_some() {}
        Ok(())
    }

    /// Gives the part away as a stream, at whose end the form comes back.
    pub(super) fn give(self) -> (impl Stream<Item = io::Result<Bytes>> + Send + 'static, Returned) {
        let (back, returned) = oneshot::channel();
        let data = stream::try_unfold(Some((self, back)), async |state| {
            let Some((mut form, back)) = state else {
                return Ok(None);
            };
            match form.data().await {
                Ok(Some(data)) => Ok(Some((data, Some((form, back))))),
                Ok(None) => {
                    // Whoever does not wait for it has no more use for it.
                    drop(back.send(form));
                    Ok(None)
                }
                Err(broken) => Err(io::Error::other(broken)),
            }
        });
        (data, returned)
    }

    async fn filled(&mut self) -> Result<(), Broken> {
        if self.fill().await? {
            Ok(())
        } else {
            Err(Broken::Ended)
        }
    }

    /// Takes what comes next. False at the end of the body.
    async fn fill(&mut self) -> Result<bool, Broken> {
        match timeout(STALL, self.body.next()).await {
            Ok(Some(Ok(data))) => {
                self.buffer.extend_from_slice(&data);
                Ok(true)
            }
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "an upload broke off");
                Err(Broken::Unread)
            }
            Ok(None) => Ok(false),
            Err(_) => Err(Broken::Stalled),
        }
    }
}

/// The `Content-Disposition` among a part's headers.
pub(super) fn disposition(headers: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(headers);
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-disposition")
            .then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use futures_util::TryStreamExt as _;
    use proptest::prelude::*;

    use super::*;

    fn body(text: &[u8], piece: usize) -> BodyDataStream {
        let pieces: Vec<_> = text
            .chunks(piece.max(1))
            .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
            .collect();
        Body::from_stream(stream::iter(pieces)).into_data_stream()
    }

    async fn parts(text: &[u8], piece: usize) -> Result<Vec<(Option<String>, Vec<u8>)>, Broken> {
        let mut form = Form::begin(Some("application/json"), body(text, piece)).await?;
        let mut parts = Vec::new();
        while let Some(headers) = form.part().await? {
            let (data, returned) = form.give();
            let data: Vec<Bytes> = data.try_collect().await.map_err(|_| Broken::Ended)?;
            parts.push((disposition(&headers), data.concat()));
            form = returned.await.unwrap();
        }
        Ok(parts)
    }

    #[tokio::test]
    async fn parts_are_read_however_they_are_cut() {
        let text = b"--X\r\ncontent-type: a/b\r\nCONTENT-DISPOSITION: form-data; name=file\r\n\r\nabc\r\n--Y\r\n--\r\n--X\r\nA: b\r\n\r\n\r\n--X--\r\nepilogue";
        for piece in 1..text.len() {
            let read = parts(text, piece).await.unwrap();
            let first = (
                Some("form-data; name=file".to_owned()),
                b"abc\r\n--Y\r\n--".to_vec(),
            );
            assert_eq!(read, [first, (None, Vec::new())], "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn what_is_no_whole_form_says_why() {
        let long = [b"--X\r\nA: ".to_vec(), vec![b'x'; HEADERS + 1]].concat();
        for (text, why) in [
            (&b"abc"[..], Broken::NoBoundary),
            (b"", Broken::NoBoundary),
            (b"--X\r\nA: b\r\n\r\nabc", Broken::Ended),
            (b"--X\r\nA: b\r\n", Broken::Ended),
            (b"--X\r\nA: b\r\n\r\nabc\r\n--X", Broken::Ended),
            (&long, Broken::Headers),
        ] {
            assert_eq!(parts(text, 7).await, Err(why));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_through(content in prop::collection::vec(any::<u8>(), 0..200), piece in 1_usize..50) {
            prop_assume!(find(&content, b"\r\n--X").is_none());
            let text = [&b"--X\r\nA: b\r\n\r\n"[..], &content, b"\r\n--X--"].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            prop_assert_eq!(runtime.block_on(parts(&text, piece)).unwrap(), [(None, content)]);
        }
    }
}
