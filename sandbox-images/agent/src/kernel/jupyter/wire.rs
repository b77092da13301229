//! Jupyter's messaging protocol over ZeroMQ, as a client speaks it: the only file that names `zeromq`.
//!
//! Source: <https://jupyter-client.readthedocs.io/en/stable/messaging.html>

use std::{io, net::TcpListener, time::Duration};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
pub(super) use zeromq::ZmqError as WireError;
use zeromq::{
    DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend, SubSocket, ZmqMessage, util::PeerIdentity,
};

/// What stands between the addresses of a message and the message.
const DELIMITER: &[u8] = b"<IDS|MSG>";
/// Frames behind the delimiter: signature, header, parent's header, metadata, content.
const FRAMES: usize = 5;
/// Between two looks whether the kernel listens.
const LOOK: Duration = Duration::from_millis(10);
/// How long a connection may take once the kernel listens.
const CONNECTING: Duration = Duration::from_secs(20);
/// The time in a header: no kernel makes anything of it, and the agent has its own.
const DATE: &str = "1970-01-01T00:00:00.000000Z";

/// Where a kernel is to listen, and the key of its messages.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// Shell, iopub, stdin, control, heartbeat.
    ports: [u16; 5],
    key: String,
    session: String,
}

impl Endpoints {
    /// Ports that are free now. Whoever takes one before the kernel does keeps it from starting, and that is said.
    pub(super) fn reserve() -> io::Result<Self> {
        // All at once, so that they differ.
        let mut held = Vec::new();
        let mut ports = [0; 5];
        for port in &mut ports {
            let listener = TcpListener::bind(("127.0.0.1", 0))?;
            *port = listener.local_addr()?.port();
            held.push(listener);
        }
        Ok(Self {
            ports,
            key: random()?,
            session: random()?,
        })
    }

    /// The text of the connection file.
    pub(super) fn connection_file(&self) -> String {
        let [shell, iopub, stdin, control, heartbeat] = self.ports;
        json!({
            "transport": "tcp",
            "ip": "127.0.0.1",
            "shell_port": shell,
            "iopub_port": iopub,
            "stdin_port": stdin,
            "control_port": control,
            "hb_port": heartbeat,
            "key": self.key,
            "signature_scheme": "hmac-sha256",
        })
        .to_string()
    }
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Where a message came from, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Shell,
    Iopub,
    Stdin,
    Control,
}

/// A message from a kernel.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) channel: Channel,
    /// Its type, such as `stream`.
    pub(super) kind: String,
    /// The id of the request that it belongs to; empty where there is none.
    pub(super) parent: String,
    pub(super) content: Value,
    /// The header as it came, for an answer to name.
    header: Bytes,
}

/// The connection to a kernel.
pub(super) struct Wire {
    shell: DealerSocket,
    control: DealerSocket,
    stdin: DealerSocket,
    iopub: SubSocket,
    endpoints: Endpoints,
    sent: u64,
}

impl Wire {
    /// Connects to a kernel that is starting. Waits until it listens, however long that takes.
    pub(super) async fn connect(endpoints: Endpoints) -> Result<Self, WireError> {
        let [shell, iopub, stdin, control, _] = endpoints.ports;
        for port in [shell, iopub, stdin, control] {
            // The library's own waiting doubles its pauses.
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(LOOK).await;
            }
        }
        // One identity: a kernel asks for input at the address from which the request came.
        let identity = PeerIdentity::try_from(endpoints.session.as_bytes())?;
        let dealer = || {
            let mut options = SocketOptions::default();
            options
                .peer_identity(identity.clone())
                .connect_timeout(CONNECTING);
            DealerSocket::with_options(options)
        };
        let mut wire = Self {
            shell: dealer(),
            control: dealer(),
            stdin: dealer(),
            iopub: SubSocket::new(),
            endpoints,
            sent: 0,
        };
        let address = |port: u16| format!("tcp://127.0.0.1:{port}");
        wire.iopub.connect(&address(iopub)).await?;
        wire.iopub.subscribe("").await?;
        wire.shell.connect(&address(shell)).await?;
        wire.control.connect(&address(control)).await?;
        wire.stdin.connect(&address(stdin)).await?;
        Ok(wire)
    }

    /// Sends a request and answers its id.
    pub(super) async fn request(
        &mut self,
        channel: Channel,
        kind: &str,
        content: Value,
    ) -> Result<String, WireError> {
        self.send(channel, kind, b"{}", content).await
    }

    /// Answers a kernel's own request.
    pub(super) async fn answer(&mut self, to: &Message, kind: &str, content: Value) -> Result<(), WireError> {
        self.send(to.channel, kind, &to.header, content).await.map(drop)
    }

    async fn send(
        &mut self,
        channel: Channel,
        kind: &str,
        parent: &[u8],
        content: Value,
    ) -> Result<String, WireError> {
        self.sent += 1;
        let session = &self.endpoints.session;
        let id = format!("{session}-{}", self.sent);
        let header = json!({
            "msg_id": id,
            "session": session,
            "username": "greenroom",
            "date": DATE,
            "msg_type": kind,
            "version": "5.3",
        });
        let parts = [
            header.to_string().into_bytes(),
            parent.to_vec(),
            b"{}".to_vec(),
            content.to_string().into_bytes(),
        ];
        let signature = sign(&self.endpoints.key, &parts);
        let mut message = ZmqMessage::from(Bytes::from_static(DELIMITER));
        message.push_back(signature.into());
        for part in parts {
            message.push_back(part.into());
        }
        let socket = match channel {
            Channel::Control => &mut self.control,
            Channel::Stdin => &mut self.stdin,
            Channel::Shell | Channel::Iopub => &mut self.shell,
        };
        socket.send(message).await?;
        Ok(id)
    }

    /// The next message from anywhere. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Message, WireError> {
        loop {
            let (channel, message) = tokio::select! {
                biased;
                message = self.iopub.recv() => (Channel::Iopub, message?),
                message = self.stdin.recv() => (Channel::Stdin, message?),
                message = self.shell.recv() => (Channel::Shell, message?),
                message = self.control.recv() => (Channel::Control, message?),
            };
            if let Some(message) = read(channel, &message.into_vec()) {
                return Ok(message);
            }
        }
    }

    /// What comes within `patience`, a message at a time.
    pub(super) async fn left(&mut self, patience: Duration) -> Option<Message> {
        timeout(patience, self.next()).await.ok()?.ok()
    }
}

/// The signature of a message, in hexadecimal.
fn sign(key: &str, parts: &[Vec<u8>]) -> String {
    use std::fmt::Write;
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else {
        // Any length is a key.
        return String::new();
    };
    for part in parts {
        mac.update(part);
    }
    let mut text = String::with_capacity(64);
    for byte in mac.finalize().into_bytes() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Understands a message; one that is none is passed over. Signatures are not looked at: the guest has the key,
/// and all of this is its word anyway.
fn read(channel: Channel, frames: &[Bytes]) -> Option<Message> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Header {
        msg_id: String,
        msg_type: String,
    }
    let at = frames.iter().position(|frame| frame == DELIMITER)?;
    let [_, header, parent, _, content] = frames.get(at + 1..at + 1 + FRAMES)? else {
        return None;
    };
    let head: Header = serde_json::from_slice(header).ok()?;
    let parent: Header = serde_json::from_slice(parent).unwrap_or_default();
    Some(Message {
        channel,
        kind: head.msg_type,
        parent: parent.msg_id,
        content: serde_json::from_slice(content).ok()?,
        header: header.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(parts: &[&str]) -> Vec<Bytes> {
        parts
            .iter()
            .map(|part| Bytes::copy_from_slice(part.as_bytes()))
            .collect()
    }

    #[test]
    fn messages_are_read_behind_their_addresses() {
        let message = frames(&[
            "stream.stdout",
            "<IDS|MSG>",
            "signature",
            r#"{"msg_id": "b", "msg_type": "stream"}"#,
            r#"{"msg_id": "a"}"#,
            "{}",
            r#"{"name": "stdout", "text": "x"}"#,
            "a buffer",
        ]);
        let read_one = read(Channel::Iopub, &message).unwrap();
        assert_eq!((&*read_one.kind, &*read_one.parent), ("stream", "a"));
        assert_eq!(read_one.content["text"], "x");
        for end in 0..7 {
            assert!(read(Channel::Iopub, &message[..end]).is_none(), "{end} frames");
        }
    }

    /// The first test vector of RFC 4231.
    #[test]
    fn signatures_are_hmac_sha256() {
        let key = "\u{b}".repeat(20);
        let signature = sign(&key, &[b"Hi ".to_vec(), b"There".to_vec()]);
        assert_eq!(
            signature,
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }
}
