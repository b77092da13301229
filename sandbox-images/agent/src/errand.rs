//! Errands: what the agent has this same program do as the guest, with the guest's rights and no others.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, ExitCode},
};

use crate::{child::Quarters, descent, files, images, kernel, output};

/// The first argument of this program when it is on an errand.
pub const ERRAND: &str = "errand";

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// `image PATH`: an image file, made small enough to send, to standard output.
    Image,
    /// `picture SIDE`: the image on standard input, with no side longer than that, to standard output.
    Picture,
    /// `spill PATH`: standard input into a file.
    Spill,
    /// `unpack HOW`: a tar archive on standard input into the work directory.
    Unpack,
    /// `pack MAX KNOWN`: the work directory as a tar archive to standard output, unless it has a known digest.
    Pack,
    /// `descent TAG`: ends what carries a kernel's tag.
    Descent,
    /// `kernel SPEC`: a Jupyter kernel and the bridge to it, until either end is gone.
    Kernel,
}

impl Errand {
    const ALL: [Self; 7] = [
        Self::Image,
        Self::Picture,
        Self::Spill,
        Self::Unpack,
        Self::Pack,
        Self::Descent,
        Self::Kernel,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Picture => "picture",
            Self::Spill => "spill",
            Self::Unpack => "unpack",
            Self::Pack => "pack",
            Self::Descent => "descent",
            Self::Kernel => "kernel",
        }
    }
}

impl Quarters {
    /// The command for an errand.
    pub(crate) fn errand<A: AsRef<OsStr>>(
        &self,
        errand: Errand,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = self.agent();
        command.arg(ERRAND).arg(errand.name()).args(arguments);
        command
    }
}

/// Does the errand that stands behind [`ERRAND`] on the command line.
#[must_use]
pub fn main(arguments: &[String]) -> ExitCode {
    let errand = arguments
        .first()
        .and_then(|name| Errand::ALL.into_iter().find(|errand| errand.name() == name));
    let done = match (errand, arguments.get(1)) {
        (Some(Errand::Image), Some(path)) => images::errand(Path::new(path)).is_ok(),
        (Some(Errand::Picture), Some(side)) => images::picture_errand(side).is_ok(),
        (Some(Errand::Spill), Some(path)) => output::spill_errand(Path::new(path)).is_ok(),
        (Some(Errand::Unpack), Some(onto)) => files::unpack_errand(onto).is_ok(),
        (Some(Errand::Pack), Some(max)) => {
            let known = arguments.get(2).map(String::as_str).unwrap_or_default();
            files::pack_errand(max, known).is_ok()
        }
        (Some(Errand::Descent), Some(tag)) => descent::errand(tag),
        (Some(Errand::Kernel), Some(spec)) => return kernel::jupyter::errand(spec),
        _ => false,
    };
    if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
