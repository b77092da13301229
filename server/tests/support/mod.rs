//! What the server's lifecycle tests share: an engine in memory with real agents in it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of this"
)]
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

pub mod contract;
pub mod fake_engine;
pub mod hostile;
pub mod house;
pub mod mcp;
pub mod mortal;
pub mod pools;
pub mod server;

/// The agent's own scripted kernel: its code is a script of one word a line, on tokio's clock.
#[path = "../../../sandbox-images/agent/tests/wire/support/kernel.rs"]
pub mod kernel;

use greenroom::{
    conversation::PoolName,
    sandbox::{SandboxSpec, Stay},
};
use greenroom_protocol::AgentConfig;

/// What a pool named `python` would ask a fake engine for.
pub fn spec() -> SandboxSpec {
    SandboxSpec {
        pool: PoolName::parse("python").unwrap(),
        image: "image".to_owned(),
        runtime: "runsc".to_owned(),
        cpu_millis: 1000,
        memory_bytes: 512 << 20,
        pids: 512,
        nproc: 128,
        nofile: 1024,
        stay: Stay::default(),
        agent: AgentConfig::default(),
    }
}
