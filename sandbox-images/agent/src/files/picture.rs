//! Image files made small enough to show: decoded in a limited child with the guest's rights, never here.

use std::{os::fd::OwnedFd, process::Stdio};

use greenroom_protocol::{Pixels, Refusal, RefusalKind, limits::IMAGE_BYTES};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    child::{Quarters, spawn},
    errand::Errand,
    images::{self, PATIENCE},
};

/// Bytes of the line before a picture: four numbers.
const HEAD: usize = 64;

/// A picture within the bounds of what is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// `image/png` or `image/jpeg`.
    pub mime: &'static str,
    /// Its size, and the file's.
    pub pixels: Pixels,
    /// The encoded bytes.
    pub bytes: Vec<u8>,
}

/// Makes a picture of an open image file, with no side longer than `side`.
pub(super) async fn make(quarters: &Quarters, file: OwnedFd, side: u32) -> Result<Picture, Refusal> {
    let mut command = quarters.errand(Errand::Picture, [side.to_string()]);
    command.stdin(file).stdout(Stdio::piped()).stderr(Stdio::null());
    let made = async {
        let mut child = spawn(command).ok()?;
        let out = child.take_stdout()?;
        let mut bytes = Vec::new();
        out.take((HEAD + IMAGE_BYTES) as u64 + 1)
            .read_to_end(&mut bytes)
            .await
            .ok()?;
        let done = child.wait().await.ok()?.success();
        done.then(|| picture(&bytes)).flatten()
    };
    // Dropped when its time is over, and with it the child.
    timeout(PATIENCE, made)
        .await
        .ok()
        .flatten()
        .ok_or_else(|| Refusal {
            kind: RefusalKind::BadRequest,
            message: "it is no image that can be decoded, or too large a one".to_owned(),
        })
}

/// Reads what the child wrote. It ran with the guest's rights, so it may be anything.
fn picture(written: &[u8]) -> Option<Picture> {
    let end = written.iter().take(HEAD).position(|byte| *byte == b'\n')?;
    let (head, bytes) = (written.get(..end)?, written.get(end + 1..)?);
    let pixels = Pixels::parse(std::str::from_utf8(head).ok()?)?;
    let mime = images::mime(bytes)?;
    (bytes.len() <= IMAGE_BYTES).then(|| Picture {
        mime,
        pixels,
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_picture_is_taken_from_the_child() {
        let png = b"\x89PNG rest";
        let whole = [b"10 20 5 10\n".as_slice(), png].concat();
        let read = picture(&whole).unwrap();
        assert_eq!((read.mime, read.bytes.as_slice()), ("image/png", png.as_slice()));
        assert_eq!(read.pixels.file, [10, 20]);
        for written in [
            b"".as_slice(),
            b"10 20 5 10",
            b"10 20 5\n\x89PNG",
            b"10 20 5 x\n\x89PNG",
            b"10 20 5 10\nGIF89a",
        ] {
            assert_eq!(picture(written), None, "{written:?}");
        }
        let large = [b"1 1 1 1\n\x89PNG".as_slice(), &vec![0; IMAGE_BYTES]].concat();
        assert_eq!(picture(&large), None);
    }
}
