//! The listener: accepts connections up to a bound, and lets none of them dawdle.

use std::{
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App,
    crowd::{Counted, Crowd, Place},
    router,
    tls::{Tls, TlsError},
};
use crate::{
    config::Config,
    metrics::Metrics,
    peer::{self, Reader},
};

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
    accepting: Vec<tokio::task::JoinHandle<()>>,
    stop: CancellationToken,
    open: Open,
}

/// The connections that are open.
#[derive(Clone, Debug, Default)]
struct Open {
    tasks: TaskTracker,
    goodbye: CancellationToken,
}

/// Why a connection broke.
type Broken = Box<dyn Error + Send + Sync>;

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
        let (stop, open) = (CancellationToken::new(), Open::default());
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
                open.clone(),
            ))
        });
        Served {
            accepting: accepting.collect(),
            stop,
            open,
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
            if let Err(error) = accepting.await {
                tracing::error!(%error, "a listener broke");
            }
        }
        self.open.goodbye.cancel();
        self.open.tasks.close();
        if timeout(GOODBYE, self.open.tasks.wait()).await.is_err() {
            tracing::debug!("connections were still open");
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
        Open::default(),
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
    open: Open,
) {
    let crowd = Crowd::new(connections);
    loop {
        // A place is looked for once somebody is there: else the last one would be cleared for nobody.
        let accepted = async {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((crowd.enter().await, stream))
        };
        let (place, stream) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(AFTER_FAILURE).await;
                    continue;
                }
            },
        };
        let counted = metrics.connection_opens();
        let service = place.serving(router.clone());
        let (tls, goodbye) = (tls.clone(), open.goodbye.clone());
        open.tasks.spawn(async move {
            if let Err(error) = serve(stream, tls, service, &place, &goodbye).await {
                tracing::debug!(%error, "a connection broke");
            }
            drop((counted, place));
        });
    }
}

/// Serves one connection to its end.
async fn serve(
    stream: TcpStream,
    tls: Option<Tls>,
    service: Counted,
    place: &Place,
    goodbye: &CancellationToken,
) -> Result<(), Broken> {
    peer::prepare(&stream, Reader::Prompt);
    let Some(tls) = tls else {
        return attend(connection(stream, service), place, goodbye).await;
    };
    let shaken = tokio::select! {
        shaken = tls.accept(stream) => shaken?,
        () = goodbye.cancelled() => return Ok(()),
        () = place.wanted() => return Ok(()),
    };
    attend(connection(shaken, service), place, goodbye).await
}

/// Serves a connection until it ends, or somebody needs its place more: then what it owes is written out first.
async fn attend<S>(
    connection: Connection<S>,
    place: &Place,
    goodbye: &CancellationToken,
) -> Result<(), Broken>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = goodbye.cancelled() => {
            connection.as_mut().graceful_shutdown();
            return connection.await;
        }
        () = place.wanted() => {}
    }
    tracing::debug!("an idle connection makes room for another");
    connection.as_mut().graceful_shutdown();
    loop {
        if let Ok(ended) = timeout_at(place.leaves_by(), connection.as_mut()).await {
            return ended;
        }
        if place.leaves_by() <= Instant::now() {
            return Ok(());
        }
    }
}

type Connection<S> = auto::UpgradeableConnection<'static, TokioIo<S>, Counted, TokioExecutor>;

/// HTTP/1 or HTTP/2, as the client begins.
fn connection<S>(stream: S, service: Counted) -> Connection<S>
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

#[cfg(test)]
mod tests {
    use axum::{body::Bytes, routing::get};
    use http::{Request, Response};
    use http_body_util::{BodyExt as _, Empty};
    use hyper::{
        body::Incoming,
        client::conn::http1::{self, SendRequest},
    };
    use tokio::{io::duplex, task::JoinHandle};

    use super::*;

    const BYTES: usize = 256 << 10;

    /// Serves somebody who has asked for much and has read none of it, as the only one that there is a place for.
    async fn crowded() -> (JoinHandle<Place>, Response<Incoming>, SendRequest<Empty<Bytes>>) {
        let (crowd, router) = (
            Crowd::new(1),
            Router::new().route("/", get(|| async { vec![b'x'; BYTES] })),
        );
        let (ours, theirs) = duplex(1 << 10);
        let place = crowd.enter().await;
        tokio::spawn(async move {
            let connection = connection(ours, place.serving(router));
            attend(connection, &place, &CancellationToken::new()).await
        });
        let (mut send, client) = http1::handshake(TokioIo::new(theirs)).await.unwrap();
        tokio::spawn(client);
        let request = Request::builder().uri("/").header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let answer = send.send_request(request).await.unwrap();
        let next = tokio::spawn(async move { crowd.enter().await });
        sleep(Duration::from_secs(1)).await;
        (next, answer, send)
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_room_gets_the_rest_of_an_answer() {
        let (next, answer, _more) = crowded().await;
        assert!(!next.is_finished(), "its answer is on its way");
        let read = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(read.len(), BYTES);
        timeout(Duration::from_secs(1), next).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_it_is_cut_off() {
        let (next, answer, _more) = crowded().await;
        timeout(Duration::from_secs(2), next).await.unwrap().unwrap();
        answer.into_body().collect().await.unwrap_err();
    }
}
