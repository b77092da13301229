//! Who is talking: conversations, principals, and the session names that they make.

use std::fmt;

use greenroom_protocol::{KeyDigest, LeaseState};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Longest conversation id, in bytes.
pub const CONVERSATION_BYTES: usize = 256;

/// The client's key for a conversation: 1 to [`CONVERSATION_BYTES`] printable ASCII characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationId(String);

impl ConversationId {
    /// Checks the characters and the length; whether an id is a *good* one is the resolver's question.
    ///
    /// # Errors
    /// [`BadConversationId`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, BadConversationId> {
        if text.is_empty() {
            return Err(BadConversationId::Empty);
        }
        if text.len() > CONVERSATION_BYTES {
            return Err(BadConversationId::TooLong(text.len()));
        }
        match text.chars().find(|c| !(' '..='~').contains(c)) {
            Some(bad) => Err(BadConversationId::Character(bad)),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The id as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An id may be a bearer secret, so logs see its first characters only.
impl fmt::Debug for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.0.get(..6.min(self.0.len())).unwrap_or_default())
    }
}

/// What is wrong with a conversation id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConversationId {
    /// No characters.
    #[error("a conversation_id must not be empty")]
    Empty,
    /// Too many bytes.
    #[error("a conversation_id has at most {CONVERSATION_BYTES} characters, this one has {0}")]
    TooLong(usize),
    /// Something else than printable ASCII.
    #[error("a conversation_id is printable ASCII, this one has {0:?}")]
    Character(char),
}

/// Who is calling. Two principals never share a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// Whoever reaches this machine's loopback or stdio.
    Local,
    /// The holder of an API key, by the key's id.
    Key(String),
    /// Whom a token names: a subject is one among those of its issuer only.
    Subject {
        /// By its address, as its tokens name it.
        issuer: String,
        /// As the token does.
        subject: String,
    },
    /// A user whom an authenticated host asserted.
    User(Box<Self>, String),
}

/// For the log: whoever it is, and no secret.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Key(id) => write!(f, "key {id}"),
            // Made outside, so escaped.
            Self::Subject { issuer, subject } => write!(f, "{issuer} {subject:?}"),
            Self::User(host, user) => write!(f, "{host} for {user:?}"),
        }
    }
}

impl Principal {
    /// Appends an encoding that no other principal shares: each part is tagged and length-prefixed.
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Local => out.push(0),
            Self::Key(id) => {
                out.push(1);
                encode_part(id, out);
            }
            Self::Subject { issuer, subject } => {
                out.push(3);
                encode_part(issuer, out);
                encode_part(subject, out);
            }
            Self::User(host, user) => {
                out.push(2);
                host.encode(out);
                encode_part(user, out);
            }
        }
    }
}

fn encode_part(part: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(part.len() as u64).to_be_bytes());
    out.extend_from_slice(part.as_bytes());
}

/// The name of a pool: 1 to 32 of `a-z 0-9 -`, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName(String);

impl PoolName {
    /// Checks a name.
    ///
    /// # Errors
    /// The sentence that the configuration report prints.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fits = (1..=32).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "a pool's name is 1 to 32 of a-z, 0-9 and -, not starting with -; {text:?} is not"
            ))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a session is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The kind of sandbox.
    pub pool: PoolName,
    /// Who is calling.
    pub principal: Principal,
    /// Which of its conversations.
    pub conversation: ConversationId,
}

/// The deployment's secret: from it come session names and the MAC of minted ids. Servers that share it
/// share their sessions.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Wraps the bytes of the secret file.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// HMAC-SHA256 of `domain` and `message`; domains keep one use from forging another's values.
    #[must_use]
    pub fn mac(&self, domain: &str, message: &[u8]) -> [u8; 32] {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length is a key");
        mac.update(&(domain.len() as u64).to_be_bytes());
        mac.update(domain.as_bytes());
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    /// The name that the engine knows a session by.
    #[must_use]
    pub fn session_name(&self, key: &SessionKey) -> SessionName {
        let mut message = Vec::new();
        encode_part(key.pool.as_str(), &mut message);
        key.principal.encode(&mut message);
        encode_part(key.conversation.as_str(), &mut message);
        SessionName(hex(&self.mac("session", &message)))
    }

    /// Tells the archives of one principal from another's, and nothing else: one-way, and short. Whom a host asserts is
    /// the host: it may name as many as it likes.
    #[must_use]
    pub fn owner(&self, principal: &Principal) -> Owner {
        let mut authenticated = principal;
        while let Principal::User(host, _) = authenticated {
            authenticated = host;
        }
        let mut message = Vec::new();
        authenticated.encode(&mut message);
        let mac = self.mac("owner", &message);
        Owner(std::array::from_fn(|n| mac[n]))
    }

    /// Public, one-way: labels everything that belongs to this deployment.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&self.mac("fingerprint", b"")[..8])
    }
}

/// A principal, as far as its archives tell: see [`Secret::owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub(crate) [u8; Self::BYTES]);

impl Owner {
    /// Two of a thousand principals look like one with a chance of one in 10¹³.
    pub(crate) const BYTES: usize = 8;
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A session's HMAC: 64 hexadecimal digits that tell nothing about the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionName(String);

impl SessionName {
    /// The digits, as the agent's lease takes them.
    #[must_use]
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(self.0.clone())
    }

    /// The HMAC itself.
    pub(crate) fn to_bytes(&self) -> [u8; 32] {
        let digit = |at: usize| u8::from_str_radix(&self.0[at..at + 2], 16).unwrap_or_default();
        std::array::from_fn(|n| digit(2 * n))
    }

    /// Whose a sandbox is, as its lease shows it: that is not to be believed before the engine says the same.
    pub(crate) fn of(lease: &LeaseState) -> Option<Self> {
        match lease {
            LeaseState::Bound(view) => Self::from_digest(&view.key),
            LeaseState::Unbound | LeaseState::Ending(_) => None,
        }
    }

    /// Reads back what [`Display`](fmt::Display) writes.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("gr-")?;
        Self::from_digest(&KeyDigest(digits.to_owned()))
    }

    /// Reads the digits back.
    pub(crate) fn from_digest(digest: &KeyDigest) -> Option<Self> {
        let digits = &digest.0;
        let is_name = digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_name.then(|| Self(digits.clone()))
    }

    /// Reads one back that this deployment has signed.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(hex(&bytes))
    }

    /// Enough of the digits to tell sessions apart in a log.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// `gr-` and the digits: the sandbox's name in the engine.
impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gr-{}", self.0)
    }
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(principal: Principal, conversation: &str) -> SessionKey {
        SessionKey {
            pool: PoolName::parse("python").unwrap(),
            principal,
            conversation: ConversationId::parse(conversation).unwrap(),
        }
    }

    fn subject(issuer: &str, subject: &str) -> Principal {
        Principal::Subject {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
        }
    }

    #[test]
    fn names_differ_wherever_keys_do() {
        let secret = Secret::new([7; 32]);
        let keys = [
            key(Principal::Local, "abcdefgh"),
            key(Principal::Local, "abcdefgi"),
            key(Principal::Key("a".into()), "abcdefgh"),
            key(Principal::Key("ab".into()), "cdefgh"),
            key(subject("a", "bc"), "abcdefgh"),
            key(subject("ab", "c"), "abcdefgh"),
            key(
                Principal::User(Box::new(Principal::Local), "a".into()),
                "abcdefgh",
            ),
            key(
                Principal::User(Box::new(Principal::Key("a".into())), "a".into()),
                "abcdefgh",
            ),
        ];
        let names: std::collections::HashSet<_> = keys.iter().map(|k| secret.session_name(k)).collect();
        assert_eq!(names.len(), keys.len());
        assert_ne!(
            secret.session_name(&keys[0]),
            Secret::new([8; 32]).session_name(&keys[0])
        );
    }

    #[test]
    fn a_host_owns_what_its_users_do() {
        let secret = Secret::new([7; 32]);
        let host = Principal::Key("a".into());
        let user = |name: &str| Principal::User(Box::new(host.clone()), name.into());
        let owners = [&host, &user("x"), &user("y")].map(|principal| secret.owner(principal));
        assert_eq!(owners, [owners[0]; 3]);
        assert_ne!(owners[0], secret.owner(&Principal::Local));
        assert_ne!(owners[0], Secret::new([8; 32]).owner(&host));
    }

    #[test]
    fn a_name_is_its_bytes() {
        let name = Secret::new([7; 32]).session_name(&key(Principal::Local, "abcdefgh"));
        assert_eq!(SessionName::from_bytes(name.to_bytes()), name);
        assert_eq!(SessionName::from_digest(&name.digest()), Some(name));
        for none in [
            String::new(),
            "0".repeat(63),
            "g".repeat(64),
            "A".repeat(64),
            "ä".repeat(32),
        ] {
            assert_eq!(SessionName::from_digest(&KeyDigest(none)), None);
        }
    }

    #[test]
    fn bad_conversation_ids_say_what_is_wrong() {
        for (text, error) in [
            (String::new(), BadConversationId::Empty),
            ("x".repeat(257), BadConversationId::TooLong(257)),
            ("a\nb".into(), BadConversationId::Character('\n')),
            ("ä".into(), BadConversationId::Character('ä')),
        ] {
            assert_eq!(ConversationId::parse(&text), Err(error));
        }
    }

    #[test]
    fn an_id_never_reaches_a_log_whole() {
        let id = ConversationId::parse("gr-secret-secret").unwrap();
        assert_eq!(format!("{id:?}"), "gr-sec…");
    }
}
