//! Multipart forms as clients really send them: which boundary, and which file a part is.

use super::{
    address::FilePath,
    fault::{Code, Fault},
};

/// Longest boundary: RFC 2046 has 70, some clients are generous.
const BOUNDARY: usize = 200;

/// The form's boundary: what the header says, else what the body begins with, since some clients call a form
/// `application/json`.
pub(crate) fn boundary(content_type: Option<&str>, start: &[u8]) -> Option<String> {
    let said = content_type.and_then(|header| {
        let is_form = header.trim_start().get(..10)?.eq_ignore_ascii_case("multipart/");
        parameters(header)
            .find(|(name, _)| is_form && name == "boundary")
            .map(|(_, value)| value)
    });
    let first = || {
        let line = start.split(|byte| *byte == b'\n').next()?;
        let line = std::str::from_utf8(line).ok()?;
        Some(line.strip_prefix("--")?.trim_end().to_owned())
    };
    said.or_else(first)
        .filter(|text| (1..=BOUNDARY).contains(&text.len()))
}

/// The file that a part is, by its `Content-Disposition`; `None` where it is none.
///
/// # Errors
/// [`Code::PathInvalid`]; a part named `file` without a file's name.
pub(crate) fn file(disposition: &str) -> Result<Option<FilePath>, Fault> {
    let mut plain = None;
    let mut extended = None;
    let mut is_file = false;
    for (name, value) in parameters(disposition) {
        match name.as_str() {
            "filename" => plain = Some(value),
            "filename*" => extended = decode(&value),
            "name" => is_file = value == "file",
            _ => {}
        }
    }
    let Some(name) = extended.or(plain).filter(|name| !name.is_empty()) else {
        return if is_file {
            Err(Fault::bad("the part named file has no filename").of("file"))
        } else {
            Ok(None)
        };
    };
    let path = FilePath::parse(&name)?;
    if path.as_str().is_empty() {
        return Err(Fault::new(Code::PathInvalid, "a file has a name").of(name));
    }
    Ok(Some(path))
}

/// The parameters after the first word: names in lower case, values without their quotes.
fn parameters(header: &str) -> impl Iterator<Item = (String, String)> {
    let mut rest = header.find(';').map_or("", |at| &header[at + 1..]);
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches([' ', '\t', ';']);
            if rest.is_empty() {
                return None;
            }
            let Some(at) = rest.find(['=', ';']) else {
                rest = "";
                continue;
            };
            if rest.as_bytes()[at] == b';' {
                rest = &rest[at..];
                continue;
            }
            let name = rest[..at].trim().to_ascii_lowercase();
            let (value, after) = value(rest[at + 1..].trim_start());
            rest = after;
            return Some((name, value));
        }
    })
}

/// A token, or a quoted string in which a backslash before a quote or a backslash hides it. Any other backslash is
/// one: browsers send them in names.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim_end().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => match chars.next_if(|(_, next)| matches!(next, '"' | '\\')) {
                Some((_, hidden)) => value.push(hidden),
                None => value.push('\\'),
            },
            other => value.push(other),
        }
    }
    (value, "")
}

/// `utf-8''a%20b`, RFC 8187.
fn decode(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, text) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn boundaries_are_what_is_said_or_what_the_body_begins_with() {
        for (header, start, found) in [
            (Some("multipart/form-data; boundary=X"), "", Some("X")),
            (
                Some("Multipart/Form-Data; charset=utf-8; Boundary=\"a b\""),
                "--Y\r\n",
                Some("a b"),
            ),
            (
                Some("application/json"),
                "--X-1\r\nContent-Disposition",
                Some("X-1"),
            ),
            (None, "--X", Some("X")),
            (Some("application/json; boundary=no"), "{\"a\":1}", None),
            (Some("multipart/form-data"), "abc", None),
            (None, "--\r\n", None),
        ] {
            assert_eq!(
                boundary(header, start.as_bytes()).as_deref(),
                found,
                "{header:?} {start}"
            );
        }
    }

    #[test]
    fn a_part_is_a_file_by_its_name_however_written() {
        for (disposition, path) in [
            (r#"form-data; name="file"; filename="a b.txt""#, Some("a b.txt")),
            ("form-data; filename=c.txt; name=file", Some("c.txt")),
            (
                r#"form-data; name=file; filename=plain.txt; filename*=utf-8''%C3%A4%20b.txt"#,
                Some("ä b.txt"),
            ),
            (
                r#"form-data; name="file"; filename="/mnt/data/sample.csv""#,
                Some("sample.csv"),
            ),
            (
                r#"form-data; name="other"; filename="sub/x;y=\".txt""#,
                Some("sub/x;y=\".txt"),
            ),
            (r#"FORM-DATA; Name="file"; FileName="a\b.txt""#, Some("a\\b.txt")),
            (r#"form-data; name="comment""#, None),
            ("form-data", None),
        ] {
            let path = path.map(|path| FilePath::parse(path).unwrap());
            assert_eq!(file(disposition), Ok(path), "{disposition}");
        }
        for (disposition, code) in [
            (r#"form-data; name="file"; filename="../a""#, Code::PathInvalid),
            (
                r#"form-data; name="file"; filename="/etc/passwd""#,
                Code::PathInvalid,
            ),
            (r#"form-data; name="file"; filename="/""#, Code::PathInvalid),
            (r#"form-data; name="file"; filename="a/./b""#, Code::PathInvalid),
            (r#"form-data; name="file""#, Code::ValidationFailed),
        ] {
            assert_eq!(file(disposition).unwrap_err().code, code, "{disposition}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(text in "[ -~ä]{0,60}") {
            let _file = file(&format!("form-data; {text}"));
            let _boundary = boundary(Some(&text), text.as_bytes());
        }
    }
}
