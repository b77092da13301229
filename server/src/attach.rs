//! One Greenroom for many processes: `greenroom stdio` attaches to the one that runs, by a unix socket in the state
//! directory, and starts one in the background where there is none.
//!
//! ```text
//! host ─ stdin/stdout ─▶ relay (this process) ─ greenroom.sock ─▶ socket (the server) ─▶ mcp
//! ```
//! Hosts start a process for a conversation, or for a single call, or twenty at once. What is slow (the engine, warm
//! sandboxes) must not begin with each of them. The process says who it is in one line, hears in one line whether
//! it is welcome, and from then on both ways carry JSON-RPC, a message a line.
//!
//! The process mints the conversation id that it stands for, so that it can attach to another server with the same
//! conversation when the first one dies under it.

mod lines;
mod relay;
mod socket;
mod start;

use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    relay::{AttachError, Attachment, relay},
    socket::{Attending, Socket, SocketError},
    start::{Start, detach},
};
use crate::{
    config::{Config, LogFormat},
    conversation::{Secret, hex},
    engine::docker::Installers,
};

/// This program's version: both ends must have the same.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The socket's name in the state directory.
const SOCKET: &str = "greenroom.sock";

/// Bytes of the first line of either side.
const GREETING_BYTES: usize = 4096;

/// How long the other side may take over it.
const GREETING: Duration = Duration::from_secs(5);

/// What a process says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    version: String,
    /// Digest of what is configured: a server with another configuration is not what the process was asked to be.
    configuration: String,
    /// `--conversation`.
    conversation: Option<String>,
    /// The id that the process minted for itself.
    carrier: String,
    standing: Standing,
}

/// Whether a process has been attached before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Not yet: there can be no session under its id.
    First,
    /// To a server that has gone since.
    Again,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(crate) enum Greeting {
    /// Go on.
    Welcome,
    /// No.
    Refused {
        /// Why.
        reason: Refusal,
    },
}

/// Why a process cannot attach. It serves its host by itself then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Refusal {
    /// After an upgrade.
    #[error("the Greenroom that runs is version {version}, and this one is {VERSION}")]
    Version {
        /// The server's.
        version: String,
    },
    /// By `--config`, `--set` or the environment.
    #[error("the Greenroom that runs is configured otherwise")]
    Configuration,
    /// Too many.
    #[error(
        "{limit} processes are attached to the Greenroom that runs, which is the limit (limits.connections)"
    )]
    Full {
        /// As configured.
        limit: usize,
    },
    /// What was said makes no sense.
    #[error("the Greenroom that runs did not understand the greeting")]
    Unintelligible,
}

/// A digest of all that a session depends on; where HTTP is served and what is logged is no part of it.
#[must_use]
pub fn digest(config: &Config, secret: &Secret) -> String {
    let mut relevant = config.clone();
    relevant.listen = ([127, 0, 0, 1], 0).into();
    // Where the agent lies is no part of it either: hosts start processes without the variable that may say so.
    relevant.agent = None;
    // Nor how an index is reached: that differs between hosts' environments, and no image depends on it.
    relevant.engine.installers = Installers::default();
    relevant.log = String::new();
    // What is masked does not tell values apart, so each is told by its own MAC.
    let told = relevant.pools.values().flat_map(|pool| pool.env.iter());
    let env: Vec<_> = told
        .map(|(name, value)| {
            (
                name.clone(),
                hex(&secret.mac("a variable", value.reveal().as_bytes())[..16]),
            )
        })
        .collect();
    relevant.log_format = LogFormat::Text;
    hex(&secret.mac(
        "configuration of a server",
        format!("{relevant:?}{env:?}").as_bytes(),
    )[..16])
}

/// The socket's path; a socket's name has little room.
fn socket_path(state_dir: &Path) -> io::Result<std::path::PathBuf> {
    const SOCKET_PATH_BYTES: usize = 107;
    let path = state_dir.join(SOCKET);
    if path.as_os_str().len() > SOCKET_PATH_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidFilename,
            format!(
                "{} is longer than {SOCKET_PATH_BYTES} bytes: choose a shorter state_dir",
                path.display()
            ),
        ));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, Loaded};

    fn config(text: &str) -> Config {
        let inputs = Inputs {
            text: text.to_owned(),
            ..Inputs::default()
        };
        Loaded::read(&inputs).unwrap().config
    }

    #[test]
    fn a_digest_is_of_what_matters() {
        let secret = Secret::new([1; 32]);
        let usual = digest(&config(""), &secret);
        assert_eq!(usual.len(), 32);
        assert_eq!(
            digest(&config("listen = \"127.0.0.1:9\"\nlog = \"debug\""), &secret),
            usual
        );
        assert_ne!(digest(&config("patience = \"5s\""), &secret), usual);
        assert_ne!(digest(&config(""), &Secret::new([2; 32])), usual);
        let with = |value: &str| config(&format!("[pool.python]\nenv = {{ A = \"{value}\" }}"));
        assert_ne!(digest(&with("one"), &secret), digest(&with("two"), &secret));
    }

    #[test]
    fn greetings_are_read_back() {
        let refused = Greeting::Refused {
            reason: Refusal::Version {
                version: "0.0.1".to_owned(),
            },
        };
        for greeting in [Greeting::Welcome, refused] {
            let text = serde_json::to_string(&greeting).unwrap();
            assert_eq!(
                serde_json::from_str::<Greeting>(&text).unwrap(),
                greeting,
                "{text}"
            );
        }
    }

    #[test]
    fn a_path_that_is_too_long_is_named() {
        let error = socket_path(Path::new(&format!("/{}", "x".repeat(120)))).unwrap_err();
        assert!(error.to_string().contains("state_dir"), "{error}");
    }
}
