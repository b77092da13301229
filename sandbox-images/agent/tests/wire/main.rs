//! The agent as its server meets it: HTTP/2 over an in-memory channel, scripted kernels, tokio's paused clock.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod files;
mod kernels;
mod lease;
mod requests;
mod runs;
mod stopping;
mod support;
