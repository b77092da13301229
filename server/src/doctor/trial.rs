//! One real sandbox: booted, looked at from inside, timed, and destroyed.

use std::{sync::Arc, time::Duration};

use greenroom_protocol::{
    Begin, GENERATION, Hello, KeyDigest, Language, LeaseRequest, RunEventKind, RunId, RunOutcome, RunRequest,
    RunStatus,
};
use tokio::time::{Instant, timeout};

use super::report::{Found, Report};
use crate::{
    config::{Config, PoolConfig},
    conversation::PoolName,
    engine::{Engine, EngineError, docker::DockerEngine},
    guest::{Guest, GuestError},
    sandbox::{Program, SandboxId, SandboxSpec},
};

/// Hellos and runs that are timed.
const ROUNDS: usize = 20;
/// A trial's lease: longer than the trial, and short enough to end by itself if this process is killed.
const LEASE: Duration = Duration::from_secs(60);

/// Why a trial failed, and what to do about it.
struct Failure {
    problem: String,
    repair: &'static str,
}

impl Failure {
    fn of(problem: impl Into<String>, repair: &'static str) -> Self {
        let problem = problem.into();
        Self { problem, repair }
    }
}

/// Any failure whose reason is not known better.
impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        Self::of(error.to_string(), "look into the engine's log")
    }
}

/// Boots a sandbox of a pool and reports what it is like inside.
pub(super) async fn boot(
    engine: &Arc<DockerEngine>,
    config: &Config,
    name: &PoolName,
    pool: &PoolConfig,
    image: String,
    report: &mut Report,
) {
    let program = match engine.program(&image).await {
        Ok(program) => program,
        Err(error) => return report.bad("sandbox", error, "make setup"),
    };
    let mut spec = SandboxSpec {
        image,
        ..pool.sandbox(name)
    };
    spec.agent.user = pool.start().app.map(|app| app.user(&program));
    let id = match SandboxId::mint() {
        Ok(id) => id,
        Err(error) => return report.bad("sandbox", error, "reboot: this host gives no random bytes"),
    };
    // The deadline of a boot, and as much again for what comes after.
    let trial = timeout(
        2 * pool.boot_timeout,
        attempt(engine, config, (pool, &program), &spec, &id, report),
    );
    match trial.await {
        Ok(Ok(())) => {}
        Ok(Err(Failure { problem, repair })) => report.bad("sandbox", problem, repair),
        Err(_) => report.bad(
            "sandbox",
            format!("no answer within {} s", 2 * pool.boot_timeout.as_secs()),
            "look at the host's load, and raise the pool's boot_timeout",
        ),
    }
    destroy(engine, &id).await;
}

/// Destroys a sandbox of a trial; if that fails it ends by itself, and the next trial removes it.
pub(super) async fn destroy(engine: &DockerEngine, id: &SandboxId) {
    if let Err(error) = engine.destroy(id).await {
        tracing::warn!(sandbox = %id, %error, "a trial's sandbox stays for now");
    }
}

async fn attempt(
    engine: &Arc<DockerEngine>,
    config: &Config,
    (pool, program): (&PoolConfig, &Program),
    spec: &SandboxSpec,
    id: &SandboxId,
    report: &mut Report,
) -> Result<(), Failure> {
    let began = Instant::now();
    let refused = |error: EngineError| Failure::of(error.to_string(), "make setup");
    engine.create(id, spec).await.map_err(refused)?;
    engine.start(id).await.map_err(refused)?;
    let guest = Guest::connect(Arc::clone(engine) as Arc<dyn Engine>, id.clone()).await?;
    let reached = began.elapsed();
    if spec.agent.begin != Begin::AtOnce {
        let request = pool.start().request(program);
        guest
            .boot(&request.map_err(|bad| Failure::of(bad.to_string(), "set the pool's command"))?)
            .await?;
    }
    let hello = guest.wait_ready(pool.boot_timeout).await?;
    if let Some(reason) = hello.failed {
        return Err(Failure::of(reason, "look at the image: what it lacks is named"));
    }
    report.good(
        "boot",
        format!("reached in {}, ready in {}", show(reached), show(began.elapsed())),
    );
    inside(&hello, config, pool, spec, report);
    latency(&guest, pool, report).await
}

/// What the sandbox saw of the machine under it, against what it was given.
fn inside(hello: &Hello, config: &Config, pool: &PoolConfig, spec: &SandboxSpec, report: &mut Report) {
    let seen = &hello.platform;
    if seen.gvisor {
        report.good("isolation", format!("gVisor: {}", seen.kernel));
    } else if config.engine.runtime.must_prove_gvisor() {
        let problem = format!("runtime {} is not gVisor: {}", spec.runtime, seen.kernel);
        report.bad("isolation", problem, "make setup");
    } else {
        let text = "none: sandboxes share this host's kernel, as configured";
        report.add("isolation", Found::Note(text.to_owned()));
    }
    if hello.generation != GENERATION {
        let problem = format!(
            "the agent speaks generation {}, this server {GENERATION}",
            hello.generation
        );
        report.bad("agent", problem, "make agent");
    }
    let mib = |bytes: u64| bytes >> 20;
    let text = format!(
        "{} processors, {} MiB of memory, {} MiB of disk as seen inside",
        seen.cpus,
        mib(seen.memory_bytes),
        mib(seen.disk_bytes)
    );
    // Without gVisor a sandbox sees the host's memory and disk, whatever it may use of them.
    let held = seen.memory_bytes <= spec.memory_bytes && seen.disk_bytes <= disk(pool);
    if held || !seen.gvisor {
        report.good("limits", text);
    } else {
        report.bad("limits", format!("not kept: {text}"), "make setup");
    }
}

/// What a disk of that size can come to: set-up rounds up to the sizes that it registers.
fn disk(pool: &PoolConfig) -> u64 {
    let suffix = pool.runtime.rsplit('-').next().unwrap_or_default();
    let gib = suffix
        .strip_suffix('g')
        .and_then(|digits| digits.parse::<u64>().ok());
    gib.map_or(u64::MAX, |gib| gib << 30)
}

/// Times a hello, and a run in the pool's first language.
async fn latency(guest: &Guest, pool: &PoolConfig, report: &mut Report) -> Result<(), Failure> {
    let mut hellos = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        guest.hello().await?;
        hellos.push(began.elapsed());
    }
    if pool.languages.is_empty() {
        report.good("latency", format!("a hello {} (median)", show(median(hellos))));
        return Ok(());
    }
    lease(guest).await?;
    let mut runs = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let began = Instant::now();
        let outcome = one_run(guest, pool, round).await?;
        if outcome.status != RunStatus::Ok {
            let problem = format!("a run ended as {:?}: {:?}", outcome.status, outcome.error);
            return Err(Failure::of(
                problem,
                "look at the image: its kernel does not work",
            ));
        }
        runs.push(began.elapsed());
    }
    report.good(
        "latency",
        format!(
            "a hello {}, a run {} (medians)",
            show(median(hellos)),
            show(median(runs))
        ),
    );
    Ok(())
}

async fn lease(guest: &Guest) -> Result<(), Failure> {
    let millis = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
    let lease = LeaseRequest {
        // No deployment's secret comes to this: it is nobody's session.
        key: KeyDigest("0".repeat(64)),
        idle_ms: millis,
        lifetime_ms: millis,
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    };
    guest.lease(&lease).await?;
    Ok(())
}

async fn one_run(guest: &Guest, pool: &PoolConfig, round: usize) -> Result<RunOutcome, Failure> {
    let language = pool
        .languages
        .first()
        .copied()
        .ok_or_else(|| Failure::of("the pool has no language", "set its languages"))?;
    let mut follow = guest.run(&RunRequest {
        id: RunId(format!("doctor-{round}")),
        language,
        code: match language {
            Language::Python => "1 + 1",
            Language::JavaScript | Language::TypeScript | Language::Other(_) => "1",
            Language::Bash | Language::Sh => "true",
        }
        .to_owned(),
        timeout_ms: 10_000,
    })?;
    while let Some(event) = follow.next().await? {
        if let RunEventKind::Finished(outcome) = event.kind {
            return Ok(outcome);
        }
    }
    Err(Failure::of("a run ended without an outcome", "make agent"))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn show(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 10.0 {
        format!("{millis:.1} ms")
    } else {
        format!("{millis:.0} ms")
    }
}
