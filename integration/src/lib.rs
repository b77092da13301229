//! The harness: starts the built server on real Docker and real gVisor, and talks to it as clients do.
//!
//! Everything a test starts carries a deployment name of its own, so that tests run beside each other and
//! beside a Greenroom that is in use, and so that what is left behind can be found and counted.

mod client;
mod command_line;
mod docker;
mod engine;
pub mod images;
mod packages;
mod remains;
mod reply;
mod resident;
mod server;
pub mod transcripts;
mod wire;

pub use client::{Answer, Client, Era};
pub use docker::Docker;
pub use engine::{Disk, LiveRestore, PrivateEngine};
pub use packages::{S3, node, packages};
pub use reply::Reply;
pub use resident::resident;
pub use server::{Config, Greenroom, MANY_BOOTS, Scheme, agent, binary};
pub use wire::{Flow, Wire};
