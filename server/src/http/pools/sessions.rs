//! Sessions: what there is, how it ends, and what a pool is.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use greenroom_protocol::{Language, LeaseState};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Answer, Call, Offered, Rest, json, put};
use crate::{
    conversation::{ConversationId, PoolName, Principal, SessionKey},
    pool::Claim,
    rest::{
        address::{Address, Operation},
        fault::{Code, Fault},
        news::time,
        session::{SessionObject, SessionPage},
    },
    sessions::{OpenError, Reset, Session},
};

const ETAG: HeaderName = HeaderName::from_static("x-ms-session-etag");

/// Sessions of one page.
const PAGE: usize = 300;

/// Sessions that are looked at at a time.
const LOOKS: usize = 8;

fn none() -> Fault {
    Fault::new(
        Code::SessionNotFound,
        "there is no session with this identifier in this pool",
    )
    .of("identifier")
}

fn now() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A session as it is shown; `None` where it has ended meanwhile.
async fn seen(rest: &Rest, identifier: &str, session: &Session) -> Option<SessionObject> {
    let LeaseState::Bound(lease) = session.guest.lease_state().await.ok()? else {
        return None;
    };
    let now = now();
    let ends = time(now.saturating_add(lease.ends_in_ms));
    Some(SessionObject {
        identifier: identifier.to_owned(),
        etag: etag(rest, session),
        created_at: time(now.saturating_sub(lease.age_ms)),
        last_accessed_at: time(now.saturating_sub(lease.idle_ms)),
        expires_at: ends.clone(),
        expire_at: ends,
    })
}

fn etag(rest: &Rest, session: &Session) -> String {
    format!("0--{}", rest.guid(session.guest.id()))
}

pub(super) async fn show(call: &Call) -> Result<Answer, Fault> {
    let session = call.look().await?.ok_or_else(none)?;
    let body = seen(&call.rest, &call.identifier, &session)
        .await
        .ok_or_else(none)?;
    let mut response = json(serde_json::to_vec(&body).unwrap_or_default());
    put(response.headers_mut(), ETAG, &etag(&call.rest, &session));
    Ok(call.found(response, &session, &session.standing))
}

/// What a container's program has written: of the session's sandbox, or of the one that it had before and whose end
/// nobody has heard of yet.
pub(super) async fn log(call: &Call) -> Result<Answer, Fault> {
    use std::fmt::Write as _;
    let mut text = String::new();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut standing = None;
    if let Some(session) = call.look().await? {
        let log = session.guest.log().await.map_err(|error| Fault::from(&error))?;
        text.push_str(&log.head);
        if log.omitted > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n[{} bytes left out]\n{}", log.omitted, log.tail);
        }
        standing = Some(session);
    } else {
        let name = call.shared().secret.session_name(&call.key);
        let left = call.shared().sessions.left_behind(&name).await;
        let words = left
            .map_err(|error| Fault::from(&error))?
            .and_then(|(_, words)| words);
        let words = words.ok_or_else(none)?;
        text.push_str(&words.output);
        if let Some(end) = words.end {
            let _ = write!(text, "\n[ended: {end}]\n");
        }
    }
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    Ok(match standing {
        Some(session) => call.found(response, &session, &session.standing),
        None => Answer {
            response,
            owed: None,
            session: "none",
        },
    })
}

pub(super) async fn end(call: &Call) -> Result<Answer, Fault> {
    let ended = call.shared().sessions.reset(&call.key).await;
    let ended = ended.map_err(|error| Fault::from(&error))?;
    // A session that could not be ended is listed, and its executions are polled, as before.
    call.shared().roll.strike(&call.key);
    call.shared().accepted.strike(&call.key);
    match ended {
        Reset::Nothing => return Err(none()),
        Reset::Ended => {}
    }
    let response = if call.address.operation == Operation::StopSession {
        let text = format!(
            "Session {} in pool {} has been stopped.\n",
            call.identifier, call.key.pool
        );
        let mut response = Response::new(Body::from(text));
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    } else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    };
    Ok(Answer {
        response,
        owed: None,
        session: "none",
    })
}

/// The sessions of this principal whose identifiers this server has served: the engine knows no identifiers.
pub(super) async fn list(
    rest: &Rest,
    pool: &PoolName,
    principal: &Principal,
    address: &Address,
    base: &str,
) -> Result<Answer, Fault> {
    let known = rest.shared.roll.of(pool, principal);
    let looked = stream::iter(known).map(|conversation| looked_at(rest, pool, principal, conversation));
    let all: Vec<SessionObject> = looked
        .buffered(LOOKS)
        .filter_map(async |found| found)
        .collect()
        .await;
    let skip = address.query.skip.min(all.len());
    let page: Vec<SessionObject> = all[skip..].iter().take(PAGE).cloned().collect();
    let next = skip + page.len();
    let version = address
        .query
        .version
        .as_deref()
        .map(|version| format!("api-version={version}&"))
        .unwrap_or_default();
    let path = if address.operation == Operation::Sessions {
        ".management/listSessions"
    } else {
        "listSessions"
    };
    let link = (next < all.len()).then(|| format!("{base}/{path}?{version}skip={next}"));
    let body = SessionPage {
        count: page.len(),
        sessions: page.clone(),
        value: page,
        next_link: link,
    };
    Ok(Answer {
        response: json(serde_json::to_vec(&body).unwrap_or_default()),
        owed: None,
        session: "none",
    })
}

async fn looked_at(
    rest: &Rest,
    pool: &PoolName,
    principal: &Principal,
    conversation: ConversationId,
) -> Option<SessionObject> {
    let key = SessionKey {
        pool: pool.clone(),
        principal: principal.clone(),
        conversation,
    };
    match rest.shared.sessions.look(&key).await {
        Ok(Some(session)) => seen(rest, key.conversation.as_str(), &session).await,
        Ok(None) => {
            rest.shared.roll.strike(&key);
            None
        }
        Err(error) => {
            tracing::debug!(%error, "a session cannot be looked at");
            None
        }
    }
}

/// What a pool is. Only a sandbox knows what its image holds: one is asked, once in a server's life.
pub(super) async fn pool(rest: &Rest, pool: &Offered, principal: &Principal) -> Result<Answer, Fault> {
    let config = &pool.config;
    let contents = rest.shared.roll.contents(pool);
    let contents = contents
        .get_or_try_init(|| contents_of(rest, pool, principal))
        .await?;
    let started = rest
        .shared
        .started
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let started = time(u64::try_from(started.as_millis()).unwrap_or(u64::MAX));
    let mut body = contents.clone();
    body["createdAt"] = started.as_str().into();
    body["lastUpdatedAt"] = started.into();
    let limits = &rest.shared.config.limits;
    body["greenroom"] = json!({
        "limits": {
            "executionSeconds": config.run_timeout_max.as_secs(),
            "defaultExecutionSeconds": config.run_timeout.as_secs(),
            "outputBytes": super::executions::STREAM_BYTES,
            "requestBytes": limits.request.bytes(),
            "uploadBytes": rest.shared.config.links.upload.bytes(),
            "sessions": config.max,
            "idleSeconds": config.idle.as_secs(),
            "lifetimeSeconds": config.lifetime.as_secs(),
        },
        "capabilities": ["shell", "asynchronous", "stream", "range", "put", "stopSession", "outputs"],
        "languages": config.languages.iter().map(Language::as_str).collect::<Vec<_>>(),
    });
    Ok(Answer {
        response: json(body.to_string()),
        owed: None,
        session: "none",
    })
}

async fn contents_of(rest: &Rest, pool: &Offered, principal: &Principal) -> Result<Value, Fault> {
    let claim = claimed(rest, &pool.name, principal)
        .await
        .map_err(|error| Fault::from(&error))?;
    let asked = async {
        let hello = claim.guest().hello().await?;
        Ok((hello, claim.guest().packages().await?))
    };
    let asked: Result<_, crate::guest::GuestError> = asked.await;
    let (hello, packages) = asked.map_err(|error| Fault::from(&error))?;
    // It was told nothing and has run nothing: the next conversation finds it as it was.
    claim.give_back();
    let version = |language: Language| {
        let kernel = hello.kernels.iter().find(|kernel| kernel.language == language);
        kernel.and_then(|kernel| kernel.version.clone())
    };
    let runtimes: Vec<Value> = pool
        .config
        .languages
        .iter()
        .map(|language| json!({ "name": language.as_str(), "version": number(&version(*language).unwrap_or_default()) }))
        .collect();
    let installed: Vec<Value> = packages
        .packages
        .iter()
        .filter(|package| package.kind == "python")
        .map(|package| json!({ "name": package.name, "version": package.version }))
        .collect();
    let mut body = json!({ "runtimes": runtimes, "preInstalledPackages": installed });
    if let Some(python) = version(Language::Python) {
        let ipython = python.split_once("IPython ").map_or("", |(_, version)| version);
        body["jupyterKernel"] = json!({ "name": "python3", "version": ipython, "projectUrl": "https://ipython.org",
            "description": "IPython kernel" });
    }
    Ok(body)
}

/// A sandbox of a pool, for a moment. Where there is no room, no session makes some for this.
async fn claimed(rest: &Rest, pool: &PoolName, principal: &Principal) -> Result<Claim, OpenError> {
    let pools = rest.shared.sessions.pools();
    let found = pools.iter().find(|one| one.spec().name() == pool);
    let found = found.ok_or_else(|| OpenError::NoPool(pool.clone()))?;
    // The pool bounds the wait itself.
    let by = Instant::now() + found.spec().claim_wait;
    Ok(found.claim(principal, by).await?)
}

/// The first word that begins with a digit: `3.13.5` of `Python 3.13.5, IPython 9.1.0`.
fn number(version: &str) -> &str {
    let mut words = version.split([' ', ',']);
    words
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for (text, version) in [
            ("Python 3.13.5, IPython 9.1.0", "3.13.5"),
            ("5.2.37(1)-release", "5.2.37(1)-release"),
            ("", ""),
        ] {
            assert_eq!(number(text), version);
        }
    }
}
