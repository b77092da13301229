//! What the engine tells an agent on its command line when a sandbox is created.

use serde::{Deserialize, Serialize};

use crate::{Begin, GUEST_UID, Language, SOCKET_PATH, WORK_DIR};

/// The agent's whole configuration, passed as one JSON argument: `agent init '{…}'`.
///
/// Nothing secret belongs here: a guest can read its PID 1's arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Where the agent listens.
    pub socket: String,
    /// The conversation's directory.
    pub work_dir: String,
    /// The user that children run as; `None` where the platform lets the agent have one user only.
    pub guest_uid: Option<u32>,
    /// Instead of `guest_uid`, a user as images name them: `name`, `uid`, each with `:group` or without. What it is
    /// called is the image's to say, so it is looked up inside.
    pub user: Option<String>,
    /// Where the image's own program listens: for servers to know, whatever their pool is like by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// When the guest's processes start.
    pub begin: Begin,
    /// Kernels that must answer before the sandbox counts as ready. The first is the default language.
    pub ready: Vec<Language>,
    /// Python modules imported before the sandbox counts as ready.
    pub preload: Vec<String>,
    /// An unbound sandbox with no live channel for this long ends itself, in milliseconds.
    pub unbound_ms: u64,
    /// Bytes of each output stream of a run that are spilled to a file at most.
    pub spill_bytes: u64,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            socket: SOCKET_PATH.to_owned(),
            work_dir: WORK_DIR.to_owned(),
            guest_uid: Some(GUEST_UID),
            user: None,
            port: None,
            begin: Begin::AtOnce,
            ready: vec![Language::Python],
            preload: Vec::new(),
            unbound_ms: 30_000,
            spill_bytes: 64 << 20,
        }
    }
}
