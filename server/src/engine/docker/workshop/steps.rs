//! What happens in the container that installs, step by step, as argument vectors: no shell reads any of it.

use std::{collections::HashMap, io, time::Duration};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, RestartPolicy, RestartPolicyNameEnum,
};
use tar::{Builder, EntryType, Header};

use super::super::container::{FILE_BYTES, limit, share, tmpfs};
use crate::{engine::Derivation, sandbox::Dependencies};

/// The folder in that container with what it is given and what it notes. Never part of an image.
const BENCH: &str = "/.greenroom-build";
const CERTIFICATES: &str = "/.greenroom-build/certificates.crt";
const APT_CONF: &str = "/.greenroom-build/apt.conf";
const REQUIREMENTS: &str = "/.greenroom-build/requirements.txt";
/// What was changed later than this file belongs to the new image.
const STAMP: &str = "/.greenroom-build/stamp";
const CHANGED: &str = "/.greenroom-build/changed";

/// What installers write, and no image keeps: the engine's own files, what is temporary or a cache, logs.
const NOT_KEPT: [&str; 14] = [
    BENCH,
    "/.dockerenv",
    "/dev",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/root",
    "/sys",
    "/tmp",
    "/var/cache/apt",
    "/var/lib/apt/lists",
    "/var/log",
    "/var/tmp",
];

/// On the disk, which has a limit: over an empty `/tmp` gVisor lays memory. Nothing below it is kept.
const SCRATCH: &str = "/var/tmp";

/// What the container stays beyond the time that it may take: who waits for it is the first to say that it is over.
const LINGER: Duration = Duration::from_secs(60);

/// As whom everything is run that does not say otherwise.
const ROOT: &str = "0:0";

/// What the image lacks whose Python cannot install packages.
const PIP: &str = "pip for its python3, which the pool's `packages` and `requirements` need";

/// What root needs to install: files of any owner, with any mode, and to become the user that downloads. Nothing that
/// reaches beyond the container.
const CAPABILITIES: [&str; 9] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETFCAP",
    "SETGID",
    "SETUID",
    "SYS_CHROOT",
];

/// What root runs by, whatever the image has: `PATH` and libraries of the image's may begin in folders of the guest's own,
/// and so of any package's. Those that are empty are as good as not set.
const ROOTS_OWN: [&str; 6] = [
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LD_LIBRARY_PATH=",
    "LD_PRELOAD=",
    "R_LIBS=",
    "R_LIBS_USER=",
];

/// Says whose the environment is that Python packages go to, as `uid:gid`, and where its Python looks for packages, a line
/// each and no more than are kept of what a step says.
const SURVEY: &str = "\
import os, sys, sysconfig
place = os.stat(sysconfig.get_path('purelib'))
print(f'{place.st_uid}:{place.st_gid}')
print(*[path for path in sys.path if path.endswith('-packages')][:5], sep='\\n')
";

/// Has the image's own list of its packages written anew, where it is one of ours: of what is there twice the one that
/// is found first. Root runs this, with Debian's own Python and without `site`, so that no package has a line of it run.
const LIST_ANEW: &str = "\
import json, os, runpy, sys
tool, target = '/opt/greenroom/packages.py', '/opt/greenroom/packages.json'
if os.path.isfile(tool):
    sys.argv.insert(1, target)
    runpy.run_path(tool, run_name='__main__')
    with open(target) as file:
        listed = json.load(file)
    first = {}
    for package in listed:
        first.setdefault((package['kind'], package['name']), package)
    with open(target, 'w') as file:
        json.dump(list(first.values()), file, ensure_ascii=False)
";

/// One program that is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) argv: Vec<String>,
    pub(super) failed: Failed,
    pub(super) runs_as: RunsAs,
}

/// As whom a program is run, and how it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RunsAs {
    /// Root, with [`ROOTS_OWN`]: what a package wrote before is data to it, and never run.
    Root,
    /// Root, with the image's own variables, to find the Python that packages go to. Only before the first of them is
    /// installed: its `PATH` may begin where they write.
    Surveyor,
    /// The user whose Python's environment it is, with the image's own variables: so a package writes, at its
    /// installation, only where that user may. That is the guest in our image, and may be root in another.
    Owner(Environment),
}

impl RunsAs {
    /// As `uid:gid`.
    pub(super) fn user(&self) -> &str {
        match self {
            Self::Root | Self::Surveyor => ROOT,
            Self::Owner(environment) => &environment.owner,
        }
    }

    /// Variables over the container's own.
    pub(super) fn env(&self) -> Option<Vec<String>> {
        match self {
            Self::Root => Some(ROOTS_OWN.map(str::to_owned).into()),
            Self::Surveyor | Self::Owner(_) => None,
        }
    }
}

/// Where Python packages go. Learned before the first is installed, since each may change what its Python says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    owner: String,
    folders: Vec<String>,
}

impl Environment {
    /// Reads what [`survey`] said. Root's, where it does not say.
    pub(super) fn of(said: &[String]) -> Self {
        let is_number = |part: &str| part.parse::<u32>().is_ok();
        let is_owner = |line: &&String| {
            line.split_once(':')
                .is_some_and(|(uid, gid)| is_number(uid) && is_number(gid))
        };
        let is_folder = |line: &&String| line.starts_with('/') && line.ends_with("-packages");
        Self {
            owner: said.iter().find(is_owner).map_or(ROOT, String::as_str).to_owned(),
            folders: said.iter().filter(is_folder).cloned().collect(),
        }
    }
}

/// What it means if it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// It has said why.
    Said,
    /// The image lacks this.
    Lacks(&'static str),
    /// Nothing that anybody waits for.
    NoMatter,
}

fn step(failed: Failed, argv: &[&str]) -> Step {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    Step {
        argv,
        failed,
        runs_as: RunsAs::Root,
    }
}

fn extended(mut step: Step, more: impl IntoIterator<Item = String>) -> Step {
    step.argv.extend(more);
    step
}

/// The first step. By the clock of that container, which is what its files are dated by.
pub(super) fn stamp() -> Step {
    step(Failed::Lacks("`touch`"), &["touch", STAMP])
}

/// What installs Debian packages.
pub(super) fn debian(wished: &Dependencies) -> Vec<Step> {
    if wished.apt().is_empty() {
        return Vec::new();
    }
    let names = wished.apt().iter().map(|package| package.as_str().to_owned());
    // Of a name that there is not, apt takes a plus at the end for its sign to install the rest.
    let signed = wished
        .apt()
        .iter()
        .filter(|package| package.name().ends_with('+'));
    let known = ["apt-cache", "-q", "show", "--no-all-versions", "--"];
    let known = signed.map(|package| extended(step(Failed::Said, &known), [package.name().to_owned()]));
    let mut steps = vec![
        step(
            Failed::Lacks("apt-get, which the pool's `apt` needs"),
            &["apt-get", "--version"],
        ),
        step(Failed::Said, &["apt-get", "-q", "update"]),
    ];
    steps.extend(known);
    let install = ["apt-get", "-q", "-y", "--no-install-recommends", "install", "--"];
    steps.push(extended(step(Failed::Said, &install), names));
    steps
}

/// Says what [`Environment::of`] reads. After Debian packages, which may bring the Python.
pub(super) fn survey(wished: &Dependencies) -> Step {
    let failed = if wants_python(wished) {
        Failed::Lacks(PIP)
    } else {
        Failed::NoMatter
    };
    Step {
        runs_as: RunsAs::Surveyor,
        ..step(failed, &["python3", "-c", SURVEY])
    }
}

/// What installs Python packages, and then notes what came of everything: after it [`archive`] has that.
pub(super) fn python(wished: &Dependencies, environment: &Environment) -> Vec<Step> {
    let mut steps = Vec::new();
    if wants_python(wished) {
        let names = wished.python().iter().map(|package| package.as_str().to_owned());
        let file = wished
            .requirements()
            .map(|_| format!("--requirement={REQUIREMENTS}"));
        let install = [
            "python3",
            "-m",
            "pip",
            "install",
            "--no-input",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--progress-bar=off",
        ];
        let install = extended(step(Failed::Said, &install), file);
        let pip = [
            step(Failed::Lacks(PIP), &["python3", "-m", "pip", "--version"]),
            extended(install, ["--".to_owned()].into_iter().chain(names)),
        ];
        steps.extend(pip.map(|step| Step {
            runs_as: RunsAs::Owner(environment.clone()),
            ..step
        }));
    }
    // Without any folder the list would lose what it has.
    if !environment.folders.is_empty() {
        let list = ["/usr/bin/python3", "-I", "-S", "-c", LIST_ANEW];
        steps.push(extended(
            step(Failed::NoMatter, &list),
            environment.folders.iter().cloned(),
        ));
    }
    steps.push(changed());
    steps
}

fn wants_python(wished: &Dependencies) -> bool {
    !wished.python().is_empty() || wished.requirements().is_some()
}

/// Notes what was changed. By the time of its change and not its content's, which an archive may set to anything.
fn changed() -> Step {
    let mut argv = vec!["find", "/", "-mindepth", "1", "-xdev", "("];
    for (at, path) in NOT_KEPT.iter().enumerate() {
        if at > 0 {
            argv.push("-o");
        }
        argv.extend(["-path", path]);
    }
    argv.extend([")", "-prune", "-o", "-cnewer", STAMP, "-fprint0", CHANGED]);
    step(Failed::Lacks("GNU find"), &argv)
}

/// Writes what was changed as a tar archive to standard output.
pub(super) fn archive() -> Step {
    let list = format!("--files-from={CHANGED}");
    step(
        Failed::Said,
        &[
            "tar",
            "--create",
            "--file=-",
            "--directory=/",
            "--numeric-owner",
            "--no-recursion",
            "--null",
            &list,
        ],
    )
}

/// What the container is given before it is started: into a running one gVisor lets nothing be put.
pub(super) fn gifts(wished: &Dependencies, certificates: Option<&[u8]>) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    entry(&mut archive, BENCH, EntryType::Directory, 0o755, &[])?;
    // Else an index that cannot be reached is only a warning, and a name that there is not is taken for a pattern.
    let mut apt = "APT::Update::Error-Mode \"any\";\nAPT::Cmd::Pattern-Only \"true\";\n".to_owned();
    if let Some(certificates) = certificates {
        entry(
            &mut archive,
            CERTIFICATES,
            EntryType::Regular,
            0o644,
            certificates,
        )?;
        apt += &format!("Acquire::https::CaInfo \"{CERTIFICATES}\";\n");
    }
    entry(&mut archive, APT_CONF, EntryType::Regular, 0o644, apt.as_bytes())?;
    if let Some(file) = wished.requirements() {
        entry(
            &mut archive,
            REQUIREMENTS,
            EntryType::Regular,
            0o644,
            file.reveal().as_bytes(),
        )?;
    }
    archive.into_inner()
}

fn entry(
    archive: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path.trim_start_matches('/'), content)
}

/// Variables of every program in it, over the image's own.
fn env(of_installers: impl IntoIterator<Item = (String, String)>, trusts: Trusts) -> Vec<String> {
    let fixed = [
        ("APT_CONFIG", APT_CONF),
        ("DEBIAN_FRONTEND", "noninteractive"),
        // Of who installs Python packages: what they write there is not kept. Root has its own, see `ROOTS_OWN`.
        ("HOME", SCRATCH),
        ("TMPDIR", SCRATCH),
        // The image is ours to break: nobody else's system is in it.
        ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
    ];
    let trusted = match trusts {
        Trusts::TheHosts => &[
            "PIP_CERT",
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
        ][..],
        Trusts::ItsOwn => &[],
    };
    let fixed = fixed.map(|(name, value)| format!("{name}={value}"));
    let trusted = trusted.iter().map(|name| format!("{name}={CERTIFICATES}"));
    let given = of_installers
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"));
    fixed.into_iter().chain(trusted).chain(given).collect()
}

/// Whose certificates installers trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trusts {
    /// Those that this host trusts.
    TheHosts,
    /// Those that are in the image: this host has none.
    ItsOwn,
}

/// What differs between containers that install.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) image_id: &'a str,
    pub(super) volumes: &'a [String],
    pub(super) network: &'a str,
    pub(super) cgroup_parent: &'a str,
    pub(super) labels: HashMap<String, String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) trusts: Trusts,
}

/// The request that creates a container to install in. Packages run code of their own at their installation, so it is
/// as closed as a sandbox is, but for a network and for root's rights over its own files. It ends by itself, whatever
/// becomes of this server: all it waits for is its time.
pub(super) fn body(order: &Derivation, around: Surroundings<'_>) -> ContainerCreateBody {
    let memory = i64::try_from(order.memory_bytes).unwrap_or(i64::MAX);
    let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
    let host = HostConfig {
        runtime: Some(order.runtime.clone()),
        network_mode: Some(around.network.to_owned()),
        cgroup_parent: Some(around.cgroup_parent.to_owned()),
        ipc_mode: Some("private".into()),
        cap_drop: words(&["ALL"]),
        cap_add: words(&CAPABILITIES),
        security_opt: words(&["no-new-privileges"]),
        privileged: Some(false),
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(i64::from(order.cpu_millis) * 1_000_000),
        pids_limit: Some(4096),
        ulimits: Some(vec![limit("fsize", FILE_BYTES), limit("core", 0)]),
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".into()),
            config: None,
        }),
        init: Some(false),
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        mounts: Some(
            around
                .volumes
                .iter()
                .map(|volume| tmpfs(volume, share(memory)))
                .collect(),
        ),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(around.image_id.to_owned()),
        labels: Some(around.labels),
        hostname: Some("packages".into()),
        user: Some(ROOT.into()),
        working_dir: Some("/".into()),
        entrypoint: words(&["sleep", &(order.deadline + LINGER).as_secs().to_string()]),
        env: Some(env(around.env, around.trusts)),
        healthcheck: Some(HealthConfig {
            test: words(&["NONE"]),
            ..HealthConfig::default()
        }),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conversation::PoolName,
        sandbox::{DebianPackage, Requirement, Requirements},
    };

    fn wished() -> Dependencies {
        Dependencies::new(
            vec![Requirement::parse("six==1; python_version > '3'").unwrap()],
            vec![DebianPackage::parse("libpq5").unwrap()],
            Some(Requirements::new("numpy\n".into())),
        )
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|step| step.argv.join(" ")).collect()
    }

    fn guests() -> Environment {
        let said = ["a warning", "65532:65532", "/v/site-packages", "/w/site-packages"];
        Environment::of(&said.map(str::to_owned))
    }

    #[test]
    fn what_is_wished_for_is_installed_and_what_changed_is_noted() {
        assert_eq!(
            lines(&debian(&wished())),
            [
                "apt-get --version",
                "apt-get -q update",
                "apt-get -q -y --no-install-recommends install -- libpq5",
            ]
        );
        let signed = ["g++=4:14.2.0-1", "python3.13"].map(|name| DebianPackage::parse(name).unwrap());
        assert_eq!(
            lines(&debian(&Dependencies::new(Vec::new(), signed.into(), None)))[2..],
            [
                "apt-cache -q show --no-all-versions -- g++",
                "apt-get -q -y --no-install-recommends install -- g++=4:14.2.0-1 python3.13",
            ]
        );
        let all = python(&wished(), &guests());
        assert_eq!(
            lines(&all)[..2],
            [
                "python3 -m pip --version",
                "python3 -m pip install --no-input --no-cache-dir --disable-pip-version-check --progress-bar=off \
                 --requirement=/.greenroom-build/requirements.txt -- six==1; python_version > '3'",
            ]
        );
        assert_eq!(
            all[1].argv.last().unwrap(),
            "six==1; python_version > '3'",
            "one word"
        );
        let find = lines(&all)[3].clone();
        assert!(
            find.starts_with("find / -mindepth 1 -xdev ( -path /.greenroom-build -o -path /.dockerenv -o ")
        );
        assert!(
            find.ends_with(") -prune -o -cnewer /.greenroom-build/stamp -fprint0 /.greenroom-build/changed")
        );
        let apt_only = Dependencies::new(Vec::new(), vec![DebianPackage::parse("jq").unwrap()], None);
        assert!(
            lines(&python(&apt_only, &guests()))
                .iter()
                .all(|line| !line.contains("pip"))
        );
        assert_eq!(survey(&apt_only).failed, Failed::NoMatter);
        let python_only = Dependencies::new(vec![Requirement::parse("six").unwrap()], Vec::new(), None);
        assert!(debian(&python_only).is_empty());
        assert!(
            lines(&python(&python_only, &guests()))
                .iter()
                .all(|line| !line.contains("requirement"))
        );
    }

    #[test]
    fn root_runs_nothing_that_a_package_may_have_written() {
        let steps = python(&wished(), &guests());
        let installed = steps
            .iter()
            .rposition(|step| step.runs_as.user() == "65532:65532")
            .unwrap();
        assert_eq!(installed, 1, "pip runs as whose environment it is");
        let after = [&steps[2..], &[archive()]].concat();
        assert_eq!(after.len(), 3);
        for step in &after {
            assert_eq!(step.runs_as, RunsAs::Root, "{step:?}");
            let env = step.runs_as.env().unwrap();
            assert_eq!(env[..2], ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]);
        }
        assert_eq!(after[0].argv[..4], ["/usr/bin/python3", "-I", "-S", "-c"]);
        assert_eq!(after[0].argv[5..], ["/v/site-packages", "/w/site-packages"]);
        let unknown = Environment::of(&["no such module".to_owned(), "x:1".to_owned()]);
        assert_eq!(RunsAs::Owner(unknown.clone()).user(), "0:0");
        assert_eq!(
            python(&Dependencies::default(), &unknown).len(),
            1,
            "no list of nothing"
        );
    }

    /// The whole request, so that any change of what an installer may do is seen in a review.
    #[test]
    fn an_installer_has_a_network_and_nothing_else_of_the_host() {
        let order = Derivation {
            pool: PoolName::parse("python").unwrap(),
            image: "image".into(),
            dependencies: wished(),
            runtime: "runsc-4g".into(),
            cpu_millis: 2000,
            memory_bytes: 2 << 30,
            deadline: Duration::from_secs(1200),
        };
        let around = Surroundings {
            image_id: "sha256:a",
            volumes: &["/var/lib/x".to_owned()],
            network: "bridge",
            cgroup_parent: "greenroom_1",
            labels: HashMap::from([("a".to_owned(), "b".to_owned())]),
            env: vec![("PIP_INDEX_URL".to_owned(), "https://x".to_owned())],
            trusts: Trusts::TheHosts,
        };
        let certificates = "/.greenroom-build/certificates.crt";
        let expected = serde_json::json!({
            "Image": "sha256:a",
            "Labels": {"a": "b"},
            "Hostname": "packages",
            "User": "0:0",
            "WorkingDir": "/",
            "Entrypoint": ["sleep", "1260"],
            "Env": [
                "APT_CONFIG=/.greenroom-build/apt.conf", "DEBIAN_FRONTEND=noninteractive", "HOME=/var/tmp", "TMPDIR=/var/tmp",
                "PIP_BREAK_SYSTEM_PACKAGES=1", "PIP_ROOT_USER_ACTION=ignore",
                format!("PIP_CERT={certificates}"), format!("SSL_CERT_FILE={certificates}"),
                format!("REQUESTS_CA_BUNDLE={certificates}"), format!("CURL_CA_BUNDLE={certificates}"),
                "PIP_INDEX_URL=https://x",
            ],
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": {
                "Runtime": "runsc-4g",
                "NetworkMode": "bridge",
                "CgroupParent": "greenroom_1", "IpcMode": "private",
                "CapDrop": ["ALL"],
                "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID", "SYS_CHROOT"],
                "SecurityOpt": ["no-new-privileges"],
                "Privileged": false,
                "Memory": 2u64 << 30, "MemorySwap": 2u64 << 30,
                "NanoCpus": 2_000_000_000u64,
                "PidsLimit": 4096,
                "Ulimits": [
                    {"Name": "fsize", "Soft": 16u64 << 30, "Hard": 16u64 << 30},
                    {"Name": "core", "Soft": 0, "Hard": 0},
                ],
                "LogConfig": {"Type": "none"},
                "Init": false,
                "AutoRemove": false,
                "RestartPolicy": {"Name": "no"},
                "Mounts": [{
                    "Target": "/var/lib/x", "Type": "tmpfs",
                    "TmpfsOptions": {"SizeBytes": 512 << 20, "Mode": 0o1777},
                }],
            },
        });
        assert_eq!(serde_json::to_value(body(&order, around)).unwrap(), expected);
    }

    #[test]
    fn a_container_is_given_what_it_needs() {
        let names = |archive: Vec<u8>| -> Vec<(String, u32)> {
            let mut archive = tar::Archive::new(&archive[..]);
            let entries = archive.entries().unwrap().map(Result::unwrap);
            entries
                .map(|entry| {
                    (
                        entry.path().unwrap().display().to_string(),
                        entry.header().mode().unwrap(),
                    )
                })
                .collect()
        };
        let all = names(gifts(&wished(), Some(b"PEM")).unwrap());
        assert_eq!(
            all,
            [
                (".greenroom-build".to_owned(), 0o755),
                (".greenroom-build/certificates.crt".to_owned(), 0o644),
                (".greenroom-build/apt.conf".to_owned(), 0o644),
                (".greenroom-build/requirements.txt".to_owned(), 0o644),
            ]
        );
        let least = gifts(&Dependencies::default(), None).unwrap();
        assert!(String::from_utf8_lossy(&least).contains("APT::Cmd::Pattern-Only \"true\";"));
        assert_eq!(names(least).len(), 2);
    }
}
