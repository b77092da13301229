//! Sessions as they are shown.

use schemars::JsonSchema;
use serde::Serialize;

/// A session.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Session")]
pub(crate) struct SessionObject {
    pub(crate) identifier: String,
    /// Another sandbox has another.
    pub(crate) etag: String,
    pub(crate) created_at: String,
    pub(crate) last_accessed_at: String,
    /// When it ends if nothing is asked of it until then.
    pub(crate) expires_at: String,
    /// The same: clients read either.
    pub(crate) expire_at: String,
}

/// A page of sessions.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Sessions")]
pub(crate) struct SessionPage {
    pub(crate) value: Vec<SessionObject>,
    /// The same: clients read either.
    pub(crate) sessions: Vec<SessionObject>,
    pub(crate) count: usize,
    pub(crate) next_link: Option<String>,
}
