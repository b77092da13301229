//! The agent as its server meets it: HTTP/2 over an in-memory channel, scripted kernels, tokio's paused clock.

mod runs;
mod support;
