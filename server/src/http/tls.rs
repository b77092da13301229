//! TLS: the certificate that is shown, read again when its files have changed, and handshakes that do not dawdle.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::config::TlsConfig;

/// A handshake is two round trips and a signature; a place among the connections is not given away for longer.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Between two looks at the files: whoever renews a certificate does so days before the old one ends.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{} cannot be used for TLS: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The two do not go together.
    #[error("http.tls_cert and http.tls_key do not go together: {0}")]
    Pair(#[from] rustls::Error),
}

/// A certificate with its key, as it is in its files. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    config: TlsConfig,
    shown: Arc<Mutex<Shown>>,
}

struct Shown {
    acceptor: TlsAcceptor,
    /// When the files were last changed.
    changed: [Option<SystemTime>; 2],
    looked: Instant,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown")
            .field("changed", &self.changed)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(super) fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let changed = changed(config);
        let shown = Shown {
            acceptor: acceptor(config)?,
            changed,
            looked: Instant::now(),
        };
        Ok(Self {
            config: config.clone(),
            shown: Arc::new(Mutex::new(shown)),
        })
    }

    /// Shakes hands, in time.
    ///
    /// # Errors
    /// The client does not, or not in time.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = self.current();
        timeout(HANDSHAKE, acceptor.accept(stream))
            .await
            .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }

    /// The certificate as it is now. New files that do not go together are told, and the old ones shown on: they may
    /// be half replaced.
    fn current(&self) -> TlsAcceptor {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.looked.elapsed() < LOOK_EVERY {
            return shown.acceptor.clone();
        }
        shown.looked = Instant::now();
        let changed = changed(&self.config);
        if changed != shown.changed {
            match acceptor(&self.config) {
                Ok(acceptor) => {
                    tracing::info!("another certificate is shown from now on");
                    (shown.acceptor, shown.changed) = (acceptor, changed);
                }
                Err(error) => tracing::warn!(%error, "the certificate stays as it was"),
            }
        }
        shown.acceptor.clone()
    }
}

fn changed(config: &TlsConfig) -> [Option<SystemTime>; 2] {
    [&config.cert, &config.key].map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let unusable = |path: &Path, why: String| TlsError::File {
        path: path.to_owned(),
        why,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&config.cert).and_then(Iterator::collect);
    let chain = chain.map_err(|error| unusable(&config.cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(&config.cert, "there is no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| unusable(&config.key, error.to_string()))?;
    // By name, since programs that link a second library have no default one.
    let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}
