//! The data plane of Azure's dynamic sessions, as far as it is pure: what a request asks, and how it is answered.
//!
//! ```text
//! path, query ─▶ address   which pool, which operation, which dialect
//! body        ─▶ ask       what is to run, liberal in what it reads
//!                shell     a command as a line for the bash kernel
//!                form      which file a part of an upload is
//!             ◀─ execution what came of a run   ┐
//!             ◀─ listing   files                ├ strict, one shape a dialect
//!             ◀─ session   sessions             │
//!             ◀─ fault     why not              ┘
//!                openapi   all of it as a document
//! ```
//! Three dialects are spoken by software that is installed: A0 (`python/…`), A (`code/execute`, `files/upload`) and
//! B (`executions`, `files`). They are one set of operations; only the shapes differ, and the path decides which.
//! `http::pools` does what is asked.

pub(crate) mod address;
pub(crate) mod ask;
pub(crate) mod execution;
pub(crate) mod fault;
pub(crate) mod form;
pub(crate) mod listing;
pub(crate) mod news;
pub(crate) mod openapi;
pub(crate) mod session;
pub(crate) mod shell;
