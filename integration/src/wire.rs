//! The way from a server to its engine, as a socket of its own: to be cut, frozen and slowed down.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They arrive.
    Through,
    /// Each piece arrives late.
    Slow(Duration),
    /// They do not arrive, and nobody is told: a half-open connection. New ones are accepted and are no better.
    Frozen,
}

/// A socket in front of an engine's.
#[derive(Debug)]
pub struct Wire {
    folder: TempDir,
    flow: watch::Sender<Flow>,
    /// The present connections' end.
    cut: watch::Sender<CancellationToken>,
    connections: Arc<AtomicUsize>,
    _accepts: AbortOnDropHandle<()>,
}

impl Wire {
    /// One that leads to the host's engine.
    ///
    /// # Errors
    /// There is no place for a socket.
    pub fn to_the_engine() -> Result<Self> {
        let host = std::env::var_os("DOCKER_HOST").unwrap_or_default();
        let host = host.to_str().and_then(|host| host.strip_prefix("unix://"));
        let host = host.unwrap_or("/var/run/docker.sock");
        let folder = tempfile::tempdir()?;
        let listener = UnixListener::bind(folder.path().join("docker.sock"))?;
        let (flow, flows) = watch::channel(Flow::Through);
        let (cut, cuts) = watch::channel(CancellationToken::new());
        let connections = Arc::new(AtomicUsize::new(0));
        let accepts = accept(
            listener,
            PathBuf::from(host),
            flows,
            cuts,
            Arc::clone(&connections),
        );
        Ok(Self {
            folder,
            flow,
            cut,
            connections,
            _accepts: AbortOnDropHandle::new(tokio::spawn(accepts)),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// From now on, for what is connected too.
    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }

    /// Cuts all that is connected: half of each next piece still arrives. Says how many there were.
    pub fn cut(&self) -> usize {
        let connected = self.connections.load(Ordering::Relaxed);
        self.cut.send_replace(CancellationToken::new()).cancel();
        connected
    }
}

async fn accept(
    listener: UnixListener,
    engine: PathBuf,
    flow: watch::Receiver<Flow>,
    cut: watch::Receiver<CancellationToken>,
    connections: Arc<AtomicUsize>,
) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (engine, flow, cut) = (engine.clone(), flow.clone(), cut.borrow().clone());
        let connections = Arc::clone(&connections);
        open.spawn(async move {
            connections.fetch_add(1, Ordering::Relaxed);
            // However it ends, both ends see it end.
            drop(Box::pin(join(stream, &engine, flow, &cut)).await);
            connections.fetch_sub(1, Ordering::Relaxed);
        });
        while open.try_join_next().is_some() {}
    }
}

async fn join(
    server: UnixStream,
    engine: &Path,
    flow: watch::Receiver<Flow>,
    cut: &CancellationToken,
) -> Result<()> {
    let engine = UnixStream::connect(engine).await?;
    let ((from_server, to_server), (from_engine, to_engine)) = (server.into_split(), engine.into_split());
    tokio::try_join!(
        carry(from_server, to_engine, flow.clone(), cut),
        carry(from_engine, to_server, flow, cut),
    )?;
    Ok(())
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut flow: watch::Receiver<Flow>,
    cut: &CancellationToken,
) -> Result<()> {
    let mut piece = [0; 8192];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(to.shutdown().await?);
        }
        let thawed = flow
            .wait_for(|flow| *flow != Flow::Frozen)
            .await
            .map(|flow| *flow);
        if let Flow::Slow(by) = thawed? {
            sleep(by).await;
        }
        if cut.is_cancelled() {
            to.write_all(&piece[..length / 2]).await?;
            anyhow::bail!("cut");
        }
        to.write_all(&piece[..length]).await?;
    }
}
