//! The agent's first answer: who it is, where it runs, what it can run.

use serde::{Deserialize, Serialize};

use crate::{Language, LeaseState};

/// `GET /`: keeps its shape across generations, so that any server can name what it met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::GENERATION`] of the agent.
    pub generation: u32,
    /// The agent's version, for people.
    pub version: String,
    /// Random per start of the agent: tells a restarted sandbox from the one that was known.
    pub boot: String,
    /// True once every kernel in [`crate::AgentConfig::ready`] answers and the preloads are done.
    pub ready: bool,
    /// Why it will never be ready, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// What the agent saw of the machine under it before any guest code ran.
    pub platform: Platform,
    /// The kernels of this image.
    pub kernels: Vec<KernelView>,
    /// [`crate::AgentConfig::port`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whose the sandbox is.
    pub lease: LeaseState,
    /// Milliseconds since the agent started.
    pub uptime_ms: u64,
    /// Bytes that have been written to the root filesystem and are still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_used_bytes: Option<u64>,
}

/// The agent's look at the machine: a claim, made before any guest code ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// True if several independent marks say gVisor, each of which a Linux kernel cannot show.
    pub gvisor: bool,
    /// `/proc/version`, bounded.
    pub kernel: String,
    /// Processors as seen inside.
    pub cpus: u32,
    /// `MemTotal` in bytes as seen inside.
    pub memory_bytes: u64,
    /// Bytes of the root filesystem as seen inside.
    pub disk_bytes: u64,
}

/// One kernel as hello shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelView {
    /// What it runs.
    pub language: Language,
    /// Where it stands.
    pub state: KernelState,
    /// Its version for people, such as `Python 3.13.5, IPython 9.1.0`, once it has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Where a kernel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelState {
    /// Not started; it starts with its first run.
    Dormant,
    /// Starting or preloading.
    Starting,
    /// Waiting for code.
    Idle,
    /// Running code.
    Busy,
    /// It cannot start in this image.
    Absent,
}
