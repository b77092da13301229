//! A server as a whole: started in order, and ended in order, so that nothing is lost and nothing is left.

mod reload;
mod signals;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::reload::{Change, Changes, ReloadError, Source};
use self::{reload::Reload, signals::Hangups};

use crate::{
    archive::{Archive, Place, PlaceError},
    attach::{self, Attending, Socket, SocketError},
    auth::Gate,
    config::{Config, EngineKind, Loaded, Offers, PoolConfig},
    control::Control,
    conversation::{ConversationId, PoolName, Secret, hex},
    engine::{Engine, EngineError, docker::DockerEngine},
    http::{self, App, BindError, Http, Rest, Served, TlsError},
    links::Links,
    mcp::{Mcp, Ways},
    metrics::Metrics,
    pool::{Install, Isolation, Pool, PoolSpec, Seed, Sweep},
    sessions::Sessions,
    share::Share,
    state_dir::{self, StateDir, StateError},
};

/// Calls that may wait for a sandbox of one pool: more would only wait for their time-outs.
const CLAIMS_WAITING: usize = 256;

/// How long destroying the warm sandboxes may take. What is left then ends itself within a minute.
const CLOSING: Duration = Duration::from_secs(20);

/// Between two looks at who uses the processors.
const BALANCE: Duration = Duration::from_secs(1);

/// How long archives may take at the end, where calls have used up the time to drain.
const LAST_ARCHIVES: Duration = Duration::from_secs(5);

/// Everything that a server consists of, but for the way in.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    offers: Offers,
    engine: Arc<dyn Engine>,
    reload: Option<Reload>,
    archive: Option<Archive>,
    metrics: Metrics,
    mcp: Mcp,
    links: Links,
    secret: Secret,
    /// What a process that attaches must be configured like.
    digest: watch::Sender<String>,
    _sweep: Sweep,
    _balance: AbortOnDropHandle<()>,
}

/// Why a server does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directory or the secret.
    #[error(transparent)]
    State(#[from] StateError),
    /// The archives' place.
    #[error("archives cannot be kept in {place}: {source}; set archive to another place, or to off")]
    Archive {
        /// Which.
        place: Box<Place>,
        /// Why.
        source: Box<PlaceError>,
    },
    /// The engine.
    #[error("the engine at {socket} cannot be used: {source}; `greenroom doctor` says what to do")]
    Engine {
        /// As configured.
        socket: String,
        /// Why.
        source: EngineError,
    },
    /// The address.
    #[error("{address} cannot be listened on: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Standard input or output.
    #[error("standard input and output cannot be used: {0}")]
    Stdio(#[source] io::Error),
    /// The socket for other processes.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Signals.
    #[error("signals cannot be waited for: {0}")]
    Signals(#[source] io::Error),
    /// No random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

impl Server {
    /// Reaches the engine and begins to fill the pools.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn start(config: Arc<Config>) -> Result<Self, ServeError> {
        Self::sharing(config, None).await
    }

    /// The same, with a folder of this machine that files may be copied from and to: for stdio only, where the
    /// client's user names it.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn sharing(config: Arc<Config>, share: Option<Share>) -> Result<Self, ServeError> {
        raise_descriptors();
        let secret = secret(&config)?;
        let engine = engine(&config, &secret).await?;
        let metrics = Metrics::new();
        let specs: Vec<PoolSpec> = config
            .pools
            .iter()
            .map(|(name, pool)| spec(&config, name, pool))
            .collect();
        let sweep = Sweep::start(Arc::clone(&engine), std::time::SystemTime::now);
        let pools = specs.into_iter().map(|spec| {
            let observer = metrics.observer(spec.name());
            Pool::start(spec, Arc::clone(&engine), observer)
        });
        let pools: Vec<Pool> = pools.collect();
        let archive = archive(&config, &secret, &metrics)?;
        let sessions = Sessions::archiving(secret.clone(), Arc::clone(&engine), pools, archive.clone());
        let digest = watch::Sender::new(attach::digest(&config, &secret));
        let offers = Offers::from(&*config);
        let links = Links::new(secret.clone(), sessions.clone(), config.links.clone(), http::door);
        let ways = Ways {
            links: links.clone(),
            share,
        };
        let mcp = Mcp::new(
            Arc::clone(&config),
            offers.clone(),
            secret.clone(),
            sessions,
            ways,
            metrics.clone(),
        );
        let balance = AbortOnDropHandle::new(tokio::spawn(balance(Arc::clone(&engine))));
        Ok(Self {
            config,
            offers,
            engine,
            reload: None,
            archive,
            metrics,
            mcp,
            links,
            secret,
            digest,
            _sweep: sweep,
            _balance: balance,
        })
    }

    /// Changes its pools by what `source` says, whenever it is told to: by SIGHUP, or by `greenroom reload`. `loaded` is
    /// what it was started with.
    #[must_use]
    pub fn reloading(mut self, loaded: Loaded, source: Source) -> Self {
        self.reload = Some(Reload {
            source,
            engine: Arc::clone(&self.engine),
            metrics: self.metrics.clone(),
            secret: self.secret.clone(),
            sessions: self.sessions().clone(),
            offers: self.offers.clone(),
            digest: self.digest.clone(),
            current: loaded,
        });
        self
    }

    /// Hears who wants the configuration read again, until it is dropped.
    fn hear_reloads(&mut self, stop: &CancellationToken) -> Option<AbortOnDropHandle<()>> {
        let reload = self.reload.take()?;
        let hangups = Hangups::listen()
            .inspect_err(|error| tracing::warn!(%error, "SIGHUP does not have the configuration read again"))
            .ok()?;
        let control = Control::bind(&self.config.state_dir)
            .inspect_err(|error| tracing::warn!(%error, "`greenroom reload` cannot reach this server"))
            .ok();
        let hearing = reload::hear(reload, hangups, control, stop.clone());
        Some(AbortOnDropHandle::new(tokio::spawn(hearing)))
    }

    /// Its sessions, for who comes by no protocol.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        self.links.sessions()
    }

    /// The deployment's secret.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Ends it where nothing was served. Sandboxes of conversations stay.
    pub async fn end(self) {
        self.close(None).await;
    }

    /// Serves HTTP until a signal says that it is enough.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn http(mut self, gate: Gate) -> Result<(), ServeError> {
        let stop = signals::stop()?;
        let http = match Http::bind(&self.config).await {
            Ok(http) => http,
            Err(error) => {
                self.close(None).await;
                let address = self.config.listen;
                return Err(match error {
                    BindError::Listen(source) => ServeError::Listen { address, source },
                    BindError::Tls(error) => error.into(),
                });
            }
        };
        let reloads = self.hear_reloads(&stop);
        let address = http.address();
        // Links of callers who came by no address lead here if every browser of this machine can follow them.
        if address.ip().is_loopback() && self.config.http.tls.is_none() {
            self.links.served_at(address);
        }
        let demand = gate.demand();
        let app = App {
            gate: Arc::new(gate),
            endpoint: self.mcp.endpoint(),
            sse: self.config.http.sse.then(|| self.mcp.sse()),
            links: self.links.clone(),
            rest: Rest::new(
                Arc::clone(&self.config),
                self.offers.clone(),
                self.secret.clone(),
                self.sessions().clone(),
                self.metrics.clone(),
                self.mcp.in_flight(),
            ),
            metrics: self.metrics.clone(),
        };
        let served = http.start(app, &self.config);
        let scheme = if self.config.http.tls.is_some() {
            "https"
        } else {
            "http"
        };
        tracing::info!(?demand, "MCP is at {scheme}://{address}/mcp");
        let attending = self.attend_if_free();
        stop.cancelled().await;
        drop(reloads);
        tracing::info!("shutting down; a second signal ends it at once");
        if let Some(mut attending) = attending {
            attending.stop_accepting().await;
        }
        self.close(Some(served)).await;
        Ok(())
    }

    /// Serves the processes that attach, until none has been attached for as long as is configured.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn background(mut self, socket: Socket) -> Result<(), ServeError> {
        let stop = signals::stop()?;
        let reloads = self.hear_reloads(&stop);
        let mut attending = self.attend(socket);
        tracing::info!("processes may attach");
        tokio::select! {
            () = stop.cancelled() => tracing::info!("shutting down"),
            () = attending.deserted(self.config.stdio_linger) => tracing::info!("nobody is attached any more"),
        }
        drop(reloads);
        attending.stop_accepting().await;
        self.close(None).await;
        Ok(())
    }

    fn attend(&self, socket: Socket) -> Attending {
        socket.serve(
            self.mcp.clone(),
            self.digest.subscribe(),
            self.config.limits.connections,
        )
    }

    /// Processes may attach to a server that serves HTTP, too, unless they have one.
    fn attend_if_free(&self) -> Option<Attending> {
        match Socket::bind(&self.config.state_dir) {
            Ok(Some(socket)) => Some(self.attend(socket)),
            Ok(None) => {
                tracing::info!("another Greenroom serves the processes of `greenroom stdio`");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "`greenroom stdio` cannot attach to this server");
                None
            }
        }
    }

    /// Serves standard input and output until the input is over, or a signal says that it is enough.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn stdio(self, conversation: Option<ConversationId>) -> Result<(), ServeError> {
        let stop = signals::stop()?;
        let mut talk = Box::pin(self.mcp.stdio(conversation));
        let spoken = tokio::select! {
            spoken = &mut talk => spoken,
            () = stop.cancelled() => {
                self.mcp.close(self.config.limits.drain).await;
                talk.await
            }
        };
        self.close(None).await;
        spoken.map_err(ServeError::Stdio)
    }

    /// Lets calls in flight be answered, archives what they changed, then destroys what is warm. Bound sandboxes are
    /// their conversations' and stay, with the runs in them.
    async fn close(&self, served: Option<Served>) {
        if let Some(served) = &served {
            served.stop_accepting();
        }
        let drain = self.config.limits.drain;
        let drained_by = Instant::now() + drain;
        self.mcp.close(drain).await;
        if let Some(archive) = &self.archive {
            // What calls have left of the time, and some in any case: most archives take a fraction of a second.
            let left = drained_by.saturating_duration_since(Instant::now());
            archive.close(left.max(LAST_ARCHIVES.min(drain))).await;
        }
        for census in join_all(self.sessions().pools().iter().map(|pool| pool.close(CLOSING))).await {
            let held = census.counts.held();
            if held > 0 {
                tracing::warn!(held, "sandboxes were not destroyed in time: they end themselves");
            }
        }
        if let Some(served) = served {
            served.finish().await;
        }
    }
}

/// Keeps conversations out of each other's way.
async fn balance(engine: Arc<dyn Engine>) {
    let mut ticks = interval(BALANCE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        engine.balance().await;
    }
}

/// The deployment's secret.
///
/// # Errors
/// [`StateError`].
pub fn secret(config: &Config) -> Result<Secret, StateError> {
    match &config.secret_file {
        Some(file) => state_dir::read(file),
        None => StateDir::open(&config.state_dir)?.secret(),
    }
}

fn archive(config: &Config, secret: &Secret, metrics: &Metrics) -> Result<Option<Archive>, ServeError> {
    let Some(place) = config.archive.place(&config.state_dir) else {
        return Ok(None);
    };
    let archive = Archive::open(
        &place,
        &config.engine.deployment,
        secret.clone(),
        config.archive.allowance(),
        metrics.of_archives(),
    );
    archive.map(Some).map_err(|source| ServeError::Archive {
        place: Box::new(place),
        source: Box::new(source),
    })
}

pub(crate) async fn engine(config: &Config, secret: &Secret) -> Result<Arc<dyn Engine>, ServeError> {
    let mut random = [0; 6];
    getrandom::fill(&mut random).map_err(ServeError::Random)?;
    let creator = format!("{}-{}", std::process::id(), hex(&random));
    match config.engine.kind {
        EngineKind::Docker => {
            let docker = DockerEngine::connect(config.docker(&secret.fingerprint(), &creator)).await;
            let docker = docker.map_err(|source| ServeError::Engine {
                socket: config.engine.socket.clone(),
                source,
            })?;
            Ok(Arc::new(docker))
        }
    }
}

pub(crate) fn spec(config: &Config, name: &PoolName, pool: &PoolConfig) -> PoolSpec {
    PoolSpec {
        sandbox: pool.sandbox(name),
        start: pool.start(),
        seed: pool.seed.clone().map(Seed::new),
        install: (!pool.dependencies.is_empty()).then(|| Install {
            dependencies: pool.dependencies.clone(),
            deadline: pool.install_timeout,
        }),
        warm: pool.warm,
        warm_max: pool.warm_max.min(pool.max.saturating_sub(1)),
        max: pool.max,
        parallel_boots: pool.boots,
        boot_deadline: pool.boot_timeout,
        claim_wait: pool.claim_wait,
        claims_waiting: CLAIMS_WAITING,
        warm_age: pool.warm_age,
        idle: pool.idle,
        lifetime: pool.lifetime,
        evict_after: pool.evict_after,
        isolation: if config.engine.runtime.must_prove_gvisor() {
            Isolation::Proven
        } else {
            Isolation::Waived
        },
    }
}

/// Shells give a process 1,024 descriptors and let it have more: each connection and each channel takes one.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
