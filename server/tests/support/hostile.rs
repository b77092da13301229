//! An engine whose one sandbox has an agent of the test's making: whatever a hostile inside may answer.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use greenroom::{
    conversation::SessionName,
    engine::{Adoption, Channel, Derivation, Engine, EngineError, Found, Listed, Place, Usage},
    guest::{Guest, GuestError},
    sandbox::{Program, SandboxId, SandboxSpec},
};
use greenroom_protocol::{LastWords, RELAY_PREFACE};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncWriteExt as _, duplex};

/// What an agent answers with.
pub type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

type Serve = dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// The engine.
#[derive(Clone)]
pub struct Hostile {
    /// `None`: nothing comes up at all.
    preface: Option<Vec<u8>>,
    serve: Arc<Serve>,
    channels: Arc<Channels>,
}

/// Channels that were opened, and that are open.
#[derive(Debug, Default)]
struct Channels {
    opened: AtomicUsize,
    open: AtomicUsize,
}

impl Hostile {
    /// An agent that answers every request like this.
    pub fn answering<F>(serve: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self {
            preface: Some(RELAY_PREFACE.to_vec()),
            serve: Arc::new(move |request| Box::pin(serve(request))),
            channels: Arc::default(),
        }
    }

    /// An agent that answers everything with this body.
    pub fn saying(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self::answering(move |_| std::future::ready(whole(body.clone())))
    }

    /// An agent that answers nothing.
    pub fn silent() -> Self {
        Self::answering(|_| std::future::pending())
    }

    /// A relay that begins with this, or with nothing.
    #[must_use]
    pub fn relaying(mut self, preface: Option<&str>) -> Self {
        self.preface = preface.map(|text| text.as_bytes().to_vec());
        self
    }

    /// Channels that were opened, and that are open.
    pub fn channels(&self) -> (usize, usize) {
        let Channels { opened, open } = &*self.channels;
        (opened.load(Ordering::Relaxed), open.load(Ordering::Relaxed))
    }

    pub async fn try_guest(&self) -> Result<Guest, GuestError> {
        Guest::connect(Arc::new(self.clone()), SandboxId::mint().unwrap()).await
    }

    pub async fn guest(&self) -> Guest {
        self.try_guest().await.unwrap()
    }
}

/// A body that is there.
pub fn whole(body: impl Into<Bytes>) -> Answer {
    Response::new(
        Full::new(body.into())
            .map_err(|never| match never {})
            .boxed_unsync(),
    )
}

/// A body that streams.
pub fn streaming(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Answer {
    use futures_util::StreamExt as _;
    let frames = pieces.map(|piece| Ok(Frame::data(piece)));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

impl fmt::Debug for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hostile")
    }
}

fn none<T>() -> Result<T, EngineError> {
    Err(EngineError::Refused {
        what: "do anything but open a channel",
        reason: "not this engine".to_owned(),
    })
}

#[async_trait]
impl Engine for Hostile {
    async fn open(&self, _: &SandboxId) -> Result<Channel, EngineError> {
        let (ours, mut theirs) = duplex(64 << 10);
        let (preface, serve) = (self.preface.clone(), Arc::clone(&self.serve));
        let channels = Arc::clone(&self.channels);
        channels.opened.fetch_add(1, Ordering::Relaxed);
        channels.open.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let Some(preface) = preface else {
                return std::future::pending().await;
            };
            theirs.write_all(&preface).await.unwrap();
            let service = service_fn(move |request| {
                let answer = serve(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = http2::Builder::new(TokioExecutor::new());
            // It ends with the test's guest.
            drop(connection.serve_connection(TokioIo::new(theirs), service).await);
            channels.open.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(Box::new(ours) as Channel)
    }

    async fn find(&self, _: &SessionName) -> Result<Found, EngineError> {
        Ok(Found {
            place: Place::Absent,
            tombstone: None,
            strays: Vec::new(),
        })
    }

    async fn prepare(&self, _: &str) -> Result<String, EngineError> {
        none()
    }

    async fn derive(&self, _: &Derivation) -> Result<String, EngineError> {
        none()
    }

    async fn unused_images(&self, _: &[Derivation]) -> Result<Vec<String>, EngineError> {
        none()
    }

    async fn remove_image(&self, _: &str) -> Result<(), EngineError> {
        none()
    }

    async fn program(&self, _: &str) -> Result<Program, EngineError> {
        Ok(Program::default())
    }

    async fn last_words(&self, _: &SandboxId) -> Result<Option<LastWords>, EngineError> {
        Ok(None)
    }

    async fn create(&self, _: &SandboxId, _: &SandboxSpec) -> Result<(), EngineError> {
        none()
    }

    async fn start(&self, _: &SandboxId) -> Result<(), EngineError> {
        none()
    }

    async fn adopt(&self, _: &SandboxId, _: &SessionName) -> Result<Adoption, EngineError> {
        none()
    }

    async fn strays(&self) -> Result<Vec<SandboxId>, EngineError> {
        none()
    }

    async fn put_back(&self, _: &SandboxId, _: &SessionName) -> Result<Adoption, EngineError> {
        none()
    }

    async fn set_aside(&self, _: &SandboxId, _: &SessionName) -> Result<(), EngineError> {
        none()
    }

    async fn end(&self, _: &SandboxId) -> Result<(), EngineError> {
        none()
    }

    async fn destroy(&self, _: &SandboxId) -> Result<(), EngineError> {
        none()
    }

    async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        none()
    }

    async fn spare_memory(&self) -> Result<Option<u64>, EngineError> {
        none()
    }

    async fn usage(&self, _: &SandboxId) -> Result<Usage, EngineError> {
        none()
    }

    async fn sweep(&self) -> Result<usize, EngineError> {
        none()
    }
}
