//! The listener: accepts connections up to a bound, and lets none of them dawdle.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    App,
    crowd::{Counted, Crowd, Place},
    router,
    tls::{Tls, TlsError},
};
use crate::{config::Config, metrics::Metrics};

/// A request's head is there within this time. It also ends connections that are idle for so long, so it is
/// longer than the clients' own idle times: who closes last loses no request to the race.
const HEAD_IN_TIME: Duration = Duration::from_secs(90);

/// Bytes of a request's head: cookies and tokens fit, a bomb does not.
const HEAD_BYTES: usize = 64 << 10;

/// Requests of one HTTP/2 connection at once.
const STREAMS: u32 = 128;

/// Connections of one person and a browser or two.
const LOOPBACK_CONNECTIONS: usize = 64;

/// After a failed accept, so that a lack of descriptors does not spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// How long connections may take to end once nothing is in flight.
const GOODBYE: Duration = Duration::from_secs(2);

/// A bound listener.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
    address: SocketAddr,
    connections: usize,
    tls: Option<Tls>,
    /// The second listener.
    apart: Option<(TcpListener, SocketAddr)>,
}

/// Why nothing is listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What serves until it is told to stop.
#[derive(Debug)]
pub struct Served {
    accepting: Vec<tokio::task::JoinHandle<GracefulShutdown>>,
    stop: CancellationToken,
}

impl Http {
    /// Binds the configured address.
    ///
    /// # Errors
    /// It cannot be bound, or there is no certificate where there should be one.
    pub async fn bind(config: &Config) -> Result<Self, BindError> {
        let tls = config.http.tls.as_ref().map(Tls::load).transpose()?;
        let listener = TcpListener::bind(config.listen).await?;
        let apart = match config.http.forward_listen {
            Some(address) => {
                let listener = TcpListener::bind(address).await?;
                let address = listener.local_addr()?;
                Some((listener, address))
            }
            None => None,
        };
        Ok(Self {
            apart,
            address: listener.local_addr()?,
            listener,
            connections: config.limits.connections,
            tls,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to serve.
    #[must_use]
    pub fn start(self, app: App, config: &Config) -> Served {
        let metrics = app.metrics.clone();
        let stop = CancellationToken::new();
        let apart = self
            .apart
            .map(|(listener, address)| (listener, super::apart(&app, config, address)));
        let main = (self.listener, router(app, config, self.address));
        let accepting = std::iter::once(main).chain(apart).map(|(listener, router)| {
            tokio::spawn(accept(
                listener,
                self.tls.clone(),
                router,
                metrics.clone(),
                self.connections,
                stop.clone(),
            ))
        });
        Served {
            accepting: accepting.collect(),
            stop,
        }
    }
}

impl Served {
    /// No more connections from now on.
    pub fn stop_accepting(&self) {
        self.stop.cancel();
    }

    /// Waits for open connections to end, but not for long. Nothing should be in flight any more.
    pub async fn finish(self) {
        self.stop.cancel();
        for accepting in self.accepting {
            if let Ok(connections) = accepting.await
                && timeout(GOODBYE, connections.shutdown()).await.is_err()
            {
                tracing::debug!("connections were still open");
            }
        }
    }
}

/// Serves on a port of this machine that the system chooses, until the process ends.
///
/// # Errors
/// It gives none.
pub(super) async fn serve_on_loopback(router: impl FnOnce(SocketAddr) -> Router) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    // Nobody reads the numbers of a process that has no other listener.
    let (metrics, never) = (Metrics::new(), CancellationToken::new());
    tokio::spawn(accept(
        listener,
        None,
        router(address),
        metrics,
        LOOPBACK_CONNECTIONS,
        never,
    ));
    Ok(address)
}

async fn accept(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    metrics: Metrics,
    connections: usize,
    stop: CancellationToken,
) -> GracefulShutdown {
    let graceful = GracefulShutdown::new();
    let crowd = Crowd::new(connections);
    loop {
        // A place is looked for once somebody is there: else the last one would be cleared for nobody.
        let accepted = async {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((crowd.enter().await, stream))
        };
        let (place, stream) = tokio::select! {
            () = stop.cancelled() => return graceful,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(AFTER_FAILURE).await;
                    continue;
                }
            },
        };
        let open = metrics.connection_opens();
        let (service, watcher, tls) = (place.serving(router.clone()), graceful.watcher(), tls.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serve(stream, tls, service, watcher) => {}
                () = wanted(&place) => {}
            }
            drop((open, place));
        });
    }
}

async fn wanted(place: &Place) {
    place.wanted().await;
    tracing::debug!("an idle connection made room for another");
}

/// Serves one connection to its end.
async fn serve(stream: TcpStream, tls: Option<Tls>, service: Counted, watcher: Watcher) {
    // An answer goes out in two small parts; without this the second waits 40 ms for the client's delayed ACK.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let ended = match tls {
        None => watcher.watch(connection(stream, service)).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => watcher.watch(connection(stream, service)).await,
            Err(error) => Err(error.into()),
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// HTTP/1 or HTTP/2, as the client begins.
fn connection<S>(
    stream: S,
    service: Counted,
) -> auto::UpgradeableConnection<'static, TokioIo<S>, Counted, TokioExecutor>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_IN_TIME)
        .max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .keep_alive_interval(Duration::from_secs(20));
    builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .into_owned()
}
