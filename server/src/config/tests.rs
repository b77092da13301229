//! The configuration as a whole: defaults, layers, and reports that miss nothing.

use std::{path::PathBuf, time::Duration};

use super::*;
use crate::archive::{Bucket, Place};

fn inputs(text: &str) -> Inputs {
    Inputs {
        file: Some(PathBuf::from("greenroom.toml")),
        text: text.to_owned(),
        root: true,
        cpus: 2,
        ..Inputs::default()
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn problems(inputs: &Inputs) -> String {
    Loaded::read(inputs).unwrap_err().to_string()
}

#[test]
fn nothing_is_a_good_configuration() {
    let config = Loaded::read(&inputs("")).unwrap().config;
    assert_eq!(config.listen.to_string(), "127.0.0.1:8484");
    assert_eq!(config.tools, ToolName::STANDARD);
    assert_eq!(config.patience, Duration::from_secs(45));
    let pool = &config.pools[&config.default_pool];
    assert_eq!((pool.warm, pool.max, pool.boots), (2, 32, 2));
    assert_eq!(
        (pool.idle, pool.lifetime),
        (Duration::from_secs(7200), Duration::from_secs(86_400))
    );
    assert_eq!((pool.memory, pool.disk), (Size::gib(1), Size::gib(4)));
    assert_eq!(pool.runtime, "runsc-4g");
}

#[test]
fn flags_win_over_variables_and_these_over_the_file() {
    let text = "patience = \"10s\"\nlog = \"debug\"\n[pool.py-3]\nwarm = 1\nmax = 9\ncpus = 0.5\n";
    let inputs = Inputs {
        env: pairs(&[
            ("GREENROOM_POOL_PY_3_WARM", "4"),
            ("GREENROOM_PATIENCE", "20s"),
            ("GREENROOM_LOG", ""),
            ("HOME", "/home/x"),
        ]),
        flags: pairs(&[("patience", "30s"), ("tools", "execute_code, get_run")]),
        ..inputs(text)
    };
    let loaded = Loaded::read(&inputs).unwrap();
    assert_eq!(loaded.config.patience, Duration::from_secs(30));
    assert_eq!(loaded.config.log, "debug");
    assert_eq!(loaded.config.tools, [ToolName::ExecuteCode, ToolName::GetRun]);
    let pool = &loaded.config.pools[&loaded.config.default_pool];
    assert_eq!((pool.warm, pool.max, pool.cpus.millis), (4, 9, 500));
    let source = |key: &str| &loaded.effective.iter().find(|e| e.key == key).unwrap().source;
    assert_eq!(source("patience"), &Source::Flag);
    assert_eq!(
        source("pool.py-3.warm"),
        &Source::Env("GREENROOM_POOL_PY_3_WARM".to_owned())
    );
    assert_eq!(source("pool.py-3.max"), &Source::File(5));
    assert_eq!(source("limits.calls"), &Source::Default);
}

#[test]
fn one_report_has_every_problem_with_its_line() {
    let text = "\
listen = \"0.0.0.0:80\"
patience = \"soon\"
colour = \"green\"
[engine]
runtime = \"runc\"
[pool.python]
warm = 40
memory = 512
disk = 1979-05-27
lifetime = \"1h\"
swap = true
[pool.Bad]
[auth]
required = \"never\"
[authn]
";
    let inputs = Inputs {
        env: pairs(&[("GREENROOM_WRAM", "3"), ("GREENROOM_ERRORS", "loud")]),
        flags: pairs(&[("pool.python.pids", "5"), ("nonsense", "1")]),
        ..inputs(text)
    };
    let report = problems(&inputs);
    for line in [
        "greenroom.toml:1: listen: 0.0.0.0:80 is not a loopback address",
        "greenroom.toml:2: patience: \"soon\" is not a duration",
        "greenroom.toml:3: colour: unknown key; known here: ",
        "greenroom.toml:5: engine.runtime: runc does not isolate hostile code",
        "greenroom.toml:7: pool.python.warm: must be less than max = 32",
        "greenroom.toml:8: pool.python.memory: 512 is not text: write it as \"512MiB\"",
        "greenroom.toml:9: pool.python.disk: a date is not text: write it as",
        "default: pool.python.idle: must not be longer than lifetime",
        "greenroom.toml:11: pool.python.swap: unknown key; known here: apt, ",
        "greenroom.toml:12: pool.Bad: a pool's name is ",
        "greenroom.toml:15: authn: unknown key",
        "GREENROOM_WRAM: no setting has this variable",
        "GREENROOM_ERRORS: errors: \"loud\" is not one of result, flag",
        "command line: pool.python.pids: must be at least 128",
        "command line: nonsense: unknown key",
    ] {
        assert!(
            report.contains(&format!("  {line}")),
            "{line}\nis missing in\n{report}"
        );
    }
    assert!(
        report.starts_with("the configuration has 15 problems:"),
        "{report}"
    );
}

#[test]
fn broken_toml_does_not_hide_the_rest() {
    let report = problems(&inputs("patience = \nlog = 3\n[pool.python]\nwarm = \"x\"\n"));
    assert!(report.contains("greenroom.toml:1: "), "{report}");
    assert!(
        report.contains("greenroom.toml:2: log: expected plain text, not 3"),
        "{report}"
    );
    assert!(
        report.contains("greenroom.toml:4: pool.python.warm: expected a whole number"),
        "{report}"
    );
}

#[test]
fn a_pool_of_another_name_is_the_default_when_it_is_the_only_one() {
    let config = Loaded::read(&inputs("[pool.small]\ndisk = \"1GiB\"\n"))
        .unwrap()
        .config;
    assert_eq!(config.default_pool.as_str(), "small");
    assert_eq!(config.pools[&config.default_pool].runtime, "runsc-1g");
    let report = problems(&inputs("[pool.a]\n[pool.b]\n"));
    assert!(
        report.contains("default_pool: there is no pool python; there are: a, b"),
        "{report}"
    );
}

#[test]
fn a_disk_is_rounded_up_to_a_registered_runtime() {
    for (disk, runtime) in [("1MiB", "runsc-1g"), ("2GiB", "runsc-4g"), ("16GiB", "runsc-16g")] {
        let config = Loaded::read(&inputs(&format!("[pool.python]\ndisk = {disk:?}\n")))
            .unwrap()
            .config;
        assert_eq!(config.pools[&config.default_pool].runtime, runtime);
    }
    let report = problems(&inputs("[pool.python]\ndisk = \"32GiB\"\n"));
    assert!(
        report.contains("pool.python.disk: 32GiB is not possible: set-up registers"),
        "{report}"
    );
}

#[test]
fn runc_needs_to_be_asked_for_twice() {
    let config = Loaded::read(&inputs("[engine]\nruntime = \"runc\"\ninsecure = true\n"))
        .unwrap()
        .config;
    assert!(!config.engine.runtime.must_prove_gvisor());
    assert_eq!(config.pools[&config.default_pool].runtime, "runc");
}

#[test]
fn a_variable_that_names_two_settings_is_refused() {
    let inputs = Inputs {
        env: pairs(&[("GREENROOM_POOL_A_B_WARM", "1")]),
        ..inputs("default_pool = \"a-b\"\n[pool.a-b]\n[pool.a-b-]\n")
    };
    assert!(Loaded::read(&inputs).is_ok());
    let inputs = Inputs {
        env: pairs(&[("GREENROOM_STATE_DIR", "relative")]),
        ..inputs
    };
    assert!(
        problems(&inputs).contains("GREENROOM_STATE_DIR: state_dir: \"relative\" is not an absolute path")
    );
}

#[test]
fn the_printed_form_is_a_configuration_again() {
    let inputs = Inputs {
        flags: pairs(&[
            ("pool.python.idle", "90m"),
            ("tools", "full"),
            ("engine.deployment", "a \"b\""),
        ]),
        ..inputs("[pool.python]\nwarm = 0\n")
    };
    let loaded = Loaded::read(&inputs).unwrap();
    let printed = loaded.to_toml();
    assert!(printed.contains("# command line"), "{printed}");
    let again = Loaded::read(&self::inputs(&printed)).unwrap();
    assert_eq!(again.config, loaded.config);
}

#[test]
fn state_lies_where_the_user_may_write() {
    let at = |root, env: &[(&str, &str)]| {
        let inputs = Inputs {
            root,
            env: pairs(env),
            ..inputs("")
        };
        Loaded::read(&inputs).unwrap().config.state_dir
    };
    assert_eq!(
        at(true, &[("HOME", "/root")]),
        PathBuf::from("/var/lib/greenroom")
    );
    assert_eq!(
        at(false, &[("HOME", "/home/a")]),
        PathBuf::from("/home/a/.local/state/greenroom")
    );
    assert_eq!(
        at(false, &[("HOME", "/h"), ("XDG_STATE_HOME", "/s")]),
        PathBuf::from("/s/greenroom")
    );
}

#[test]
fn archives_are_kept_here_there_or_nowhere() {
    let archive = |text: &str| Loaded::read(&inputs(text)).unwrap().config.archive;
    let state = std::path::Path::new("/state");
    let by_default = archive("");
    assert_eq!(
        by_default.place(state),
        Some(Place::Folder("/state/archives".into()))
    );
    assert_eq!(
        (by_default.session, by_default.total, by_default.keep),
        (Size::mib(256), Size::gib(10), Duration::from_secs(7 * 86_400))
    );
    assert_eq!(archive("archive = \"off\"").place(state), None);
    let apart = archive("archive = \"/srv/archives\"\narchive_session = \"1GiB\"\narchive_keep = \"1d\"");
    assert_eq!(apart.place(state), Some(Place::Folder("/srv/archives".into())));
    assert_eq!(apart.session, Size::gib(1));
    let bucket = archive("archive = \"s3://attic/green/room/\"\narchive_endpoint = \"https://s3.example\"");
    let attic = Bucket {
        name: "attic".to_owned(),
        prefix: "green/room".to_owned(),
        endpoint: Some("https://s3.example".to_owned()),
        region: None,
    };
    assert_eq!(bucket.place(state), Some(Place::S3(attic)));
    for bad in ["archive = \"s3://A\"", "archive_endpoint = \"s3.example\""] {
        assert!(Loaded::read(&inputs(bad)).is_err(), "{bad}");
    }
    let report = problems(&inputs("archive = \"s3\"\narchive_session = \"11GiB\""));
    for line in [
        "greenroom.toml:1: archive: \"s3\" is neither \"on\", \"off\", the absolute path of a folder nor s3://BUCKET/PREFIX",
        "greenroom.toml:2: archive_session: must not be more than archive_total = 10GiB",
    ] {
        assert!(report.contains(line), "{report}");
    }
}

#[test]
fn sessions_make_room_after_a_while_or_never() {
    let pool = |text: &str| {
        let config = Loaded::read(&inputs(text)).unwrap().config;
        config.pools[&config.default_pool].evict_after
    };
    assert_eq!(pool(""), Some(Duration::from_secs(600)));
    assert_eq!(
        pool("[pool.python]\nevict_after = \"1h\""),
        Some(Duration::from_secs(3600))
    );
    assert_eq!(pool("[pool.python]\nevict_after = \"never\""), None);
    for (value, problem) in [
        ("\"0s\"", "pool.python.evict_after: must be at least 1s"),
        ("\"soon\"", "pool.python.evict_after: \"soon\" is not a duration"),
    ] {
        let report = problems(&inputs(&format!("[pool.python]\nevict_after = {value}")));
        assert!(report.contains(problem), "{report}");
    }
}

#[test]
fn an_issuer_is_configured_whole_or_not_at_all() {
    let text = "\
[auth.issuer.login]
issuer = \"https://login.example/\"
audience = [\"https://greenroom.example/mcp\"]
run = [\"code\"]
grants = [\"files\"]
signing = [\"ES256\"]
asserts_conversations = true
";
    let issuers = Loaded::read(&inputs(text)).unwrap().config.auth.issuers;
    assert_eq!(
        issuers,
        [IssuerConfig {
            name: "login".into(),
            issuer: "https://login.example/".into(),
            audience: vec!["https://greenroom.example/mcp".into()],
            jwks_url: None,
            signing: vec![Signing::Es256],
            names: vec![
                (Scope::Run, vec!["code".into()]),
                (Scope::Files, vec!["sandbox:files".into()]),
                (Scope::Admin, vec!["sandbox:admin".into()]),
            ],
            grants: vec![Scope::Files],
            pools: vec![],
            word: Word::Believed,
            leeway: Duration::from_secs(60),
        }]
    );
    let text = "\
[auth.issuer.login]
issuer = \"http://login.example\"
jwks_url = \"ftp://login.example/jwks\"
signing = [\"HS256\"]
leeway = \"1h\"
";
    let report = problems(&inputs(text));
    for line in [
        "greenroom.toml:2: auth.issuer.login.issuer: \"http://login.example\" is not an issuer's address",
        "default: auth.issuer.login.audience: must name what tokens for this server are for",
        "greenroom.toml:3: auth.issuer.login.jwks_url: must be an address with https",
        "greenroom.toml:4: auth.issuer.login.signing: \"HS256\" is not one of RS256, ",
        "greenroom.toml:5: auth.issuer.login.leeway: must be at most 10m",
    ] {
        assert!(report.contains(line), "{line}\nis missing in\n{report}");
    }
}

const APP: &str = "[pool.app]\nkind = \"container\"\nimage = \"x\"\nport = 8080\n";

#[test]
fn a_pool_of_containers_has_the_defaults_of_one() {
    use greenroom_protocol::Check;
    let loaded = Loaded::read(&inputs(APP)).unwrap();
    let pool = loaded.config.pools.values().next().unwrap();
    let container = pool.container().unwrap();
    assert_eq!(
        container.startup.as_ref().unwrap().check,
        Check::Tcp { port: 8080 }
    );
    assert_eq!((&container.liveness, &container.command), (&None, &Vec::new()));
    assert!(pool.languages.is_empty() && pool.preload.is_empty());
    assert_eq!(pool.idle, Duration::from_secs(7200));
    let more = "lifecycle = \"on_exit\"\ncommand = [\"/a\"]\nargs = []\nuser = \"app\"\n[pool.app.startup]\nhttp = \"/up\"\nport = 81\n\
                period = \"250ms\"\n[pool.app.liveness]\ntcp = true\nfailures = 5\n";
    let loaded = Loaded::read(&inputs(&format!("{APP}{more}"))).unwrap();
    let pool = loaded.config.pools.values().next().unwrap();
    let container = pool.container().unwrap();
    let startup = container.startup.as_ref().unwrap();
    let path = "/up".to_owned();
    assert_eq!(
        (&startup.check, startup.period_ms),
        (&Check::Http { port: 81, path }, 250)
    );
    let liveness = container.liveness.as_ref().unwrap();
    assert_eq!(
        (&liveness.check, liveness.failures),
        (&Check::Tcp { port: 8080 }, 5)
    );
    assert_eq!(container.args, Some(Vec::new()));
    assert_eq!(
        (pool.idle, pool.evict_after),
        (pool.lifetime, None),
        "it runs to its end"
    );
}

#[test]
fn what_a_pool_of_containers_cannot_have_is_named() {
    for (more, problem) in [
        (
            "lifecycle = \"on_exit\"\nidle = \"1h\"",
            "pool.app.idle: unknown key",
        ),
        ("[pool.app.liveness]\nperiod = \"1s\"", "says neither http"),
        (
            "[pool.app.liveness]\nhttp = \"/\"\ntcp = true",
            "is http or tcp, not both",
        ),
        (
            "[pool.app.liveness]\nhttp = \"x y\"",
            "must be a path such as /healthz",
        ),
        (
            "[pool.app.liveness]\ntcp = true\nfailures = 0",
            "must be at least 1",
        ),
        (
            "[pool.app.startup]\ntcp = true\ntimeout = \"0s\"",
            "must be longer than nothing",
        ),
        ("answer_timeout = \"0s\"", "must be longer than nothing"),
        ("[pool.py]\nport = 8080", "pool.py.port: unknown key"),
    ] {
        let found = problems(&inputs(&format!("{APP}{more}\n")));
        assert!(found.contains(problem), "{more}: {found}");
    }
    let nothing = problems(&inputs("[pool.app]\nkind = \"container\"\n"));
    assert!(nothing.contains("must name an image"), "{nothing}");
}

#[test]
fn an_environment_is_read_and_never_shown() {
    let text = "[pool.py]\nenv = { A = \"s3cret\", B = \"two\\nlines\" }\nenv_from = [\"TOKEN\"]\n";
    let mut from = inputs(text);
    from.env = pairs(&[("TOKEN", "t0ken")]);
    let loaded = Loaded::read(&from).unwrap();
    let pool = loaded.config.pools.values().next().unwrap();
    let shown: Vec<(&str, &str)> = pool
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.reveal()))
        .collect();
    assert_eq!(shown, [("A", "s3cret"), ("B", "two\nlines"), ("TOKEN", "t0ken")]);
    let printed = loaded.to_toml();
    assert!(
        printed.contains("A = \"****\"") && printed.contains("env_from = [\"TOKEN\"]"),
        "{printed}"
    );
    for text in [printed, format!("{:?}", loaded.config)] {
        assert!(!text.contains("s3cret") && !text.contains("t0ken"), "{text}");
    }
    assert!(Loaded::read(&inputs("[pool.py]\nenv = {}\n")).is_ok());
    for (lines, problem) in [
        ("env_from = [\"TOKEN\"]", "the server's environment has no TOKEN"),
        (
            "env_from = [\"GREENROOM_SECRET_FILE\"]",
            "is a setting of the server's",
        ),
        ("env = { \"A-B\" = \"x\" }", "is no name of a variable"),
        ("env = { A = 1 }", "expected text"),
    ] {
        let found = problems(&inputs(&format!("[pool.py]\n{lines}\n")));
        assert!(found.contains(problem), "{lines}: {found}");
    }
    let mut both = inputs("[pool.py]\nenv = { A = \"x\" }\nenv_from = [\"A\"]\n");
    both.env = pairs(&[("A", "y")]);
    assert!(problems(&both).contains("is in env already"));
}
