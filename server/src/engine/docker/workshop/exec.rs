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
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    super::call::{self, bounded},
    Workshop,
    steps::Step,
};
use crate::engine::EngineError;

/// More than any disk of a sandbox: where the runtime sets no limit, this does.
const LAYER_BYTES: u64 = 16 << 30;
/// Archives are made of blocks of so many bytes.
const BLOCK: usize = 512;
/// How bzip2, gzip, xz and Zstandard begin.
const COMPRESSED: [&[u8]; 4] = [b"BZh", b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
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
        words: &Words,
        still: impl Fn(&str),
    ) -> Result<i64, EngineError> {
        let (exec, mut output) = self.exec(builder, step).await?;
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
            user: Some(step.runs_as.user().to_owned()),
            env: step.runs_as.env(),
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
/// error, which ends the upload, and so is what does not begin as a plain archive: the engine would unpack others, too.
pub(super) fn layer(
    output: impl Stream<Item = Result<LogOutput, Error>> + Send + 'static,
    words: Arc<Words>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let mut bytes = 0;
    let frames = output
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
        });
    stream::try_unfold((Box::pin(frames), Begun::No), |(mut frames, begun)| async move {
        let next = match begun {
            Begun::Yes => frames.try_next().await?,
            Begun::No => Some(beginning(&mut frames).await?),
        };
        Ok(next.map(|bytes| (bytes, (frames, Begun::Yes))))
    })
}

/// Whether the first block of a layer was seen.
enum Begun {
    No,
    Yes,
}

/// The first block of a layer, and what came with it.
async fn beginning(
    frames: &mut (impl Stream<Item = std::io::Result<Bytes>> + Unpin),
) -> std::io::Result<Bytes> {
    let mut bytes = BytesMut::new();
    while bytes.len() < BLOCK
        && let Some(more) = frames.try_next().await?
    {
        bytes.extend_from_slice(&more);
    }
    if bytes.first_chunk::<BLOCK>().is_some_and(is_plain) {
        Ok(bytes.freeze())
    } else {
        Err(std::io::Error::other(
            "what was installed came as no plain archive",
        ))
    }
}

/// Whether an archive that begins with this is a plain one: by the mark of the format, and none of a compression that the
/// engine would undo. Zeros are the end of an empty one.
fn is_plain(block: &[u8; BLOCK]) -> bool {
    let zstandard_skips = block[1..4] == [0x2a, 0x4d, 0x18];
    let compressed = zstandard_skips || COMPRESSED.iter().any(|mark| block.starts_with(mark));
    let empty = block.iter().all(|byte| *byte == 0);
    empty || (!compressed && block[257..].starts_with(b"ustar"))
}

fn broken(error: &Error) -> EngineError {
    EngineError::Unreachable(bounded(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first block of an archive, which begins with this.
    fn block(begin: &[u8]) -> [u8; BLOCK] {
        let mut block = [b'x'; BLOCK];
        block[..begin.len()].copy_from_slice(begin);
        block[257..262].copy_from_slice(b"ustar");
        block
    }

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

    async fn read(frames: Vec<Result<LogOutput, Error>>, words: &Arc<Words>) -> std::io::Result<Vec<u8>> {
        let layer = layer(stream::iter(frames), Arc::clone(words));
        Ok(layer.try_collect::<Vec<Bytes>>().await?.concat())
    }

    fn stdout(bytes: &[u8]) -> Result<LogOutput, Error> {
        let message = Bytes::copy_from_slice(bytes);
        Ok(LogOutput::StdOut { message })
    }

    #[tokio::test]
    async fn a_layer_is_what_is_written_to_standard_output() {
        let (words, whole) = (Arc::new(Words::default()), block(b"etc/"));
        let frames = vec![
            stdout(&whole[..300]),
            Ok(stderr("tar: a socket ignored\n")),
            stdout(&whole[300..]),
            stdout(b"c"),
        ];
        assert_eq!(read(frames, &words).await.unwrap(), [&whole[..], b"c"].concat());
        assert_eq!(words.lines(), ["tar: a socket ignored"]);
        let broken = vec![stdout(&whole), Err(Error::APIVersionParseError {})];
        assert!(read(broken, &words).await.is_err());
    }

    #[tokio::test]
    async fn a_layer_is_a_plain_archive_or_refused() {
        let words = Arc::new(Words::default());
        assert!(
            read(vec![stdout(&[0; 1024])], &words).await.is_ok(),
            "an empty one"
        );
        let marked = [&COMPRESSED[..], &[b"P*M\x18"]].concat();
        let blocks = marked.iter().map(|mark| block(mark).to_vec());
        for bad in blocks.chain([vec![b'x'; 1024], b"etc/".to_vec(), Vec::new()]) {
            let refused = read(vec![stdout(&bad)], &words).await.unwrap_err();
            assert!(refused.to_string().contains("no plain archive"), "{bad:?}");
        }
    }
}
