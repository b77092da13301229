//! Signals: when to leave, and when to read the configuration again.

use std::fs::{self, File};

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
        // Whoever was started by `nohup` is to outlive its terminal.
        let is_ignored = fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangups(&status));
        Ok(Self {
            signals: listen(SignalKind::hangup())?,
            terminal: has_terminal() && !is_ignored,
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

/// The first bit of the signals that a process ignores.
fn ignores_hangups(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

fn listen(kind: SignalKind) -> Result<Signal, ServeError> {
    signal(kind).map_err(ServeError::Signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_to_outlive_its_terminal_is_known() {
        for (status, ignores) in [
            ("Name:\tx\nSigIgn:\t0000000000000001\nSigCgt:\t0\n", true),
            ("SigIgn:\t0000000000001000\n", false),
            ("SigIgn:\tx\n", false),
            ("", false),
        ] {
            assert_eq!(ignores_hangups(status), ignores, "{status:?}");
        }
    }
}
