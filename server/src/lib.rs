//! Greenroom: the MCP server that gives every conversation its own computer. This page is the map.
//!
//! # Words
//! A **conversation** is the client's key; with its **principal** (who is calling) it names a **session**, which
//! is bound in one **pool** to one **sandbox**. An **engine** makes sandboxes; the **agent** is our program inside
//! each, the **guest** is this server's client of it over a **channel**. A **kernel** runs code, a **run** is one
//! execution and its outcome. A call finds its session `new`, `existing` or `restarted`.
//!
//! # The way of a call
//! ```text
//! POST /mcp  tools/call execute_code
//!   http          limits, Host and Origin → Identity
//!   mcp::endpoint which era, which transport session
//!   mcp::tools    which conversation, which pool; arguments parsed once into types
//!   sessions      a cached guest that is open and has nothing to tell → existing
//!                 else find, decide, act: claim a warm sandbox, fill it with archived files if there are any, adopt
//!                 it, lease it → new · restarted(why)
//!   guest         POST /runs over the open channel ─▶ agent: kernel.run(code) ─▶ events
//!   mcp::render   the one place that shapes answers
//! ```
//! `POST /pools/{pool}/executions` goes the same way by `http::pools` and `rest`, which have their own shapes.
//! A hot call is one HTTP request, one HTTP/2 request over an exec stream and one exchange over a pipe inside.
//!
//! # Rooms
//! | module | owns |
//! |---|---|
//! | [`config`] | `greenroom.toml`, `GREENROOM_*` and flags as one typed value; every problem at once |
//! | [`conversation`] | ids, principals, and the HMAC that names a session |
//! | [`auth`] | who calls and what they may do: identities, scopes, pools |
//! | [`sessions`] | session name → open guest; single flight; what a caller must hear |
//! | [`pool`] | warm sandboxes: one keeper task with a pure ledger, claims in turn, the sweep |
//! | [`archive`] | files that outlive their sandbox: packed, sealed, stored, and put into the next one |
//! | [`guest`] | HTTP/2 to an agent; everything from inside is bounded here |
//! | [`engine`] | the seam to what makes sandboxes, and Docker behind it |
//! | [`mcp`] | tools, which conversation a call belongs to, answers, transports |
//! | [`attach`] | `greenroom stdio` and the server that it attaches to, over a unix socket |
//! | [`control`] | `greenroom reload`, and the servers that hear it |
//! | [`links`] | files in and out by signed addresses, past the model |
//! | [`copy`] | `greenroom cp`: the same without a server |
//! | [`alone`] | a server in this process for one conversation: for `cp` and `forward` |
//! | [`share`] | the one folder of this machine that stdio may copy from and to |
//! | `rest` | the data plane of Azure's dynamic sessions: requests read, answers shaped, purely |
//! | [`forward`] | requests that go on to the program of a container: headers, kept connections |
//! | [`places`] | calls in flight: one limit, and nobody has all of it |
//! | `transcript`, `delivery` | a run's events gathered; what an answer owes once it has arrived: for both protocols |
//! | [`http`] | the data plane's requests, the listener, its limits, health, readiness, metrics |
//! | [`serve`] | wires them, and shuts them down in order |
//! | [`operator`] | what the command line shows of a deployment and does to it, server or not |
//! | [`doctor`] | boots one sandbox and says what is wrong with a host |
//!
//! The other half of the house is inside the sandboxes: `sandbox-images/agent` is PID 1 there, and
//! `sandbox-images/protocol` is what both halves say to each other.
//!
//! # What is absent
//! No database: the engine's names are the record, the sandbox's own lease is the clock. No scheduler: one engine
//! is one pool of places. No reset of a used sandbox. No lock across an await. No accounts: a key or a
//! token is a principal.
//!
//! # Who may use whom
//! ```text
//! mcp, http → { rest, transcript, delivery } · mcp, http → sessions → { pool, archive } → sandbox → { guest → protocol, engine }
//!                                                        engine::docker → engine
//! ```
//! `rmcp` is named in `mcp` only, `axum` in `http` only, `bollard` in `engine::docker` only; a test greps for it.
//!
//! # What must never happen
//! A sandbox serves one session, ever. State lost is said, with the reason, in the answer that meets it. Nobody
//! here owns a bound sandbox: it belongs to its conversation and ends itself; a server holds channels only, and
//! can be killed at any moment.

pub mod alone;
pub mod archive;
pub mod attach;
pub mod auth;
pub mod config;
pub mod control;
pub mod conversation;
pub mod copy;
mod delivery;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod forward;
pub mod guest;
pub mod http;
pub mod links;
pub mod mcp;
pub mod metrics;
pub mod operator;
mod peer;
pub mod places;
pub mod pool;
mod rest;
pub mod sandbox;
pub mod serve;
pub mod sessions;
pub mod share;
pub mod state_dir;
mod transcript;
