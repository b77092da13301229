//! The walk: every key with its default, and the checks between keys.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use greenroom_tool_schemas::ToolName;
use tracing_subscriber::EnvFilter;

use super::{
    Aliases, ArchiveConfig, ArchivePlace, Config, ConversationConfig, EngineConfig, EngineKind, ErrorStyle,
    HttpConfig, LONGEST_CALL, Limits, LinkConfig, LogFormat, MetaPath, Runtime, Size, dependencies,
    doors::{auth, forward_listen, listen, tls},
    layers::{Effective, Layers, Report, place},
    pools::{default_pool, default_pool_name, pools},
    units::{HOUR, MINUTE, SECOND},
    values::Tools,
};
/// What a configuration is made from.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The file's path, for reports.
    pub file: Option<PathBuf>,
    /// The file's text.
    pub text: String,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// `--set` and the flags that stand for it: dotted key and value.
    pub flags: Vec<(String, String)>,
    /// Whether this process is root's, which decides where state lies.
    pub root: bool,
    /// Processors of this machine: how many boots are worth starting at once.
    pub cpus: usize,
}

/// A configuration that holds, and where each value of it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// Each setting with its source, in the order of the walk.
    pub effective: Vec<Effective>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

impl Loaded {
    /// Reads and checks.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn read(inputs: &Inputs) -> Result<Self, Report> {
        let mut from = Layers::new(
            &inputs.text,
            inputs.env.iter().cloned(),
            inputs.flags.iter().cloned(),
        );
        let config = walk(&mut from, inputs);
        from.finish();
        if from.problems.is_empty() {
            Ok(Self {
                config,
                effective: from.effective,
                file: inputs.file.clone(),
            })
        } else {
            Err(Report {
                file: inputs.file.clone(),
                problems: from.problems,
            })
        }
    }

    /// The effective values as a TOML file, each with its source as a comment.
    #[must_use]
    pub fn to_toml(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let mut section = "";
        // TOML wants the keys without a table first.
        let (bare, rest): (Vec<_>, Vec<_>) = self.effective.iter().partition(|e| !e.key.contains('.'));
        for Effective { key, value, source } in bare.into_iter().chain(rest) {
            let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
            if table != section {
                let _ = writeln!(text, "\n[{table}]");
                section = table;
            }
            let place = place(source, self.file.as_deref());
            let _ = match value.as_str() {
                "" => writeln!(text, "# {name} is not set"),
                value => writeln!(text, "{:<40}  # {place}", format!("{name} = {value}")),
            };
        }
        text
    }
}

fn walk(from: &mut Layers, inputs: &Inputs) -> Config {
    let auth = auth(from);
    let listen = listen(from, &auth);
    let config = Config {
        listen,
        tools: from.take("tools", Tools(ToolName::STANDARD.to_vec())).0,
        aliases: from.take("aliases", Aliases::None),
        errors: from.take("errors", ErrorStyle::Result),
        patience: patience(from),
        stdio_linger: from.take("stdio_linger", 10 * MINUTE),
        state_dir: from.take("state_dir", default_state_dir(inputs)),
        secret_file: from.take("secret_file", None),
        agent: from.take("agent", None),
        log: log(from),
        log_format: from.take("log_format", LogFormat::Text),
        engine: engine(from, &inputs.env),
        http: HttpConfig {
            allowed_hosts: from.take("http.allowed_hosts", Vec::new()),
            allowed_origins: from.take("http.allowed_origins", Vec::new()),
            sse: from.take("http.sse", true),
            tls: tls(from),
            forward_listen: forward_listen(from, listen, &auth),
        },
        auth,
        conversation: conversation(from),
        limits: limits(from),
        links: links(from),
        archive: archive(from),
        pools: BTreeMap::new(),
        default_pool: default_pool_name(),
    };
    let pools = pools(from, config.engine.runtime, inputs);
    Config {
        default_pool: default_pool(from, &pools),
        pools,
        ..config
    }
}

fn log(from: &mut Layers) -> String {
    let (log, source) = from.take_from("log", "info".to_owned());
    if let Err(error) = EnvFilter::try_new(&log) {
        let message = format!("{error}: write a filter such as info, or greenroom=debug,info");
        from.problem(source, "log", message);
    }
    log
}

fn patience(from: &mut Layers) -> Duration {
    let (patience, source) = from.take_from("patience", 45 * SECOND);
    if patience > LONGEST_CALL || patience < SECOND {
        let message = format!(
            "must lie between 1s and {}s: hosts give up after 60s",
            LONGEST_CALL.as_secs()
        );
        from.problem(source, "patience", message);
    }
    patience
}

fn engine(from: &mut Layers, own: &[(String, String)]) -> EngineConfig {
    let (runtime, source) = from.take_from("engine.runtime", Runtime::Runsc);
    let insecure = from.take("engine.insecure", false);
    if runtime == Runtime::Runc && !insecure {
        let message = "runc does not isolate hostile code; if you mean it, set engine.insecure = true too";
        from.problem(source, "engine.runtime", message.to_owned());
    }
    EngineConfig {
        kind: from.take("engine.kind", EngineKind::Docker),
        socket: from.take("engine.socket", "unix:///var/run/docker.sock".to_owned()),
        runtime,
        deployment: from.take("engine.deployment", "default".to_owned()),
        installers: dependencies::installers(from.take("engine.build_network", "bridge".to_owned()), own),
    }
}

fn conversation(from: &mut Layers) -> ConversationConfig {
    let path = |key: &str| MetaPath(key.split(" > ").map(str::to_owned).collect());
    ConversationConfig {
        meta: from.take(
            "conversation.meta",
            vec![
                path("openai/session"),
                path("x-codex-turn-metadata > session_id"),
                path("vscode.conversationId"),
            ],
        ),
        headers: from.take(
            "conversation.headers",
            vec!["x-conversation-id".to_owned(), "x-openwebui-chat-id".to_owned()],
        ),
        user_meta: from.take("conversation.user_meta", vec![path("openai/subject")]),
        user_headers: from.take(
            "conversation.user_headers",
            vec!["x-openwebui-user-id".to_owned()],
        ),
    }
}

fn limits(from: &mut Layers) -> Limits {
    Limits {
        request: from.take("limits.request", Size::mib(8)),
        bodies: from.take("limits.bodies", Size::mib(64)),
        upload: from.take("limits.upload", Size::mib(128)),
        calls: at_least_one(from, "limits.calls", 256),
        connections: at_least_one(from, "limits.connections", 1024),
        output_chars: at_least_one(from, "limits.output_chars", 24_000),
        drain: from.take("limits.drain", 10 * SECOND),
    }
}

fn links(from: &mut Layers) -> LinkConfig {
    let (url, source) = from.take_from("links.url", None::<String>);
    if let Some(url) = &url
        && !["http://", "https://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
    {
        let message = format!("{url:?} is not an address: write https://greenroom.example");
        from.problem(source, "links.url", message);
    }
    let (expire, source) = from.take_from("links.expire", 30 * MINUTE);
    if !(MINUTE..=24 * HOUR).contains(&expire) {
        let message = "must lie between 1m and 24h".to_owned();
        from.problem(source, "links.expire", message);
    }
    LinkConfig {
        url,
        expire,
        upload: from.take("links.upload", Size::gib(4)),
    }
}

fn archive_endpoint(from: &mut Layers) -> String {
    let (endpoint, source) = from.take_from("archive_endpoint", String::new());
    if !endpoint.is_empty() && !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        let message = format!("{endpoint:?} does not begin with https:// or http://");
        from.problem(source, "archive_endpoint", message);
    }
    endpoint
}

fn archive(from: &mut Layers) -> ArchiveConfig {
    let config = ArchiveConfig {
        place: from.take("archive", ArchivePlace::StateDir),
        endpoint: archive_endpoint(from),
        region: from.take("archive_region", String::new()),
        session: from.take("archive_session", Size::mib(256)),
        total: from.take("archive_total", Size::gib(10)),
        keep: from.take("archive_keep", 7 * 24 * HOUR),
    };
    if config.session > config.total {
        let message = format!("must not be more than archive_total = {}", config.total);
        let source = from.source("archive_session");
        from.problem(source, "archive_session", message);
    }
    config
}

fn at_least_one(from: &mut Layers, key: &str, default: usize) -> usize {
    let (number, source) = from.take_from(key, default);
    if number == 0 {
        from.problem(source, key, "must be at least 1".to_owned());
    }
    number
}

fn default_state_dir(inputs: &Inputs) -> PathBuf {
    let env = |name: &str| {
        inputs
            .env
            .iter()
            .find(|(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| v)
    };
    if inputs.root {
        return PathBuf::from("/var/lib/greenroom");
    }
    match (env("XDG_STATE_HOME"), env("HOME")) {
        (Some(state), _) => Path::new(state).join("greenroom"),
        (None, Some(home)) => Path::new(home).join(".local/state/greenroom"),
        (None, None) => PathBuf::from("/var/lib/greenroom"),
    }
}
