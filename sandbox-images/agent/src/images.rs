//! Images that code made: decoded, scaled and encoded again in a limited child with the guest's rights, so
//! that neither the agent nor the server ever decodes what a guest wrote.

use std::{
    fs,
    io::{self, Cursor, Write},
    path::Path,
    process::Stdio,
    time::Duration,
};

use greenroom_protocol::limits::{IMAGE_BYTES, IMAGE_PIXELS};
use image::{
    DynamicImage, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder, imageops::FilterType,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    child::{Quarters, spawn},
    errand::Errand,
};

/// How long one image may take: a large one takes under a second of an idle processor.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds of processor time that one image may take.
const PROCESSOR: u64 = 10;
/// Address space of the child: a decoded image of [`PIXELS`], twice, and some room.
const MEMORY: u64 = 1 << 30;
/// Longest side that is looked at: 16 times what is sent.
const PIXELS: u32 = 25_000;
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
fn mime(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        _ => None,
    }
}

/// The child's part: limits itself, then writes the image in `path` to standard output, made small enough.
pub(crate) fn errand(path: &Path) -> io::Result<()> {
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
    let bytes = shrink(fs::read(path)?).map_err(io::Error::other)?;
    io::stdout().lock().write_all(&bytes)
}

/// The same bytes if they are an image within the bounds; else one that is.
fn shrink(bytes: Vec<u8>) -> image::ImageResult<Vec<u8>> {
    let mut reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(PIXELS);
    limits.max_image_height = Some(PIXELS);
    limits.max_alloc = Some(MEMORY / 3);
    reader.limits(limits);
    // All of it is decoded even if it is sent as it is: what cannot be decoded is not sent.
    let mut image = reader.decode()?;
    if image.width().max(image.height()) <= IMAGE_PIXELS && bytes.len() <= IMAGE_BYTES {
        return Ok(bytes);
    }
    drop(bytes);
    let mut side = IMAGE_PIXELS;
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
                return Ok(encoded);
            }
        }
        side = side * 3 / 4;
        image = image.resize(side, side, FilterType::Triangle);
    }
    Ok(encoded)
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
        assert_eq!(shrink(bytes.clone()).unwrap(), bytes);
    }

    #[test]
    fn a_wide_image_keeps_its_shape() {
        let small = shrink(png(image::RgbImage::new(3136, 100))).unwrap();
        assert_eq!(mime(&small), Some("image/png"));
        let small = image::load_from_memory(&small).unwrap();
        assert_eq!((small.width(), small.height()), (IMAGE_PIXELS, 50));
    }

    #[test]
    fn an_image_that_does_not_compress_becomes_a_jpeg_within_the_bound() {
        let small = shrink(png(noise(400, 400))).unwrap();
        assert!(small.len() <= IMAGE_BYTES);
        assert_eq!(mime(&small), Some("image/jpeg"));
        assert!(image::load_from_memory(&small).is_ok());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(shrink(b"<svg/>".to_vec()).is_err());
        let mut cut = png(noise(40, 30));
        cut.truncate(cut.len() / 2);
        assert!(shrink(cut).is_err());
    }

    #[test]
    fn transparency_lies_on_white() {
        let clear = DynamicImage::ImageRgba8(image::RgbaImage::from_pixel(1, 1, image::Rgba([0, 0, 0, 0])));
        assert_eq!(on_white(&clear).get_pixel(0, 0).0, [255; 3]);
    }
}
