//! The pools: what each has that says nothing else, and what does not go together.

use std::{collections::BTreeMap, time::Duration};

use greenroom_protocol::Language;

use super::{
    Cpus, Lifecycle, PoolConfig, PoolKind, Runtime, Size,
    containers::{self, KindWord},
    dependencies,
    layers::{Layers, Source},
    read::Inputs,
    units::{HOUR, MINUTE, SECOND},
    values::{Egress, EvictAfter},
};
use crate::conversation::PoolName;

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

/// The pools of the file, or the one that needs no file.
pub(super) fn pools(from: &mut Layers, runtime: Runtime, inputs: &Inputs) -> BTreeMap<PoolName, PoolConfig> {
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

pub(super) fn default_pool(from: &mut Layers, pools: &BTreeMap<PoolName, PoolConfig>) -> PoolName {
    let only = pools.keys().next().filter(|_| pools.len() == 1);
    let (name, source) = from.take_from("default_pool", only.cloned().unwrap_or_else(default_pool_name));
    if !pools.contains_key(&name) {
        let known: Vec<&str> = pools.keys().map(PoolName::as_str).collect();
        let message = format!("there is no pool {name}; there are: {}", known.join(", "));
        from.problem(source, "default_pool", message);
    }
    name
}

pub(super) fn default_pool_name() -> PoolName {
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
