//! What an ended sandbox has left behind: the last line of what PID 1 wrote, as far as the engine keeps it.

use bollard::{container::LogOutput, query_parameters::LogsOptionsBuilder};
use futures_util::TryStreamExt as _;
use greenroom_protocol::{LastWords, limits};

use super::{DockerEngine, call};
use crate::{engine::EngineError, guest::lines, sandbox::SandboxId};

/// A log is read up to here: the file behind it is smaller.
const LOG_BYTES: usize = 256 << 10;

/// What there is to say beside the output.
const NOTE_BYTES: usize = 4096;

impl DockerEngine {
    pub(super) async fn left_behind(&self, id: &SandboxId) -> Result<Option<LastWords>, EngineError> {
        let container = self.container(id).await?;
        let options = LogsOptionsBuilder::default().stdout(true).build();
        let read = async {
            let mut log = self.docker.logs(&container, Some(options));
            let mut text = Vec::new();
            while text.len() < LOG_BYTES {
                match log.try_next().await? {
                    Some(LogOutput::StdOut { message } | LogOutput::Console { message }) => {
                        text.extend_from_slice(&message);
                    }
                    Some(LogOutput::StdErr { .. } | LogOutput::StdIn { .. }) => {}
                    None => break,
                }
            }
            Ok(text)
        };
        match call::INSPECT.run(read).await {
            Ok(text) => Ok(find(&String::from_utf8_lossy(&text))),
            // It is gone, or the engine keeps no log of it.
            Err(failure) if matches!(failure.status(), Some(404 | 400 | 500 | 501)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }
}

/// The last line that is one. Anything may stand before it: a program that is root can write there, too.
fn find(output: &str) -> Option<LastWords> {
    let line = output
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(LastWords::MARK))?;
    let words: LastWords = serde_json::from_str(line).ok()?;
    Some(LastWords {
        note: words.note.map(|note| lines(&cut(&note, NOTE_BYTES))),
        output: lines(&cut(&words.output, 4 * limits::LAST_WORDS)),
        ..words
    })
}

fn cut(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::{AppEnd, EndReason};

    use super::*;

    #[test]
    fn last_words_are_found_behind_whatever_else_was_written() {
        let words = LastWords {
            reason: EndReason::Exited,
            note: None,
            end: Some(AppEnd::Code(3)),
            output: "a\nb\n".into(),
        };
        let line = format!("{}{}\n", LastWords::MARK, serde_json::to_string(&words).unwrap());
        assert_eq!(
            find(&format!("noise\n{}{{}}\n{line}", LastWords::MARK)),
            Some(words)
        );
        assert_eq!(find("noise\n"), None);
        assert_eq!(find(&format!("{}[[[", LastWords::MARK)), None);
    }
}
