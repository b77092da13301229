//! The Docker engine against a real one: the contract that every engine keeps, and what only Docker can do
//! wrong.

#[expect(unreachable_pub, reason = "it is public where it lives")]
#[expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#[path = "../../server/tests/support/contract.rs"]
mod contract;

use std::{
    os::unix::process::ExitStatusExt as _,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bollard::{
    container::LogOutput,
    exec::{CreateExecOptions, StartExecResults},
    models::{ContainerConfig, ContainerCreateBody},
    query_parameters::{
        CommitContainerOptionsBuilder, CreateContainerOptionsBuilder, InspectContainerOptions,
        KillContainerOptions, RemoveImageOptionsBuilder, RenameContainerOptionsBuilder,
        StartContainerOptions, UploadToContainerOptionsBuilder,
    },
};
use contract::{Bench, contract};
use futures_util::{FutureExt as _, TryStreamExt as _, future::try_join_all};
use greenroom::{
    conversation::PoolName,
    engine::{
        Engine, EngineError,
        docker::{DockerConfig, DockerEngine, Installers},
    },
    sandbox::{SandboxId, SandboxSpec, Stay},
};
use greenroom_integration::{Docker, agent};
use greenroom_protocol::AgentConfig;
use tokio::{
    process::Child,
    time::{sleep, timeout},
};

const IMAGE: &str = "greenroom/python:latest";
const PATIENCE: Duration = Duration::from_secs(60);

/// A deployment of this test's own on the real engine.
struct Bed {
    docker: Docker,
    fingerprint: String,
    engine: Arc<DockerEngine>,
    stranger: Arc<DockerEngine>,
}

impl Bed {
    async fn make() -> Result<Self> {
        let docker = Docker::connect().await?;
        let fingerprint = SandboxId::mint()?.as_str()["grs-".len()..][..16].to_owned();
        let connect = |deployment| DockerEngine::connect(config(&fingerprint, deployment));
        Ok(Self {
            docker,
            engine: Arc::new(connect("ours").await?),
            stranger: Arc::new(connect("theirs").await?),
            fingerprint,
        })
    }

    /// A kind of sandbox from an image that is prepared.
    async fn prepared(&self, image: &str) -> Result<SandboxSpec> {
        let prepared = self.engine.prepare(image).await;
        let image = prepared.context("no image, or no agent: type `make setup agent`")?;
        Ok(SandboxSpec { image, ..spec() })
    }

    async fn running(&self, spec: &SandboxSpec) -> Result<SandboxId> {
        let id = SandboxId::mint()?;
        self.engine.create(&id, spec).await?;
        self.engine.start(&id).await?;
        Ok(id)
    }

    /// Runs a shell command as root in a sandbox and answers what it printed.
    async fn shell(&self, id: &SandboxId, command: &str) -> Result<String> {
        let api = self.docker.api();
        let exec = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(vec!["bash", "-c", command]),
            ..CreateExecOptions::default()
        };
        let exec = api.create_exec(id.as_str(), exec).await?;
        let StartExecResults::Attached { output, .. } = api.start_exec(&exec.id, None).await? else {
            anyhow::bail!("detached");
        };
        let frames: Vec<LogOutput> = output.try_collect().await?;
        Ok(frames.iter().map(ToString::to_string).collect())
    }

    /// Destroys all that is there, however the test went, and checks that nothing is left of it.
    async fn clear(&self) -> Result<()> {
        for engine in [&self.engine, &self.stranger] {
            let left = engine.list().await?;
            try_join_all(left.iter().map(|one| engine.destroy(&one.id))).await?;
            let left = engine.list().await?;
            ensure!(left.is_empty(), "cannot be destroyed: {left:?}");
            remove_cgroups(engine.cgroup_parent())?;
        }
        Ok(())
    }
}

/// Runs a test on a deployment of its own, and clears that away even if the test panics.
async fn on_docker(test: impl AsyncFnOnce(&Bed) -> Result<()>) -> Result<()> {
    let bed = Bed::make().await?;
    let outcome = AssertUnwindSafe(test(&bed)).catch_unwind().await;
    let cleared = bed.clear().await;
    match outcome {
        Ok(outcome) => outcome.and(cleared),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[expect(clippy::expect_used, reason = "a test fails by panicking")]
fn config(fingerprint: &str, deployment: &str) -> DockerConfig {
    DockerConfig {
        socket: "unix:///var/run/docker.sock".to_owned(),
        fingerprint: fingerprint.to_owned(),
        deployment: deployment.to_owned(),
        creator: "contract".to_owned(),
        agent: agent().expect("the agent is built"),
        cgroup_parent: "greenroom".to_owned(),
        installers: Installers::default(),
    }
}

#[expect(clippy::expect_used, reason = "a test fails by panicking")]
fn spec() -> SandboxSpec {
    SandboxSpec {
        pool: PoolName::parse("contract").expect("a pool's name"),
        image: IMAGE.to_owned(),
        runtime: "runsc-1g".to_owned(),
        cpu_millis: 500,
        memory_bytes: 512 << 20,
        pids: 512,
        nproc: 100,
        nofile: 1000,
        stay: Stay::default(),
        agent: AgentConfig {
            ready: Vec::new(),
            unbound_ms: 300_000,
            ..AgentConfig::default()
        },
    }
}

/// Where a cgroup of that name is, in version 1 once for each controller.
fn cgroups(parent: &str) -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let mut found = vec![root.join(parent)];
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path().join(parent));
        }
    }
    found.retain(|path| path.is_dir());
    Ok(found)
}

/// Removes the parent of all sandboxes; that works only if nothing is left in it.
fn remove_cgroups(parent: &str) -> Result<()> {
    for directory in cgroups(parent)? {
        std::fs::remove_dir(&directory)
            .with_context(|| format!("a sandbox left its cgroup in {}", directory.display()))?;
    }
    Ok(())
}

#[expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
impl Bench for Bed {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine) as _
    }

    fn stranger(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.stranger) as _
    }

    fn spec(&self) -> SandboxSpec {
        spec()
    }

    async fn pause(&self, id: &SandboxId) {
        // A sandbox has its own name or its session's: the label is what stays.
        let container = self.container(id).await.unwrap();
        self.docker.api().pause_container(&container).await.unwrap();
    }

    async fn displace(&self, id: &SandboxId) {
        let container = self.container(id).await.unwrap();
        let name = format!("moved-{id}");
        let name = RenameContainerOptionsBuilder::default().name(&name).build();
        self.docker
            .api()
            .rename_container(&container, name)
            .await
            .unwrap();
    }

    async fn kill(&self, id: &SandboxId) {
        let container = self.container(id).await.unwrap();
        let kill = self
            .docker
            .api()
            .kill_container(&container, None::<KillContainerOptions>);
        kill.await.expect("a sandbox to kill");
    }
}

impl Bed {
    async fn container(&self, id: &SandboxId) -> Result<String> {
        let all = self.docker.containers("").await?;
        let own = all.into_iter().find(|container| {
            let labels = container.labels.as_ref();
            labels
                .and_then(|labels| labels.get("greenroom.id"))
                .map(String::as_str)
                == Some(id.as_str())
        });
        own.and_then(|container| container.id).context("no such sandbox")
    }
}

#[tokio::test]
async fn docker_keeps_the_contract() -> Result<()> {
    on_docker(async |bed| {
        Box::pin(contract(bed)).await;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_sandbox_sees_its_limits_and_nothing_of_its_host() -> Result<()> {
    on_docker(async |bed| {
        let id = bed.running(&bed.prepared(IMAGE).await?).await?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
        for (command, expected) in [
            ("hostname", "sandbox"),
            ("ulimit -u; ulimit -n; ulimit -c", "100\n1000\n0"),
            ("tail -n +3 /proc/net/dev | cut -d: -f1 | xargs", "lo"),
            ("cat /etc/resolv.conf", "nameserver 127.0.0.1"),
            ("stat -c '%u %a' /mnt/data /home/sandbox", "65532 755\n65532 755"),
            ("stat -c '%u %a' /tmp /run/greenroom", "0 1777\n0 700"),
            ("stat -c '%u %a' /.greenroom /.greenroom/agent", "0 755\n0 755"),
            // CHOWN, KILL, SETGID and SETUID, and no way to more.
            ("grep CapBnd /proc/1/status | cut -f2", "00000000000000e1"),
            ("grep NoNewPrivs /proc/1/status | cut -f2", "1"),
            // Temporary files are on the limited disk as well, not in an unlimited tmpfs.
            ("df -P -B1M / /tmp | awk 'NR>1 {print $2}'", "1024\n1024"),
            ("awk '/MemTotal/ {print $2}' /proc/meminfo", "524288"),
            // The image's own variables, and none of the host's.
            (
                "tr '\\0' '\\n' < /proc/1/environ | grep -ciE 'proxy|cargo|token|key'",
                "0",
            ),
        ] {
            let seen = bed.shell(&id, command).await?;
            assert_eq!(seen.trim(), expected, "{command}");
            assert!(
                !seen.contains(host.trim()),
                "{command} tells the host's name: {seen:?}"
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_missing_is_named() -> Result<()> {
    on_docker(async |bed| {
        let id = SandboxId::mint()?;
        let mut spec = bed.prepared(IMAGE).await?;
        spec.runtime = "no-such-runtime".to_owned();
        let error = bed.engine.create(&id, &spec).await;
        assert!(
            matches!(error, Err(EngineError::NoRuntime(ref name)) if *name == spec.runtime),
            "{error:?}"
        );
        spec.image = "greenroom/prepared:gone".to_owned();
        let error = bed.engine.create(&id, &spec).await;
        assert!(matches!(error, Err(EngineError::NoImage { .. })), "{error:?}");

        let nowhere = DockerConfig {
            socket: "unix:///nowhere/docker.sock".to_owned(),
            ..config("fingerprint", "ours")
        };
        let error = DockerEngine::connect(nowhere).await;
        assert!(matches!(error, Err(EngineError::Unreachable(_))), "{error:?}");
        Ok(())
    })
    .await
}

/// Commits an image with a VOLUME, and a file in it if wanted.
async fn image_with_volume(bed: &Bed, tag: &str, content: bool) -> Result<String> {
    let api = bed.docker.api();
    let name = format!("greenroom-contract-{tag}-{}", SandboxId::mint()?);
    let options = CreateContainerOptionsBuilder::new().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        ..ContainerCreateBody::default()
    };
    api.create_container(Some(options), body).await?;
    let mut archive = Vec::new();
    let entry: &[(&str, u8)] = if content {
        &[("kept/", b'5'), ("kept/file", b'0')]
    } else {
        &[("kept/", b'5')]
    };
    for (path, kind) in entry {
        archive.extend_from_slice(&tar_header(path, *kind));
    }
    archive.extend_from_slice(&[0; 1024]);
    let options = UploadToContainerOptionsBuilder::new().path("/").build();
    let body = bollard::body_full(archive.into());
    api.upload_to_container(&name, Some(options), body).await?;
    let options = CommitContainerOptionsBuilder::new()
        .container(&name)
        .repo("greenroom/contract")
        .tag(tag)
        .build();
    let config = ContainerConfig {
        volumes: Some(vec!["/kept".to_owned()]),
        ..ContainerConfig::default()
    };
    api.commit_container(options, config).await?;
    bed.docker.remove(&name).await?;
    Ok(format!("greenroom/contract:{tag}"))
}

/// The header of an empty entry in the oldest form of tar.
fn tar_header(path: &str, kind: u8) -> [u8; 512] {
    let mut header = [0; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    for (at, field) in [(100, "0000755\0"), (108, "0000000\0"), (116, "0000000\0")] {
        header[at..at + 8].copy_from_slice(field.as_bytes());
    }
    for at in [124, 136] {
        header[at..at + 12].copy_from_slice(b"00000000000\0");
    }
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

async fn remove_image(bed: &Bed, image: &str) -> Result<()> {
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    bed.docker.api().remove_image(image, Some(options), None).await?;
    Ok(())
}

#[tokio::test]
async fn a_volume_becomes_a_tmpfs_with_a_limit() -> Result<()> {
    on_docker(async |bed| {
        let image = image_with_volume(bed, "empty", false).await?;
        let spec = bed.prepared(&image).await?;
        let id = bed.running(&spec).await?;
        let inspected = bed
            .docker
            .api()
            .inspect_container(id.as_str(), None::<InspectContainerOptions>)
            .await?;
        let mounts = inspected.mounts.unwrap_or_default();
        assert!(
            mounts.iter().all(|mount| mount.typ.as_deref() != Some("volume")),
            "{mounts:?}"
        );
        let size = bed
            .shell(&id, "df -P -B1M /kept | awk 'NR==2 {print $2}'")
            .await?;
        assert_eq!(size.trim(), "128", "a quarter of the memory");

        let full = image_with_volume(bed, "full", true).await?;
        let error = bed.engine.prepare(&full).await;
        assert!(
            matches!(error, Err(EngineError::BadImage { ref reason, .. }) if reason.contains("/kept")),
            "{error:?}"
        );
        let prepared = spec.image.clone();
        bed.engine.destroy(&id).await?;
        for image in [&prepared, &image, &full] {
            remove_image(bed, image).await?;
        }
        Ok(())
    })
    .await
}

/// However much sandboxes take together, the host's kernel ends one of them, and not the engine or the server.
#[tokio::test]
async fn all_sandboxes_together_leave_the_host_its_share() -> Result<()> {
    on_docker(async |bed| {
        let id = bed.running(&bed.prepared(IMAGE).await?).await?;
        let spare = bed.engine.spare_memory().await?.context("a local engine")?;
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let total: u64 = memory.split_whitespace().nth(1).context("MemTotal")?.parse()?;
        ensure!(spare > 0 && spare < total * 1024, "{spare} of {total} KiB");
        let parent = bed.engine.cgroup_parent();
        // Wherever the engine stands, and with either version of cgroups.
        let find = format!(
            "find /sys/fs/cgroup -path '*/{parent}/*' -prune -o -path '*/{parent}' -print \
             | xargs -I@ sh -c 'cat @/memory.limit_in_bytes @/memory.max 2>/dev/null || true'"
        );
        let found = tokio::process::Command::new("sh")
            .args(["-c", &find])
            .output()
            .await?;
        let limit: u64 = String::from_utf8(found.stdout)?
            .trim()
            .parse()
            .context("a limit")?;
        let share = total * 1024 - limit;
        ensure!((512 << 20..=4 << 30).contains(&share), "the host keeps {share}");
        Ok(bed.engine.destroy(&id).await?)
    })
    .await
}

#[tokio::test]
async fn closed_channels_leave_nothing_running() -> Result<()> {
    on_docker(async |bed| {
        let id = bed.running(&bed.prepared(IMAGE).await?).await?;
        let channels = try_join_all((0..8).map(|_| bed.engine.open(&id))).await?;
        drop(channels);
        for _ in 0..8 {
            // Given up before it was open.
            drop(timeout(Duration::from_millis(30), bed.engine.open(&id)).await);
        }
        // The engine forgets an exec that has ended with its next tick, minutes later; none may run.
        timeout(PATIENCE, async {
            while execs(bed, &id).await? > 0 || relays(&bed.container(&id).await?)? > 0 {
                sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        })
        .await
        .context("a relay is still there")??;
        Ok(())
    })
    .await
}

/// Execs of a sandbox that run, as the engine sees it.
async fn execs(bed: &Bed, id: &SandboxId) -> Result<usize> {
    let api = bed.docker.api();
    let inspected = api
        .inspect_container(id.as_str(), None::<InspectContainerOptions>)
        .await?;
    let mut running = 0;
    for exec in inspected.exec_ids.unwrap_or_default() {
        // One that is gone by now does not run.
        let exec = api.inspect_exec(&exec).await;
        running += usize::from(exec.is_ok_and(|exec| exec.running == Some(true)));
    }
    Ok(running)
}

/// `runsc exec` processes on this host that belong to a container.
fn relays(container: &str) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir("/proc")? {
        let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        count += usize::from(line.contains(" exec ") && line.contains(container));
    }
    Ok(count)
}

#[tokio::test]
async fn what_the_engine_forgot_is_ended_at_the_second_look() -> Result<()> {
    on_docker(async |bed| {
        // A running sandbox: its cgroup must survive, and its parent shows where ours are.
        let id = bed.running(&bed.prepared(IMAGE).await?).await?;
        let forgotten = "f0".repeat(32);
        let mut sleeper = tokio::process::Command::new("sleep")
            .arg("600")
            .kill_on_drop(true)
            .spawn()?;
        let pid = sleeper.id().context("a process")?;
        for parent in cgroups(bed.engine.cgroup_parent())? {
            let cgroup = parent.join(&forgotten);
            std::fs::create_dir(&cgroup)?;
            std::fs::write(cgroup.join("cgroup.procs"), pid.to_string())
                .or_else(|_| std::fs::remove_dir(&cgroup))?;
        }
        assert_eq!(bed.engine.sweep().await?, 0, "a first look ends nothing");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
        assert_eq!(bed.engine.sweep().await?, 1);
        let status = timeout(PATIENCE, sleeper.wait())
            .await
            .context("it still runs")??;
        assert!(!status.success());
        timeout(PATIENCE, async {
            while bed.engine.sweep().await? > 0 {
                sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        })
        .await
        .context("its cgroup stays")??;
        assert_eq!(bed.shell(&id, "echo alive").await?.trim(), "alive");
        Ok(())
    })
    .await
}

/// What looks like a container's shim, working in this folder, until it is killed.
fn shim(container: &str, bundle: &Path) -> Result<Child> {
    let shim = tokio::process::Command::new("sh")
        .arg0("/usr/bin/containerd-shim-of-a-test")
        .args(["-c", "read line", "-id", container])
        .current_dir(bundle)
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok(shim)
}

/// Waits until it was killed: it would end by itself, too, once nobody writes to it.
async fn killed(shim: &mut Child) -> Result<()> {
    let status = timeout(PATIENCE, shim.wait()).await.context("it still runs")??;
    ensure!(status.signal() == Some(9), "it ended by itself: {status}");
    Ok(())
}

#[tokio::test]
async fn a_shim_without_a_container_is_ended_at_the_second_look() -> Result<()> {
    on_docker(async |bed| {
        let id = bed.running(&bed.prepared(IMAGE).await?).await?;
        let (ours, theirs) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let mut shims = Vec::new();
        for (engine, bundle) in [(&bed.engine, &ours), (&bed.stranger, &theirs)] {
            let forgotten = SandboxId::mint()?.as_str()["grs-".len()..].repeat(3)[..64].to_owned();
            let cgroup = format!("{}/{forgotten}", engine.cgroup_parent());
            let config = format!(r#"{{"linux":{{"cgroupsPath":"{cgroup}"}}}}"#);
            std::fs::write(bundle.path().join("config.json"), config)?;
            shims.push(shim(&forgotten, bundle.path())?);
        }
        assert_eq!(bed.engine.sweep().await?, 0, "a first look ends nothing");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
        assert_eq!(bed.engine.sweep().await?, 1);
        killed(&mut shims[0]).await?;
        assert!(shims[1].try_wait()?.is_none(), "that is another deployment's");
        assert_eq!(bed.shell(&id, "echo alive").await?.trim(), "alive");
        Ok(())
    })
    .await
}

/// An engine that was killed while it started a builder does not know that it runs.
#[tokio::test]
async fn what_runs_on_of_a_builder_ends_with_it() -> Result<()> {
    on_docker(async |bed| {
        let api = bed.docker.api();
        let name = format!("greenroom-build-{}-test", bed.fingerprint);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let labels = [
            ("greenroom.deployment", format!("{}-ours", bed.fingerprint)),
            ("greenroom.builder", "300".to_owned()),
        ];
        let body = ContainerCreateBody {
            image: Some(IMAGE.to_owned()),
            entrypoint: Some(vec!["true".to_owned()]),
            labels: Some(labels.map(|(label, value)| (label.to_owned(), value)).into()),
            ..ContainerCreateBody::default()
        };
        let builder = api.create_container(Some(options), body).await?.id;
        let bundle = tempfile::tempdir()?;
        let mut shim = shim(&builder, bundle.path())?;
        assert_eq!(bed.engine.sweep().await?, 0, "it is young");
        api.start_container(&builder, None::<StartContainerOptions>)
            .await?;
        timeout(PATIENCE, async {
            while bed.engine.sweep().await? == 0 {
                sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        })
        .await
        .context("it ends by itself, and is swept")??;
        killed(&mut shim).await
    })
    .await
}

#[tokio::test]
async fn an_agent_that_is_not_static_is_refused() -> Result<()> {
    Docker::connect().await?;
    let engine = DockerEngine::connect(DockerConfig {
        agent: std::env::current_exe()?,
        ..config("fingerprint", "ours")
    })
    .await?;
    let error = engine.prepare(IMAGE).await;
    assert!(
        matches!(error, Err(EngineError::BadAgent(ref text)) if text.contains("make agent")),
        "{error:?}"
    );
    Ok(())
}
