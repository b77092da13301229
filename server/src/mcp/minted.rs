//! Conversation ids that we mint: short enough for a model to copy, and told from garbled copies.
//!
//! `gr-` and 21 characters of lower-case base32 carry 105 bits: 20 of the hour of issue, 64 random, 21 of a MAC
//! over both. The MAC is there to catch slips, the random bits make the id a secret: a forger still has to hit
//! a session, and the name of one is derived from all of the id.

use std::time::{Duration, SystemTime};

use crate::conversation::{ConversationId, Secret};

/// What every minted id begins with; nothing else may.
pub(super) const PREFIX: &str = "gr-";

/// Characters after the prefix.
const LENGTH: usize = 21;

/// Crockford's base32 in lower case: no i, l, o or u to misread.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

const RANDOM_BITS: u32 = 64;
const MAC_BITS: u32 = 21;
const HOUR_BITS: u32 = 20;

/// 2025-01-01: 2^20 hours from here end in 2144.
const EPOCH: Duration = Duration::from_secs(1_735_689_600);

/// What a text is, that might be one of our ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// One that we minted, in its canonical form.
    Genuine(ConversationId),
    /// It looks like one and is none: a slip of whoever copied it, or an invention.
    Garbled,
    /// Something else.
    Foreign,
}

/// Mints and reads ids with a deployment's secret.
#[derive(Clone, Debug)]
pub(super) struct Mint {
    secret: Secret,
}

impl Mint {
    pub(super) const fn new(secret: Secret) -> Self {
        Self { secret }
    }

    /// A new id.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub(super) fn mint(&self, now: SystemTime) -> Result<ConversationId, getrandom::Error> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let hours = u128::from(since.saturating_sub(EPOCH).as_secs() / 3600) & ((1 << HOUR_BITS) - 1);
        let payload = (hours << RANDOM_BITS) | u128::from(u64::from_be_bytes(random));
        Ok(encode(payload << MAC_BITS | self.mac(payload)))
    }

    /// Reads what a caller sent. Capitals, blanks around it and a lost prefix are forgiven; nothing else is.
    pub(super) fn read(&self, text: &str) -> Reading {
        let text = text.trim().to_ascii_lowercase();
        let claimed = text.strip_prefix(PREFIX);
        let digits = claimed.unwrap_or(&text);
        let genuine = decode(digits).filter(|bits| {
            let payload = bits >> MAC_BITS;
            self.mac(payload) == bits & ((1 << MAC_BITS) - 1)
        });
        match (genuine, claimed) {
            (Some(bits), _) => Reading::Genuine(encode(bits)),
            (None, Some(_)) => Reading::Garbled,
            (None, None) => Reading::Foreign,
        }
    }

    fn mac(&self, payload: u128) -> u128 {
        let mac = self.secret.mac("minted conversation", &payload.to_be_bytes());
        u128::from(u32::from_be_bytes([0, mac[0], mac[1], mac[2]])) & ((1 << MAC_BITS) - 1)
    }
}

fn encode(bits: u128) -> ConversationId {
    let digits = (0..LENGTH)
        .rev()
        .map(|place| char::from(ALPHABET[(bits >> (5 * place)) as usize & 31]));
    let text: String = PREFIX.chars().chain(digits).collect();
    #[expect(
        clippy::expect_used,
        reason = "the alphabet is printable and the length fixed"
    )]
    ConversationId::parse(&text).expect("a good id")
}

fn decode(digits: &str) -> Option<u128> {
    if digits.len() != LENGTH {
        return None;
    }
    digits.bytes().try_fold(0, |bits: u128, digit| {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        Some(bits << 5 | value as u128)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mint() -> Mint {
        Mint::new(Secret::new([3; 32]))
    }

    #[test]
    fn a_minted_id_is_short_and_read_back() {
        let id = mint().mint(SystemTime::now()).unwrap();
        assert_eq!(id.as_str().len(), 24);
        assert_eq!(mint().read(id.as_str()), Reading::Genuine(id.clone()));
        for forgiven in [
            format!(" {} \n", id.as_str()),
            id.as_str().to_uppercase(),
            id.as_str()[3..].to_owned(),
        ] {
            assert_eq!(
                mint().read(&forgiven),
                Reading::Genuine(id.clone()),
                "{forgiven:?}"
            );
        }
        assert_ne!(mint().mint(SystemTime::now()).unwrap(), id);
    }

    #[test]
    fn another_deployment_knows_nothing_of_it() {
        let id = mint().mint(SystemTime::now()).unwrap();
        assert_eq!(
            Mint::new(Secret::new([4; 32])).read(id.as_str()),
            Reading::Garbled
        );
    }

    #[test]
    fn what_only_looks_like_one_is_garbled_and_the_rest_is_foreign() {
        for text in ["gr-", "gr-123", "gr-my-conversation", "gr-000000000000000000000"] {
            assert_eq!(mint().read(text), Reading::Garbled, "{text}");
        }
        for text in [
            "",
            "my-conversation",
            "000000000000000000000",
            "550e8400-e29b-41d4-a716-446655440000",
        ] {
            assert_eq!(mint().read(text), Reading::Foreign, "{text}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_noticed(place in 0..LENGTH, shift in 1_usize..32) {
            let id = mint().mint(SystemTime::UNIX_EPOCH).unwrap();
            let mut bytes = id.as_str().as_bytes().to_vec();
            let at = place + PREFIX.len();
            let value = ALPHABET.iter().position(|c| *c == bytes[at]).unwrap();
            bytes[at] = ALPHABET[(value + shift) % 32];
            let slip = String::from_utf8(bytes).unwrap();
            // Two in 2^21 slips pass: too rare to meet here, and such an id names nobody's session.
            prop_assert_eq!(mint().read(&slip), Reading::Garbled);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text: String) {
            let _reading = mint().read(&text);
        }
    }
}
