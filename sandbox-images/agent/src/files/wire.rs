//! What the agent and its files process say to each other over a socket pair: a length, JSON, and open
//! descriptors beside them. One request at a time, one answer each.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use greenroom_protocol::{FileChange, FileList, Refusal, limits::JSON_BYTES};
use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Depth, path::WorkPath, removal::Removed};

/// Descriptors that one message carries at most.
const DESCRIPTORS: usize = 2;
/// Bytes of the length before a message.
const HEAD: usize = 4;

/// What is to be done in the work directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// → [`Reply::Listed`]
    List { path: WorkPath, depth: Depth },
    /// → [`Reply::Opened`] with a regular file, open for reading.
    Read { path: WorkPath },
    /// → [`Reply::Created`] with a new file `part` beside the path's target, and the folder of both.
    Create { path: WorkPath, part: String },
    /// → [`Reply::Opened`] with a regular file, open for appending; where there was none, [`Reply::Created`]
    /// with a new one and its folder.
    Append { path: WorkPath },
    /// With a folder and the open file → [`Reply::Done`]: `part` has become `name`.
    Commit {
        path: WorkPath,
        part: String,
        name: Vec<u8>,
    },
    /// With a folder → [`Reply::Done`]: the file of that name is gone.
    Discard { name: Vec<u8> },
    /// → [`Reply::Deleted`]: one slice of it, after others that have deleted `before` entries.
    Delete { path: WorkPath, before: u64 },
    /// → [`Reply::Watching`], with the descriptor that becomes readable once something may have changed,
    /// where the system has such a thing. Changes are counted from `seq` on.
    Watch { seq: u64 },
    /// → [`Reply::Changed`] with nothing in it: brings what is known of the work directory up to date.
    Mark,
    /// → [`Reply::Changed`]
    Changes { since: u64 },
}

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Listed(FileList),
    Opened,
    Created {
        name: Vec<u8>,
    },
    Done,
    Deleted(Removed),
    Watching,
    Changed {
        seq: u64,
        changes: Option<Vec<FileChange>>,
    },
}

/// An answer and the descriptors that came with it.
pub(super) type Answer = Result<(Reply, Vec<OwnedFd>), Refusal>;

/// A message on its way out. The descriptors go with its first byte.
pub(super) struct Outgoing<'a> {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: &'a [OwnedFd],
}

impl<'a> Outgoing<'a> {
    pub(super) fn new<T: Serialize>(message: &T, descriptors: &'a [OwnedFd]) -> io::Result<Self> {
        let mut bytes = vec![0; HEAD];
        serde_json::to_writer(&mut bytes, message)?;
        let length = u32::try_from(bytes.len() - HEAD).map_err(io::Error::other)?;
        bytes[..HEAD].copy_from_slice(&length.to_be_bytes());
        Ok(Self {
            bytes,
            sent: 0,
            descriptors,
        })
    }

    /// Sends some of it; true once all is sent.
    pub(super) fn send_some(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        if self.sent == 0 && !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed))
        {
            return Err(io::Error::other("more descriptors than a message carries"));
        }
        let rest = [IoSlice::new(&self.bytes[self.sent..])];
        self.sent += retry(|| sendmsg(socket, &rest, &mut control, SendFlags::NOSIGNAL))?;
        Ok(self.sent == self.bytes.len())
    }
}

/// A message on its way in. The peer may be hostile: length and descriptors are bounded.
#[derive(Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Incoming {
    /// Receives some of it; true once it is complete.
    pub(super) fn receive_some(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry(|| {
            let mut room = [IoSliceMut::new(&mut chunk)];
            recvmsg(socket, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        let Some(head) = self.bytes.first_chunk::<HEAD>() else {
            return Ok(false);
        };
        let length = u32::from_be_bytes(*head) as usize;
        if length > JSON_BYTES || self.bytes.len() > HEAD + length || self.descriptors.len() > DESCRIPTORS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(self.bytes.len() == HEAD + length)
    }

    /// Reads a complete message.
    pub(super) fn into_message<T: DeserializeOwned>(self) -> io::Result<(T, Vec<OwnedFd>)> {
        let message = serde_json::from_slice(self.bytes.get(HEAD..).unwrap_or_default())?;
        Ok((message, self.descriptors))
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    rustix::io::retry_on_intr(&mut call).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    fn receive(socket: &UnixStream) -> io::Result<Incoming> {
        let mut incoming = Incoming::default();
        while !incoming.receive_some(socket.as_fd())? {}
        Ok(incoming)
    }

    #[test]
    fn a_message_and_its_descriptors_arrive_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = [OwnedFd::from(std::fs::File::open("/proc/self/status").unwrap())];
        let name = vec![0xff, b'n'];
        let reply: Result<Reply, Refusal> = Ok(Reply::Created { name: name.clone() });
        let mut outgoing = Outgoing::new(&reply, &file).unwrap();
        while !outgoing.send_some(ours.as_fd()).unwrap() {}

        let (reply, descriptors) = receive(&theirs)
            .unwrap()
            .into_message::<Result<Reply, Refusal>>()
            .unwrap();
        assert!(matches!(reply, Ok(Reply::Created { name: got }) if got == name));
        assert_eq!(descriptors.len(), 1);
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_it_is_believed() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let error = receive(&theirs).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"\0\0\0\x02{}{}").unwrap();
        assert_eq!(receive(&theirs).err().unwrap().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_peers_end_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert_eq!(
            receive(&theirs).err().unwrap().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
