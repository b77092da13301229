//! Bytes of an output stream as text that is safe to pass on: valid, printable, without terminal codes.

use std::fmt::Write;

/// A sequence of a terminal that has not ended after so many bytes is none.
const SEQUENCE_BYTES: usize = 4096;
const ESCAPE: u8 = 0x1b;

/// Whether more bytes of the stream can follow those at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// A character or sequence that is cut off at the end waits for its rest.
    More,
    /// What is cut off will stay so.
    End,
}

/// The text of some bytes, and how many of them went into it: a few at the end may have to wait.
///
/// Valid UTF-8 stays as it is, other bytes become `\xNN`. Of the control characters newline, tab and
/// carriage return stay, the others become `\xNN`. Terminal sequences (colours, cursor moves, titles) go.
pub(crate) fn plain(bytes: &[u8], after: After) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match next(rest) {
            Piece::Text(valid, taken) => {
                text.push_str(valid);
                at += taken;
            }
            Piece::Sequence(taken) => at += taken,
            Piece::Escaped(taken) => {
                for byte in &rest[..taken] {
                    // Writing into a string cannot fail.
                    let _ = write!(text, "\\x{byte:02x}");
                }
                at += taken;
            }
            Piece::CutOff if after == After::More => break,
            Piece::CutOff => {
                if rest[0] != ESCAPE {
                    for byte in rest {
                        let _ = write!(text, "\\x{byte:02x}");
                    }
                }
                at = bytes.len();
            }
        }
    }
    (text, at)
}

/// What stands at the beginning of some bytes, and how long it is.
enum Piece<'a> {
    Text(&'a str, usize),
    Escaped(usize),
    Sequence(usize),
    CutOff,
}

fn next(bytes: &[u8]) -> Piece<'_> {
    if bytes[0] == ESCAPE {
        return sequence(bytes);
    }
    let printable = bytes
        .iter()
        .position(|&byte| is_control(byte))
        .unwrap_or(bytes.len());
    if printable == 0 {
        return Piece::Escaped(1);
    }
    match std::str::from_utf8(&bytes[..printable]) {
        Ok(text) => Piece::Text(text, printable),
        Err(error) if error.valid_up_to() > 0 => {
            let valid = error.valid_up_to();
            Piece::Text(std::str::from_utf8(&bytes[..valid]).unwrap_or_default(), valid)
        }
        Err(error) => match error.error_len() {
            Some(length) => Piece::Escaped(length),
            // Cut off by the end of the bytes, or by a control character behind it.
            None if printable == bytes.len() => Piece::CutOff,
            None => Piece::Escaped(printable),
        },
    }
}

fn is_control(byte: u8) -> bool {
    (byte < 0x20 && !matches!(byte, b'\n' | b'\t' | b'\r')) || byte == 0x7f
}

/// The terminal sequence that begins with ESC, by ECMA-48: CSI up to its final byte; OSC, DCS, PM, APC and
/// SOS up to their terminator; else ESC, intermediates and one final byte.
fn sequence(bytes: &[u8]) -> Piece<'_> {
    let length = match bytes.get(1) {
        None => None,
        Some(b'[') => bytes[2..]
            .iter()
            .position(|&byte| !(0x20..0x40).contains(&byte))
            .map(|at| {
                // Anything but a final byte means that the sequence was broken off before it.
                if (0x40..0x7f).contains(&bytes[at + 2]) {
                    at + 3
                } else {
                    at + 2
                }
            }),
        Some(b']' | b'P' | b'^' | b'_' | b'X') => string_end(bytes),
        Some(0x20..0x30) => bytes[2..]
            .iter()
            .position(|&byte| !(0x20..0x30).contains(&byte))
            .map(|at| at + 3),
        Some(0x30..0x7f) => Some(2),
        Some(_) => Some(1),
    };
    match length {
        Some(length) => Piece::Sequence(length),
        None if bytes.len() > SEQUENCE_BYTES => Piece::Escaped(1),
        None => Piece::CutOff,
    }
}

/// Where a string such as a window's title ends: behind BEL or ESC \; a line's end breaks it off.
fn string_end(bytes: &[u8]) -> Option<usize> {
    let at = 2 + bytes[2..]
        .iter()
        .position(|&byte| matches!(byte, 7 | b'\n' | ESCAPE))?;
    match bytes[at] {
        7 => Some(at + 1),
        ESCAPE => bytes
            .get(at + 1)
            .map(|&next| if next == b'\\' { at + 2 } else { at }),
        _ => Some(at),
    }
}

/// How many bytes at the beginning of a tail are the rest of a character whose start is gone.
pub(crate) fn continuation(bytes: &[u8]) -> usize {
    let rest = bytes
        .iter()
        .take(3)
        .take_while(|&&byte| byte & 0xc0 == 0x80)
        .count();
    if rest == bytes.len() { 0 } else { rest }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_shown_of_bytes() {
        for (bytes, shown) in [
            (&b"plain\n\ttext\r"[..], "plain\n\ttext\r"),
            ("größer 東京 🙂".as_bytes(), "größer 東京 🙂"),
            (b"a\xff\xfeb", "a\\xff\\xfeb"),
            (b"nul \0 bell \x07 del \x7f", "nul \\x00 bell \\x07 del \\x7f"),
            (b"\x1b[1;31mred\x1b[0m", "red"),
            (b"\x1b[2K\x1b[1Aup", "up"),
            (b"\x1b]0;title\x07after", "after"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1b(Bascii \x1bc", "ascii "),
            (b"\x1b]broken off\nnext", "\nnext"),
            (b"\x1b[31\nnext", "\nnext"),
            (b"cut \xe2\x82", "cut \\xe2\\x82"),
            (b"cut \xe2\x82\x00", "cut \\xe2\\x82\\x00"),
            (b"cut \x1b[3", "cut "),
        ] {
            assert_eq!(plain(bytes, After::End).0, shown, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_cut_off_waits() {
        for (bytes, taken) in [
            (&b"ab\xe2\x82"[..], 2),
            (b"ab\x1b", 2),
            (b"ab\x1b[31", 2),
            (b"ab\x1b]title", 2),
            (b"ab", 2),
        ] {
            assert_eq!(plain(bytes, After::More), ("ab".to_owned(), taken), "{bytes:?}");
        }
        let endless = [&b"\x1b]"[..], &[b'x'; SEQUENCE_BYTES]].concat();
        assert_eq!(plain(&endless, After::More).1, endless.len());
    }

    #[test]
    fn a_tail_begins_with_a_character() {
        assert_eq!(continuation("é!".as_bytes().split_at(1).1), 1);
        assert_eq!(continuation(b"abc"), 0);
        assert_eq!(continuation(b"\x80\x80\x80\x80"), 3);
    }

    proptest! {
        #[test]
        fn text_is_printable_whatever_comes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (text, taken) = plain(&bytes, After::End);
            prop_assert_eq!(taken, bytes.len());
            prop_assert!(!text.bytes().any(is_control));
        }

        #[test]
        fn valid_text_stays(text in "[^\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f]*") {
            prop_assert_eq!(plain(text.as_bytes(), After::End).0, text);
        }

        #[test]
        fn cuts_do_not_show(bytes in prop::collection::vec(prop_oneof![Just(ESCAPE), Just(b'['), Just(b'm'), any::<u8>()], 0..60), cut in 0usize..60) {
            let cut = cut.min(bytes.len());
            let (mut text, taken) = plain(&bytes[..cut], After::More);
            text.push_str(&plain(&bytes[taken..], After::End).0);
            prop_assert_eq!(text, plain(&bytes, After::End).0);
        }
    }
}
