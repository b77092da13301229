//! Pools that add packages to their image: real installers under real gVisor, with the index that this host reaches.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bollard::{
    models::{ContainerSummary, ContainerSummaryStateEnum},
    query_parameters::{
        InspectNetworkOptions, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
        RemoveImageOptionsBuilder,
    },
};
use greenroom::config::{Inputs, Loaded};
use greenroom_integration::{Client, Config, Docker, Era, Greenroom, binary};
use serde_json::json;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

/// How long an installation may take on a busy machine.
const INSTALLED: Duration = Duration::from_secs(240);

/// A secret of the server's host, in its environment.
const SECRET: (&str, &str) = ("AWS_SECRET_ACCESS_KEY", "not-for-installers");

fn config(pool: &str) -> Config {
    Config {
        pool: format!("preload = []\nlanguages = [\"python\"]\n{pool}"),
        env: vec![(SECRET.0.to_owned(), SECRET.1.to_owned())],
        ..Config::default()
    }
}

/// The derived image that a server's log names.
fn named(log: &str) -> Result<String> {
    let at = log
        .find("greenroom/derived:")
        .context("no derived image in the log")?;
    let rest = &log[at..];
    let end = "greenroom/derived:".len() + 32;
    Ok(rest[..end].to_owned())
}

/// The derived image that the one pool of a configuration wishes for.
async fn wished_by(docker: &Docker, file: &Path) -> Result<String> {
    let inputs = Inputs {
        text: fs::read_to_string(file)?,
        file: Some(file.to_owned()),
        root: true,
        cpus: 2,
        ..Inputs::default()
    };
    let loaded = Loaded::read(&inputs).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let pool = &loaded.config.pools[&loaded.config.default_pool];
    let base = docker.api().inspect_image(&pool.image).await?;
    let digest = pool.dependencies.digest(&base.id.unwrap_or_default());
    Ok(format!("greenroom/derived:{digest}"))
}

/// Containers that packages are installed in, of one deployment.
async fn builders(docker: &Docker, deployment: &str) -> Result<Vec<ContainerSummary>> {
    let filters = std::collections::HashMap::from([("label", vec!["greenroom.builder"])]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let mut all = docker.api().list_containers(Some(options)).await?;
    all.retain(|container| {
        let labels = container.labels.as_ref();
        labels.is_some_and(|labels| labels["greenroom.deployment"].ends_with(deployment))
    });
    Ok(all)
}

/// Takes a derived image away, and what was prepared from it.
async fn forget(docker: &Docker, derived: &str) -> Result<()> {
    let filters = std::collections::HashMap::from([("label", vec![format!("greenroom.source={derived}")])]);
    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    for image in docker.api().list_images(Some(options)).await? {
        let force = RemoveImageOptionsBuilder::new().force(true).build();
        docker.api().remove_image(&image.id, Some(force), None).await?;
    }
    let force = RemoveImageOptionsBuilder::new().force(true).build();
    docker.api().remove_image(derived, Some(force), None).await?;
    Ok(())
}

/// A folder's name, as one that anything may have.
fn word(folder: &tempfile::TempDir) -> String {
    let name = folder.path().file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or("x").chars();
    name.filter(char::is_ascii_alphanumeric).collect()
}

#[tokio::test]
async fn what_a_pool_adds_is_there_is_installed_once_and_leaves_no_trace_of_how() -> Result<()> {
    let docker = Docker::connect().await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("requirements.txt");
    // The comment makes it an image of this run's own.
    fs::write(
        &file,
        format!("# {}\niniconfig==2.1.0\n", folder.path().display()),
    )?;
    let mut config = config(&format!(
        "packages = [\"cowsay==6.1\"]\napt = [\"tree\"]\nrequirements = {file:?}\n"
    ));
    config.env.push((
        "PIP_EXTRA_INDEX_URL".into(),
        "https://me:hidden@127.0.0.1:9/simple".into(),
    ));
    config.env.push(("PIP_RETRIES".into(), "0".into()));
    let began = Instant::now();
    let mut server = Greenroom::start(&config).await?;
    println!("installed, booted and ready in {:?}", began.elapsed());
    let log = server.log();
    for said in [
        "installing the pool's packages",
        "apt-get -q -y --no-install-recommends install -- tree",
        "installed the pool's packages",
    ] {
        ensure!(log.contains(said), "{said:?} is not in\n{log}");
    }
    ensure!(!log.contains("hidden"), "an index's password is in the log");
    let image = named(&log)?;
    let client = server.client(Era::Modern).await?;
    let code = "import cowsay, iniconfig, os, shutil, subprocess\n\
                print(cowsay.__version__, iniconfig.__name__, shutil.which('tree'), os.getuid())\n\
                print(subprocess.run(['tree', '--version'], capture_output=True, text=True).stdout[:6])\n\
                print([path for path in ['/.greenroom-build', '/var/tmp/pip.conf', '/root/.config'] if os.path.exists(path)])\n\
                print({key: value for key, value in os.environ.items() if 'INDEX_URL' in key or 'hidden' in value})\n\
                import json; listed = [(p['kind'], p['name']) for p in json.load(open('/opt/greenroom/packages.json'))]\n\
                print({('python', 'cowsay'), ('python', 'iniconfig'), ('debian', 'tree')} <= set(listed), len(listed) == len(set(listed)))";
    let answer = client.python("what-a-pool-adds", code).await?;
    let expected = [
        "6.1 iniconfig /usr/bin/tree 65532",
        "tree v",
        "[]",
        "{}",
        "True True",
    ];
    for line in expected {
        ensure!(answer.text.contains(line), "{line:?} is not in\n{}", answer.text);
    }
    let inspected = format!("{:?}", docker.api().inspect_image(&image).await?.config);
    ensure!(
        !inspected.contains("hidden") && !inspected.contains("PIP_"),
        "{inspected}"
    );
    ensure!(
        builders(&docker, server.deployment()).await?.is_empty(),
        "a builder is left"
    );

    server.kill().await?;
    let began = Instant::now();
    server.restart().await?;
    println!("the second start took {:?}", began.elapsed());
    let again = server.log()[log.len()..].to_owned();
    ensure!(!again.contains("installing"), "it was installed again:\n{again}");
    let client = server.client(Era::Modern).await?;
    let answer = client
        .python("after-a-restart", "import cowsay; print(cowsay.__version__)")
        .await?;
    ensure!(answer.text.contains("6.1"), "{}", answer.text);
    server.finish().await?;
    forget(&docker, &image).await
}

/// What `/readyz` says once the packages could not be installed.
async fn not_installed(server: &Greenroom) -> Result<(u16, String)> {
    let until = Instant::now() + INSTALLED;
    loop {
        let ready = reqwest::get(server.url("/readyz")).await?;
        let (status, text) = (ready.status().as_u16(), ready.text().await?);
        if text.contains("could not be installed") {
            return Ok((status, text));
        }
        ensure!(Instant::now() < until, "{status} {text}:\n{}", server.log());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn packages_that_cannot_be_installed_are_told_before_the_pool_takes_calls() -> Result<()> {
    let mut server = Greenroom::start_unready(&config(
        "packages = [\"greenroom-there-is-no-such-package==0.0.1\"]\nclaim_wait = \"20s\"\n\
         [pool.other]\nwarm = 1\npreload = []\nlanguages = [\"python\"]\n",
    ))
    .await?;
    let (status, text) = not_installed(&server).await?;
    ensure!(
        status == 503 && !text.contains("No matching distribution"),
        "{status} {text}"
    );
    let log = server.log();
    ensure!(log.contains("No matching distribution found"), "{log}");
    // Looked at now: it is tried again half a minute later.
    ensure!(
        builders(&Docker::connect().await?, server.deployment())
            .await?
            .is_empty(),
        "a builder is left"
    );
    let client = server.client(Era::Modern).await?;
    let began = Instant::now();
    let answer = client.python("nothing-there", "1").await?;
    ensure!(answer.is_error, "{}", answer.text);
    ensure!(answer.text.contains("could not be installed"), "{}", answer.text);
    ensure!(began.elapsed() < Duration::from_secs(15), "it was waited for");
    // Of another pool nothing is missing.
    let other = json!({"code": "print(6 * 7)", "pool": "other", "conversation_id": "another-pool"});
    let answer = client.call("execute_code", other).await?;
    ensure!(answer.text.contains("42"), "{}", answer.text);
    let doctor = server.types(&["doctor"]).await?;
    let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(!doctor.status.success(), "{report}");
    ensure!(
        report.contains("FAIL  pool python") && report.contains("No matching distribution"),
        "{report}"
    );
    server.stop().await?;
    server.finish().await
}

#[tokio::test]
async fn an_image_without_pip_or_apt_is_told_what_it_lacks() -> Result<()> {
    let image = greenroom_integration::images::static_app().await?;
    for (image, wish, lacks) in [
        (image.as_str(), "packages = [\"six\"]", "it lacks"),
        (
            "greenroom/python:latest",
            "packages = [\"six\"]\ninstall_timeout = \"1s\"",
            "install_timeout",
        ),
        // Names that there are not, and that apt would take for a pattern and for a sign.
        (
            "greenroom/python:latest",
            "apt = [\"tre.\"]",
            "Unable to locate package tre.",
        ),
        (
            "greenroom/python:latest",
            "apt = [\"tree+\"]",
            "No packages found",
        ),
    ] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("greenroom.toml");
        let state = folder.path().join("state");
        let name = word(&folder);
        fs::write(
            &path,
            format!(
                "state_dir = {state:?}\n[engine]\ndeployment = \"it-{name}\"\n[pool.python]\nimage = \"{image}\"\n{wish}\n"
            ),
        )?;
        let doctor = Command::new(binary()?)
            .args(["doctor", "--config"])
            .arg(&path)
            .output()
            .await?;
        let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(!doctor.status.success() && report.contains(lacks), "{report}");
        ensure!(
            builders(&Docker::connect().await?, &format!("it-{name}-doctor"))
                .await?
                .is_empty(),
            "left"
        );
    }
    Ok(())
}

/// What a hostile package sees and does while it is installed, kept in a module of its own.
const HOSTILE: &str = r##"
import json, os, pathlib, setuptools
seen = {
    "env": dict(os.environ),
    "kernel": pathlib.Path("/proc/version").read_text(),
    "root": sorted(os.listdir("/")),
    "uid": os.getuid(),
    "docker": os.path.exists("/var/run/docker.sock"),
}
for place in ["/root/left", "/tmp/left", "/var/tmp/left", "/.greenroom-build/left", "/usr/bin/left"]:
    try:
        pathlib.Path(place).write_text("left")
    except OSError:
        pass
# What root may look for by name, and what its Python may read, tells here who ran it and tries to leave what is root's.
bin = pathlib.Path("/home/sandbox/venv/bin")
if not (bin / "python3.real").is_symlink():
    (bin / "python3").rename(bin / "python3.real")
spoil = """#!/bin/sh
mark() { echo "$1 $(/usr/bin/id -u)" >>/home/sandbox/venv/ran; }
{ mark %(name)s; cp /bin/sh /usr/bin/left-%(name)s && chmod 4755 /usr/bin/left-%(name)s; } >/dev/null 2>&1
%(goes_on)s
"""
goes_on = {
    "python3": 'exec /home/sandbox/venv/bin/python3.real "$@"',
    "tar": 'exec /usr/bin/tar "$@"',
    "find": 'exec /usr/bin/find "$@"',
    "dpkg-query": 'exec /usr/bin/dpkg-query "$@"',
    "pth": "",
}
for name, command in goes_on.items():
    (bin / name).write_text(spoil % {"name": name, "goes_on": command})
    (bin / name).chmod(0o755)
(site,) = pathlib.Path("/home/sandbox/venv/lib").glob("python3.*/site-packages")
(site / "left.pth").write_text(f"import os; os.system('{bin}/pth')\n")
pathlib.Path("spoils.py").write_text("SEEN = " + repr(json.dumps(seen)))
setuptools.setup(name="spoils", version="1", py_modules=["spoils"])
"##;

#[tokio::test]
async fn a_hostile_package_sees_nothing_of_the_host_and_leaves_only_its_package() -> Result<()> {
    let docker = Docker::connect().await?;
    let network = docker
        .api()
        .inspect_network("bridge", None::<InspectNetworkOptions>)
        .await?;
    let ipam = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let gateway = ipam
        .into_iter()
        .find_map(|one| one.gateway)
        .context("the bridge has no address")?;
    let address = serve_once_and_again(&gateway, sdist()?)?;
    let server = Greenroom::start(&config(&format!("packages = [\"spoils @ {address}\"]\n"))).await?;
    let image = named(&server.log())?;
    let client = server.client(Era::Modern).await?;
    let code = "import spoils, os, glob, json; print(spoils.SEEN); print([p for p in \
                ['/root/left', '/tmp/left', '/var/tmp/left', '/.greenroom-build', *glob.glob('/usr/bin/left*')] if os.path.exists(p)], 'left')\n\
                ran = [line.split() for line in open('/home/sandbox/venv/ran')]\n\
                print(sorted({uid for _, uid in ran}), 'ran', {'python3', 'pth'} <= {name for name, _ in ran})\n\
                print(os.path.exists('/home/sandbox/venv/bin/tar'), 'planted')\n\
                print([p['version'] for p in json.load(open('/opt/greenroom/packages.json')) if p['name'] == 'spoils'], 'listed')";
    let answer = client.python("a-hostile-package", code).await?;
    for good in [
        "gVisor",
        "\"docker\": false",
        "\"uid\": 65532",
        "[] left",
        "['65532'] ran True",
        "True planted",
        "['1'] listed",
    ] {
        ensure!(
            answer.text.contains(good) || answer.text.to_lowercase().contains(&good.to_lowercase()),
            "{good:?} is not in\n{}",
            answer.text
        );
    }
    for bad in [SECRET.1, SECRET.0, "GREENROOM_", "CARGO"] {
        ensure!(!answer.text.contains(bad), "{bad:?} is in\n{}", answer.text);
    }
    server.finish().await?;
    forget(&docker, &image).await
}

/// A source package whose installation runs what it likes.
fn sdist() -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let package = folder.path().join("spoils-1");
    fs::create_dir(&package)?;
    fs::write(package.join("setup.py"), HOSTILE)?;
    let archive = folder.path().join("spoils-1.tar.gz");
    let packed = std::process::Command::new("tar")
        .arg("-czf")
        .arg(&archive)
        .arg("-C")
        .arg(folder.path())
        .arg("spoils-1")
        .status()?;
    ensure!(packed.success(), "tar");
    Ok(fs::read(Path::new(&archive))?)
}

/// Serves one file on an address that containers of the bridge reach, until the test's process ends.
fn serve_once_and_again(gateway: &str, file: Vec<u8>) -> Result<String> {
    let listener = TcpListener::bind((gateway, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0; 4096];
            let read = stream.read(&mut request);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                file.len()
            );
            if read.is_ok() && stream.write_all(head.as_bytes()).is_ok() {
                drop(stream.write_all(&file));
            }
        }
    });
    Ok(format!("http://{address}/spoils-1.tar.gz"))
}

#[tokio::test]
async fn a_builder_whose_server_was_killed_is_no_sandbox_and_is_swept() -> Result<()> {
    let docker = Docker::connect().await?;
    let mut server = Greenroom::start_unready(&config(
        "packages = [\"greenroom-there-is-no-such-package==0.0.2\", \"scikit-learn\"]\ninstall_timeout = \"10s\"\n",
    ))
    .await?;
    let until = Instant::now() + INSTALLED;
    let runs = |builder: &ContainerSummary| builder.state == Some(ContainerSummaryStateEnum::RUNNING);
    while !builders(&docker, server.deployment()).await?.iter().any(runs) {
        ensure!(Instant::now() < until, "no builder:\n{}", server.log());
        sleep(Duration::from_millis(20)).await;
    }
    server.kill().await?;
    ensure!(
        docker.ids(server.deployment()).await?.is_empty(),
        "a builder counts as a sandbox"
    );
    let left = builders(&docker, server.deployment()).await?;
    ensure!(left.len() == 1, "{left:?}");
    // It ends by itself, and then any sweep removes it.
    let until = Instant::now() + Duration::from_secs(240);
    while !builders(&docker, server.deployment()).await?.is_empty() {
        ensure!(Instant::now() < until, "it is still there");
        sleep(Duration::from_secs(1)).await;
        server.prints(&["sweep"]).await?;
    }
    server.finish().await
}

#[tokio::test]
async fn a_reload_takes_packages_over_or_changes_nothing_and_says_why() -> Result<()> {
    let server = Greenroom::start(&config("")).await?;
    let client = server.client(Era::Modern).await?;
    let file = server.config_path();
    let before = fs::read_to_string(&file)?;
    let reload = async |packages: &str| {
        fs::write(&file, format!("{before}packages = [{packages}]\n"))?;
        server.types(&["reload"]).await
    };
    let refused = reload("\"greenroom-there-is-no-such-package==0.0.3\"").await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && said.contains("No matching distribution"),
        "{said}"
    );
    let answer = client
        .python("before-and-after", "kept = 1; import cowsay")
        .await?;
    ensure!(answer.text.contains("ModuleNotFoundError"), "{}", answer.text);
    let taken = reload("\"cowsay==6.1\"").await?;
    ensure!(
        taken.status.success(),
        "{}",
        String::from_utf8_lossy(&taken.stderr)
    );
    let answer = client
        .python("from-now-on", "import cowsay; print(cowsay.__version__)")
        .await?;
    ensure!(answer.text.contains("6.1"), "{}", answer.text);
    let answer = client.python("before-and-after", "print(kept)").await?;
    ensure!(answer.session() == "existing", "{}", answer.text);
    let again = reload("\"cowsay==6.1\"").await?;
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    ensure!(said.contains("no pool has changed"), "{said}");
    let docker = Docker::connect().await?;
    let image = wished_by(&docker, &file).await?;
    server.finish().await?;
    forget(&docker, &image).await
}

#[tokio::test]
async fn a_process_of_stdio_answers_while_packages_are_installed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (path, state) = (folder.path().join("greenroom.toml"), folder.path().join("state"));
    let name = word(&folder);
    // The comment makes it an image of this run's own.
    fs::write(folder.path().join("r.txt"), format!("# {name}\ncowsay==6.1\n"))?;
    fs::write(
        &path,
        format!(
            "state_dir = {state:?}\n[engine]\ndeployment = \"it-{name}\"\n[pool.python]\nclaim_wait = \"1s\"\nwarm = 1\n\
             preload = []\nlanguages = [\"python\"]\nrequirements = \"r.txt\"\napt = [\"tree\"]\n"
        ),
    )?;
    let mut command = Command::new(binary()?);
    command.args(["stdio", "--embedded", "--config"]).arg(&path);
    let began = Instant::now();
    let client = Client::stdio(command, Era::Legacy).await?;
    let answer = client.python("while-installing", "1 + 1").await?;
    ensure!(
        answer.is_error && answer.text.contains("still being installed"),
        "{}",
        answer.text
    );
    ensure!(began.elapsed() < Duration::from_secs(30), "it hung");
    let until = Instant::now() + INSTALLED;
    let answer = loop {
        let answer = client.python("while-installing", "import cowsay; 1 + 1").await?;
        if !answer.is_error {
            break answer;
        }
        ensure!(Instant::now() < until, "{}", answer.text);
        sleep(Duration::from_millis(500)).await;
    };
    ensure!(answer.result() == "2", "{}", answer.text);
    client.close().await?;
    let docker = Docker::connect().await?;
    docker.sweep(&format!("it-{name}")).await?;
    forget(&docker, &wished_by(&docker, &path).await?).await
}
