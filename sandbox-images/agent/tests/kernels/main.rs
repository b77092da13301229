//! The kernels with a real python3, a real bash and a real dash, as this user and without a sandbox.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod bash;
mod python;
mod sh;
mod support;
mod typescript;
