//! Signals: when to leave, and when to read the configuration again.

use std::fs::File;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::ServeError;

/// The exit code after a second signal.
const FORCED: i32 = 130;

/// Cancelled by the first SIGTERM or SIGINT. The second one ends the process where it stands: conversations do not
/// depend on it, and warm sandboxes end themselves.
pub(super) fn stop() -> Result<CancellationToken, ServeError> {
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let first = stop.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        first.cancel();
        next().await;
        tracing::warn!("a second signal: ended at once");
        std::process::exit(FORCED);
    });
    Ok(stop)
}

/// SIGHUP has two meanings: a terminal that closes sends it to what runs in it, and a person to a server whose
/// configuration has changed.
#[derive(Debug)]
pub(super) struct Hangups {
    signals: Signal,
    /// Whether there is a terminal to lose.
    terminal: bool,
}

/// What a SIGHUP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hangup {
    /// Read the configuration again.
    Reload,
    /// The terminal is gone.
    Leave,
}

impl Hangups {
    pub(super) fn listen() -> Result<Self, ServeError> {
        Ok(Self {
            signals: listen(SignalKind::hangup())?,
            terminal: has_terminal(),
        })
    }

    /// The next one. Cancel safe.
    pub(super) async fn next(&mut self) -> Hangup {
        if self.signals.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        if self.terminal && !has_terminal() {
            Hangup::Leave
        } else {
            Hangup::Reload
        }
    }
}

/// Whoever has a controlling terminal can open it.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

fn listen(kind: SignalKind) -> Result<Signal, ServeError> {
    signal(kind).map_err(ServeError::Signals)
}
