//! Tokens: JSON Web Tokens checked against an issuer's public keys. Pure, but for the clock.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// Keys of one issuer that are kept: some have dozens, none has hundreds.
const MOST_KEYS: usize = 128;

/// How tokens may be signed. Only ways where who can check a token cannot make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// RSA, PKCS#1 v1.5, SHA-256.
    Rs256,
    /// The same with SHA-384.
    Rs384,
    /// The same with SHA-512.
    Rs512,
    /// RSA, PSS, SHA-256.
    Ps256,
    /// The same with SHA-384.
    Ps384,
    /// The same with SHA-512.
    Ps512,
    /// ECDSA on P-256.
    Es256,
    /// ECDSA on P-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Signing {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    const fn algorithm(self) -> Algorithm {
        match self {
            Self::Rs256 => Algorithm::RS256,
            Self::Rs384 => Algorithm::RS384,
            Self::Rs512 => Algorithm::RS512,
            Self::Ps256 => Algorithm::PS256,
            Self::Ps384 => Algorithm::PS384,
            Self::Ps512 => Algorithm::PS512,
            Self::Es256 => Algorithm::ES256,
            Self::Es384 => Algorithm::ES384,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

/// What a token has to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub issuer: &'a str,
    pub audience: &'a [String],
    pub signing: &'a [Signing],
    pub leeway: Duration,
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub subject: String,
    pub scopes: BTreeSet<String>,
}

/// Why a token is none. For the log of somebody who debugs, never for its bearer.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadToken {
    /// Its key is not among the issuer's, as far as they are known.
    #[error("its key is not known")]
    UnknownKey,
    /// Everything else.
    #[error("{0}")]
    Wrong(#[from] jsonwebtoken::errors::Error),
    /// It is signed in a way that is not accepted.
    #[error("it is signed in a way that is not configured")]
    Signing,
    /// It demands to be understood in ways that are not.
    #[error("it has critical extensions")]
    Critical,
    /// It is about nobody.
    #[error("its subject is empty")]
    Nobody,
}

/// An issuer's public keys.
#[derive(Default)]
pub(super) struct KeySet(Vec<Key>);

struct Key {
    id: Option<String>,
    /// The only way that the issuer signs with it, if it says so.
    algorithm: Option<String>,
    key: DecodingKey,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl KeySet {
    /// Reads a JWKS. Keys that are not for checking signatures, that are secrets or that are not understood are left
    /// out: an issuer may have those, too.
    pub(super) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Document {
            keys: Vec<Value>,
        }
        let document: Document = serde_json::from_slice(json)?;
        let keys = document.keys.into_iter().filter_map(key).take(MOST_KEYS);
        Ok(Self(keys.collect()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is a key for this token.
    pub(super) fn covers(&self, token: &str) -> bool {
        decode_header(token).is_ok_and(|header| self.find(&header).is_some())
    }

    fn find(&self, header: &jsonwebtoken::Header) -> Option<&Key> {
        let named = format!("{:?}", header.alg);
        let mut fitting = self.0.iter().filter(|key| {
            let is_said = key.algorithm.as_ref().is_none_or(|algorithm| *algorithm == named);
            is_said && key.key.family() == header.alg.family()
        });
        match &header.kid {
            Some(id) => fitting.find(|key| key.id.as_ref() == Some(id)),
            // Without a name it has to be the only one.
            None => fitting.next().filter(|_| fitting.next().is_none()),
        }
    }
}

fn key(value: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let is_for_signatures = match &jwk.common.public_key_use {
        None | Some(PublicKeyUse::Signature) => true,
        Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_)) => false,
    };
    // Not the ones that are secrets.
    let is_public = matches!(
        &jwk.algorithm,
        AlgorithmParameters::RSA(_)
            | AlgorithmParameters::EllipticCurve(_)
            | AlgorithmParameters::OctetKeyPair(_)
    );
    (is_for_signatures && is_public).then_some(())?;
    Some(Key {
        key: DecodingKey::from_jwk(&jwk).ok()?,
        id: jwk.common.key_id,
        algorithm: jwk.common.key_algorithm.map(|algorithm| format!("{algorithm:?}")),
    })
}

/// Whose a token says that it is, which decides only whose keys are looked at.
pub(super) fn issuer_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Said {
        iss: String,
    }
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let said: Said = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
    Some(said.iss)
}

/// Checks a token.
///
/// # Errors
/// [`BadToken`].
pub(super) fn verify(token: &str, keys: &KeySet, rules: Rules<'_>) -> Result<Claims, BadToken> {
    /// Types are checked here, where a list of issuers is none.
    #[derive(Deserialize)]
    struct Wire {
        #[serde(rename = "iss")]
        _issuer: String,
        #[serde(rename = "exp")]
        _expires: f64,
        sub: String,
        #[serde(default)]
        scope: Listed,
        #[serde(default)]
        scp: Listed,
    }
    let header = decode_header(token)?;
    if header.crit.is_some() {
        return Err(BadToken::Critical);
    }
    if !rules
        .signing
        .iter()
        .any(|signing| signing.algorithm() == header.alg)
    {
        return Err(BadToken::Signing);
    }
    let mut validation = Validation::new(header.alg);
    validation.set_issuer(&[rules.issuer]);
    validation.set_audience(rules.audience);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.validate_nbf = true;
    validation.leeway = rules.leeway.as_secs();
    let key = keys.find(&header).ok_or(BadToken::UnknownKey)?;
    let claims = decode::<Wire>(token, &key.key, &validation)?.claims;
    if claims.sub.is_empty() {
        return Err(BadToken::Nobody);
    }
    let scopes = claims.scope.into_iter().chain(claims.scp).collect();
    Ok(Claims {
        subject: claims.sub,
        scopes,
    })
}

/// Scopes, as one string or as a list: issuers do either.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Listed {
    Words(String),
    List(Vec<String>),
    #[default]
    None,
}

impl IntoIterator for Listed {
    type Item = String;
    type IntoIter = std::vec::IntoIter<String>;

    fn into_iter(self) -> Self::IntoIter {
        match self {
            Self::Words(words) => words.split_whitespace().map(str::to_owned).collect(),
            Self::List(list) => list,
            Self::None => Vec::new(),
        }
        .into_iter()
    }
}
