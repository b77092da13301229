//! The next step after a failure that code cannot know the reason of: what a sandbox has not, and what to do instead.
//!
//! Found by what programs print when they meet it, whatever language they are written in. A hint that is not
//! needed costs a line; one that is missing costs a model several calls that cannot work.

use greenroom_protocol::RunOutcome;

use super::super::transcript::Transcript;

/// Characters at the end of a stream that are looked at: reasons stand last.
const LOOKED_AT: usize = 16 << 10;

/// Something that a sandbox has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Network,
    Root,
    Terminal,
    Memory,
    Browser,
    Disk,
    Processes,
}

/// What programs say of a lack. The first that is found of each counts.
const SAID: [(Lack, &[&str]); 7] = [
    (
        Lack::Network,
        &[
            "Temporary failure in name resolution",
            "Temporary failure resolving",
            "Name or service not known",
            "Network is unreachable",
            "Could not resolve host",
            "NameResolutionError",
            "No matching distribution found for",
            "getaddrinfo EAI_AGAIN",
            "getaddrinfo ENOTFOUND",
            "dns error: failed to lookup address",
            "ModuleNotFoundError: No module named",
            "apt-get: command not found",
            "apt: command not found",
            "npm: command not found",
            "npm: not found",
            "Unable to acquire the dpkg frontend lock",
            "Could not open lock file /var/lib/",
        ],
    ),
    (Lack::Root, &["sudo: command not found", "sudo: not found"]),
    (
        Lack::Terminal,
        &[
            "EOFError: EOF when reading a line",
            "Can not control echo on the terminal",
            "not a terminal",
            "not a tty",
        ],
    ),
    (Lack::Memory, &["MemoryError"]),
    (
        Lack::Browser,
        &[
            "requires Google Chrome",
            "requires the Kaleido package",
            "requires the kaleido package",
        ],
    ),
    (Lack::Disk, &["No space left on device"]),
    (
        Lack::Processes,
        &[
            "fork: Resource temporarily unavailable",
            "fork: retry: Resource temporarily unavailable",
            "BlockingIOError: [Errno 11] Resource temporarily unavailable",
            "can't start new thread",
        ],
    ),
];

impl Lack {
    const fn advice(self) -> &'static str {
        match self {
            Self::Network => {
                "this sandbox has no network: nothing can be fetched or installed from outside, and trying again does not help. \
                 `pip list` in bash shows what is there; for more, upload a wheel with upload_file and `pip install` that file, or \
                 upload the data"
            }
            Self::Root => "there is no root here, and nothing that needs it: commands run without sudo",
            Self::Terminal => {
                "nobody can answer a prompt here, since there is no terminal: pass values as arguments, in the code or by a file"
            }
            Self::Memory => {
                "the sandbox has no more memory; variables are kept. `del` what is not needed, or work on less at once: chunks of a \
                 file, fewer columns, smaller types"
            }
            Self::Browser => {
                "there is no browser here, so plotly makes no pictures: fig.show() saves an HTML file; for a picture, draw with \
                 matplotlib"
            }
            Self::Disk => {
                "the sandbox's disk is full: delete what is not needed (`du -sh /mnt/data/*` in bash shows what is large)"
            }
            Self::Processes => {
                "the sandbox's limit of processes and threads is reached: start fewer at once, and end those left in the \
                 background (`ps`, `kill` in bash)"
            }
        }
    }
}

/// The next steps after a run that has ended, none where nothing is known.
pub(super) fn hints(transcript: &Transcript, outcome: &RunOutcome) -> Vec<&'static str> {
    let error = outcome.error.as_ref();
    let raised = error.map(|error| format!("{}: {}\n{}", error.name, error.message, error.traceback));
    // What a program prints is its own; a run that went well and prints such words says something else with them.
    let printed = if error.is_some() || outcome.language.is_shell() {
        end(&transcript.stdout.text)
    } else {
        ""
    };
    let texts = [
        raised.as_deref().unwrap_or_default(),
        end(&transcript.stderr.text),
        printed,
    ];
    SAID.iter()
        .filter(|(_, said)| {
            said.iter()
                .any(|words| texts.iter().any(|text| text.contains(words)))
        })
        // Room has been made for the next run, and that is said.
        .filter(|(lack, _)| *lack != Lack::Processes || outcome.background_ended == 0)
        .map(|(lack, _)| lack.advice())
        .collect()
}

/// The end of a text.
fn end(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(LOOKED_AT))..]
}
