//! API keys: what one looks like, how it is minted, and what is kept of it.
//!
//! ```text
//! grk_ 3f8k2m0q Xb…32 letters and digits…c9 Tz41Qe
//!      id       secret, 190 bits             check
//! ```
//! One word without punctuation after the prefix, so that a double click takes all of it and a scanner for leaked
//! secrets finds it: `grk_[0-9A-Za-z]{46}`. The check tells a key that was copied wrongly from one that is not known,
//! to the operator at the command line only; over HTTP both are refused alike.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What every key begins with.
const PREFIX: &str = "grk_";
const ID: usize = 8;
const SECRET: usize = 32;
const CHECK: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Ids are typed by people: digits and small letters.
const ID_DIGITS: usize = 36;

/// A key's public part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// Reads an id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = text.len() == ID && text.bytes().all(|byte| DIGITS[..ID_DIGITS].contains(&byte));
        fits.then(|| Self(text.to_owned()))
    }

    /// The id that a credential names, whatever the rest of it is.
    #[must_use]
    pub fn named_by(credential: &str) -> Option<Self> {
        Self::parse(credential.strip_prefix(PREFIX)?.get(..ID)?)
    }

    /// The id as it is typed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole key: a secret, which is shown once.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    id: KeyId,
    text: String,
}

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// It does not look like one.
    #[error("that is no key: one is {PREFIX} and {n} letters and digits", n = ID + SECRET + CHECK)]
    Shape,
    /// It does, and its check says that it is not.
    #[error("that key was copied wrongly: its last characters do not go with the rest")]
    Check,
}

impl ApiKey {
    /// A new key.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn mint() -> Result<Self, getrandom::Error> {
        Self::renewed(&KeyId(digits(ID, ID_DIGITS)?))
    }

    /// A new key with the id of another.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn renewed(id: &KeyId) -> Result<Self, getrandom::Error> {
        let body = format!("{id}{}", digits(SECRET, DIGITS.len())?);
        Ok(Self {
            id: id.clone(),
            text: format!("{PREFIX}{body}{}", check(&body)),
        })
    }

    /// Reads a key that a person typed.
    ///
    /// # Errors
    /// [`BadKey`].
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let rest = text.strip_prefix(PREFIX).ok_or(BadKey::Shape)?;
        if rest.len() != ID + SECRET + CHECK || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(BadKey::Shape);
        }
        let (body, sum) = rest.split_at(ID + SECRET);
        if check(body) != sum {
            return Err(BadKey::Check);
        }
        let id = KeyId::parse(&body[..ID]).ok_or(BadKey::Shape)?;
        Ok(Self {
            id,
            text: text.to_owned(),
        })
    }

    /// Its public part.
    #[must_use]
    pub const fn id(&self) -> &KeyId {
        &self.id
    }

    /// The key itself, for whoever it is made for.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}…)", self.id)
    }
}

/// What is kept of a key. A plain hash will do, since nobody guesses 190 random bits, however fast hashing is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of whatever was presented.
    #[must_use]
    pub fn of(credential: &str) -> Self {
        Self(Sha256::digest(credential.as_bytes()).into())
    }

    /// Compares in a time that says nothing about how much of it is right.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// Hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        crate::conversation::hex(&self.0)
    }

    /// Reads them back.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() || !digits.is_ascii() {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(…)")
    }
}

/// Random digits of a base, each as likely as any other: bytes past the last whole multiple are thrown away.
fn digits(count: usize, base: usize) -> Result<String, getrandom::Error> {
    let usable = 256 - 256 % base;
    let mut text = String::with_capacity(count);
    while text.len() < count {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes)?;
        let fitting = bytes
            .iter()
            .map(|byte| usize::from(*byte))
            .filter(|byte| *byte < usable);
        text.extend(
            fitting
                .take(count - text.len())
                .map(|byte| char::from(DIGITS[byte % base])),
        );
    }
    Ok(text)
}

fn check(body: &str) -> String {
    let hash = Sha256::digest(format!("greenroom api key {body}").as_bytes());
    let digit = |byte: &u8| char::from(DIGITS[usize::from(*byte) % DIGITS.len()]);
    hash.iter().take(CHECK).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_no_two_are_alike() {
        let (one, two) = (ApiKey::mint().unwrap(), ApiKey::mint().unwrap());
        assert_ne!(one, two);
        assert_ne!(one.id(), two.id());
        for key in [one, two] {
            assert_eq!(key.reveal().len(), 50);
            assert_eq!(ApiKey::parse(key.reveal()), Ok(key.clone()));
            assert_eq!(KeyId::named_by(key.reveal()).as_ref(), Some(key.id()));
            assert!(!format!("{key:?}").contains(&key.reveal()[12..]));
            let kept = Fingerprint::of(key.reveal());
            let read = Fingerprint::from_hex(&kept.to_hex()).unwrap();
            assert!(read.matches(&kept) && !read.matches(&Fingerprint::of("another")));
        }
    }

    #[test]
    fn a_typo_is_told_from_what_is_no_key() {
        let key = ApiKey::mint().unwrap();
        let text = key.reveal();
        for at in 4..text.len() {
            let mut typo = text.to_owned();
            typo.replace_range(at..=at, if &text[at..=at] == "x" { "y" } else { "x" });
            assert_eq!(ApiKey::parse(&typo), Err(BadKey::Check), "{typo}");
        }
        for none in [
            "",
            "grk_",
            &text[1..],
            &text[..49],
            &format!("{text}0"),
            &text.replace("grk_", "grk-"),
            &format!("grk_{}", "ä".repeat(23)),
        ] {
            assert_eq!(ApiKey::parse(none), Err(BadKey::Shape), "{none}");
        }
        for none in ["", "grk_", "grk_ABCDEFGH", "grk_3f8k2m0", "grk_äääää", "Bearer x"] {
            assert_eq!(KeyId::named_by(none), None, "{none}");
        }
        assert!(Fingerprint::from_hex(&"g".repeat(64)).is_none());
        assert!(Fingerprint::from_hex(&"ä".repeat(32)).is_none());
    }

    #[test]
    fn digits_are_spread_evenly() {
        let text = digits(62_000, 62).unwrap();
        for digit in DIGITS {
            let met = text.bytes().filter(|byte| byte == digit).count();
            // Six standard deviations.
            assert!((810..1190).contains(&met), "{}: {met}", char::from(*digit));
        }
    }
}
