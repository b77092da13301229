//! The walk: every key with its default, and the checks between keys.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use greenroom_protocol::Language;
use greenroom_tool_schemas::ToolName;
use tracing_subscriber::EnvFilter;

use super::{
    Aliases, ArchiveConfig, ArchivePlace, AuthConfig, Config, ConversationConfig, Cpus, EngineConfig,
    EngineKind, ErrorStyle, HttpConfig, IssuerConfig, LONGEST_CALL, Lifecycle, Limits, LinkConfig, LogFormat,
    MetaPath, PoolConfig, PoolKind, Runtime, Size, TlsConfig,
    containers::{self, KindWord},
    dependencies,
    layers::{Effective, Layers, Raw, Report, Source, place},
    settings::{Setting, words},
};
use crate::{
    auth::{Required, Scope, Signing, Word, is_trustworthy},
    conversation::PoolName,
};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Disk sizes for which set-up registers a runtime: Docker's API cannot pass runsc's flag per container.
const DISKS: [(Size, &str); 3] = [
    (Size::gib(1), "runsc-1g"),
    (Size::gib(4), "runsc-4g"),
    (Size::gib(16), "runsc-16g"),
];

/// Characters of a pool's description.
const DESCRIPTION_CHARS: usize = 200;

/// Below this the sentry runs out of host tasks: an idle sandbox has 34.
const LEAST_PIDS: u32 = 128;

/// Below this a sandbox does not boot.
const LEAST_MEMORY: Size = Size::mib(64);

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

fn auth(from: &mut Layers) -> AuthConfig {
    let required = from.take("auth.required", Required::Auto);
    let named = from.tables_under("auth.issuer");
    let issuers = named.into_iter().map(|(name, _)| issuer(from, name)).collect();
    AuthConfig { required, issuers }
}

fn tls(from: &mut Layers) -> Option<TlsConfig> {
    let (cert, of_cert) = from.take_from("http.tls_cert", None);
    let (key, of_key) = from.take_from("http.tls_key", None);
    let alone = |other: &str| format!("goes with {other}: set both, or none for http");
    match (cert, key) {
        (Some(cert), Some(key)) => return Some(TlsConfig { cert, key }),
        (None, None) => {}
        (Some(_), None) => from.problem(of_cert, "http.tls_cert", alone("http.tls_key")),
        (None, Some(_)) => from.problem(of_key, "http.tls_key", alone("http.tls_cert")),
    }
    None
}

fn issuer(from: &mut Layers, name: String) -> IssuerConfig {
    let key = |setting: &str| format!("auth.issuer.{name}.{setting}");
    let (issuer, source) = from.take_from(&key("issuer"), String::new());
    if !is_trustworthy(&issuer) {
        let message = format!(
            "{issuer:?} is not an issuer's address: write https://login.example, as its tokens have it"
        );
        from.problem(source, &key("issuer"), message);
    }
    let (audience, source) = from.take_from(&key("audience"), Vec::<String>::new());
    if audience.is_empty() {
        let message =
            "must name what tokens for this server are for, such as https://greenroom.example/mcp".to_owned();
        from.problem(source, &key("audience"), message);
    }
    let (jwks_url, source) = from.take_from(&key("jwks_url"), None::<String>);
    if jwks_url.as_ref().is_some_and(|url| !is_trustworthy(url)) {
        from.problem(
            source,
            &key("jwks_url"),
            "must be an address with https".to_owned(),
        );
    }
    let (leeway, source) = from.take_from(&key("leeway"), MINUTE);
    if leeway > 10 * MINUTE {
        from.problem(source, &key("leeway"), "must be at most 10m".to_owned());
    }
    let (signing, source) = from.take_from(&key("signing"), Signing::ALL.to_vec());
    if signing.is_empty() {
        from.problem(source, &key("signing"), "must name at least one way".to_owned());
    }
    let names = Scope::ALL.map(|scope| {
        let called = from.take(&key(scope.as_str()), vec![format!("sandbox:{scope}")]);
        (scope, called)
    });
    IssuerConfig {
        issuer,
        audience,
        jwks_url,
        signing,
        names: names.to_vec(),
        grants: from.take(&key("grants"), Vec::new()),
        pools: from.take(&key("pools"), Vec::new()),
        word: if from.take(&key("asserts_conversations"), false) {
            Word::Believed
        } else {
            Word::Ignored
        },
        leeway,
        name,
    }
}

fn listen(from: &mut Layers, auth: &AuthConfig) -> SocketAddr {
    let (listen, source) = from.take_from("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8484)));
    if !listen.ip().is_loopback() && auth.required == Required::Never {
        let message = format!(
            "{listen} is not a loopback address: there auth.required cannot be \"never\", since anybody could run code"
        );
        from.problem(source, "listen", message);
    }
    listen
}

/// As public as `listen` may be, and never the same.
fn forward_listen(from: &mut Layers, listen: SocketAddr, auth: &AuthConfig) -> Option<SocketAddr> {
    let (apart, source) = from.take_from("http.forward_listen", None::<SocketAddr>);
    let address = apart?;
    if !address.ip().is_loopback() && auth.required == Required::Never {
        let message = format!("{address} is not a loopback address: there auth.required cannot be \"never\"");
        from.problem(source, "http.forward_listen", message);
    } else if address.port() != 0 && address.port() == listen.port() {
        let message = "needs a port that listen does not have, to be another origin".to_owned();
        from.problem(source, "http.forward_listen", message);
    }
    Some(address)
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

/// The pools of the file, or the one that needs no file.
fn pools(from: &mut Layers, runtime: Runtime, inputs: &Inputs) -> BTreeMap<PoolName, PoolConfig> {
    let mut named = from.tables_under("pool");
    if named.is_empty() {
        named.push((default_pool_name().to_string(), 0));
    }
    let mut pools = BTreeMap::new();
    for (name, line) in named {
        match PoolName::parse(&name) {
            Ok(parsed) => {
                pools.insert(parsed, pool(from, &name, runtime, inputs));
            }
            Err(message) => {
                let section = format!("pool.{name}");
                from.give_up_on(&section);
                from.problem(Source::File(line), &section, message);
            }
        }
    }
    pools
}

fn default_pool(from: &mut Layers, pools: &BTreeMap<PoolName, PoolConfig>) -> PoolName {
    let only = pools.keys().next().filter(|_| pools.len() == 1);
    let (name, source) = from.take_from("default_pool", only.cloned().unwrap_or_else(default_pool_name));
    if !pools.contains_key(&name) {
        let known: Vec<&str> = pools.keys().map(PoolName::as_str).collect();
        let message = format!("there is no pool {name}; there are: {}", known.join(", "));
        from.problem(source, "default_pool", message);
    }
    name
}

fn default_pool_name() -> PoolName {
    #[expect(clippy::expect_used, reason = "the constant is a good name")]
    PoolName::parse("python").expect("a good name")
}

fn pool(from: &mut Layers, name: &str, engine: Runtime, inputs: &Inputs) -> PoolConfig {
    let section = format!("pool.{name}");
    let key = |setting: &str| format!("{section}.{setting}");
    let kind = match from.take(&key("kind"), KindWord::Interpreter) {
        KindWord::Interpreter => PoolKind::Interpreter,
        KindWord::Container => PoolKind::Container(Box::new(containers::container(from, &section))),
    };
    let usual = Usual::of(&kind);
    from.take(&key("egress"), Egress::None);
    let (disk, disk_source) = from.take_from(&key("disk"), Size::gib(4));
    let runtime = runtime_for(engine, disk).unwrap_or_else(|message| {
        from.problem(disk_source, &key("disk"), message);
        String::new()
    });
    let lifetime = from.take(&key("lifetime"), 24 * HOUR);
    let warm = from.take(&key("warm"), 2);
    let pool = PoolConfig {
        description: description(from, &section),
        env: containers::environment(from, &section, &inputs.env),
        image: from.take(&key("image"), usual.image),
        dependencies: dependencies::dependencies(from, &section, inputs.file.as_deref()),
        install_timeout: from.take(&key("install_timeout"), 20 * MINUTE),
        languages: from.take(&key("languages"), usual.languages),
        preload: from.take(&key("preload"), usual.preload),
        seed: from.take(&key("seed"), None),
        warm,
        // Whoever wants none waiting means none.
        warm_max: from.take(&key("warm_max"), if warm == 0 { 0 } else { warm.max(4) }),
        max: from.take(&key("max"), 32),
        boots: from.take(&key("boots"), inputs.cpus.max(1)),
        idle: if usual.is_timed {
            from.take(&key("idle"), 2 * HOUR)
        } else {
            lifetime
        },
        lifetime,
        evict_after: from.take(&key("evict_after"), EvictAfter(usual.evict_after)).0,
        warm_age: from.take(&key("warm_age"), HOUR),
        boot_timeout: from.take(&key("boot_timeout"), 20 * SECOND),
        claim_wait: from.take(&key("claim_wait"), 30 * SECOND),
        cpus: from.take(&key("cpus"), Cpus { millis: 1000 }),
        memory: from.take(&key("memory"), Size::gib(1)),
        disk,
        runtime,
        pids: from.take(&key("pids"), 1024),
        nproc: from.take(&key("nproc"), 128),
        nofile: from.take(&key("nofile"), 4096),
        run_timeout: from.take(&key("run_timeout"), 10 * MINUTE),
        run_timeout_max: from.take(&key("run_timeout_max"), 4 * HOUR),
        spill: from.take(&key("spill"), Size::mib(64)),
        kind,
    };
    for (setting, message) in quarrels(&pool) {
        let key = key(setting);
        let source = from.source(&key);
        from.problem(source, &key, message);
    }
    pool
}

/// It stands in every tool's definition, which a model reads with each call.
fn description(from: &mut Layers, section: &str) -> Option<String> {
    let key = format!("{section}.description");
    let (text, source) = from.take_from(&key, None::<String>);
    let fits = |text: &String| {
        (1..=DESCRIPTION_CHARS).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    };
    if text.as_ref().is_some_and(|text| !fits(text)) {
        let message = format!("must be one line of 1 to {DESCRIPTION_CHARS} characters");
        from.problem(source, &key, message);
    }
    text
}

/// What a pool has that says nothing else, by its kind.
struct Usual {
    image: String,
    languages: Vec<Language>,
    preload: Vec<String>,
    evict_after: Option<Duration>,
    /// Whether a session may be idle for too long.
    is_timed: bool,
}

impl Usual {
    fn of(kind: &PoolKind) -> Self {
        match kind {
            PoolKind::Interpreter => Self {
                image: "greenroom/python:latest".to_owned(),
                languages: vec![Language::Python, Language::Bash],
                preload: ["numpy", "pandas", "matplotlib.pyplot"]
                    .map(str::to_owned)
                    .to_vec(),
                evict_after: Some(10 * MINUTE),
                is_timed: true,
            },
            PoolKind::Container(container) => {
                let is_timed = container.lifecycle == Lifecycle::Timed;
                Self {
                    image: String::new(),
                    languages: Vec::new(),
                    preload: Vec::new(),
                    // A program that runs to its end is not idle because nobody asks.
                    evict_after: is_timed.then_some(10 * MINUTE),
                    is_timed,
                }
            }
        }
    }
}

/// What does not go together within one pool: the key to point at, and why.
fn quarrels(pool: &PoolConfig) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut must = |holds: bool, key: &'static str, message: String| {
        if !holds {
            found.push((key, message));
        }
    };
    must(pool.max >= 1, "max", "must be at least 1".to_owned());
    must(
        pool.warm < pool.max || pool.max == 0,
        "warm",
        format!(
            "must be less than max = {}: the last sandbox is for a caller who waits",
            pool.max
        ),
    );
    must(pool.boots >= 1, "boots", "must be at least 1".to_owned());
    must(
        !pool.languages.is_empty() || pool.container().is_some(),
        "languages",
        "must name at least one language".to_owned(),
    );
    must(!pool.image.is_empty(), "image", "must name an image".to_owned());
    must(
        pool.run_timeout <= pool.run_timeout_max,
        "run_timeout",
        "must not be longer than run_timeout_max".to_owned(),
    );
    must(
        pool.idle <= pool.lifetime,
        "idle",
        "must not be longer than lifetime".to_owned(),
    );
    must(
        pool.memory >= LEAST_MEMORY,
        "memory",
        format!("must be at least {LEAST_MEMORY}"),
    );
    must(
        pool.pids >= LEAST_PIDS,
        "pids",
        format!("must be at least {LEAST_PIDS}: gVisor itself needs them"),
    );
    for (key, period) in [
        ("idle", pool.idle),
        ("lifetime", pool.lifetime),
        ("evict_after", pool.evict_after.unwrap_or(SECOND)),
        ("warm_age", pool.warm_age),
        ("boot_timeout", pool.boot_timeout),
        ("install_timeout", pool.install_timeout),
        ("claim_wait", pool.claim_wait),
        ("run_timeout", pool.run_timeout),
    ] {
        must(period >= SECOND, key, "must be at least 1s".to_owned());
    }
    found
}

/// The registered runtime whose disk is at least as large.
fn runtime_for(engine: Runtime, disk: Size) -> Result<String, String> {
    match engine {
        // runc has no such limit; the warning that goes with it says so.
        Runtime::Runc => Ok("runc".to_owned()),
        Runtime::Runsc => DISKS
            .iter()
            .find(|(size, _)| *size >= disk && disk.bytes() > 0)
            .map(|(_, name)| (*name).to_owned())
            .ok_or_else(|| format!("{disk} is not possible: set-up registers 1GiB, 4GiB and 16GiB")),
    }
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Egress {
    None,
}

words!(Required { "auto" => Required::Auto, "always" => Required::Always, "never" => Required::Never });
words!(Scope { "run" => Scope::Run, "files" => Scope::Files, "admin" => Scope::Admin });
words!(Signing {
    "RS256" => Signing::Rs256, "RS384" => Signing::Rs384, "RS512" => Signing::Rs512,
    "PS256" => Signing::Ps256, "PS384" => Signing::Ps384, "PS512" => Signing::Ps512,
    "ES256" => Signing::Es256, "ES384" => Signing::Es384, "EdDSA" => Signing::EdDsa,
});
words!(Egress { "none" => Egress::None });
words!(Aliases { "none" => Aliases::None, "azure" => Aliases::Azure });
words!(ErrorStyle { "result" => ErrorStyle::Result, "flag" => ErrorStyle::Flag });
words!(LogFormat { "text" => LogFormat::Text, "json" => LogFormat::Json });
words!(EngineKind { "docker" => EngineKind::Docker });
words!(Runtime { "runsc" => Runtime::Runsc, "runc" => Runtime::Runc });

/// `"standard"`, `"full"`, or a list of names.
struct Tools(Vec<ToolName>);

impl Setting for Tools {
    fn read(raw: &Raw) -> Result<Self, String> {
        if let Raw::Text(word) | Raw::Loose(word) = raw {
            match word.as_str() {
                "standard" => return Ok(Self(ToolName::STANDARD.to_vec())),
                "full" => return Ok(Self(ToolName::FULL.to_vec())),
                _ => {}
            }
        }
        let names =
            Vec::<String>::read(raw).map_err(|_| "expected \"standard\", \"full\" or a list of tools")?;
        let tools: Result<Vec<ToolName>, String> = names
            .iter()
            .map(|name| {
                name.parse().map_err(|()| {
                    format!(
                        "there is no tool {name:?}; there are: {}",
                        ToolName::FULL.map(ToolName::as_str).join(", ")
                    )
                })
            })
            .collect();
        match tools? {
            tools if tools.is_empty() => Err("must name at least one tool".to_owned()),
            tools => Ok(Self(tools)),
        }
    }

    fn show(&self) -> String {
        if self.0 == ToolName::STANDARD {
            return "\"standard\"".to_owned();
        }
        if self.0 == ToolName::FULL {
            return "\"full\"".to_owned();
        }
        self.0
            .iter()
            .map(|tool| tool.as_str().to_owned())
            .collect::<Vec<_>>()
            .show()
    }
}

/// `"never"`, or a time.
struct EvictAfter(Option<Duration>);

impl Setting for EvictAfter {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) | Raw::Loose(text) if text == "never" => Ok(Self(None)),
            Raw::Text(_) | Raw::Loose(_) | Raw::Number(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => {
                Duration::read(raw).map(|time| Self(Some(time)))
            }
        }
    }

    fn show(&self) -> String {
        self.0.map_or_else(|| "\"never\"".to_owned(), |time| time.show())
    }
}

/// `"on"`, `"off"`, a folder, or a bucket.
impl Setting for ArchivePlace {
    fn read(raw: &Raw) -> Result<Self, String> {
        match String::read(raw)?.as_str() {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::StateDir),
            text if text.starts_with('/') => Ok(Self::Folder(PathBuf::from(text))),
            text => match text
                .strip_prefix("s3://")
                .map(|rest| rest.split_once('/').unwrap_or((rest, "")))
            {
                Some((bucket, prefix)) if is_bucket(bucket) => Ok(Self::S3 {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_matches('/').to_owned(),
                }),
                Some((bucket, _)) => Err(format!(
                    "{bucket:?} is no name of a bucket: 3 to 63 small letters, digits, - and ."
                )),
                None => Err(format!(
                    "{text:?} is neither \"on\", \"off\", the absolute path of a folder nor s3://BUCKET/PREFIX"
                )),
            },
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Off => "\"off\"".to_owned(),
            Self::StateDir => "\"on\"".to_owned(),
            Self::Folder(path) => path.show(),
            Self::S3 { bucket, prefix } => format!("s3://{bucket}/{prefix}").show(),
        }
    }
}

fn is_bucket(name: &str) -> bool {
    let is_good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
    (3..=63).contains(&name.len()) && name.bytes().all(is_good)
}

impl Setting for MetaPath {
    fn read(raw: &Raw) -> Result<Self, String> {
        let segments: Vec<String> = String::read(raw)?
            .split('>')
            .map(|part| part.trim().to_owned())
            .collect();
        if segments.iter().any(String::is_empty) {
            return Err(
                "expected a key of _meta, or keys within one another as \"outer > inner\"".to_owned(),
            );
        }
        Ok(Self(segments))
    }

    fn show(&self) -> String {
        self.0.join(" > ").show()
    }
}
