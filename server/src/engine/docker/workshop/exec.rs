//! Programs in the container that installs: run to their end, with their last words kept, or read as the bytes of a layer.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::{
    container::LogOutput,
    errors::Error,
    exec::{CreateExecOptions, StartExecResults},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    super::call::{self, bounded},
    Workshop,
    steps::Step,
};
use crate::engine::EngineError;

/// More than any disk of a sandbox: where the runtime sets no limit, this does.
const LAYER_BYTES: u64 = 16 << 30;
/// Between two lines in the log about an installation that goes on.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Last lines of a program that are kept for an error.
const LINES: usize = 6;
/// Bytes of a line that is not ended yet.
const LINE_BYTES: usize = 4096;
/// How long the engine may take to say how a program ended whose output is over.
const EXIT: Duration = Duration::from_secs(10);

impl Workshop {
    /// Runs a program to its end, and answers its exit code. `still` hears every while what it says.
    pub(super) async fn run(
        &self,
        builder: &str,
        step: &Step,
        user: &str,
        words: &Words,
        still: impl Fn(&str),
    ) -> Result<i64, EngineError> {
        let (exec, mut output) = self.exec(builder, step, user).await?;
        let mut tick = interval(TELL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tokio::select! {
                frame = output.next() => match frame {
                    Some(frame) => words.heard(&frame.map_err(|error| broken(&error))?),
                    None => break,
                },
                _ = tick.tick() => still(&words.last()),
            }
        }
        self.exit_code(&exec).await
    }

    pub(super) async fn exec(
        &self,
        builder: &str,
        step: &Step,
        user: &str,
    ) -> Result<
        (
            String,
            impl Stream<Item = Result<LogOutput, Error>> + Send + use<>,
        ),
        EngineError,
    > {
        let command = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(step.argv.clone()),
            user: Some(user.to_owned()),
            ..CreateExecOptions::default()
        };
        let exec = call::EXEC
            .run(self.docker.create_exec(builder, command))
            .await?
            .id;
        match call::EXEC.run(self.docker.start_exec(&exec, None)).await? {
            StartExecResults::Attached { output, .. } => Ok((exec, output)),
            StartExecResults::Detached => Err(EngineError::Refused {
                what: call::EXEC.what(),
                reason: "it came detached".to_owned(),
            }),
        }
    }

    /// How a program ended. The end of its output may be seen first.
    pub(super) async fn exit_code(&self, exec: &str) -> Result<i64, EngineError> {
        let asked = Instant::now();
        loop {
            let seen = call::INSPECT.run(self.docker.inspect_exec(exec)).await?;
            match seen.exit_code {
                Some(code) if seen.running != Some(true) => return Ok(code),
                _ if asked.elapsed() > EXIT => {
                    return Err(EngineError::Refused {
                        what: "say how an installer ended",
                        reason: "it closed its output and goes on".to_owned(),
                    });
                }
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// The last lines that a program wrote, printable and bounded: an installer prints what packages make it print.
#[derive(Debug, Default)]
pub(super) struct Words(Mutex<Tail>);

#[derive(Debug, Default)]
struct Tail {
    lines: Vec<String>,
    unfinished: Vec<u8>,
}

impl Words {
    fn heard(&self, frame: &LogOutput) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in frame.as_ref() {
            match byte {
                b'\n' | b'\r' => tail.finish(),
                _ if tail.unfinished.len() < LINE_BYTES => tail.unfinished.push(*byte),
                _ => {}
            }
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.finish();
        tail.lines.clone()
    }

    fn last(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.lines.last().cloned().unwrap_or_default()
    }
}

impl Tail {
    fn finish(&mut self) {
        let line = bounded(&String::from_utf8_lossy(&std::mem::take(&mut self.unfinished)));
        if line.is_empty() {
            return;
        }
        if self.lines.len() == LINES {
            self.lines.remove(0);
        }
        self.lines.push(line);
    }
}

/// A program's standard output as the bytes of a layer; what it says on the side is kept. More than any disk has is an
/// error, which ends the upload.
pub(super) fn layer(
    output: impl Stream<Item = Result<LogOutput, Error>> + Send + 'static,
    words: Arc<Words>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let mut bytes = 0;
    output
        .map_err(std::io::Error::other)
        .try_filter_map(move |frame| {
            let taken = match frame {
                LogOutput::StdOut { message } => {
                    bytes += message.len() as u64;
                    if bytes > LAYER_BYTES {
                        Err(std::io::Error::other("what was installed is too large"))
                    } else {
                        Ok(Some(message))
                    }
                }
                other @ (LogOutput::StdErr { .. } | LogOutput::StdIn { .. } | LogOutput::Console { .. }) => {
                    words.heard(&other);
                    Ok(None)
                }
            };
            std::future::ready(taken)
        })
}

fn broken(error: &Error) -> EngineError {
    EngineError::Unreachable(bounded(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn stderr(text: &str) -> LogOutput {
        LogOutput::StdErr {
            message: text.to_owned().into(),
        }
    }

    #[test]
    fn the_last_lines_of_an_installer_are_kept_printable_and_bounded() {
        let words = Words::default();
        for n in 0..20 {
            words.heard(&stderr(&format!("line {n}\r\n")));
        }
        words.heard(&stderr("\x1b[31mERROR: no "));
        assert_eq!(words.last(), "line 19");
        words.heard(&stderr("such package"));
        let lines = words.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines.last().unwrap(), r"\u{1b}[31mERROR: no such package");
        words.heard(&stderr(&"x".repeat(1 << 20)));
        assert!(words.lines().last().unwrap().len() < 400);
    }

    #[tokio::test]
    async fn a_layer_is_what_is_written_to_standard_output() {
        let frames = [
            Ok(LogOutput::StdOut { message: "ab".into() }),
            Ok(stderr("tar: a socket ignored\n")),
            Ok(LogOutput::StdOut { message: "c".into() }),
        ];
        let words = Arc::new(Words::default());
        let bytes: Vec<Bytes> = layer(stream::iter(frames), Arc::clone(&words))
            .try_collect()
            .await
            .unwrap();
        assert_eq!(bytes.concat(), b"abc");
        assert_eq!(words.lines(), ["tar: a socket ignored"]);
        let broken = [Err(Error::APIVersionParseError {})];
        assert!(
            layer(stream::iter(broken), words)
                .try_collect::<Vec<_>>()
                .await
                .is_err()
        );
    }
}
