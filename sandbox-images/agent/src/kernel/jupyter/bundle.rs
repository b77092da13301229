//! What a kernel shows, in the shape that the agent takes: texts within bounds, images as files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{ImageEnding, SavedImage};

/// Characters of a result, and of what is shown as plain text.
pub(super) const TEXT: usize = 64 << 10;
/// Bytes of any other text of a bundle; a longer one is left out, since half of it would be no document.
const DOCUMENT: usize = 128 << 10;
/// Kinds of text that one bundle may have.
const KINDS: usize = 12;
/// Images of one run that are saved.
const IMAGES: u32 = 32;

/// A MIME bundle: its texts, and its image if it has one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) texts: BTreeMap<String, String>,
    image: Option<(ImageEnding, String)>,
}

impl Bundle {
    /// Reads the `data` of a message.
    pub(super) fn read(data: &Value) -> Self {
        let mut bundle = Self::default();
        let Value::Object(fields) = data else {
            return bundle;
        };
        for (kind, value) in fields.iter().take(KINDS) {
            let text = text_of(value);
            match kind.as_str() {
                "image/png" => bundle.image = Some((ImageEnding::Png, text)),
                "image/jpeg" if bundle.image.is_none() => bundle.image = Some((ImageEnding::Jpg, text)),
                "image/jpeg" => {}
                "text/plain" => drop(bundle.texts.insert(kind.clone(), cut(&plain(&text), TEXT))),
                _ if text.len() <= DOCUMENT => drop(bundle.texts.insert(kind.clone(), text)),
                _ => {}
            }
        }
        bundle
    }

    /// The plain text, if there is one.
    pub(super) fn plain(&self) -> Option<&str> {
        self.texts.get("text/plain").map(String::as_str)
    }

    /// Whether it shows more than plain text.
    pub(super) fn is_rich(&self) -> bool {
        self.image.is_some() || self.texts.keys().any(|kind| kind != "text/plain")
    }

    /// Whether it has an image.
    pub(super) const fn has_image(&self) -> bool {
        self.image.is_some()
    }

    /// Saves the image as the run's next one. The agent makes what is sent of it, from the file.
    pub(super) fn save(&mut self, figures: &str, saved: &mut u32) -> Option<SavedImage> {
        let (ending, text) = self.image.take()?;
        if *saved >= IMAGES {
            return None;
        }
        let encoded: String = text.split_ascii_whitespace().collect();
        let bytes = BASE64_STANDARD.decode(encoded).ok()?;
        let image = SavedImage {
            number: *saved + 1,
            ending,
        };
        let path = PathBuf::from(format!("{figures}{}", image.suffix()));
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).ok()?;
        fs::write(path, bytes).ok()?;
        *saved += 1;
        Some(image)
    }
}

/// A value of a bundle as text: old kernels write lines as a list, and JSON comes as it is.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) if lines.iter().all(Value::is_string) => {
            lines.iter().filter_map(Value::as_str).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

/// At most so many characters of a text, from both of its ends.
pub(super) fn cut(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let half = most / 2;
    let head: String = text.chars().take(half).collect();
    let tail: String = text.chars().skip(length - half).collect();
    format!("{head}\n[… {} characters left out …]\n{tail}", length - 2 * half)
}

/// A text without the escape sequences that colour it on a terminal.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        if character != '\u{1b}' {
            plain.push(character);
        } else if rest.next_if_eq(&'[').is_some() {
            // Parameters, then the letter that ends the sequence.
            while rest
                .next_if(|c| !c.is_ascii_alphabetic() && !c.is_control())
                .is_some()
            {}
            rest.next_if(char::is_ascii_alphabetic);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bundles_are_texts_and_an_image() {
        let bundle = Bundle::read(&json!({
            "text/plain": "\u{1b}[33m1\u{1b}[39m",
            "text/html": ["<b>", "x</b>"],
            "application/json": {"a": [1, null]},
            "text/markdown": "x".repeat(DOCUMENT + 1),
        }));
        assert_eq!(bundle.plain(), Some("1"));
        assert_eq!(bundle.texts["text/html"], "<b>x</b>");
        assert_eq!(bundle.texts["application/json"], r#"{"a":[1,null]}"#);
        assert!(!bundle.texts.contains_key("text/markdown"));
        assert!(bundle.is_rich() && !bundle.has_image());
        assert!(!Bundle::read(&json!({"text/plain": "x"})).is_rich());
        assert_eq!(Bundle::read(&json!([1])), Bundle::default());
    }

    #[test]
    fn images_become_files() {
        let folder = tempfile::tempdir().unwrap();
        let figures = folder.path().join("a/b/run-1");
        let figures = figures.to_str().unwrap();
        let mut saved = 0;
        let mut bundle = Bundle::read(&json!({"image/jpeg": "!", "image/png": "aGk\n=\n"}));
        let image = bundle.save(figures, &mut saved).unwrap();
        assert_eq!((image.suffix().as_str(), saved), ("-1.png", 1));
        assert_eq!(fs::read(format!("{figures}-1.png")).unwrap(), b"hi");
        let mut nonsense = Bundle::read(&json!({"image/jpeg": "!"}));
        assert_eq!(nonsense.save(figures, &mut saved), None);
        assert_eq!(saved, 1);
    }

    #[test]
    fn long_texts_keep_both_ends() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("aäöoü", 4), "aä\n[… 1 characters left out …]\noü");
    }

    #[test]
    fn colours_go_and_the_rest_stays() {
        for (text, expected) in [
            ("a\u{1b}[1;31mb\u{1b}[0mc", "abc"),
            ("\u{1b}[K", ""),
            ("\u{1b}[12", ""),
            ("\u{1b}", ""),
            ("[1m é", "[1m é"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
