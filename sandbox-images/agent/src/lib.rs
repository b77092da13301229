//! The agent: PID 1 of every sandbox, and the only program of ours inside it.
//!
//! ```text
//! relay (stdio of an exec stream) ─▶ /run/greenroom/agent.sock ─▶ serve ─┬─▶ runs ──▶ kernel::{python, shell, jupyter}
//!                                                                        ├─▶ files (a child with the guest's uid)
//!                                                                        ├─▶ tunnel
//!                                                                        ├─▶ app: the image's own program, its probes
//!                                                                        └─▶ lease ─▶ exit code
//! ```
//! The agent trusts its server and nobody inside: every child runs as the guest, and what a child says
//! is bounded before it is passed on.

mod agent;
mod app;
mod changes;
pub mod child;
mod crowd;
mod descent;
pub mod errand;
pub mod files;
mod images;
pub mod kernel;
mod lease;
mod output;
mod packages;
pub mod platform;
mod probes;
mod processes;
pub mod relay;
mod runs;
mod serve;
mod tenure;
pub mod tunnel;
pub mod user;

pub use agent::{Agent, Parts};
