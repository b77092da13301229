//! The files process: `greenroom-agent files DIR`, with the guest's uid, a socket for its standard input.
//!
//! The agent's side of it is [`Process`], the process's own side is [`serve`]. The process holds nothing
//! that a transfer needs, so the guest, which can kill it, gains a failed request by that and no more.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdSocket,
    },
    process::Stdio,
};

use greenroom_protocol::Refusal;
use rustix::{
    fs::Mode,
    io::Errno,
    net::RecvFlags,
    process::{DumpableBehavior, set_dumpable_behavior, umask},
};
use tokio::{io::Interest, net::UnixStream};

use super::{
    hands::Hands,
    wire::{Answer, Incoming, Outgoing, Reply, Request},
};
use crate::child::{self, Child, Quarters};

/// The agent's end of a files process. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Process {
    socket: UnixStream,
    _child: Child,
}

impl Process {
    /// Starts one. It answers, or not, with the first request.
    pub(super) fn start(quarters: &Quarters, work_dir: &str) -> io::Result<Self> {
        let (ours, theirs) = StdSocket::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = quarters.agent();
        command
            .args(["files", work_dir])
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null());
        Ok(Self {
            socket: UnixStream::from_std(ours)?,
            _child: child::spawn(command)?,
        })
    }

    /// True if the process has ended, as far as its socket tells.
    pub(super) fn is_gone(&self) -> bool {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        // Between requests nothing can be there to read.
        rustix::net::recv(&self.socket, &mut byte, flags).err() != Some(Errno::AGAIN)
    }

    /// One request and its answer. After an error, or when this was dropped halfway, the process is of no
    /// use any more.
    pub(super) async fn exchange(&self, request: &Request, descriptors: &[OwnedFd]) -> io::Result<Answer> {
        let mut outgoing = Outgoing::new(request, descriptors)?;
        while !self
            .socket
            .async_io(Interest::WRITABLE, || outgoing.send_some(self.socket.as_fd()))
            .await?
        {}
        let mut incoming = Incoming::default();
        while !self
            .socket
            .async_io(Interest::READABLE, || incoming.receive_some(self.socket.as_fd()))
            .await?
        {}
        let (reply, descriptors) = incoming.into_message::<Result<Reply, Refusal>>()?;
        Ok(reply.map(|reply| (reply, descriptors)))
    }
}

/// The whole life of a files process: answers requests on its standard input until the agent has closed it.
///
/// # Errors
/// The work directory cannot be opened, or the agent's end broke.
pub fn serve(work_dir: &str) -> io::Result<()> {
    // The guest has the same uid: it may kill this process, and must not take it over.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    umask(Mode::from_raw_mode(0o022));
    let mut hands = Hands::open(work_dir)?;
    let socket = io::stdin();
    loop {
        let mut incoming = Incoming::default();
        loop {
            match incoming.receive_some(socket.as_fd()) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let (request, received) = incoming.into_message::<Request>()?;
        let (reply, opened) = match hands.perform(request, &received) {
            Ok((reply, opened)) => (Ok(reply), opened),
            Err(refusal) => (Err::<Reply, _>(refusal), Vec::new()),
        };
        let mut outgoing = Outgoing::new(&reply, &opened)?;
        while !outgoing.send_some(socket.as_fd())? {}
    }
}
