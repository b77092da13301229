//! Images that code made: decoded, scaled and encoded again in a limited child with the guest's rights, so
//! that neither the agent nor the server ever decodes what a guest wrote.

use std::{
    fs,
    io::{self, Cursor, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
    time::Duration,
};

use greenroom_protocol::{
    Pixels,
    limits::{IMAGE_BYTES, IMAGE_PIXELS},
};
use image::{
    DynamicImage, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder, imageops::FilterType,
};
use rustix::{
    fs::OFlags,
    process::{Resource, Rlimit, setrlimit},
};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    child::{Quarters, spawn},
    errand::Errand,
};

/// How long one image may take: a large one takes under a second of an idle processor.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds of processor time that one image may take.
const PROCESSOR: u64 = 10;
/// Address space of the child: a decoded image of [`PIXELS`], twice, and some room.
const MEMORY: u64 = 1 << 30;
/// Longest side that is looked at: 16 times what is sent.
const PIXELS: u32 = 25_000;
/// Bytes of a file that is looked at.
const FILE_BYTES: u64 = 128 << 20;
/// Qualities that are tried in turn before an image is made smaller still.
const QUALITIES: [u8; 2] = [85, 70];

/// An image within the bounds of what is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) mime: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// What to send of the image file at `path`, which the child opens, with the guest's rights. `None` if it
/// is no image, or too large to look at.
pub(crate) async fn sendable(quarters: &Quarters, path: &Path) -> Option<Image> {
    let mut command = quarters.errand(Errand::Image, [path]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = spawn(command).ok()?;
    let out = child.take_stdout()?;
    timeout(PATIENCE, async {
        let mut bytes = Vec::new();
        out.take(IMAGE_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .await
            .ok()?;
        let done = child.wait().await.ok()?.success();
        let mime = mime(&bytes)?;
        (done && bytes.len() <= IMAGE_BYTES).then_some(Image { mime, bytes })
    })
    .await
    .ok()?
}

/// The type of an image by its first bytes.
pub(crate) fn mime(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        _ => None,
    }
}

/// The child's part: limits itself, then writes the image in `path` to standard output, made small enough.
pub(crate) fn errand(path: &Path) -> io::Result<()> {
    limit()?;
    // What a guest may have put there instead is waited for by nobody.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let small = shrink(bounded(file)?, IMAGE_PIXELS).map_err(io::Error::other)?;
    io::stdout().lock().write_all(&small.bytes)
}

/// The same for the image on standard input, with no side longer than `side`, and a line before it that tells
/// the sizes.
pub(crate) fn picture_errand(side: &str) -> io::Result<()> {
    limit()?;
    let side = side.parse().map_err(io::Error::other)?;
    let small = shrink(bounded(io::stdin().lock())?, side).map_err(io::Error::other)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", small.pixels)?;
    out.write_all(&small.bytes)
}

fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Bounds what this process may take, for good.
fn limit() -> io::Result<()> {
    for (resource, limit) in [
        (Resource::As, MEMORY),
        (Resource::Cpu, PROCESSOR),
        (Resource::Core, 0),
    ] {
        let limit = Some(limit);
        setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )?;
    }
    Ok(())
}

/// An image that was made small enough.
struct Small {
    pixels: Pixels,
    bytes: Vec<u8>,
}

/// The same bytes if they are an image of a kind that is sent and within the bounds; else one that is.
fn shrink(bytes: Vec<u8>, mut side: u32) -> image::ImageResult<Small> {
    let mut reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(PIXELS);
    limits.max_image_height = Some(PIXELS);
    limits.max_alloc = Some(MEMORY / 3);
    reader.limits(limits);
    // All of it is decoded even if it is sent as it is: what cannot be decoded is not sent.
    let mut image = reader.decode()?;
    let file = [image.width(), image.height()];
    let small = |image: &DynamicImage, bytes| Small {
        pixels: Pixels {
            file,
            sent: [image.width(), image.height()],
        },
        bytes,
    };
    if image.width().max(image.height()) <= side && bytes.len() <= IMAGE_BYTES && mime(&bytes).is_some() {
        return Ok(small(&image, bytes));
    }
    drop(bytes);
    if image.width().max(image.height()) > side {
        image = image.resize(side, side, FilterType::Triangle);
    }
    let mut encoded = Vec::new();
    image.write_to(&mut Cursor::new(&mut encoded), ImageFormat::Png)?;
    while encoded.len() > IMAGE_BYTES {
        let flat = DynamicImage::ImageRgb8(on_white(&image));
        for quality in QUALITIES {
            encoded.clear();
            flat.write_with_encoder(JpegEncoder::new_with_quality(&mut encoded, quality))?;
            if encoded.len() <= IMAGE_BYTES {
                return Ok(small(&image, encoded));
            }
        }
        side = side * 3 / 4;
        image = image.resize(side, side, FilterType::Triangle);
    }
    Ok(small(&image, encoded))
}

/// JPEG has no transparency, and what is behind a figure is paper.
fn on_white(image: &DynamicImage) -> image::RgbImage {
    let rgba = image.to_rgba8();
    image::RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let image::Rgba([red, green, blue, alpha]) = *rgba.get_pixel(x, y);
        let over = |colour: u8| {
            let (colour, alpha) = (u32::from(colour), u32::from(alpha));
            // At most 255 by construction.
            ((colour * alpha + 255 * (255 - alpha)) / 255) as u8
        };
        image::Rgb([over(red), over(green), over(blue)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Vec::new();
        image
            .into()
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
            .unwrap();
        bytes
    }

    /// Pixels that no format can compress.
    fn noise(width: u32, height: u32) -> image::RgbaImage {
        let mut state = 1u32;
        image::RgbaImage::from_fn(width, height, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [a, b, c, _] = state.rotate_left(13).to_ne_bytes();
            image::Rgba([a, b, c, 255])
        })
    }

    #[test]
    fn a_small_image_stays_as_it_is() {
        let bytes = png(noise(40, 30));
        assert_eq!(shrink(bytes.clone(), IMAGE_PIXELS).unwrap().bytes, bytes);
    }

    #[test]
    fn a_wide_image_keeps_its_shape() {
        let small = shrink(png(image::RgbImage::new(3136, 100)), IMAGE_PIXELS).unwrap();
        assert_eq!(small.pixels.to_string(), "3136 100 1568 50");
        let small = small.bytes;
        assert_eq!(mime(&small), Some("image/png"));
        let small = image::load_from_memory(&small).unwrap();
        assert_eq!((small.width(), small.height()), (IMAGE_PIXELS, 50));
    }

    #[test]
    fn an_image_that_does_not_compress_becomes_a_jpeg_within_the_bound() {
        let small = shrink(png(noise(400, 400)), IMAGE_PIXELS).unwrap().bytes;
        assert!(small.len() <= IMAGE_BYTES);
        assert_eq!(mime(&small), Some("image/jpeg"));
        assert!(image::load_from_memory(&small).is_ok());
    }

    #[test]
    fn an_image_is_made_as_small_as_was_asked_for() {
        let small = shrink(png(noise(400, 300)), 100).unwrap();
        assert_eq!(small.pixels.sent, [100, 75]);
        let small = image::load_from_memory(&small.bytes).unwrap();
        assert_eq!((small.width(), small.height()), (100, 75));
    }

    #[test]
    fn kinds_that_are_not_sent_become_one_that_is() {
        for format in [ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Bmp] {
            let mut bytes = Vec::new();
            DynamicImage::ImageRgba8(noise(40, 30))
                .write_to(&mut Cursor::new(&mut bytes), format)
                .unwrap();
            assert_eq!(
                mime(&shrink(bytes, IMAGE_PIXELS).unwrap().bytes),
                Some("image/png"),
                "{format:?}"
            );
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(shrink(b"<svg/>".to_vec(), IMAGE_PIXELS).is_err());
        let mut cut = png(noise(40, 30));
        cut.truncate(cut.len() / 2);
        assert!(shrink(cut, IMAGE_PIXELS).is_err());
    }

    #[test]
    fn transparency_lies_on_white() {
        let clear = DynamicImage::ImageRgba8(image::RgbaImage::from_pixel(1, 1, image::Rgba([0, 0, 0, 0])));
        assert_eq!(on_white(&clear).get_pixel(0, 0).0, [255; 3]);
    }
}
