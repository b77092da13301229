//! How bytes of a file are shown: text as text, whatever encoding it is in, and the rest as base64.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::super::render::{Content, Text};

/// JSON may need six characters for one; a text that grows beyond this is cut further.
const JSON_BYTES: usize = 850_000;
/// Bytes that a character may have, in any encoding that is guessed.
const CHARACTER: usize = 4;

/// A part of a file, as it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// How the file begins, as far as it was read: that tells its encoding.
    pub head: &'a [u8],
    /// Whether the part begins with the file.
    pub is_first: bool,
    /// Whether the part ends with the file.
    pub is_last: bool,
}

/// Shows a part, in not more than `chars` characters.
pub(super) fn content(part: Part<'_>, chars: usize) -> Content {
    let marked = Encoding::for_bom(part.head).is_some_and(|(encoding, _)| encoding != UTF_8);
    let plain = if marked { None } else { utf8(part, chars) };
    let text = plain.or_else(|| decoded(part, encoding(part.head)?, chars));
    match text {
        Some(text) => Content::Text(text),
        None => {
            let most = part.bytes.len().min(chars / 4 * 3);
            Content::Bytes(part.bytes[..most].to_vec())
        }
    }
}

/// Whether the part needs the file's head to be shown: it is no UTF-8, or has characters that no text has, as
/// UTF-16 does.
pub(super) fn needs_head(part: Part<'_>) -> bool {
    !part.is_first && utf8(part, usize::MAX).is_none_or(|part| !is_text(&part.text))
}

fn utf8(part: Part<'_>, chars: usize) -> Option<Text> {
    let valid = match std::str::from_utf8(part.bytes) {
        Ok(text) => text,
        // A character that the range cuts in two belongs to the next part.
        Err(error) if error.error_len().is_none() && !part.is_last && error.valid_up_to() > 0 => {
            std::str::from_utf8(&part.bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if valid.contains('\0') {
        return None;
    }
    let mut text = match valid.char_indices().nth(chars) {
        Some((end, _)) => &valid[..end],
        None => valid,
    };
    while !fits(text) {
        text = &text[..text.floor_char_boundary(text.len() / 2)];
    }
    Some(Text {
        text: text.to_owned(),
        bytes: text.len() as u64,
        encoding: None,
    })
}

fn fits(text: &str) -> bool {
    serde_json::to_string(text).map_or(0, |json| json.len()) <= JSON_BYTES
}

/// What a file that is no UTF-8 seems to be written in.
fn encoding(head: &[u8]) -> Option<&'static Encoding> {
    if let Some((encoding, _)) = Encoding::for_bom(head) {
        return Some(encoding);
    }
    // Windows writes UTF-16, now and then without its mark: every other byte of a plain text is 0 then.
    let zeros = |first: usize| {
        head.iter()
            .skip(first)
            .step_by(2)
            .filter(|byte| **byte == 0)
            .count()
    };
    let half = head.len() / 2;
    match (zeros(0), zeros(1)) {
        (0, 0) => {}
        (0, odd) if odd * 10 > half * 9 => return Some(UTF_16LE),
        (even, 0) if even * 10 > half * 9 => return Some(UTF_16BE),
        _ => return None,
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(head, true);
    let guess = detector.guess(None, Utf8Detection::Deny);
    (guess != UTF_8).then_some(guess)
}

/// Decodes a part; `None` where it is no text after all.
fn decoded(part: Part<'_>, encoding: &'static Encoding, chars: usize) -> Option<Text> {
    let mark = match Encoding::for_bom(part.bytes).filter(|_| part.is_first) {
        Some((_, length)) => length,
        None => 0,
    };
    let rest = &part.bytes[mark..];
    // A character that the range cuts in two belongs to the next part.
    let ends = if part.is_last {
        1
    } else {
        CHARACTER.min(rest.len() + 1)
    };
    let whole = (0..ends).map(|cut| &rest[..rest.len() - cut]).find(|bytes| {
        let text = encoding.decode_without_bom_handling_and_without_replacement(bytes);
        text.is_some_and(|text| is_text(&text))
    })?;
    let mut room = chars.min(JSON_BYTES);
    loop {
        let mut text = String::with_capacity(room);
        let mut decoder = encoding.new_decoder_without_bom_handling();
        // What does not fit is left unread, so that the next part begins with it.
        let (outcome, read) = decoder.decode_to_string_without_replacement(whole, &mut text, false);
        if matches!(outcome, DecoderResult::Malformed(..)) {
            return None;
        }
        if fits(&text) {
            return Some(Text {
                text,
                bytes: (mark + read) as u64,
                encoding: Some(encoding.name()),
            });
        }
        room /= 2;
    }
}

/// Whether somebody may have written it: no control characters but those of plain text.
fn is_text(text: &str) -> bool {
    !text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{c}' | '\u{1b}'))
}

/// Whether a file that begins like this is an image that can be shown.
pub(super) fn is_image(head: &[u8]) -> bool {
    match head {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..]
        | [0xff, 0xd8, 0xff, ..]
        | [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..]
        // Its length, then two reserved words.
        | [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => true,
        [b'R', b'I', b'F', b'F', _, _, _, _, rest @ ..] => rest.starts_with(b"WEBP"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: &[u8]) -> Part<'_> {
        Part {
            bytes,
            head: bytes,
            is_first: true,
            is_last: true,
        }
    }

    fn text(text: &str, bytes: u64, encoding: Option<&'static str>) -> Content {
        Content::Text(Text {
            text: text.into(),
            bytes,
            encoding,
        })
    }

    #[test]
    fn files_are_shown_as_what_they_are() {
        let whole = |bytes: &[u8]| content(part(bytes), 100);
        assert_eq!(whole("größe\n".as_bytes()), text("größe\n", 8, None));
        assert_eq!(whole(b""), text("", 0, None));
        assert_eq!(
            whole(b"caf\xe9 au lait, s'il vous pla\xeet"),
            text("café au lait, s'il vous plaît", 29, Some("windows-1252"))
        );
        let sjis = [
            0x93, 0xfa, 0x96, 0x7b, 0x8c, 0xea, 0x82, 0xcc, 0x83, 0x65, 0x83, 0x58, 0x83, 0x67,
        ];
        assert_eq!(whole(&sjis), text("日本語のテスト", 14, Some("Shift_JIS")));
        assert_eq!(whole(b"\xff\xfeh\0i\0"), text("hi", 6, Some("UTF-16LE")));
        assert_eq!(whole(b"\xfe\xff\0h\0i"), text("hi", 6, Some("UTF-16BE")));
        assert_eq!(
            whole(b"h\0i\0,\0 \0y\0o\0u\0"),
            text("hi, you", 14, Some("UTF-16LE"))
        );
        for binary in [
            &b"a\0b"[..],
            b"\x7fELF\x02\x01\x01\0\0\0",
            b"\x1f\x8b\x08\x00\xff\xff",
            b"\x01\x02\xff\x03",
        ] {
            assert_eq!(whole(binary), Content::Bytes(binary.to_vec()));
        }
    }

    #[test]
    fn parts_end_between_characters_and_within_the_budget() {
        let middle = |bytes, head| Part {
            bytes,
            head,
            is_first: false,
            is_last: false,
        };
        let cut = middle(&"größe".as_bytes()[..3], b"");
        assert!(!needs_head(cut));
        assert_eq!(content(cut, 100), text("gr", 2, None));
        // Cyrillic letters of UTF-16 are pairs of ASCII.
        let utf16 = b"\xff\xfe\x38\x04\x48\x04\x38\x04";
        let cut = middle(&utf16[4..7], utf16);
        assert!(needs_head(cut));
        assert_eq!(content(cut, 100), text("ш", 2, Some("UTF-16LE")));
        let rest = middle(&utf16[4..], utf16);
        assert_eq!(content(rest, 100), text("ши", 4, Some("UTF-16LE")));
        let latin = [b'\xe9'; 500];
        let Content::Text(some) = content(part(&latin), 100) else {
            panic!("text")
        };
        assert!(some.text.chars().count() <= 100 && some.bytes > 0, "{some:?}");
        assert_eq!(
            content(part(&[b'x'; 500]), 100),
            text(&"x".repeat(100), 100, None)
        );
        assert_eq!(content(part(&[0; 500]), 100), Content::Bytes(vec![0; 75]));
        let Content::Text(long) = content(part(&[1; 600_000]), usize::MAX) else {
            panic!("control characters are text")
        };
        assert!(fits(&long.text));
    }

    #[test]
    fn images_are_known_by_their_first_bytes() {
        for (head, known) in [
            (&b"\x89PNG\r\n\x1a\n rest"[..], true),
            (b"\xff\xd8\xff\xe0", true),
            (b"GIF89a", true),
            (b"RIFF\x10\0\0\0WEBPVP8 ", true),
            (b"RIFF\x10\0\0\0WAVEfmt ", false),
            (b"BM\x10\0\0\0\0\0\0\0", true),
            (b"BMW is a car", false),
            (b"<svg/>", false),
            (b"", false),
        ] {
            assert_eq!(is_image(head), known, "{head:?}");
        }
    }
}
