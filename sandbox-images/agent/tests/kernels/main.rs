//! The kernels with a real python3 and a real bash, as this user and without a sandbox.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod bash;
mod python;
mod support;
mod typescript;
