//! Greenroom: the MCP server that gives every conversation its own computer. This page is the map.
//!
//! # Words
//! A **conversation** is the client's key; with its **principal** (who is calling) it names a **session**, which
//! is bound in one **pool** to one **sandbox**. An **engine** makes sandboxes; the **agent** is our program inside
//! each, the **guest** is this server's client of it over a **channel**. A **kernel** runs code, a **run** is one
//! execution and its outcome. A call finds its session `new`, `existing` or `restarted`.
//!
//! # Who may use whom
//! ```text
//! mcp, http → sessions → pool → sandbox → { guest → protocol, engine }
//!                                           engine::docker → engine
//! ```
//! `rmcp` is named in `mcp` only, `axum` in `http` only, `bollard` in `engine::docker` only; a test greps for it.
//!
//! # What must never happen
//! A sandbox serves one session, ever. State lost is said, with the reason, in the answer that meets it. Nobody
//! here owns a bound sandbox: it belongs to its conversation and ends itself; a server holds channels only, and
//! can be killed at any moment.

pub mod config;
pub mod conversation;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod guest;
pub mod http;
pub mod mcp;
pub mod metrics;
pub mod pool;
pub mod sandbox;
pub mod serve;
pub mod sessions;
pub mod state_dir;
