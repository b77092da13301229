//! The configuration: `greenroom.toml`, overlaid by `GREENROOM_*` and by flags, into one typed [`Config`].
//!
//! Every problem is reported at once, with its line. A key's variable is its dotted name in capitals with `_`
//! for `.` and `-`: `pool.python.warm` is `GREENROOM_POOL_PYTHON_WARM`. Nothing else reads the environment.

mod containers;
mod dependencies;
mod doors;
mod layers;
mod offer;
mod parts;
mod pools;
mod read;
mod settings;
mod units;
mod values;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use greenroom_protocol::{Language, Masked};
use greenroom_tool_schemas::ToolName;

use crate::{
    auth::{Required, Scope, Signing, Word},
    conversation::PoolName,
    engine::docker::Installers,
    sandbox::Dependencies,
};

pub use self::{
    containers::{ContainerConfig, Lifecycle, PoolKind},
    layers::{Effective, Problem, Report, Source},
    offer::{Offer, Offers},
    read::{Inputs, Loaded},
    units::{Cpus, Period, Size},
};

/// No call takes longer than this to answer: hosts give up after 60 s without a word.
pub(crate) const LONGEST_CALL: Duration = Duration::from_secs(55);

/// Everything that an operator decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `listen`: where HTTP is served. Off loopback everybody is authenticated.
    pub listen: SocketAddr,
    /// `default_pool`: the pool of a call that names none.
    pub default_pool: PoolName,
    /// `tools`: what `tools/list` shows.
    pub tools: Vec<ToolName>,
    /// `aliases`: names that other systems have for the same.
    pub aliases: Aliases,
    /// `errors`: whether the failure of user code is flagged.
    pub errors: ErrorStyle,
    /// `patience`: how long a call waits for its run before it is handed back as a background run.
    pub patience: Duration,
    /// `stdio_linger`: how long a server that `greenroom stdio` started stays when its last process has ended.
    pub stdio_linger: Duration,
    /// `state_dir`: the secret, the socket for `greenroom stdio`, its log, the keys.
    pub state_dir: PathBuf,
    /// `secret_file`: where the deployment's secret lies, if not in the state directory.
    pub secret_file: Option<PathBuf>,
    /// `agent`: the agent's binary, if it does not lie beside the server's own.
    pub agent: Option<PathBuf>,
    /// `log`: a filter such as `info` or `greenroom=debug,info`.
    pub log: String,
    /// `log_format`.
    pub log_format: LogFormat,
    /// `[engine]`.
    pub engine: EngineConfig,
    /// `[auth]`.
    pub auth: AuthConfig,
    /// `[http]`.
    pub http: HttpConfig,
    /// `[conversation]`.
    pub conversation: ConversationConfig,
    /// `[limits]`.
    pub limits: Limits,
    /// `[links]`.
    pub links: LinkConfig,
    /// `archive` and `archive_*`.
    pub archive: ArchiveConfig,
    /// `[pool.*]`, by name; at least one.
    pub pools: BTreeMap<PoolName, PoolConfig>,
}

/// Tools under the names of another system, beside our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aliases {
    /// None.
    None,
    /// Those of Azure's dynamic sessions.
    Azure,
}

/// Whether `isError` is set for what user code did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorStyle {
    /// An exception or a time-out of user code is a result like any other.
    Result,
    /// It is flagged as an error too.
    Flag,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[engine]`: what makes sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// `kind`.
    pub kind: EngineKind,
    /// `socket`: `unix:///…`, `tcp://host:port`, or a path.
    pub socket: String,
    /// `runtime`: what isolates.
    pub runtime: Runtime,
    /// `deployment`: labels everything of this installation, beside the secret's fingerprint.
    pub deployment: String,
    /// `build_network`, and what of the server's environment goes with it: how a pool's packages are reached.
    pub installers: Installers,
}

/// The engines that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// A Docker engine.
    Docker,
}

/// What stands between guest code and the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// gVisor; a sandbox that does not prove it is destroyed.
    Runsc,
    /// Nothing but a container: only with `engine.insecure = true`.
    Runc,
}

impl Runtime {
    /// Whether a sandbox must show gVisor before it serves anybody.
    #[must_use]
    pub const fn must_prove_gvisor(self) -> bool {
        matches!(self, Self::Runsc)
    }
}

/// `[auth]`: who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// `required`: of whom a credential is demanded.
    pub required: Required,
    /// `[auth.issuer.*]`, in the order of their names.
    pub issuers: Vec<IssuerConfig>,
}

/// `[auth.issuer.<name>]`: whose tokens are good, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerConfig {
    /// What logs call it.
    pub name: String,
    /// `issuer`: its address, exactly as its tokens have it.
    pub issuer: String,
    /// `audience`: a token is for one of these, or not for this server.
    pub audience: Vec<String>,
    /// `jwks_url`: where its keys are, if its own metadata does not say so.
    pub jwks_url: Option<String>,
    /// `signing`: how its tokens may be signed.
    pub signing: Vec<Signing>,
    /// `run`, `files`, `admin`: which scopes of a token mean which of ours.
    pub names: Vec<(Scope, Vec<String>)>,
    /// `grants`: scopes that every token has.
    pub grants: Vec<Scope>,
    /// `pools`: where its tokens are good; nowhere means everywhere.
    pub pools: Vec<PoolName>,
    /// `asserts_conversations`: what its bearers' word of conversations and users is worth.
    pub word: Word,
    /// `leeway`: how far its clock and ours may be apart.
    pub leeway: Duration,
}

/// `[http]`: who may talk to the listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpConfig {
    /// `allowed_hosts`: names that `Host` may have, beside this machine's own.
    pub allowed_hosts: Vec<String>,
    /// `sse`: whether HTTP+SSE of 2024-11-05 is served at `/sse` and `/messages` too.
    pub sse: bool,
    /// `allowed_origins`: what `Origin` may be, with scheme and port or `:*`, beside this machine's own.
    pub allowed_origins: Vec<String>,
    /// `tls_cert` and `tls_key`: https instead of http.
    pub tls: Option<TlsConfig>,
    /// `forward_listen`: a second address, which is for the programs of containers only: an origin of their own.
    pub forward_listen: Option<SocketAddr>,
}

/// The certificate that a listener shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// `http.tls_cert`: the chain, its own certificate first, as PEM.
    pub cert: PathBuf,
    /// `http.tls_key`: its private key, as PEM.
    pub key: PathBuf,
}

/// `[conversation]`: how hosts say which conversation a call belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationConfig {
    /// `meta`: places in a request's `_meta`, tried in order.
    pub meta: Vec<MetaPath>,
    /// `headers`: HTTP headers, tried in order after `_meta`.
    pub headers: Vec<String>,
    /// `user_meta`: places in `_meta` that name the host's user.
    pub user_meta: Vec<MetaPath>,
    /// `user_headers`: headers that name the host's user.
    pub user_headers: Vec<String>,
}

/// A place in `_meta`: `openai/session`, or within an object `x-codex-turn-metadata > session_id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaPath(pub Vec<String>);

/// `[limits]`: bounds of the front; those of a sandbox are its pool's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `request`: bytes of one request's body.
    pub request: Size,
    /// `bodies`: bytes of all bodies that are being read or worked on.
    pub bodies: Size,
    /// `upload`: bytes that a file may reach by uploads.
    pub upload: Size,
    /// `calls`: tool calls in flight.
    pub calls: usize,
    /// `connections`: open HTTP connections.
    pub connections: usize,
    /// `output_chars`: characters of text in one answer, unless the call asks for another number.
    pub output_chars: usize,
    /// `drain`: how long a shutdown waits for calls in flight.
    pub drain: Duration,
}

/// `[links]`: files in and out without passing the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// `url`: where the server is reached from outside, if not by the name that its clients use.
    pub url: Option<String>,
    /// `expire`: how long a link is good.
    pub expire: Duration,
    /// `upload`: bytes of a file that comes by a link.
    pub upload: Size,
}

/// `archive`: files that outlive their sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// `archive`: where.
    pub place: ArchivePlace,
    /// `archive_endpoint`: where the bucket is, if not at Amazon. Empty: there.
    pub endpoint: String,
    /// `archive_region`: the bucket's. Empty: as the environment says.
    pub region: String,
    /// `archive_session`: bytes of one session's files.
    pub session: Size,
    /// `archive_total`: bytes of all archives, as they lie there.
    pub total: Size,
    /// `archive_keep`: an archive that nobody came back for goes after this long.
    pub keep: Duration,
}

/// Where archives lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchivePlace {
    /// Nowhere: files are gone with their sandbox.
    Off,
    /// In the state directory.
    StateDir,
    /// In a folder of their own.
    Folder(PathBuf),
    /// In a bucket of S3, or of what speaks its protocol.
    S3 {
        /// Its name.
        bucket: String,
        /// What all names in it begin with.
        prefix: String,
    },
}

/// `[pool.<name>]`: one kind of sandbox, and how many of it stand ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// `kind`, and what only this kind has.
    pub kind: PoolKind,
    /// `description`: what a model reads of this pool where it may choose among several.
    pub description: Option<String>,
    /// `env` and `env_from`: variables of the guest's processes.
    pub env: BTreeMap<String, Masked>,
    /// `image`: what sandboxes are made from.
    pub image: String,
    /// `packages`, `apt` and `requirements`: what is installed on top of the image.
    pub dependencies: Dependencies,
    /// `install_timeout`: how long that may take.
    pub install_timeout: Duration,
    /// `languages`: kernels that are up before a sandbox counts as warm; the first is the default. A pool of
    /// containers has none unless it says so: what its image has starts when it is first needed.
    pub languages: Vec<Language>,
    /// `seed`: a folder whose contents each new sandbox finds in its work directory.
    pub seed: Option<PathBuf>,
    /// `preload`: Python modules imported before a sandbox counts as warm.
    pub preload: Vec<String>,
    /// `warm`: how many wait for a conversation.
    pub warm: usize,
    /// `warm_max`: how many wait where many conversations began at once lately.
    pub warm_max: usize,
    /// `max`: sandboxes of this pool at once, bound ones and warm ones.
    pub max: usize,
    /// `boots`: boots under way at once.
    pub boots: usize,
    /// `idle`: a session ends after this long without a run or a transfer.
    pub idle: Duration,
    /// `lifetime`: a session ends this long after it began.
    pub lifetime: Duration,
    /// `evict_after`: where the pool is full, a session that has been idle for so long makes room for another; `never`
    /// is none.
    pub evict_after: Option<Duration>,
    /// `warm_age`: a warm sandbox older than this is replaced.
    pub warm_age: Duration,
    /// `boot_timeout`: a boot that takes longer has failed.
    pub boot_timeout: Duration,
    /// `claim_wait`: how long a new conversation waits for a sandbox.
    pub claim_wait: Duration,
    /// `cpus`.
    pub cpus: Cpus,
    /// `memory`, tmpfs included.
    pub memory: Size,
    /// `disk`: what the guest may write, rounded up to a size that set-up registered.
    pub disk: Size,
    /// The engine's runtime for that disk, such as `runsc-4g`.
    pub runtime: String,
    /// `pids`: host tasks of the sandbox, a backstop.
    pub pids: u32,
    /// `nproc`: processes of the guest's user.
    pub nproc: u32,
    /// `nofile`: open files of one process.
    pub nofile: u32,
    /// `run_timeout`: life of a run that asks for nothing else.
    pub run_timeout: Duration,
    /// `run_timeout_max`: the most that a run may ask for.
    pub run_timeout_max: Duration,
    /// `spill`: bytes of each output stream of a run that go to a file at most.
    pub spill: Size,
}
