//! Any Jupyter kernel of the image: which there are, and how the agent drives one through its bridge.
//!
//! ```text
//! Driver ◀── line, JSON ──▶ bridge (this program as the guest) ◀── ZeroMQ, loopback ──▶ the kernel
//!    ▲                          │ prints the kernel's stream messages
//!    └── pipes 1 and 2 ◀────────┴──────────────── inherited by ──────────────────────────▶ the kernel
//! ```
//! The bridge speaks ZeroMQ and reads what a kernel says, so that PID 1 does not: to the driver it is a
//! process like `host.py`, and what holds for that holds here: bounded output, images from files, one
//! descent, a death in words. It dies as its kernel does, by the same signal or exit code.

mod bridge;
mod bundle;
mod process;
mod spec;
mod wire;

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
};

use greenroom_protocol::{AgentConfig, Language, RunError, limits::KERNELS};
use serde::{Deserialize, Serialize};

pub(crate) use self::bridge::errand;
use self::spec::{Spec, installed};
use super::{
    KernelError,
    dialect::{Dialect, Done, Ends, Reply, Request, Shown, line},
    driver::Driver,
};
use crate::{child::Quarters, errand::Errand};

/// The kernels that the image has besides `taken`, none of them started.
pub(super) fn kernels(
    config: &AgentConfig,
    quarters: &Arc<Quarters>,
    taken: &[Language],
) -> Vec<Driver<Jupyter>> {
    let mut kernels: Vec<Driver<Jupyter>> = Vec::new();
    let mut taken = taken.to_vec();
    for (name, spec) in installed(&quarters.shared_data()) {
        if taken.len() == KERNELS {
            break;
        }
        // By its language; a second kernel for the same one by its own name. Python and bash are spoken for.
        let language = [spec.language.as_str(), name.as_str()]
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .find(|language| !taken.contains(language));
        let is_ours = matches!(
            spec.language.parse(),
            Ok(Language::Python | Language::Bash | Language::Sh)
        );
        if let (Some(language), false) = (language, is_ours) {
            taken.push(language);
            let dialect = Jupyter {
                language,
                spec,
                pid: AtomicI32::new(0),
            };
            kernels.push(Driver::new(dialect, Arc::clone(quarters), config));
        }
    }
    kernels
}

/// How to speak to a bridge.
#[derive(Debug)]
pub(super) struct Jupyter {
    language: Language,
    spec: Spec,
    /// The kernel's own pid, once the bridge has told it.
    pid: AtomicI32,
}

/// What a bridge hears.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Asked {
    Run { code: String, figures: String },
    Settle,
    Shown,
}

/// What a bridge says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Ready {
        version: String,
        pid: i32,
    },
    Failed(String),
    Settled,
    Began,
    Display {
        data: BTreeMap<String, String>,
        image: Option<SavedImage>,
    },
    Done {
        error: Option<RunError>,
        result: Option<String>,
    },
}

/// An image file, by what completes the name that the run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedImage {
    number: u32,
    ending: ImageEnding,
}

/// The endings of image files, spelled out: a path is made of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ImageEnding {
    Png,
    Jpg,
}

impl SavedImage {
    fn suffix(self) -> String {
        let ending = match self.ending {
            ImageEnding::Png => "png",
            ImageEnding::Jpg => "jpg",
        };
        format!("-{}.{ending}", self.number)
    }
}

impl Dialect for Jupyter {
    fn language(&self) -> Language {
        self.language
    }

    fn command(&self, quarters: &Quarters, ends: Ends) -> Result<Command, KernelError> {
        let program = self.spec.argv.first().map_or("", String::as_str);
        let found = quarters.find(program).ok_or_else(|| KernelError::Absent {
            language: self.language,
            reason: format!("its kernelspec names {program:?}, which is not there"),
        })?;
        let mut spec = self.spec.clone();
        if let Some(program) = spec.argv.first_mut() {
            *program = found.to_string_lossy().into_owned();
        }
        let spec = serde_json::to_string(&spec).map_err(|error| KernelError::Start {
            language: self.language,
            reason: error.to_string(),
        })?;
        let mut command = quarters.errand(Errand::Kernel, [spec]);
        command.stdin(ends.talk).stdout(ends.stdout).stderr(ends.stderr);
        Ok(command)
    }

    fn opening(&self) -> String {
        // All that a bridge has to know is on its command line.
        String::new()
    }

    fn request(&mut self, run: &Request<'_>) -> String {
        line(&Asked::Run {
            code: run.code.to_owned(),
            figures: run.figures.to_owned(),
        })
    }

    fn settle(&self) -> Option<String> {
        Some(line(&Asked::Settle))
    }

    fn shown(&self) -> Option<&'static str> {
        Some("\"shown\"\n")
    }

    fn says_when_it_begins(&self) -> bool {
        true
    }

    fn weighed(&self) -> Option<i32> {
        match self.pid.load(Ordering::Relaxed) {
            0 => None,
            pid => Some(pid),
        }
    }

    fn reply(&self, line: &str) -> Result<Reply, String> {
        let said: Said =
            serde_json::from_str(line).map_err(|error| format!("it said what is no message: {error}"))?;
        Ok(match said {
            Said::Ready { version, pid } => {
                self.pid.store(pid, Ordering::Relaxed);
                Reply::Ready(version)
            }
            Said::Failed(reason) => Reply::Failed(reason),
            Said::Settled => Reply::Settled,
            Said::Began => Reply::Began,
            Said::Display { data, image } => Reply::Shown(Shown {
                data,
                image: image.map(SavedImage::suffix),
            }),
            Said::Done { error, result } => Reply::Done(Done::reported(error, result)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_the_line_agree() {
        let jupyter = Jupyter {
            language: Language::TypeScript,
            spec: Spec::default(),
            pid: AtomicI32::new(0),
        };
        assert_eq!(jupyter.shown().unwrap(), line(&Asked::Shown));
        let ready = line(&Said::Ready {
            version: "X\n1".into(),
            pid: 7,
        });
        assert_eq!(jupyter.reply(&ready), Ok(Reply::Ready("X\n1".into())));
        assert_eq!(jupyter.weighed(), Some(7));
        let image = SavedImage {
            number: 2,
            ending: ImageEnding::Jpg,
        };
        let shown = line(&Said::Display {
            data: BTreeMap::new(),
            image: Some(image),
        });
        let Ok(Reply::Shown(shown)) = jupyter.reply(&shown) else {
            panic!("nothing is shown")
        };
        assert_eq!(shown.image.as_deref(), Some("-2.jpg"));
        let path = "{\"display\": {\"data\": {}, \"image\": {\"number\": 1, \"ending\": \"/../x\"}}}";
        assert!(
            jupyter.reply(path).is_err(),
            "no path is made of what a guest says"
        );
    }
}
