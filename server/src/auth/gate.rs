//! Who is let in: what a request presents, what is demanded of it, and the one decision that follows.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use http::{HeaderMap, header};

use super::{
    Identity, KeyError, KeyFile, Keyring, Keys,
    issuer::{self, Issuer},
};
use crate::config::Config;

/// Where clients of Azure's put a key.
const API_KEY: &str = "x-ms-apikey";

/// Bytes of a credential: large tokens with many groups have some 10,000.
const CREDENTIAL_BYTES: usize = 32 << 10;

/// `auth.required`: of whom a credential is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Required {
    /// Of everybody, but on loopback as long as there is nothing to check one against.
    Auto,
    /// Of everybody.
    Always,
    /// Of nobody, which loopback only may; whoever presents one is still who it says.
    Never,
}

/// From where the listener can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// From this machine.
    Loopback,
    /// From others.
    Network,
}

impl Reach {
    /// That of a listener at this address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_loopback() {
            Self::Loopback
        } else {
            Self::Network
        }
    }
}

/// Whether there is anything that credentials can be checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkable {
    /// Keys or issuers are in use.
    Yes,
    /// Neither.
    No,
}

/// What is demanded of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Nothing, and what it presents is not even looked at: clients that insist on sending a token can send any.
    Nothing,
    /// Nothing, but what it presents has to be right.
    Truth,
    /// A credential.
    Credential,
}

/// What a request presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    /// Nothing.
    Nothing,
    /// One credential, perhaps in two places.
    One(String),
    /// What cannot be one: empty, too long, of another scheme, or two that differ.
    Unreadable,
}

/// What came of looking at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It presented nothing, or nobody looked.
    Nothing,
    /// It is nobody's.
    Bad,
    /// It is theirs.
    Good(Identity),
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// There is no credential.
    #[error(
        "this server wants a credential: Authorization: Bearer with an API key or a token, or x-ms-apikey with a key"
    )]
    Missing,
    /// It is not known, expired, revoked or unreadable. Which of these is nobody's business.
    #[error("the credential is not valid")]
    Bad,
}

impl Refusal {
    /// The word for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Bad => "bad",
        }
    }
}

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// What issuers are asked by.
    #[error("issuers cannot be asked for their keys: {0}")]
    Client(#[from] reqwest::Error),
    /// Nobody could be let in, nor is that what was asked for.
    #[error(
        "{listen} is not a loopback address, and there is nothing that callers could be known by: make a key with \
         `greenroom key create`, or configure an [auth.issuer.NAME]. With auth.required = \"always\" the server starts \
         before its first key is made"
    )]
    Nobody {
        /// As configured.
        listen: std::net::SocketAddr,
    },
}

/// What is demanded by a listener of this reach.
#[must_use]
pub const fn demand(required: Required, reach: Reach, checkable: Checkable) -> Demand {
    match (required, reach, checkable) {
        (Required::Always, _, _) | (_, Reach::Network, _) | (Required::Auto, _, Checkable::Yes) => {
            Demand::Credential
        }
        (Required::Never, Reach::Loopback, Checkable::Yes) => Demand::Truth,
        (Required::Auto | Required::Never, Reach::Loopback, Checkable::No) => Demand::Nothing,
    }
}

/// Whether a request is let in, and as whom.
///
/// # Errors
/// It is not.
pub fn decide(demand: Demand, checked: Checked) -> Result<Identity, Refusal> {
    match (demand, checked) {
        (Demand::Nothing, _) | (Demand::Truth, Checked::Nothing) => Ok(Identity::LOCAL),
        (Demand::Truth | Demand::Credential, Checked::Good(identity)) => Ok(identity),
        (Demand::Truth | Demand::Credential, Checked::Bad) => Err(Refusal::Bad),
        (Demand::Credential, Checked::Nothing) => Err(Refusal::Missing),
    }
}

impl Presented {
    /// Reads a request's headers. A header that is there twice is read by some programs as its first and by others
    /// as its last value, so it counts as none that can be read.
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Self {
        let bearer = once(headers, header::AUTHORIZATION.as_str()).map(|value| value.map_or(Err(()), bearer));
        let key = once(headers, API_KEY).map(|value| value.map_or(Err(()), credential));
        match (bearer, key) {
            (None, None) => Self::Nothing,
            (Some(Ok(one)), None) | (None, Some(Ok(one))) => Self::One(one.to_owned()),
            (Some(Ok(one)), Some(Ok(other))) if one == other => Self::One(one.to_owned()),
            (Some(_), _) | (_, Some(_)) => Self::Unreadable,
        }
    }
}

/// A header's value; `Some(None)` if it is there more than once or is no text.
fn once<'a>(headers: &'a HeaderMap, name: &str) -> Option<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let is_only = values.next().is_none();
    Some(first.to_str().ok().filter(|_| is_only))
}

fn bearer(value: &str) -> Result<&str, ()> {
    let (scheme, rest) = value.trim().split_once(' ').ok_or(())?;
    if scheme.eq_ignore_ascii_case("bearer") {
        credential(rest)
    } else {
        Err(())
    }
}

fn credential(text: &str) -> Result<&str, ()> {
    let text = text.trim();
    let fits =
        (1..=CREDENTIAL_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then_some(text).ok_or(())
}

/// Lets requests in, or does not.
#[derive(Debug)]
pub struct Gate {
    required: Required,
    reach: Reach,
    keyring: Keyring,
    issuers: Vec<Arc<Issuer>>,
}

impl Gate {
    /// The gate of a server that listens as it is configured.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn open(config: &Config) -> Result<Self, GateError> {
        let gate = Self {
            required: config.auth.required,
            reach: Reach::of(config.listen.ip()),
            keyring: Keyring::open(KeyFile::of(&config.state_dir))?,
            issuers: config
                .auth
                .issuers
                .iter()
                .cloned()
                .map(Issuer::new)
                .collect::<Result<_, _>>()?,
        };
        let nobody = gate.checkable(&gate.keyring.now()) == Checkable::No && gate.reach == Reach::Network;
        if nobody && gate.required != Required::Always {
            let listen = config.listen;
            return Err(GateError::Nobody { listen });
        }
        Ok(gate)
    }

    /// What is demanded now: the first key that is made changes it.
    #[must_use]
    pub fn demand(&self) -> Demand {
        self.demand_of(&self.keyring.now())
    }

    fn demand_of(&self, keys: &Keys) -> Demand {
        demand(self.required, self.reach, self.checkable(keys))
    }

    fn checkable(&self, keys: &Keys) -> Checkable {
        if !self.issuers.is_empty() || keys.are_in_use() {
            Checkable::Yes
        } else {
            Checkable::No
        }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn admit(&self, headers: &HeaderMap, now: SystemTime) -> Result<Identity, Refusal> {
        let keys = self.keyring.now();
        let demand = self.demand_of(&keys);
        let checked = match demand {
            Demand::Nothing => Checked::Nothing,
            Demand::Truth | Demand::Credential => self.check(&keys, &Presented::read(headers), now).await,
        };
        decide(demand, checked)
    }

    async fn check(&self, keys: &Keys, presented: &Presented, now: SystemTime) -> Checked {
        match presented {
            Presented::Nothing => Checked::Nothing,
            Presented::Unreadable => Checked::Bad,
            Presented::One(credential) => {
                let identity = match issuer::of(&self.issuers, credential) {
                    Some(issuer) => issuer.bearer(credential).await,
                    None => keys.holder(credential, now),
                };
                identity.map_or(Checked::Bad, Checked::Good)
            }
        }
    }
}

/// Takes the credential out of a request: nothing behind the gate has any use for it, and much could tell it on.
pub fn strip(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    headers.remove(API_KEY);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Principal;

    #[test]
    fn what_is_demanded() {
        use Checkable::{No, Yes};
        use Demand::{Credential, Nothing, Truth};
        use Reach::{Loopback, Network};
        for (required, reach, checkable, demanded) in [
            (Required::Auto, Loopback, No, Nothing),
            (Required::Auto, Loopback, Yes, Credential),
            (Required::Auto, Network, No, Credential),
            (Required::Auto, Network, Yes, Credential),
            (Required::Always, Loopback, No, Credential),
            (Required::Always, Loopback, Yes, Credential),
            (Required::Always, Network, No, Credential),
            (Required::Always, Network, Yes, Credential),
            (Required::Never, Loopback, No, Nothing),
            (Required::Never, Loopback, Yes, Truth),
            // The configuration refuses these; were it not to, nobody would be let in for it.
            (Required::Never, Network, No, Credential),
            (Required::Never, Network, Yes, Credential),
        ] {
            assert_eq!(
                demand(required, reach, checkable),
                demanded,
                "{required:?} {reach:?} {checkable:?}"
            );
        }
        for (address, reach) in [
            ("127.0.0.1", Loopback),
            ("127.9.9.9", Loopback),
            ("::1", Loopback),
            ("0.0.0.0", Network),
            ("::", Network),
            ("10.0.0.1", Network),
            ("::ffff:127.0.0.1", Network),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap()), reach, "{address}");
        }
    }

    #[test]
    fn who_is_let_in() {
        let ann = Identity {
            principal: Principal::Key("ann".into()),
            ..Identity::LOCAL
        };
        let good = || Checked::Good(ann.clone());
        for (demand, checked, decided) in [
            (Demand::Nothing, Checked::Nothing, Ok(Identity::LOCAL)),
            (Demand::Nothing, Checked::Bad, Ok(Identity::LOCAL)),
            (Demand::Truth, Checked::Nothing, Ok(Identity::LOCAL)),
            (Demand::Truth, Checked::Bad, Err(Refusal::Bad)),
            (Demand::Truth, good(), Ok(ann.clone())),
            (Demand::Credential, Checked::Nothing, Err(Refusal::Missing)),
            (Demand::Credential, Checked::Bad, Err(Refusal::Bad)),
            (Demand::Credential, good(), Ok(ann.clone())),
        ] {
            assert_eq!(decide(demand, checked.clone()), decided, "{demand:?} {checked:?}");
        }
    }

    #[test]
    fn what_a_request_presents() {
        let long = "x".repeat(CREDENTIAL_BYTES + 1);
        let one = |text: &str| Presented::One(text.to_owned());
        let bad = || Presented::Unreadable;
        for (headers, presented) in [
            (vec![], Presented::Nothing),
            (vec![("authorization", "Bearer k")], one("k")),
            (vec![("authorization", "bearer   k ")], one("k")),
            (vec![("x-ms-apikey", "k")], one("k")),
            (vec![("x-ms-apikey", " k ")], one("k")),
            (
                vec![("authorization", "Bearer k"), ("x-ms-apikey", "k")],
                one("k"),
            ),
            (vec![("authorization", "Bearer k"), ("x-ms-apikey", "l")], bad()),
            (vec![("authorization", "Bearer k"), ("x-ms-apikey", "")], bad()),
            (vec![("authorization", "Basic azpw"), ("x-ms-apikey", "k")], bad()),
            (
                vec![("authorization", "Bearer k"), ("authorization", "Bearer k")],
                bad(),
            ),
            (
                vec![("authorization", "Bearer k"), ("authorization", "Bearer l")],
                bad(),
            ),
            (vec![("x-ms-apikey", "k"), ("x-ms-apikey", "l")], bad()),
            (vec![("authorization", "")], bad()),
            (vec![("authorization", "Bearer")], bad()),
            (vec![("authorization", "Bearer ")], bad()),
            (vec![("authorization", "k")], bad()),
            (vec![("authorization", "Bearer k l")], bad()),
            (vec![("authorization", "Bearer k, Bearer l")], bad()),
            (vec![("authorization", "Bearer \u{e4}")], bad()),
            (vec![("authorization", "Bearer\tk")], bad()),
            (vec![("x-ms-apikey", long.as_str())], bad()),
        ] {
            let map = headers.iter().map(|(name, value)| {
                let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
                (http::HeaderName::from_static(name), value)
            });
            let mut read = HeaderMap::new();
            for (name, value) in map {
                read.append(name, value);
            }
            assert_eq!(Presented::read(&read), presented, "{headers:?}");
            strip(&mut read);
            assert!(read.is_empty());
        }
    }
}
