//! Links and copies as answers: what a model passes on to its person.

use greenroom_protocol::FileEntry;

use super::{
    Answer, Heading, absolute,
    text::{name, size, thousands},
};
use crate::{
    config::Size,
    links::{Link, clock},
};

/// Where a link leads, which decides for how long it works and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To a server that goes on.
    Server,
    /// To this process, on this machine.
    Process,
}

impl Reach {
    const fn note(self) -> &'static str {
        match self {
            Self::Server => "",
            Self::Process => " It works in a browser on this machine, for as long as this MCP client runs.",
        }
    }
}

/// Renders a link for an upload.
pub(crate) fn upload_link(heading: &Heading, path: &str, link: &Link, limit: Size, reach: Reach) -> Answer {
    let rest = format!(
        "Nothing is uploaded yet. Give the user this link, whole and unchanged; it opens a page to drop one file on:\n\n{}\n\n\
         The file will be {}. The link is good for one upload of at most {limit}, until {}.{} Once the user says that it is \
         done, go on.",
        link.url,
        absolute(path),
        clock(link.expires),
        reach.note(),
    );
    heading.sentence("waiting for the user", &rest)
}

/// Renders a link for a download.
pub(crate) fn download_link(heading: &Heading, entry: &FileEntry, link: &Link, reach: Reach) -> Answer {
    let rest = format!(
        "Give the user this link, whole and unchanged, to download {} ({}):\n\n{}\n\nIt is good until {}.{}",
        absolute(&entry.path),
        size(entry.size),
        link.url,
        clock(link.expires),
        reach.note(),
    );
    heading.sentence("ok", &rest)
}

/// Renders a copy into the shared folder.
pub(crate) fn saved(heading: &Heading, path: &str, bytes: u64, saved_as: &str) -> Answer {
    let rest = format!(
        "{} is saved on the user's machine as {}, {} bytes.",
        absolute(path),
        name(saved_as),
        thousands(bytes)
    );
    heading.sentence("ok", &rest)
}
