//! Which conversation a call belongs to: what the host says, else the argument, else a minted id.
//!
//! A host that names its conversations is believed before the model, which makes up ids like "default". Beside
//! such a host the argument names a *further* sandbox inside the host's conversation, so that no id that a
//! model invents ever joins two chats.

use std::{fmt, time::SystemTime};

use http::HeaderMap;
use serde_json::{Map, Value};

use super::minted::{Mint, Reading};
use crate::{
    auth::{Identity, Word},
    config::{ConversationConfig, MetaPath},
    conversation::{BadConversationId, CONVERSATION_BYTES, ConversationId, Principal, Secret, hex},
    sessions::Provenance,
};

/// Shortest id that a client may choose for itself.
const OWN_LEAST: usize = 8;

/// What models write where they know no id. An id of nothing but these words is refused.
const PLACEHOLDERS: [&str; 52] = [
    "a",
    "abc",
    "abcdefgh",
    "agent",
    "assistant",
    "chat",
    "chatgpt",
    "chatid",
    "claude",
    "conversation",
    "conversationid",
    "convo",
    "current",
    "default",
    "demo",
    "dummy",
    "example",
    "execute",
    "execution",
    "foo",
    "bar",
    "foobar",
    "id",
    "init",
    "initial",
    "main",
    "my",
    "new",
    "none",
    "null",
    "placeholder",
    "python",
    "run",
    "sample",
    "sandbox",
    "session",
    "sessionid",
    "some",
    "string",
    "temp",
    "temporary",
    "test",
    "testing",
    "the",
    "this",
    "thread",
    "undefined",
    "unique",
    "unknown",
    "user",
    "your",
    "uuid",
];

/// What a call says of its conversation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Who is calling, and what their word is worth.
    pub identity: &'a Identity,
    /// The request's `_meta`.
    pub meta: &'a Map<String, Value>,
    /// Its HTTP headers; none on stdio.
    pub headers: Option<&'a HeaderMap>,
    /// `greenroom stdio --conversation ID`.
    pub fixed: Option<&'a ConversationId>,
    /// The argument `conversation_id`, if it is not empty.
    pub argument: Option<&'a str>,
    /// Where the call came in, if that lasts longer than the call.
    pub carrier: Option<&'a ConversationId>,
}

/// Which conversation it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Who is calling, with the host's user folded in.
    pub principal: Principal,
    /// The session key's part.
    pub key: ConversationId,
    /// The conversation as answers name it.
    pub shown: ConversationId,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a conversation's id came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The host said it: it needs no telling.
    Host,
    /// The client chose it, as the argument.
    Own,
    /// We minted it earlier, and the call passed it on.
    Minted,
    /// We minted it for the process or the transport session by which the call came.
    Carried,
    /// It is minted for this very call.
    JustMinted,
}

impl Origin {
    /// Whether the answer has to tell the id, or the conversation would be lost.
    pub(super) const fn must_tell(self) -> bool {
        matches!(self, Self::Minted | Self::Carried | Self::JustMinted)
    }
}

/// Why a call's conversation is refused. The texts are for the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConversation {
    /// Our prefix, and not ours.
    #[error(
        "conversation_id {0:?} is not one that Greenroom gave out: it must have been copied wrongly. Pass it exactly as an \
         earlier answer told it, or leave it out to start a new conversation"
    )]
    Garbled(Shown),
    /// Too short.
    #[error(
        "conversation_id {0:?} is too short: one of your own has at least {OWN_LEAST} characters and must be unique. Leave it \
         out, and the answer tells one"
    )]
    Short(Shown),
    /// Made up.
    #[error(
        "conversation_id {0:?} is a placeholder that others would use too. Leave conversation_id out, and the answer tells \
         one to pass on"
    )]
    Placeholder(Shown),
    /// Not an id at all.
    #[error("{0}")]
    Bad(#[from] BadConversationId),
    /// What the host sent is no id.
    #[error("the host's {place} is no conversation id: {bad}")]
    Host {
        /// The header or the place in `_meta`.
        place: String,
        /// What is wrong with it.
        bad: BadConversationId,
    },
    /// No random bytes.
    #[error("no conversation id could be made: the operating system gave no random bytes")]
    Random,
}

/// A caller's own text, quoted, escaped and short enough for an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    fn new(text: &str) -> Self {
        Self(text.chars().take(40).collect())
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The rules, with the places where hosts say what they know.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    config: ConversationConfig,
    secret: Secret,
    mint: Mint,
}

impl Resolver {
    pub(super) fn new(config: ConversationConfig, secret: Secret) -> Self {
        Self {
            config,
            mint: Mint::new(secret.clone()),
            secret,
        }
    }

    /// An id for a process or a transport session.
    ///
    /// # Errors
    /// [`BadConversation::Random`].
    pub(super) fn mint(&self) -> Result<ConversationId, BadConversation> {
        self.mint
            .mint(SystemTime::now())
            .map_err(|_| BadConversation::Random)
    }

    /// Reads an id that came back to us from outside the arguments: an `Mcp-Session-Id` that we handed out.
    pub(super) fn genuine(&self, text: &str) -> Option<ConversationId> {
        match self.mint.read(text) {
            Reading::Genuine(id) => Some(id),
            Reading::Garbled | Reading::Foreign => None,
        }
    }

    /// Decides.
    ///
    /// # Errors
    /// [`BadConversation`], whose text goes to the caller.
    pub(super) fn resolve(&self, asked: &Asked<'_>) -> Result<Resolved, BadConversation> {
        let principal = match self.user(asked)? {
            Some(user) => Principal::User(
                Box::new(asked.identity.principal.clone()),
                user.as_str().to_owned(),
            ),
            None => asked.identity.principal.clone(),
        };
        let (key, shown, origin) = match (self.host(asked)?, asked.argument) {
            (Some(host), None) => (host.clone(), host, Origin::Host),
            (Some(host), Some(argument)) if argument == host.as_str() => (host.clone(), host, Origin::Host),
            (Some(host), Some(argument)) => {
                let argument = ConversationId::parse(argument)?;
                (self.further(&host, &argument), argument, Origin::Host)
            }
            (None, Some(argument)) => {
                let (id, origin) = self.argument(argument)?;
                (id.clone(), id, origin)
            }
            (None, None) => {
                let (id, origin) = match asked.carrier {
                    Some(carrier) => (carrier.clone(), Origin::Carried),
                    None => (self.mint()?, Origin::JustMinted),
                };
                (id.clone(), id, origin)
            }
        };
        Ok(Resolved {
            principal,
            key,
            shown,
            origin,
        })
    }

    /// The conversation that the host names, if it names one.
    fn host(&self, asked: &Asked<'_>) -> Result<Option<ConversationId>, BadConversation> {
        let named = said(asked, &self.config.meta, &self.config.headers)?;
        Ok(named.or_else(|| asked.fixed.cloned()))
    }

    /// The user that the host names, if it names one.
    fn user(&self, asked: &Asked<'_>) -> Result<Option<ConversationId>, BadConversation> {
        said(asked, &self.config.user_meta, &self.config.user_headers)
    }

    fn argument(&self, argument: &str) -> Result<(ConversationId, Origin), BadConversation> {
        match self.mint.read(argument) {
            Reading::Genuine(id) => Ok((id, Origin::Minted)),
            Reading::Garbled => Err(BadConversation::Garbled(Shown::new(argument))),
            Reading::Foreign => {
                let id = ConversationId::parse(argument)?;
                if argument.len() < OWN_LEAST {
                    return Err(BadConversation::Short(Shown::new(argument)));
                }
                if is_placeholder(argument) {
                    return Err(BadConversation::Placeholder(Shown::new(argument)));
                }
                Ok((id, Origin::Own))
            }
        }
    }

    /// The key of a sandbox beside the host's own one. Nobody can name it but through that host's conversation.
    fn further(&self, host: &ConversationId, argument: &ConversationId) -> ConversationId {
        let mut message = (host.as_str().len() as u64).to_be_bytes().to_vec();
        message.extend_from_slice(host.as_str().as_bytes());
        message.extend_from_slice(argument.as_str().as_bytes());
        let name = format!(
            "further:{}",
            hex(&self.secret.mac("further conversation", &message))
        );
        #[expect(clippy::expect_used, reason = "hexadecimal digits are printable and few")]
        ConversationId::parse(&name).expect("a good id")
    }
}

/// Reads an id that came from outside any call.
pub(super) fn typed(
    secret: &Secret,
    id: &ConversationId,
) -> Result<(ConversationId, Provenance), BadConversation> {
    match Mint::new(secret.clone()).read(id.as_str()) {
        Reading::Genuine(id) => Ok((id, Provenance::Minted)),
        Reading::Garbled => Err(BadConversation::Garbled(Shown::new(id.as_str()))),
        Reading::Foreign => Ok((id.clone(), Provenance::Own)),
    }
}

/// The first of the configured places that holds something.
fn said(
    asked: &Asked<'_>,
    paths: &[MetaPath],
    names: &[String],
) -> Result<Option<ConversationId>, BadConversation> {
    if asked.identity.word == Word::Ignored {
        return Ok(None);
    }
    for path in paths {
        if let Some(text) = at(asked.meta, path) {
            let parsed = ConversationId::parse(&text);
            return parsed.map(Some).map_err(|bad| BadConversation::Host {
                place: format!("_meta {}", path.0.join(" > ")),
                bad,
            });
        }
    }
    for name in names {
        let value = asked.headers.and_then(|headers| headers.get(name.as_str()));
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            continue;
        };
        // What is not ASCII is an error of the id, like any other character that does not print.
        let text = String::from_utf8_lossy(value.as_bytes());
        let parsed = ConversationId::parse(text.trim());
        return parsed.map(Some).map_err(|bad| BadConversation::Host {
            place: format!("header {name}"),
            bad,
        });
    }
    Ok(None)
}

/// The text at a path; numbers count as text, since hosts send them too.
fn at(meta: &Map<String, Value>, path: &MetaPath) -> Option<String> {
    let (last, outer) = path.0.split_last()?;
    let mut within = meta;
    for key in outer {
        within = within.get(key)?.as_object()?;
    }
    match within.get(last)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether an id is one that anybody would make up: nothing but such words, or digits in a row.
fn is_placeholder(id: &str) -> bool {
    debug_assert!(id.len() <= CONVERSATION_BYTES, "parsed before");
    let lower = id.to_ascii_lowercase();
    let mut words = lower
        .split(|c: char| !c.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
        .peekable();
    if words.peek().is_none() {
        let digits: String = lower.chars().filter(char::is_ascii_digit).collect();
        let same = digits.bytes().all(|digit| digits.bytes().next() == Some(digit));
        return same || "01234567890123456789".contains(&digits);
    }
    let known = |word: &str| PLACEHOLDERS.contains(&word);
    // "testtest" and "my_default_chat" are as bad as "test".
    words.all(|word| known(word) || (1..word.len()).any(|at| known(&word[..at]) && known(&word[at..])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Inputs, Loaded};

    fn resolver() -> Resolver {
        let config = Loaded::read(&Inputs::default()).unwrap().config.conversation;
        Resolver::new(config, Secret::new([1; 32]))
    }

    fn id(text: &str) -> ConversationId {
        ConversationId::parse(text).unwrap()
    }

    /// One call: `_meta`, headers, `--conversation`, argument.
    fn resolve(
        meta: Value,
        headers: &[(&'static str, &str)],
        fixed: Option<&str>,
        argument: Option<&str>,
    ) -> Result<Resolved, BadConversation> {
        resolve_for(&Identity::LOCAL, meta, headers, fixed, argument)
    }

    fn resolve_for(
        identity: &Identity,
        meta: Value,
        headers: &[(&'static str, &str)],
        fixed: Option<&str>,
        argument: Option<&str>,
    ) -> Result<Resolved, BadConversation> {
        let Value::Object(meta) = meta else {
            panic!("an object")
        };
        let headers: HeaderMap = headers
            .iter()
            .map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()))
            .collect();
        let fixed = fixed.map(id);
        resolver().resolve(&Asked {
            identity,
            meta: &meta,
            headers: Some(&headers),
            fixed: fixed.as_ref(),
            argument,
            carrier: None,
        })
    }

    #[test]
    fn hosts_are_believed_in_this_order() {
        let openai = json!({"openai/session": "from-openai"});
        let codex = json!({"x-codex-turn-metadata": {"session_id": "from-codex", "thread_id": "t"}});
        let vscode = json!({"vscode.conversationId": "from-vscode"});
        let librechat: &[(&str, &str)] = &[("x-conversation-id", "from-librechat")];
        let webui: &[(&str, &str)] = &[("x-openwebui-chat-id", "from-webui")];
        for (meta, headers, fixed, key) in [
            (&openai, librechat, Some("from-flag"), "from-openai"),
            (&codex, webui, None, "from-codex"),
            (&vscode, &[] as &[_], None, "from-vscode"),
            (&json!({}), librechat, Some("from-flag"), "from-librechat"),
            (&json!({"openai/session": ""}), webui, None, "from-webui"),
            (
                &json!({"openai/session": {"a": 1}}),
                &[],
                Some("from-flag"),
                "from-flag",
            ),
            (&json!({"openai/session": 17}), &[], None, "17"),
        ] {
            let resolved = resolve(meta.clone(), headers, fixed, None).unwrap();
            assert_eq!(
                (resolved.key, resolved.origin),
                (id(key), Origin::Host),
                "{meta} {headers:?}"
            );
        }
    }

    #[test]
    fn beside_a_host_the_argument_names_a_further_sandbox_of_that_chat_only() {
        let host =
            |host: &str, argument| resolve(json!({"openai/session": host}), &[], None, argument).unwrap();
        let main = host("chat-one", None);
        assert_eq!(host("chat-one", Some("chat-one")), main);
        let further = host("chat-one", Some("default"));
        assert_eq!(further.shown, id("default"));
        assert_ne!(further.key, main.key);
        assert_eq!(further, host("chat-one", Some("default")));
        assert_ne!(further.key, host("chat-two", Some("default")).key);
        assert_ne!(host("ab", Some("cdefghij")).key, host("abc", Some("defghij")).key);
        let own = resolve(json!({}), &[], None, Some(further.key.as_str())).unwrap();
        assert_eq!(own.key, further.key, "a MAC that nobody outside knows");
    }

    #[test]
    fn a_hosts_user_is_part_of_the_principal() {
        let meta = json!({"openai/session": "chat", "openai/subject": "ann"});
        let ann = resolve(meta, &[], None, None).unwrap();
        assert_eq!(
            ann.principal,
            Principal::User(Box::new(Principal::Local), "ann".into())
        );
        let header = resolve(
            json!({}),
            &[("x-openwebui-user-id", "bob")],
            None,
            Some("some-long-id-of-bob"),
        )
        .unwrap();
        assert_eq!(
            header.principal,
            Principal::User(Box::new(Principal::Local), "bob".into())
        );
        assert_eq!(
            resolve(json!({}), &[], None, None).unwrap().principal,
            Principal::Local
        );
    }

    #[test]
    fn a_silent_host_leaves_it_to_the_argument() {
        for own in [
            "7c9e6679-7425-40de-944b-e07fc1f90ae7",
            "analysis-of-sales",
            "readme-example",
            "1732548800123",
        ] {
            let resolved = resolve(json!({}), &[], None, Some(own)).unwrap();
            assert_eq!((resolved.key, resolved.origin), (id(own), Origin::Own), "{own}");
        }
        let minted = resolver().mint().unwrap();
        let back = resolve(json!({}), &[], None, Some(&minted.as_str().to_uppercase())).unwrap();
        assert_eq!((back.shown, back.origin), (minted, Origin::Minted));
    }

    #[test]
    fn what_a_model_makes_up_is_refused() {
        for made_up in [
            "default-1",
            "conversation",
            "conversation_1",
            "Session-42",
            "my_conversation",
            "test-chat-1",
            "testtest",
            "new-session",
            "12345678",
            "0000-0000",
            "placeholder",
            "<conversation_id>",
        ] {
            let refused = resolve(json!({}), &[], None, Some(made_up)).unwrap_err();
            assert!(
                matches!(refused, BadConversation::Placeholder(_)),
                "{made_up}: {refused}"
            );
            assert!(refused.to_string().contains("conversation_id"), "{refused}");
        }
        let refused = |argument: &str| resolve(json!({}), &[], None, Some(argument)).unwrap_err();
        assert!(matches!(refused("gr-0123456789"), BadConversation::Garbled(_)));
        assert!(matches!(refused("default"), BadConversation::Short(_)));
        assert!(matches!(refused("ünïcödé-conversation"), BadConversation::Bad(_)));
        assert!(matches!(
            refused(&"x".repeat(257)),
            BadConversation::Bad(BadConversationId::TooLong(257))
        ));
    }

    #[test]
    fn a_host_that_sends_no_id_is_told_where() {
        let meta = json!({"openai/session": "x".repeat(300)});
        let refused = resolve(meta, &[], None, None).unwrap_err().to_string();
        assert!(
            refused.contains("_meta openai/session") && refused.contains("256"),
            "{refused}"
        );
        let refused = resolve(json!({}), &[("x-conversation-id", "\u{e4}")], None, None);
        assert!(refused.is_err_and(|e| e.to_string().contains("header x-conversation-id")));
    }

    #[test]
    fn whose_word_is_ignored_names_no_conversation_and_no_user() {
        let token = Identity {
            principal: Principal::Subject {
                issuer: "https://issuer.example".into(),
                subject: "ann".into(),
            },
            word: Word::Ignored,
            ..Identity::LOCAL
        };
        let said = json!({"openai/session": "from-openai", "openai/subject": "bob"});
        let headers = &[("x-conversation-id", "\u{e4}"), ("x-openwebui-user-id", "bob")];
        let resolved = resolve_for(&token, said.clone(), headers, None, Some("my-own-conversation")).unwrap();
        assert_eq!(resolved.principal, token.principal);
        assert_eq!(
            (resolved.key.as_str(), resolved.origin),
            ("my-own-conversation", Origin::Own)
        );
        let believed = Identity {
            word: Word::Believed,
            ..token.clone()
        };
        let resolved = resolve_for(&believed, said, &[], None, None).unwrap();
        assert_eq!(
            resolved.principal,
            Principal::User(Box::new(token.principal), "bob".into())
        );
        assert_eq!(resolved.key.as_str(), "from-openai");
    }

    #[test]
    fn nobody_said_anything() {
        let (one, two) = (
            resolve(json!({}), &[], None, None).unwrap(),
            resolve(json!({}), &[], None, None).unwrap(),
        );
        assert_eq!((one.origin, two.origin), (Origin::JustMinted, Origin::JustMinted));
        assert_ne!(one.key, two.key);
        let carrier = resolver().mint().unwrap();
        let carried = resolver()
            .resolve(&Asked {
                identity: &Identity::LOCAL,
                meta: &Map::new(),
                headers: None,
                fixed: None,
                argument: None,
                carrier: Some(&carrier),
            })
            .unwrap();
        assert_eq!((carried.key, carried.origin), (carrier.clone(), Origin::Carried));
        assert_eq!(resolver().genuine(carrier.as_str()), Some(carrier));
        assert_eq!(resolver().genuine("some-uuid"), None);
    }
}
