//! `[pool.*]` where a pool's sandboxes run their image's own program, and the environment that any pool may give.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use greenroom_protocol::{
    Check, Masked, Probe,
    limits::{ENV_BYTES, ENV_NAMES},
};

use super::{
    layers::{Layers, Source},
    settings::words,
};

const SECOND: Duration = Duration::from_secs(1);

/// Variables that are settings of the server, its secret's place among them: never a sandbox's.
const OWN: &str = "GREENROOM_";

/// What the sandboxes of a pool run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Code that callers send.
    Interpreter,
    /// Their image's own program, and code that callers send where the image can run it.
    Container(Box<ContainerConfig>),
}

/// `kind = "container"`: how the image's own program runs, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerConfig {
    /// `command`: instead of the image's ENTRYPOINT.
    pub command: Vec<String>,
    /// `args`: instead of the image's CMD.
    pub args: Option<Vec<String>>,
    /// `user`: instead of the image's USER.
    pub user: Option<String>,
    /// `port`: where requests are forwarded to.
    pub port: Option<u16>,
    /// `[pool.*.startup]`: when it is up. Left out, once `port` accepts connections.
    pub startup: Option<Probe>,
    /// `[pool.*.liveness]`: when it is down.
    pub liveness: Option<Probe>,
    /// `lifecycle`.
    pub lifecycle: Lifecycle,
    /// `answer_timeout`: how long the head of a forwarded request's answer may take.
    pub answer_timeout: Duration,
}

/// What ends a container's session, beside its lifetime and its program's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Nobody asks for anything for as long as `idle`.
    Timed,
    /// Nothing else.
    OnExit,
}

words!(Lifecycle { "timed" => Lifecycle::Timed, "on_exit" => Lifecycle::OnExit });

/// As written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KindWord {
    Interpreter,
    Container,
}

words!(KindWord { "interpreter" => KindWord::Interpreter, "container" => KindWord::Container });

/// Reads what only pools of containers have.
pub(super) fn container(from: &mut Layers, section: &str) -> ContainerConfig {
    let key = |setting: &str| format!("{section}.{setting}");
    let (port, source) = from.take_from(&key("port"), None::<u16>);
    if port == Some(0) {
        from.problem(source, &key("port"), "must be from 1 to 65535".to_owned());
    }
    let answer_timeout = positive(from, &key("answer_timeout"), 300 * SECOND);
    let startup = probe(from, &key("startup"), port, &STARTUP).or_else(|| {
        port.map(|port| Probe {
            check: Check::Tcp { port },
            period_ms: whole(STARTUP.period),
            timeout_ms: whole(STARTUP.timeout),
            failures: STARTUP.failures,
        })
    });
    ContainerConfig {
        command: from.take(&key("command"), Vec::new()),
        args: from.take(&key("args"), None),
        user: from.take(&key("user"), None),
        port,
        startup,
        liveness: probe(from, &key("liveness"), port, &LIVENESS),
        lifecycle: from.take(&key("lifecycle"), Lifecycle::Timed),
        answer_timeout,
    }
}

/// What a probe does that says no more than what it asks.
struct Usual {
    period: Duration,
    timeout: Duration,
    failures: u32,
}

/// Often, since somebody may be waiting, and in the end it is `boot_timeout` that decides.
const STARTUP: Usual = Usual {
    period: Duration::from_millis(100),
    timeout: SECOND,
    failures: 10_000,
};

/// As Azure has it.
const LIVENESS: Usual = Usual {
    period: Duration::from_secs(10),
    timeout: SECOND,
    failures: 3,
};

/// Reads a probe: `http = "/path"` or `tcp = true`, on `port` or the pool's.
fn probe(from: &mut Layers, section: &str, pool_port: Option<u16>, usual: &Usual) -> Option<Probe> {
    let key = |setting: &str| format!("{section}.{setting}");
    let (http, http_source) = from.take_from(&key("http"), None::<String>);
    let tcp = from.take(&key("tcp"), false);
    let port = from.take(&key("port"), pool_port).filter(|port| *port != 0);
    let period = positive(from, &key("period"), usual.period);
    let timeout = positive(from, &key("timeout"), usual.timeout);
    let (failures, failures_source) = from.take_from(&key("failures"), usual.failures);
    if failures == 0 {
        from.problem(failures_source, &key("failures"), "must be at least 1".to_owned());
    }
    let fits = |path: &str| path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    let check = match (http, tcp, port) {
        (None, false, _) => {
            if from.is_set_under(section) {
                let message = "says neither http = \"/path\" nor tcp = true".to_owned();
                from.problem(from.first_under(section), section, message);
            }
            return None;
        }
        (Some(_), true, _) => {
            let message = "is http or tcp, not both".to_owned();
            from.problem(http_source, section, message);
            return None;
        }
        (_, _, None) => {
            let message = "needs a port, its own or the pool's".to_owned();
            from.problem(http_source, section, message);
            return None;
        }
        (Some(path), false, Some(port)) if fits(&path) => Check::Http { port, path },
        (Some(_), false, Some(_)) => {
            let message = "must be a path such as /healthz".to_owned();
            from.problem(http_source, &key("http"), message);
            return None;
        }
        (None, true, Some(port)) => Check::Tcp { port },
    };
    Some(Probe {
        check,
        period_ms: whole(period),
        timeout_ms: whole(timeout),
        failures,
    })
}

fn positive(from: &mut Layers, key: &str, default: Duration) -> Duration {
    let (time, source) = from.take_from(key, default);
    if time.is_zero() {
        from.problem(source, key, "must be longer than nothing".to_owned());
    }
    time
}

fn whole(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Reads `env = {}` and `env_from = []`; the latter name variables of the server's own environment.
pub(super) fn environment(
    from: &mut Layers,
    section: &str,
    own: &[(String, String)],
) -> BTreeMap<String, Masked> {
    let mut env = BTreeMap::new();
    let table = format!("{section}.env");
    for (name, value, source) in from.take_secrets(&table) {
        let key = format!("{table}.{name}");
        check_name(from, &name, &key, &source);
        env.insert(name, Masked::new(value));
    }
    let key = format!("{section}.env_from");
    let (names, source) = from.take_from(&key, Vec::<String>::new());
    for name in names {
        check_name(from, &name, &key, &source);
        let value = own.iter().find(|(known, _)| *known == name);
        let message = match (env.entry(name.clone()), value) {
            _ if name.starts_with(OWN) => format!("{name} is a setting of the server's, and no sandbox's"),
            (Entry::Occupied(_), _) => format!("{name} is in env already"),
            (Entry::Vacant(place), Some((_, value))) => {
                place.insert(Masked::new(value.clone()));
                continue;
            }
            (Entry::Vacant(_), None) => format!("the server's environment has no {name}"),
        };
        from.problem(source.clone(), &key, message);
    }
    let bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.reveal().len())
        .sum();
    if env.len() > ENV_NAMES || bytes > ENV_BYTES {
        let message = format!(
            "at most {ENV_NAMES} variables of {} KiB together",
            ENV_BYTES >> 10
        );
        from.problem(source, &table, message);
    }
    env
}

fn check_name(from: &mut Layers, name: &str, key: &str, source: &Source) {
    let fits = name
        .bytes()
        .enumerate()
        .all(|(at, byte)| byte == b'_' || byte.is_ascii_alphabetic() || at > 0 && byte.is_ascii_digit());
    if name.is_empty() || !fits {
        let message = format!("{name:?} is no name of a variable: letters, digits and _");
        from.problem(source.clone(), key, message);
    }
}
