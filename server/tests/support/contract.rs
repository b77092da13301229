//! What every engine promises, as one function: run on the fake engine and on Docker, so that the fake
//! cannot lie.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use greenroom::{
    conversation::{ConversationId, Principal, Secret, SessionKey, SessionName},
    engine::{Adoption, Derivation, Engine, EngineError, ListedState, Place, Tombstone},
    guest::Guest,
    sandbox::{Dependencies, Requirement, SandboxId, SandboxSpec},
};
use greenroom_protocol::{EndReason, GENERATION, LeaseRequest, RELAY_PREFACE, RestartReason};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

/// An image that no engine has.
pub const MISSING_IMAGE: &str = "greenroom/there-is-no-such-image:contract";
/// A package that no index has.
pub const MISSING_PACKAGE: &str = "greenroom-there-is-no-such-package==0.0.1";
/// A package that an index has: small, and of no other.
const PACKAGE: &str = "iniconfig==2.1.0";
/// How long a state is waited for: real sandboxes on a busy machine need some of it.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A busy engine finishes what its client no longer waits for within this.
const LATE: Duration = Duration::from_secs(12);
const LOOK_FOR_LATE_EVERY: Duration = Duration::from_millis(250);
const RACERS: usize = 30;

/// An engine to be tested, and what only a test may do to its sandboxes.
pub trait Bench: Sync {
    /// The engine, as a server sees it.
    fn engine(&self) -> Arc<dyn Engine>;
    /// The same engine, as a server of another deployment sees it.
    fn stranger(&self) -> Arc<dyn Engine>;
    /// A kind of sandbox. The image is not prepared.
    fn spec(&self) -> SandboxSpec;
    /// Pauses a sandbox.
    fn pause(&self, id: &SandboxId) -> impl Future<Output = ()> + Send;
    /// Gives a sandbox another name, from outside.
    fn displace(&self, id: &SandboxId) -> impl Future<Output = ()> + Send;
    /// Kills a sandbox as a whole, from outside.
    fn kill(&self, id: &SandboxId) -> impl Future<Output = ()> + Send;
}

/// Checks every promise. Leaves nothing on the engine.
///
/// # Panics
/// One is broken.
pub async fn contract(bench: &impl Bench) {
    Box::pin(derives_images(bench)).await;
    let case = Case {
        engine: bench.engine(),
        spec: prepared(bench).await,
        secret: Secret::new(random()),
    };
    // Boxed: together they would be a large future.
    Box::pin(boots_and_answers(&case)).await;
    Box::pin(refuses_what_is_not_there(&case)).await;
    Box::pin(a_closed_channel_ends_and_an_open_one_keeps_nothing(&case)).await;
    Box::pin(one_racer_adopts(&case)).await;
    Box::pin(finds_what_runs(&case, bench)).await;
    Box::pin(puts_back_what_was_renamed(&case, bench)).await;
    Box::pin(tells_how_sandboxes_ended(&case, bench)).await;
    Box::pin(keeps_tombstones_apart(&case, bench)).await;
    Box::pin(destroys_in_any_state(&case, bench)).await;
    Box::pin(lists_its_own(&case, bench)).await;
    Box::pin(a_dropped_create_can_be_destroyed(&case)).await;
    let left = case.engine.list().await.unwrap();
    assert!(left.is_empty(), "left behind: {left:?}");
}

struct Case {
    engine: Arc<dyn Engine>,
    spec: SandboxSpec,
    secret: Secret,
}

async fn derives_images(bench: &impl Bench) {
    let (engine, spec) = (bench.engine(), bench.spec());
    let order = |image: &str, package: &str| Derivation {
        pool: spec.pool.clone(),
        image: image.to_owned(),
        dependencies: Dependencies::new(vec![Requirement::parse(package).unwrap()], Vec::new(), None),
        runtime: spec.runtime.clone(),
        cpu_millis: 2000,
        memory_bytes: 1 << 30,
        deadline: Duration::from_secs(300),
    };
    let good = order(&spec.image, PACKAGE);
    // Race: two servers that make the same double the work, and neither harms the other.
    let stranger = bench.stranger();
    let together = join_all([&engine, &engine, &stranger].map(|engine| engine.derive(&good))).await;
    let derived = together[0].as_ref().unwrap();
    for again in &together {
        assert_eq!(again.as_ref().unwrap(), derived, "deriving is idempotent");
    }
    let prepared = engine.prepare(derived).await.unwrap();
    assert_ne!(
        prepared,
        engine.prepare(&spec.image).await.unwrap(),
        "it is another image, and one like any other"
    );
    let unused = engine.unused_images(&[]).await.unwrap();
    assert!(unused.is_empty(), "these are young: {unused:?}");
    for image in [&prepared, derived] {
        engine.remove_image(image).await.unwrap();
        engine.remove_image(image).await.expect("it is gone already");
    }
    let missing = engine.derive(&order(MISSING_IMAGE, PACKAGE)).await;
    assert!(matches!(missing, Err(EngineError::NoImage { .. })), "{missing:?}");
    let missing = engine.derive(&order(&spec.image, MISSING_PACKAGE)).await;
    let Err(EngineError::Install { words, .. }) = missing else {
        panic!("{missing:?}");
    };
    let said = words.join("\n");
    assert!(said.contains("No matching distribution found"), "{said}");
    assert!(
        engine.list().await.unwrap().is_empty(),
        "what installs is no sandbox"
    );
}

async fn prepared(bench: &impl Bench) -> SandboxSpec {
    let (engine, mut spec) = (bench.engine(), bench.spec());
    let prepared = engine.prepare(&spec.image).await.unwrap();
    let together = join_all((0..4).map(|_| engine.prepare(&spec.image))).await;
    for again in together {
        assert_eq!(again.unwrap(), prepared, "preparing is idempotent");
    }
    let missing = engine.prepare(MISSING_IMAGE).await;
    assert!(matches!(missing, Err(EngineError::NoImage { .. })), "{missing:?}");
    spec.image = prepared;
    spec
}

async fn boots_and_answers(case: &Case) {
    let id = case.created(&case.spec).await;
    case.engine.start(&id).await.unwrap();
    case.engine.start(&id).await.expect("starting again is a success");
    let again = case.engine.create(&id, &case.spec).await;
    assert!(matches!(again, Err(EngineError::Refused { .. })), "{again:?}");
    let hello = case.guest(&id).await.hello().await.unwrap();
    assert_eq!(hello.generation, GENERATION);
    // A second channel reaches the same agent.
    assert_eq!(case.guest(&id).await.hello().await.unwrap().boot, hello.boot);
    case.destroy(&id).await;
}

async fn refuses_what_is_not_there(case: &Case) {
    let engine = &case.engine;
    let no_sandbox = |error: EngineError| {
        assert!(matches!(error, EngineError::NoSandbox(_)), "{error}");
    };
    let missing = SandboxId::mint().unwrap();
    no_sandbox(engine.start(&missing).await.unwrap_err());
    no_sandbox(engine.open(&missing).await.unwrap_err());
    no_sandbox(engine.adopt(&missing, &case.name("nobody")).await.unwrap_err());
    let created = case.created(&case.spec).await;
    no_sandbox(engine.open(&created).await.unwrap_err());
    case.destroy(&created).await;
    no_sandbox(engine.open(&created).await.unwrap_err());
}

async fn a_closed_channel_ends_and_an_open_one_keeps_nothing(case: &Case) {
    let id = case.running(&case.spec).await;
    let open = || async {
        let mut channel = case.engine.open(&id).await.unwrap();
        let mut preface = [0; RELAY_PREFACE.len()];
        let greeting = timeout(PATIENCE, channel.read_exact(&mut preface)).await;
        greeting.expect("no preface in time").unwrap();
        assert_eq!(preface, RELAY_PREFACE);
        channel
    };
    let (mut closed, lost) = (open().await, open().await);
    // Closing our half is heard inside: the agent ends the connection, and its half ends here.
    closed.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let end = timeout(PATIENCE, closed.read_to_end(&mut rest)).await;
    end.expect("the other half stays open").unwrap();
    case.destroy(&id).await;
    // That the other one ends too is no promise: Docker 20.10 forgets some exec streams when many sandboxes go at
    // once. The guest's pings find that out.
    drop(lost);
}

async fn one_racer_adopts(case: &Case) {
    let ids = join_all((0..RACERS).map(|_| case.created(&case.spec))).await;
    let name = case.name("race");
    let outcomes = join_all(ids.iter().map(|id| case.engine.adopt(id, &name))).await;
    let outcomes: Vec<Adoption> = outcomes.into_iter().map(Result::unwrap).collect();
    let winners = outcomes.iter().filter(|one| **one == Adoption::Adopted).count();
    assert_eq!(winners, 1, "{outcomes:?}");

    // The losers keep their names, and may serve others.
    let listed = case.engine.list().await.unwrap();
    assert_eq!(listed.iter().filter(|one| one.adopted).count(), 1);
    let loser = outcomes.iter().position(|one| *one == Adoption::Taken).unwrap();
    let other = case.name("another");
    let adoption = case.engine.adopt(&ids[loser], &other).await.unwrap();
    assert_eq!(adoption, Adoption::Adopted);
    join_all(ids.iter().map(|id| case.destroy(id))).await;
    assert_eq!(case.place(&name).await, Place::Absent);
}

async fn finds_what_runs(case: &Case, bench: &impl Bench) {
    let name = case.name("running");
    assert_eq!(case.place(&name).await, Place::Absent);
    let id = case.running(&case.spec).await;
    assert_eq!(case.engine.adopt(&id, &name).await.unwrap(), Adoption::Adopted);
    assert_eq!(case.place(&name).await, Place::Running(id.clone()));
    bench.pause(&id).await;
    assert_eq!(case.place(&name).await, Place::Running(id.clone()));
    // It is awake: it answers.
    case.guest(&id).await.hello().await.unwrap();
    case.destroy(&id).await;
    assert_eq!(case.place(&name).await, Place::Absent);
}

async fn puts_back_what_was_renamed(case: &Case, bench: &impl Bench) {
    let (engine, name) = (&case.engine, case.name("strayed"));
    let strays = async |engine: &Arc<dyn Engine>| engine.find(&name).await.unwrap().strays;
    let warm = case.running(&case.spec).await;
    let id = case.running(&case.spec).await;
    assert_eq!(engine.adopt(&id, &name).await.unwrap(), Adoption::Adopted);
    assert_eq!(strays(engine).await, [], "neither warm ones nor a session's own");
    bench.displace(&id).await;
    assert_eq!(case.place(&name).await, Place::Absent);
    assert_eq!(strays(engine).await, std::slice::from_ref(&id));
    assert_eq!(strays(&bench.stranger()).await, [], "each deployment has its own");
    assert_eq!(engine.strays().await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(bench.stranger().strays().await.unwrap(), []);
    for _ in 0..2 {
        assert_eq!(engine.put_back(&id, &name).await.unwrap(), Adoption::Adopted);
    }
    assert_eq!(engine.strays().await.unwrap(), []);
    assert_eq!(case.place(&name).await, Place::Running(id.clone()));
    bench.displace(&id).await;
    assert_eq!(engine.adopt(&warm, &name).await.unwrap(), Adoption::Adopted);
    assert_eq!(engine.put_back(&id, &name).await.unwrap(), Adoption::Taken);
    for id in [id, warm] {
        case.destroy(&id).await;
    }
}

async fn tells_how_sandboxes_ended(case: &Case, bench: &impl Bench) {
    let (unbound, mut all) = tokio::join!(nobody_comes(case), others_end(case, bench));
    assert_eq!(unbound.fate.reason(), None);
    all.push(unbound);
    for tombstone in all {
        case.destroy(&tombstone.id).await;
    }
}

/// A warm sandbox whose server has left ends by itself.
async fn nobody_comes(case: &Case) -> Tombstone {
    let mut brief = case.spec.clone();
    // Long enough that a channel is open before, on a busy machine.
    brief.agent.unbound_ms = 10_000;
    let id = case.running(&brief).await;
    // A channel that was dropped counts no longer.
    drop(case.guest(&id).await);
    case.ended(&id, "unbound", EndReason::Unbound.exit_code().into())
        .await
}

/// Those that are killed, or ended, or end for a reason of their session's.
async fn others_end(case: &Case, bench: &impl Bench) -> Vec<Tombstone> {
    let killed = case.running(&case.spec).await;
    bench.kill(&killed).await;
    let killed = case.ended(&killed, "killed", 137).await;
    assert_eq!(killed.fate.reason(), Some(RestartReason::EndedInside));
    let ended = case.running(&case.spec).await;
    for again in 0..2 {
        let outcome = case.engine.end(&ended).await;
        assert!(outcome.is_ok(), "{again}: {outcome:?}");
    }
    let ended = case.ended(&ended, "ended", 137).await;
    assert_eq!(ended.fate.reason(), Some(RestartReason::EndedInside));
    case.engine
        .end(&SandboxId::mint().unwrap())
        .await
        .expect("a missing one");
    let (idle, lifetime, reset, evicted) = tokio::join!(
        leave(case, "idle", EndReason::Idle),
        leave(case, "lifetime", EndReason::Lifetime),
        leave(case, "reset", EndReason::Reset),
        leave(case, "evicted", EndReason::Evicted),
    );
    assert_eq!(idle.fate.reason(), Some(RestartReason::Idle));
    assert_eq!(lifetime.fate.reason(), Some(RestartReason::Lifetime));
    assert_eq!(reset.fate.reason(), Some(RestartReason::Reset));
    assert_eq!(evicted.fate.reason(), Some(RestartReason::Evicted));
    vec![killed, ended, idle, lifetime, reset, evicted]
}

/// A bound sandbox that ends for a reason of its own, or because it is told to.
async fn leave(case: &Case, conversation: &str, reason: EndReason) -> Tombstone {
    const LONG: u64 = 3_600_000;
    let id = case.running(&case.spec).await;
    let guest = case.guest(&id).await;
    let lease = LeaseRequest {
        key: case.name(conversation).digest(),
        idle_ms: if reason == EndReason::Idle { 500 } else { LONG },
        lifetime_ms: if reason == EndReason::Lifetime { 500 } else { LONG },
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    };
    guest.lease(&lease).await.unwrap();
    if matches!(reason, EndReason::Reset | EndReason::Evicted) {
        guest.end(reason).await.unwrap();
    }
    case.ended(&id, conversation, reason.exit_code().into()).await
}

async fn keeps_tombstones_apart(case: &Case, bench: &impl Bench) {
    let (engine, name) = (&case.engine, case.name("tombstones"));
    let mut last: Option<Tombstone> = None;
    for _ in 0..2 {
        let id = case.running(&case.spec).await;
        assert_eq!(engine.adopt(&id, &name).await.unwrap(), Adoption::Adopted);
        bench.kill(&id).await;
        let tombstone = case.exited(&name).await;
        assert_eq!(tombstone.id, id);
        engine.set_aside(&id, &name).await.unwrap();
        engine.set_aside(&id, &name).await.expect("already so named");
        let found = engine.find(&name).await.unwrap();
        assert_eq!(found.place, Place::Absent);
        assert_eq!(
            found.tombstone.as_ref(),
            Some(&tombstone),
            "the newest is what is told"
        );
        if let Some(before) = last.replace(tombstone) {
            case.destroy(&before.id).await;
        }
    }
    let last = last.unwrap();
    assert_eq!(case.place(&case.name("tombstone")).await, Place::Absent);
    case.destroy(&last.id).await;
    engine.set_aside(&last.id, &name).await.expect("gone");
    assert_eq!(engine.find(&name).await.unwrap().tombstone, None);
}

async fn destroys_in_any_state(case: &Case, bench: &impl Bench) {
    case.destroy(&SandboxId::mint().unwrap()).await;
    let created = case.created(&case.spec).await;
    let (paused, ended) = tokio::join!(case.running(&case.spec), case.running(&case.spec));
    bench.pause(&paused).await;
    bench.kill(&ended).await;
    let all = [created, paused, ended];
    // Twice at the same time, and once more.
    join_all(all.iter().chain(&all).map(|id| case.destroy(id))).await;
    join_all(all.iter().map(|id| case.destroy(id))).await;
    assert!(case.engine.list().await.unwrap().is_empty());
}

async fn lists_its_own(case: &Case, bench: &impl Bench) {
    let began = SystemTime::now() - Duration::from_secs(2);
    let stranger = bench.stranger();
    let theirs = SandboxId::mint().unwrap();
    stranger.create(&theirs, &case.spec).await.unwrap();
    let created = case.created(&case.spec).await;
    let running = case.running(&case.spec).await;
    let listed = case.engine.list().await.unwrap();
    let ids: BTreeSet<_> = listed.iter().map(|one| &one.id).collect();
    assert_eq!(ids, BTreeSet::from([&created, &running]));
    for one in &listed {
        assert_eq!(one.pool, case.spec.pool);
        assert!(!one.creator.is_empty() && !one.adopted, "{one:?}");
        assert!(one.created_at >= began, "{one:?}");
        let runs = one.id == running;
        let state = if runs {
            ListedState::Running
        } else {
            ListedState::Created
        };
        assert_eq!(one.state, state);
        assert_eq!(one.started_at.is_some(), runs);
        assert!(one.started_at.is_none_or(|at| at >= one.created_at));
    }
    bench.kill(&running).await;
    case.until("the list shows that it has ended", || async {
        let listed = case.engine.list().await.unwrap();
        let one = listed.into_iter().find(|one| one.id == running).unwrap();
        matches!(one.state, ListedState::Exited(fate) if fate.exit_code == 137).then_some(())
    })
    .await;
    case.destroy(&created).await;
    case.destroy(&running).await;
    assert_eq!(stranger.list().await.unwrap().len(), 1);
    stranger.destroy(&theirs).await.unwrap();
    stranger.destroy(&theirs).await.unwrap();
    assert!(stranger.list().await.unwrap().is_empty());
}

async fn a_dropped_create_can_be_destroyed(case: &Case) {
    let dropped = [0, 1, 5, 20].map(|patience| async move {
        let id = SandboxId::mint().unwrap();
        let create = case.engine.create(&id, &case.spec);
        if let Ok(created) = timeout(Duration::from_millis(patience), create).await {
            created.unwrap();
        }
        // It may still come true: only that nothing shows for a while says that it did not.
        let until = Instant::now() + LATE;
        while Instant::now() < until {
            case.destroy(&id).await;
            sleep(LOOK_FOR_LATE_EVERY).await;
        }
    });
    join_all(dropped).await;
    assert!(case.engine.list().await.unwrap().is_empty());
}

impl Case {
    fn name(&self, conversation: &str) -> SessionName {
        self.secret.session_name(&SessionKey {
            pool: self.spec.pool.clone(),
            principal: Principal::Local,
            conversation: ConversationId::parse(conversation).unwrap(),
        })
    }

    async fn created(&self, spec: &SandboxSpec) -> SandboxId {
        let id = SandboxId::mint().unwrap();
        self.engine.create(&id, spec).await.unwrap();
        id
    }

    async fn running(&self, spec: &SandboxSpec) -> SandboxId {
        let id = self.created(spec).await;
        self.engine.start(&id).await.unwrap();
        id
    }

    async fn guest(&self, id: &SandboxId) -> Guest {
        Guest::connect(Arc::clone(&self.engine), id.clone())
            .await
            .unwrap()
    }

    async fn destroy(&self, id: &SandboxId) {
        self.engine.destroy(id).await.unwrap();
    }

    async fn place(&self, name: &SessionName) -> Place {
        self.engine.find(name).await.unwrap().place
    }

    /// Gives it a name, waits for its end and checks how it ended.
    async fn ended(&self, id: &SandboxId, conversation: &str, exit_code: i64) -> Tombstone {
        let name = self.name(conversation);
        let adoption = self.engine.adopt(id, &name).await.unwrap();
        assert_eq!(adoption, Adoption::Adopted);
        let tombstone = self.exited(&name).await;
        assert_eq!(&tombstone.id, id);
        assert_eq!(tombstone.fate.exit_code, exit_code, "{conversation}");
        assert!(!tombstone.fate.oom_killed);
        tombstone
    }

    async fn exited(&self, name: &SessionName) -> Tombstone {
        self.until("it has ended", || async {
            match self.place(name).await {
                Place::Exited(tombstone) => Some(tombstone),
                Place::Absent => panic!("it is gone and its news with it"),
                Place::Running(_) | Place::Ending(_) => None,
            }
        })
        .await
    }

    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, mut look: impl FnMut() -> F) -> T {
        let wait = async {
            loop {
                if let Some(seen) = look().await {
                    return seen;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let Ok(seen) = timeout(PATIENCE, wait).await else {
            panic!("never: {what}");
        };
        seen
    }
}

fn random() -> [u8; 32] {
    let id = SandboxId::mint().unwrap();
    let mut bytes = [0; 32];
    bytes[..id.as_str().len()].copy_from_slice(id.as_str().as_bytes());
    bytes
}
