//! Issuers: where their public keys are found, kept, and asked for again, and what their tokens' bearers may do.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, redirect::Policy};
use serde::Deserialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    AllowedPools, Identity, Scopes,
    token::{BadToken, KeySet, Rules, issuer_of, verify},
};
use crate::{config::IssuerConfig, conversation::Principal};

/// Keys are asked for anew when they are older: one that an issuer has withdrawn is good for no longer.
const FRESH: Duration = Duration::from_secs(10 * 60);

/// How long they are used where the issuer cannot be asked.
const STALE: Duration = Duration::from_secs(60 * 60);

/// Between two questions to an issuer: tokens with made-up keys must not make us flood it.
const AGAIN: Duration = Duration::from_secs(60);

/// The same when it did not answer: it may be starting.
const AGAIN_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// One question to an issuer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a request waits for keys that are being fetched, with up to three questions.
const WAIT: Duration = Duration::from_secs(16);

/// Bytes of an issuer's answer.
const MOST: usize = 1 << 20;

/// An issuer whose tokens are accepted.
#[derive(Debug)]
pub(super) struct Issuer {
    config: IssuerConfig,
    client: Client,
    held: Mutex<Held>,
    /// One question at a time.
    asking: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Held {
    keys: Arc<KeySet>,
    fetched: Option<Instant>,
    tried: Option<Tried>,
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    at: Instant,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Failed,
}

/// What is to be done with the keys that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Use,
    Ask,
    /// There is no use in asking yet.
    Refuse,
}

/// Why an issuer's keys are not to be had.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{url}: {source}")]
    Http { url: String, source: reqwest::Error },
    #[error("{url}: the answer is longer than {MOST} bytes")]
    Long { url: String },
    #[error("{url}: {why}")]
    Garbled { url: String, why: String },
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

/// The decision, by the ages of what is held: how long ago it was fetched and tried, if ever.
fn step(is_covered: bool, fetched: Option<Duration>, tried: Option<(Duration, Outcome)>) -> Step {
    let may_ask = tried.is_none_or(|(since, outcome)| {
        since
            >= match outcome {
                Outcome::Answered => AGAIN,
                Outcome::Failed => AGAIN_AFTER_FAILURE,
            }
    });
    match fetched {
        Some(age) if is_covered && age < FRESH => Step::Use,
        _ if may_ask => Step::Ask,
        Some(age) if is_covered && age < STALE => Step::Use,
        _ => Step::Refuse,
    }
}

impl Issuer {
    pub(super) fn new(config: IssuerConfig) -> Result<Arc<Self>, reqwest::Error> {
        // Asked for by name, since two are linked where tests are built. Set before is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .timeout(ANSWER)
            // Where keys come from is configured, or said by whom is configured; not by whom that one points to.
            .redirect(Policy::none())
            .build()?;
        Ok(Arc::new(Self {
            config,
            client,
            held: Mutex::default(),
            asking: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Who bears a token; `None` if it is not good.
    pub(super) async fn bearer(self: &Arc<Self>, token: &str) -> Option<Identity> {
        let keys = self.keys_for(token).await;
        let rules = Rules {
            issuer: &self.config.issuer,
            audience: &self.config.audience,
            signing: &self.config.signing,
            leeway: self.config.leeway,
        };
        let verified = keys
            .ok_or(BadToken::UnknownKey)
            .and_then(|keys| verify(token, &keys, rules));
        match verified {
            Ok(claims) => Some(self.identity(claims.subject, &claims.scopes)),
            Err(error) => {
                tracing::debug!(issuer = self.config.name, %error, "a token was refused");
                None
            }
        }
    }

    fn identity(&self, subject: String, said: &BTreeSet<String>) -> Identity {
        Identity {
            principal: Principal::Subject {
                issuer: self.config.issuer.clone(),
                subject,
            },
            scopes: granted(&self.config, said),
            pools: if self.config.pools.is_empty() {
                AllowedPools::All
            } else {
                AllowedPools::Only(self.config.pools.as_slice().into())
            },
            word: self.config.word,
        }
    }

    /// The keys to check a token with, asked for if need be.
    async fn keys_for(self: &Arc<Self>, token: &str) -> Option<Arc<KeySet>> {
        match self.look(token) {
            (Step::Use, keys) => return Some(keys),
            (Step::Refuse, _) => return None,
            (Step::Ask, _) => {}
        }
        // Who comes while another one asks waits for that answer, and looks again.
        let asking = Arc::clone(&self.asking).acquire_owned();
        let turn = timeout(WAIT, asking).await.ok()?.ok()?;
        if let (Step::Ask, _) = self.look(token) {
            let issuer = Arc::clone(self);
            // Of its own: a caller who hangs up must not leave the question half asked.
            let asked = tokio::spawn(async move {
                issuer.ask().await;
                drop(turn);
            });
            drop(timeout(WAIT, asked).await);
        }
        match self.look(token) {
            (Step::Use, keys) => Some(keys),
            (Step::Ask | Step::Refuse, _) => None,
        }
    }

    fn look(&self, token: &str) -> (Step, Arc<KeySet>) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let fetched = held.fetched.map(|at| at.elapsed());
        let tried = held.tried.map(|tried| (tried.at.elapsed(), tried.outcome));
        (
            step(held.keys.covers(token), fetched, tried),
            Arc::clone(&held.keys),
        )
    }

    async fn ask(&self) {
        let answer = self.fetch().await;
        let at = Instant::now();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match answer {
            Ok(keys) => {
                tracing::info!(
                    issuer = self.config.name,
                    keys = keys.len(),
                    "an issuer's keys were fetched"
                );
                (held.keys, held.fetched) = (Arc::new(keys), Some(at));
                Outcome::Answered
            }
            Err(error) => {
                tracing::warn!(issuer = self.config.name, %error, "an issuer's keys cannot be fetched");
                Outcome::Failed
            }
        };
        held.tried = Some(Tried { at, outcome });
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let url = match &self.config.jwks_url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        let body = self.get(&url).await?;
        KeySet::parse(&body).map_err(|error| FetchError::Garbled {
            url,
            why: error.to_string(),
        })
    }

    /// Where the keys are: OpenID Connect's way, then RFC 8414's.
    async fn discover(&self) -> Result<String, FetchError> {
        let [first, second] = well_known(&self.config.issuer);
        let (url, body) = match self.get(&first).await {
            Ok(body) => (first, body),
            Err(error) => {
                tracing::debug!(%error, "an issuer has no openid-configuration");
                let body = self.get(&second).await?;
                (second, body)
            }
        };
        let garbled = |why: String| FetchError::Garbled {
            url: url.clone(),
            why,
        };
        let found: Discovery = serde_json::from_slice(&body).map_err(|error| garbled(error.to_string()))?;
        if found.issuer != self.config.issuer {
            return Err(garbled(format!("it is about the issuer {:?}", found.issuer)));
        }
        if !is_trustworthy(&found.jwks_uri) {
            return Err(garbled("its jwks_uri is not https".to_owned()));
        }
        Ok(found.jwks_uri)
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let failed = |source: reqwest::Error| FetchError::Http {
            url: url.to_owned(),
            source: source.without_url(),
        };
        let answer = self.client.get(url).send().await;
        let mut answer = answer
            .and_then(reqwest::Response::error_for_status)
            .map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MOST {
                return Err(FetchError::Long { url: url.to_owned() });
            }
            body.extend_from_slice(&chunk);
        }
        if answer.status().is_redirection() {
            return Err(FetchError::Garbled {
                url: url.to_owned(),
                why: "it redirects, which is not followed".to_owned(),
            });
        }
        Ok(body)
    }
}

/// Whose token it is, among these.
pub(super) fn of<'a>(issuers: &'a [Arc<Issuer>], token: &str) -> Option<&'a Arc<Issuer>> {
    let said = issuer_of(token)?;
    issuers.iter().find(|issuer| issuer.config.issuer == said)
}

/// Keys come by https, or from this machine, which is for tests and for issuers beside the server.
pub(crate) fn is_trustworthy(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else {
        return false;
    };
    let is_here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    url.scheme() == "https" || url.scheme() == "http" && is_here
}

fn well_known(issuer: &str) -> [String; 2] {
    let issuer = issuer.trim_end_matches('/');
    let authority = issuer.find("://").map_or(0, |at| at + 3);
    let path = issuer[authority..]
        .find('/')
        .map_or(issuer.len(), |at| authority + at);
    let (origin, path) = issuer.split_at(path);
    [
        format!("{issuer}/.well-known/openid-configuration"),
        format!("{origin}/.well-known/oauth-authorization-server{path}"),
    ]
}

/// What a token's scopes are worth here.
fn granted(config: &IssuerConfig, said: &BTreeSet<String>) -> Scopes {
    let named = config
        .names
        .iter()
        .filter(|(_, names)| names.iter().any(|name| said.contains(name)))
        .map(|(scope, _)| *scope);
    named.chain(config.grants.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_asked_for_when_that_may_help() {
        use Outcome::{Answered, Failed};
        let s = |seconds: u64| Duration::from_secs(seconds);
        for (is_covered, fetched, tried, expected) in [
            (false, None, None, Step::Ask),
            (false, None, Some((s(4), Failed)), Step::Refuse),
            (false, None, Some((s(5), Failed)), Step::Ask),
            (true, Some(s(1)), Some((s(1), Answered)), Step::Use),
            // A key that is not known: once a minute.
            (false, Some(s(59)), Some((s(59), Answered)), Step::Refuse),
            (false, Some(s(60)), Some((s(60), Answered)), Step::Ask),
            // Old ones: asked for anew, and used for a while where that fails.
            (true, Some(s(600)), Some((s(600), Answered)), Step::Ask),
            (true, Some(s(601)), Some((s(1), Failed)), Step::Use),
            (true, Some(s(3599)), Some((s(4), Failed)), Step::Use),
            (true, Some(s(3600)), Some((s(4), Failed)), Step::Refuse),
            (true, Some(s(3600)), Some((s(5), Failed)), Step::Ask),
        ] {
            assert_eq!(
                step(is_covered, fetched, tried),
                expected,
                "{is_covered} {fetched:?} {tried:?}"
            );
        }
    }

    #[test]
    fn an_issuer_is_found_in_two_ways() {
        assert_eq!(
            well_known("https://a.example/"),
            [
                "https://a.example/.well-known/openid-configuration",
                "https://a.example/.well-known/oauth-authorization-server"
            ]
        );
        assert_eq!(
            well_known("https://a.example/realms/x"),
            [
                "https://a.example/realms/x/.well-known/openid-configuration",
                "https://a.example/.well-known/oauth-authorization-server/realms/x"
            ]
        );
        for (url, is_good) in [
            ("https://a.example/jwks", true),
            ("http://127.0.0.1:9/jwks", true),
            ("http://localhost/jwks", true),
            ("http://[::1]:9/jwks", true),
            ("http://a.example/jwks", false),
            ("http://localhost.a.example/jwks", false),
            ("http://localhost@a.example/jwks", false),
            ("file:///etc/passwd", false),
            ("jwks", false),
        ] {
            assert_eq!(is_trustworthy(url), is_good, "{url}");
        }
    }
}
