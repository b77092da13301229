//! What the server's guest client and the agent in a sandbox say to each other.
//!
//! HTTP/2 over one byte stream, JSON bodies, events as newline-delimited JSON. This crate holds the
//! paths, the bodies and the bounds, and nothing that does anything: `serde` is its only dependency, so
//! both sides can be read against it. A change of any type here that an older peer would misread raises
//! [`GENERATION`].
//!
//! | request | body → answer |
//! |---|---|
//! | `GET /[?wait=S]` | → [`Hello`]; with `wait` once it is ready or failed, after at most `S` seconds |
//! | `POST /boot` | [`BootRequest`] → 204: before anything of the guest's starts, where [`Begin`] says so |
//! | `GET /log` | → [`AppLog`] |
//! | `POST /lease` | [`LeaseRequest`] → [`LeaseGrant`], and the idle clock starts anew; 409 another key |
//! | `POST /lease/told` | → 204: the notice reached its caller |
//! | `GET /lease[?wait=S]` | → [`LeaseState`], with `wait` when it changes or after at most `S` seconds |
//! | `DELETE /lease?reason=R[&idle_ms=N]` | → 202 and the sandbox ends; 409 not idle for so long |
//! | `POST /runs` | [`RunRequest`] → stream of [`RunEvent`]; 429 queue full |
//! | `GET /runs` | → [`RunList`] |
//! | `GET /runs/{id}[?from=N][&wait=S]` | → stream of [`RunEvent`] from `N`; follows to the end, with `wait` for at most `S` seconds |
//! | `DELETE /runs/{id}` | → 202 interrupting, 404, 409 already finished |
//! | `POST /runs/{id}/told` | → 204: an answer with this run's news of a lost kernel has arrived |
//! | `GET /packages` | → [`Packages`] |
//! | `GET /files?path=P&recursive=B` | → [`FileList`] |
//! | `GET /files/{path}` (`Range: bytes=a-b`) | → bytes, 200 or 206; `x-greenroom-size` is the whole size |
//! | `GET /files/{path}?picture=N` | → a PNG or JPEG with no side longer than `N`; `x-greenroom-pixels` are [`Pixels`] |
//! | `PUT /files/{path}[?append=true][&once=HEX]` | bytes → [`FileEntry`], atomically; 409 where a mark `once` was used already |
//! | `DELETE /files/{path}` | → [`Deleted`] |
//! | `PUT /archive[?as_of=MS&left_out=N]` | tar → [`Unpacked`]: files, folders and links into the work directory, all or none; needs no lease. With `as_of` they are an earlier sandbox's: what was there goes, and the lease's first answers tell of it |
//! | `GET /archive?max=N[&since=MARK]` | → tar of at most `N` bytes, with [`Packed`] in `x-greenroom-packed` and its mark in `x-greenroom-mark`; 204 where nothing has changed since that mark, or, if that is another sandbox's, since this one was filled, or, without one, since it was new; 413 too large; 409 it is being packed already. A look: it does not touch the idle clock |
//! | `CONNECT 127.0.0.1:port` | → 200 and a byte tunnel |
//!
//! Every refusal is a [`Refusal`] with the HTTP status beside it in the table of [`RefusalKind`], but for one:
//! a sandbox that has decided to end answers everything except hello with 410 and [`Ended`]. Runs, files and
//! tunnels need a lease (409). A `wait` is cut to [`limits::WAIT_SECS`].
//!
//! Runs and lease travel on one connection, files and tunnels on a second one. The agent serves both alike and
//! always grants the large windows, since it trusts the server; the *server* grants the large ones on the second
//! connection only, so that what a hostile guest sends can neither fill its memory nor stall its runs.

mod agent_config;
mod boot;
mod files;
mod hello;
mod language;
mod lease;
mod packages;
mod range;
mod refusal;
mod runs;

pub mod limits;

pub use agent_config::AgentConfig;
pub use boot::{App, AppEnd, AppLog, Begin, BootRequest, Check, LastWords, Masked, Probe};
pub use files::{Deleted, FileEntry, FileKind, FileList, Packed, Pixels, Unpacked};
pub use hello::{Hello, KernelState, KernelView, Platform};
pub use language::{KernelName, Language, NoLanguage};
pub use lease::{
    ArchiveFault, EndReason, Ended, FilesFate, KeyDigest, LeaseGrant, LeaseRequest, LeaseState, LeaseView,
    RestartReason, Standing,
};
pub use packages::{PACKAGES_PATH, Package, Packages};
pub use range::ByteRange;
pub use refusal::{Refusal, RefusalKind};
pub use runs::{
    FileChange, FileChangeKind, KernelFate, Loss, LossCause, RunError, RunEvent, RunEventKind, RunId,
    RunList, RunOutcome, RunRequest, RunState, RunStatus, RunSummary, Stream, StreamSummary,
};

/// The version of this protocol. Guest and agent must have the same one: images are prepared by the
/// server that uses them, so a difference means that a stale sandbox outlived an upgrade.
pub const GENERATION: u32 = 4;

/// Where the agent lies in every prepared image.
pub const AGENT_PATH: &str = "/.greenroom/agent";

/// The agent's socket inside a sandbox: root's, mode 0600.
pub const SOCKET_PATH: &str = "/run/greenroom/agent.sock";

/// The directory that is the conversation's own; relative paths are relative to it.
pub const WORK_DIR: &str = "/mnt/data";

/// The user and group that everything but the agent runs as in interpreter pools.
pub const GUEST_UID: u32 = 65_532;

/// What the relay writes to its standard output once it has reached the agent's socket, before any byte
/// of the agent's: a channel that shows it is open, whatever the agent does afterwards.
pub const RELAY_PREFACE: &[u8] = b"greenroom-relay connected\n";

/// Header of file answers: the size of the whole file in bytes.
pub const SIZE_HEADER: &str = "x-greenroom-size";

/// Header of pictures: [`Pixels`].
pub const PIXELS_HEADER: &str = "x-greenroom-pixels";

/// Header of archives: [`Packed`].
pub const PACKED_HEADER: &str = "x-greenroom-packed";

/// Header of archives: tells what is in this one from what the work directory may become.
pub const MARK_HEADER: &str = "x-greenroom-mark";

/// The mark that no archive has: whoever asks what has changed since gets all there is.
pub const NO_MARK: &str = "-";
