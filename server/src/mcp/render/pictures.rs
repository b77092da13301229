//! Images of a run as blocks of an answer, as far as they fit.

use greenroom_protocol::limits;

use super::{
    super::transcript::{Display, Transcript},
    ANSWER_BYTES, Image, absolute,
};

/// The image of a display, and its type.
pub(super) fn image_of(display: &Display) -> Option<(&'static str, &String)> {
    ["image/png", "image/jpeg"]
        .into_iter()
        .find_map(|mime| display.data.get(mime).map(|data| (mime, data)))
}

/// Image blocks as far as they fit, and what to say of them.
pub(super) fn pictures(transcript: &Transcript) -> (Vec<Image>, Vec<String>) {
    let (mut blocks, mut notes, mut bytes, mut unsent) = (Vec::new(), Vec::new(), 0, 0);
    for (number, display) in transcript.displays.iter().enumerate() {
        let Some((mime, data)) = image_of(display) else {
            if let Some(path) = &display.path {
                notes.push(format!("display {}: saved as {}", number + 1, absolute(path)));
            }
            continue;
        };
        // Base64 as the agent writes it has no line ends; anything else is not an image.
        let sound = !data.is_empty()
            && data
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        let fits = bytes + data.len() <= ANSWER_BYTES - 300_000
            && data.len() <= limits::IMAGE_BYTES.div_ceil(3) * 4
            && blocks.len() < limits::IMAGES;
        if sound && fits {
            bytes += data.len();
            blocks.push(Image {
                data: data.clone(),
                mime,
            });
            if let Some(path) = &display.path {
                notes.push(format!("image {}: saved as {}", blocks.len(), absolute(path)));
            }
        } else {
            unsent += 1;
            if let Some(path) = &display.path {
                notes.push(format!(
                    "display {}: an image that did not fit, saved as {}",
                    number + 1,
                    absolute(path)
                ));
            }
        }
    }
    let unsent = unsent
        + transcript
            .outcome()
            .map_or(0, |outcome| outcome.images_omitted as usize);
    if unsent > 0 {
        notes.push(format!(
            "{unsent} more image(s) are not shown: an answer has at most {}",
            limits::IMAGES
        ));
    }
    if transcript.displays_dropped > 0 {
        notes.push(format!(
            "{} more displays are not shown",
            transcript.displays_dropped
        ));
    }
    (blocks, notes)
}
