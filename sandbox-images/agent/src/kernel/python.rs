//! The Python kernel: `host/` in a process, IPython inside where the image has it.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
};

use command_fds::{CommandFdExt, FdMapping};
use greenroom_protocol::{AgentConfig, Language, RunError};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use super::{
    KernelError,
    dialect::{Dialect, Done, Ends, Reply, Request, Shown, line},
    driver::Driver,
};
use crate::child::Quarters;

/// The program that the process runs. Below what a pipe holds, so it is written before anybody reads.
const HOST: &str = concat!(
    include_str!("host/start.py"),
    include_str!("host/talk.py"),
    include_str!("host/memory.py"),
    include_str!("host/streams.py"),
    include_str!("host/words.py"),
    include_str!("host/show.py"),
    include_str!("host/errors.py"),
    include_str!("host/languages.py"),
    include_str!("host/cells.py"),
    include_str!("host/host.py"),
);
/// Reads [`HOST`] from its descriptor: no file that a guest could change, no page of code in `ps`.
const LOADER: &str =
    "import sys, os; del sys.path[0]; exec(compile(os.fdopen(5).read(), '<greenroom>', 'exec'))";
/// What the interpreter is called, the first that there is.
const PROGRAMS: [&str; 2] = ["python3", "python"];

/// How to speak to the host.
#[derive(Debug)]
pub(super) struct Python {
    preload: Vec<String>,
}

impl Python {
    pub(super) fn kernel(config: &AgentConfig, quarters: Arc<Quarters>) -> Driver<Self> {
        let dialect = Self {
            preload: config.preload.clone(),
        };
        Driver::new(dialect, quarters, config)
    }
}

/// What the host hears.
#[derive(Serialize)]
struct Opening<'a> {
    preload: &'a [String],
}

/// What the host hears for each run.
#[derive(Serialize)]
struct Run<'a> {
    code: &'a str,
    figures: &'a str,
    traceback: &'a str,
}

/// What it hears after an interrupt.
#[derive(Serialize)]
struct Settle {
    settle: (),
}

/// What the host says.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Ready(String),
    Failed(String),
    Settled,
    Display {
        data: BTreeMap<String, String>,
        image: Option<SavedImage>,
    },
    Done {
        error: Option<RunError>,
        result: Option<String>,
    },
}

#[derive(Deserialize)]
struct SavedImage {
    number: u32,
    ending: ImageEnding,
}

/// The endings of image files, spelled out: a path is made of this.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ImageEnding {
    Png,
    Jpg,
    Svg,
    Html,
}

impl Dialect for Python {
    fn language(&self) -> Language {
        Language::Python
    }

    fn command(&self, quarters: &Quarters, ends: Ends) -> Result<Command, KernelError> {
        let program = PROGRAMS
            .iter()
            .find_map(|name| quarters.find(name))
            .ok_or_else(|| KernelError::Absent {
                language: Language::Python,
                reason: format!("no {} on PATH", PROGRAMS.join(" or ")),
            })?;
        let failed = |reason: String| KernelError::Start {
            language: Language::Python,
            reason,
        };
        let (source, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.to_string()))?;
        std::fs::File::from(writer)
            .write_all(HOST.as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        let mut command = quarters.command(program);
        command
            .args(["-c", LOADER])
            .env("MPLBACKEND", "agg")
            // Each arena is address space that counts as memory, see host/memory.py.
            .env("MALLOC_ARENA_MAX", "4")
            .stdin(Stdio::null())
            .stdout(ends.stdout)
            .stderr(ends.stderr)
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: ends.talk,
                    child_fd: 3,
                },
                FdMapping {
                    parent_fd: ends.tick,
                    child_fd: 4,
                },
                FdMapping {
                    parent_fd: source,
                    child_fd: 5,
                },
            ])
            .map_err(|error| failed(error.to_string()))?;
        Ok(command)
    }

    fn opening(&self) -> String {
        line(&Opening {
            preload: &self.preload,
        })
    }

    fn request(&mut self, run: &Request<'_>) -> String {
        line(&Run {
            code: run.code,
            figures: run.figures,
            traceback: run.traceback,
        })
    }

    fn settle(&self) -> Option<String> {
        Some(line(&Settle { settle: () }))
    }

    fn shown(&self) -> Option<&'static str> {
        Some("{}\n")
    }

    fn says_when_it_begins(&self) -> bool {
        // An interrupt that comes before the code is kept by the host.
        false
    }

    fn reply(&self, line: &str) -> Result<Reply, String> {
        let said: Said =
            serde_json::from_str(line).map_err(|error| format!("it said what is no message: {error}"))?;
        Ok(match said {
            Said::Ready(version) => Reply::Ready(version),
            Said::Failed(reason) => Reply::Failed(reason),
            Said::Settled => Reply::Settled,
            Said::Display { data, image } => Reply::Shown(Shown {
                data,
                image: image.map(|SavedImage { number, ending }| match ending {
                    ImageEnding::Png => format!("-{number}.png"),
                    ImageEnding::Jpg => format!("-{number}.jpg"),
                    ImageEnding::Svg => format!("-{number}.svg"),
                    ImageEnding::Html => format!("-{number}.html"),
                }),
            }),
            Said::Done { error, result } => Reply::Done(Done::reported(error, result)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_fits_into_a_pipe() {
        assert!(HOST.len() < 62 << 10, "{}", HOST.len());
    }
}
