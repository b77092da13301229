//! Links: a file's way past the model, as an address that is signed, expires and is good for one thing.
//!
//! ```text
//! upload_file, download_file ── sign ──▶ /files/{token}/{path} ──▶ a person
//! http::links ◀── read ── any server of the deployment ◀── browser, curl
//! ```
//! A token names the session by its HMAC and not the conversation, whose id may be a secret; the path stands in
//! the address itself. A link never makes a sandbox. One for an upload is good for one: that is kept by the
//! sandbox's agent, where all servers meet, so it holds across servers and their restarts, and is forgotten with
//! the sandbox.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use subtle::ConstantTimeEq as _;
use tokio::sync::OnceCell;

use crate::{
    config::{LinkConfig, Size},
    conversation::{Secret, SessionName, hex},
    sessions::Sessions,
};

/// Seconds since 1970 from which expiry is counted, 2025-01-01: four bytes last until 2161.
const EPOCH: Duration = Duration::from_secs(1_735_689_600);
const KIND: usize = 1;
const EXPIRES: usize = 4;
const MARK: usize = 8;
const NAME: usize = 32;
/// 128 bits: a link lives for hours at most.
const MAC: usize = 16;
const TOKEN: usize = KIND + EXPIRES + MARK + NAME + MAC;

/// What a link is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Good {
    /// Reading a file, as often as one likes.
    Download,
    /// Writing a file, once.
    Upload,
}

/// What a link grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What it is good for.
    pub good: Good,
    /// Whose file.
    pub name: SessionName,
    /// The file, relative to the work directory.
    pub path: String,
    /// From then on it is good for nothing.
    pub expires: SystemTime,
    /// What an upload is marked with, so that there is one.
    pub mark: String,
}

/// Why a link is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLink {
    /// No server of this deployment made it, or it was changed.
    #[error("there is no such link")]
    Forged,
    /// Its time is over.
    #[error("this link has expired: ask for a new one")]
    Expired,
}

/// A link as it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The whole address.
    pub url: String,
    /// Until when it is good.
    pub expires: SystemTime,
}

/// Opens a way in for links where no call came by one: a listener on this machine.
pub type Door = fn(Links) -> BoxFuture<'static, io::Result<SocketAddr>>;

/// Makes and reads links. Clones share the way in.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    secret: Secret,
    sessions: Sessions,
    config: LinkConfig,
    door: Door,
    address: OnceCell<SocketAddr>,
}

impl Links {
    /// Links to files of these sessions.
    #[must_use]
    pub fn new(secret: Secret, sessions: Sessions, config: LinkConfig, door: Door) -> Self {
        Self {
            shared: Arc::new(Shared {
                secret,
                sessions,
                config,
                door,
                address: OnceCell::new(),
            }),
        }
    }

    /// They are served at this address already.
    pub fn served_at(&self, address: SocketAddr) {
        // Set once; were it set before, that one is as good.
        let _ = self.shared.address.set(address);
    }

    /// The sessions whose files they lead to.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.shared.sessions
    }

    /// Bytes that an upload may have.
    #[must_use]
    pub fn upload_limit(&self) -> Size {
        self.shared.config.upload
    }

    /// A link for a caller who came in by `origin`, such as `http://localhost:8484`; without one it leads to this
    /// process, which opens its door for it if need be.
    ///
    /// # Errors
    /// The door does not open, or the operating system gave no random bytes.
    pub async fn make(
        &self,
        good: Good,
        name: &SessionName,
        path: &str,
        origin: Option<String>,
    ) -> io::Result<Link> {
        let base = match (&self.shared.config.url, origin) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(origin)) => origin,
            (None, None) => {
                let open = || (self.shared.door)(self.clone());
                let address = self.shared.address.get_or_try_init(open).await?;
                format!("http://{address}")
            }
        };
        let mut mark = [0; MARK];
        getrandom::fill(&mut mark).map_err(io::Error::other)?;
        let expires = SystemTime::now() + self.shared.config.expire;
        let token = sign(&self.shared.secret, good, expires, mark, name, path);
        Ok(Link {
            url: format!("{base}/files/{token}/{}", escaped(path)),
            expires,
        })
    }

    /// Reads a link's token and path.
    ///
    /// # Errors
    /// [`BadLink`].
    pub fn read(&self, token: &str, path: &str) -> Result<Grant, BadLink> {
        read(&self.shared.secret, token, path, SystemTime::now())
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

fn sign(
    secret: &Secret,
    good: Good,
    expires: SystemTime,
    mark: [u8; MARK],
    name: &SessionName,
    path: &str,
) -> String {
    let since = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = u32::try_from(since.saturating_sub(EPOCH).as_secs()).unwrap_or(u32::MAX);
    let mut token = Vec::with_capacity(TOKEN);
    token.push(match good {
        Good::Download => b'd',
        Good::Upload => b'u',
    });
    token.extend_from_slice(&seconds.to_be_bytes());
    token.extend_from_slice(&mark);
    token.extend_from_slice(&name.to_bytes());
    let mac = mac(secret, &token, path);
    token.extend_from_slice(&mac);
    BASE64.encode(token)
}

fn read(secret: &Secret, token: &str, path: &str, now: SystemTime) -> Result<Grant, BadLink> {
    let bytes = BASE64.decode(token).map_err(|_| BadLink::Forged)?;
    let token: [u8; TOKEN] = bytes.try_into().map_err(|_| BadLink::Forged)?;
    let (said, theirs) = token.split_at(TOKEN - MAC);
    if !bool::from(mac(secret, said, path).ct_eq(theirs)) {
        return Err(BadLink::Forged);
    }
    // What follows is ours, as the MAC says: it cannot be of another shape.
    let forged = BadLink::Forged;
    let (kind, rest) = said.split_at(KIND);
    let (expires, rest) = rest.split_first_chunk::<EXPIRES>().ok_or(forged)?;
    let (mark, rest) = rest.split_at(MARK);
    let name: [u8; NAME] = rest.try_into().map_err(|_| forged)?;
    let expires = u32::from_be_bytes(*expires);
    let expires = SystemTime::UNIX_EPOCH + EPOCH + Duration::from_secs(expires.into());
    if now >= expires {
        return Err(BadLink::Expired);
    }
    Ok(Grant {
        good: match kind {
            b"d" => Good::Download,
            b"u" => Good::Upload,
            _ => return Err(forged),
        },
        name: SessionName::from_bytes(name),
        path: path.to_owned(),
        expires,
        mark: hex(mark),
    })
}

fn mac(secret: &Secret, said: &[u8], path: &str) -> [u8; MAC] {
    let mut message = said.to_vec();
    message.extend_from_slice(path.as_bytes());
    let whole = secret.mac("file link", &message);
    let mut mac = [0; MAC];
    mac.copy_from_slice(&whole[..MAC]);
    mac
}

/// A time as people and models read it.
#[must_use]
pub fn clock(time: SystemTime) -> String {
    DateTime::<Utc>::from(time)
        .format("%Y-%m-%d %H:%M UTC")
        .to_string()
}

/// A path as part of an address.
fn escaped(path: &str) -> String {
    path.bytes()
        .fold(String::with_capacity(path.len()), |mut text, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    text.push(byte.into());
                }
                other => text.push_str(&format!("%{other:02X}")),
            }
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(byte: u8) -> SessionName {
        SessionName::from_bytes([byte; 32])
    }

    #[test]
    fn a_link_is_good_for_what_it_says_and_nothing_else() {
        let secret = Secret::new([7; 32]);
        let now = SystemTime::UNIX_EPOCH + EPOCH + Duration::from_secs(1_000_000);
        let expires = now + Duration::from_secs(60);
        let token = sign(&secret, Good::Upload, expires, [1; MARK], &name(3), "a/b c");
        assert!(token.len() < 84, "{}", token.len());
        let grant = read(&secret, &token, "a/b c", now).unwrap();
        assert_eq!(
            (grant.good, &grant.name, grant.expires),
            (Good::Upload, &name(3), expires)
        );
        assert_eq!(grant.mark, "01".repeat(MARK));
        assert_eq!(read(&secret, &token, "a/b c", expires), Err(BadLink::Expired));
        for (token, path) in [
            (token.as_str(), "a/b"),
            (token.as_str(), ""),
            (&token[1..], "a/b c"),
            ("", "a/b c"),
            ("..", "a/b c"),
        ] {
            assert_eq!(
                read(&secret, token, path, now),
                Err(BadLink::Forged),
                "{token} {path}"
            );
        }
        let elsewhere = Secret::new([8; 32]);
        assert_eq!(read(&elsewhere, &token, "a/b c", now), Err(BadLink::Forged));
        // Every bit of it is under the MAC, or is the MAC.
        let bytes = BASE64.decode(&token).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let changed = BASE64.encode(changed);
            assert_eq!(
                read(&secret, &changed, "a/b c", now),
                Err(BadLink::Forged),
                "{at}"
            );
        }
    }

    #[test]
    fn a_path_stays_one_part_of_an_address() {
        assert_eq!(escaped("a/b c?#%\n<ä>"), "a/b%20c%3F%23%25%0A%3C%C3%A4%3E");
    }
}
