//! The work directory as the agent's own user and through the files process, as the guest where the tests
//! run as root.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod archive;
mod changes;
mod desk;
mod files;
