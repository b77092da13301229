//! The process's end: carries messages between the host and the server, and notices what is still unanswered, so
//! that a server which dies leaves no call without an answer and no host without a server.

use std::{borrow::Cow, collections::BTreeMap, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{sleep, timeout},
};

use super::{
    Greeting, Hello, Refusal, Standing, Start, VERSION,
    lines::{self, Lines, MESSAGE_BYTES, Next},
};
use crate::conversation::ConversationId;

/// How long answers may still take once the host has closed its side: the server gives up sooner.
const LAST_ANSWERS: Duration = Duration::from_secs(30);

/// Servers that may go in the middle of a greeting, and the pause before the next is looked for.
const GREETINGS: u32 = 5;
const AGAIN: Duration = Duration::from_millis(100);

/// How long a new server may take to begin where the old one was.
const RESUME: Duration = Duration::from_secs(10);

/// What a process is attached for.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// How to reach a server.
    pub start: Start,
    /// Digest of the configuration.
    pub digest: String,
    /// `--conversation`.
    pub conversation: Option<ConversationId>,
    /// What this process minted for itself.
    pub carrier: ConversationId,
}

/// Why a process is without a server.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The socket.
    #[error("the socket of the Greenroom that runs cannot be used: {0}")]
    Socket(io::Error),
    /// Starting one.
    #[error("no Greenroom could be started in the background: {0}")]
    Start(io::Error),
    /// It ended before it listened.
    #[error("the Greenroom that was started in the background ended with {status}; {} says:\n{says}", .log.display())]
    Ended {
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The end of that.
        says: String,
    },
    /// It does not listen.
    #[error("no Greenroom listened within {seconds} s; see {}", .log.display())]
    Silent {
        /// How long.
        seconds: u64,
        /// Its log.
        log: PathBuf,
    },
    /// It is not the server that this process needs.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// After it lost its server: the host has to start it again, since it has said things to that one.
    #[error(
        "the Greenroom that this process was attached to has been replaced: {0}; start this process again"
    )]
    Replaced(Refusal),
    /// The host does not read.
    #[error("standard output cannot be written: {0}")]
    Output(io::Error),
}

/// Attaches, and carries messages until the host has closed its side and all is answered.
///
/// # Errors
/// [`AttachError`]. With [`AttachError::Refused`] nothing has been read yet.
pub async fn relay(
    attachment: &Attachment,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> Result<(), AttachError> {
    let mut stream = attachment.attach(Standing::First).await?;
    let mut input = lines::lines(input, MESSAGE_BYTES);
    let mut talk = Talk::default();
    loop {
        match carry(stream, &mut input, &mut output, &mut talk).await? {
            Ended::Host => return Ok(()),
            Ended::Server => {}
        }
        for answer in talk.give_up() {
            lines::write(&mut output, answer.to_string().as_bytes())
                .await
                .map_err(AttachError::Output)?;
        }
        tracing::warn!("the Greenroom that this process was attached to is gone; looking for another");
        stream = match attachment.attach(Standing::Again).await {
            Err(AttachError::Refused(reason)) => return Err(AttachError::Replaced(reason)),
            attached => attached?,
        };
        resume(&mut stream, &talk).await.map_err(AttachError::Socket)?;
    }
}

impl Attachment {
    async fn attach(&self, standing: Standing) -> Result<UnixStream, AttachError> {
        for _ in 1..GREETINGS {
            match self.greet(standing).await {
                // Race: a server that is killed loses its channels before its socket. Whoever is quick is taken by it, and
                // never answered.
                Err(AttachError::Socket(error)) if is_over(&error) => sleep(AGAIN).await,
                attached => return attached,
            }
        }
        self.greet(standing).await
    }

    async fn greet(&self, standing: Standing) -> Result<UnixStream, AttachError> {
        let mut stream = self.start.connect().await?;
        let hello = Hello {
            version: VERSION.to_owned(),
            configuration: self.digest.clone(),
            conversation: self.conversation.as_ref().map(|id| id.as_str().to_owned()),
            carrier: self.carrier.as_str().to_owned(),
            standing,
        };
        lines::say(&mut stream, &hello)
            .await
            .map_err(AttachError::Socket)?;
        match lines::hear(&mut stream).await.map_err(AttachError::Socket)? {
            Greeting::Welcome => Ok(stream),
            Greeting::Refused { reason } => Err(reason.into()),
        }
    }
}

/// Whether the other side is gone.
fn is_over(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whose end it was.
enum Ended {
    Host,
    Server,
}

/// Carries messages both ways until one side ends.
async fn carry(
    stream: UnixStream,
    input: &mut Lines<impl AsyncRead + Unpin>,
    output: &mut (impl AsyncWrite + Unpin),
    talk: &mut Talk,
) -> Result<Ended, AttachError> {
    let (from_server, mut to_server) = stream.into_split();
    let mut from_server: Lines<OwnedReadHalf> = lines::lines(from_server, usize::MAX);
    let talk = std::cell::RefCell::new(talk);
    let up = up(input, &mut to_server, &talk);
    let mut up = std::pin::pin!(up);
    loop {
        let next = tokio::select! {
            biased;
            next = lines::next(&mut from_server) => next,
            over = &mut up => match over {
                Ended::Host => break,
                Ended::Server => return Ok(Ended::Server),
            },
        };
        let Next::Line(line) = next else {
            return Ok(Ended::Server);
        };
        talk.borrow_mut().answered(&line);
        lines::write(output, &line).await.map_err(AttachError::Output)?;
    }
    // The host says no more; what it has asked is still answered. A server that dies now is not replaced: it would
    // be asked nothing.
    let last = async {
        while let Next::Line(line) = lines::next(&mut from_server).await {
            talk.borrow_mut().answered(&line);
            lines::write(output, &line).await?;
        }
        Ok(())
    };
    match timeout(LAST_ANSWERS, last).await {
        Ok(written) => written.map_err(AttachError::Output)?,
        Err(_) => tracing::warn!("the last answers did not come in time"),
    }
    Ok(Ended::Host)
}

/// Carries what the host says. Cancel safe but for a message that is being written, which counts as unanswered.
async fn up(
    input: &mut Lines<impl AsyncRead + Unpin>,
    to_server: &mut OwnedWriteHalf,
    talk: &std::cell::RefCell<&mut Talk>,
) -> Ended {
    loop {
        match lines::next(input).await {
            Next::Line(line) => {
                talk.borrow_mut().asked(&line);
                if lines::write(to_server, &line).await.is_err() {
                    return Ended::Server;
                }
            }
            // The server refuses what is no message, and this is none.
            Next::TooLong => {
                let refused: &[u8] = b"\"a message is too long\"";
                if lines::write(to_server, refused).await.is_err() {
                    return Ended::Server;
                }
            }
            Next::Over => {
                drop(to_server.shutdown().await);
                return Ended::Host;
            }
        }
    }
}

/// Takes a new server to where the old one was: the handshake is said again, and its answer kept from the host,
/// which has one.
async fn resume(stream: &mut UnixStream, talk: &Talk) -> io::Result<()> {
    let Some((initialize, id)) = &talk.initialize else {
        return Ok(());
    };
    let shake = async {
        lines::write(stream, initialize).await?;
        // The host still waits for this answer.
        if talk.waiting.contains_key(id) {
            return Ok(());
        }
        loop {
            let line = lines::line(stream, MESSAGE_BYTES).await?;
            if Message::read(&line).is_some_and(|message| message.key() == *id) {
                break;
            }
        }
        if let Some(initialized) = &talk.initialized {
            lines::write(stream, initialized).await?;
        }
        Ok(())
    };
    timeout(RESUME, shake).await.map_err(io::Error::from)?
}

/// What of a message matters on the way.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(default)]
    id: Value,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
}

impl<'a> Message<'a> {
    fn read(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Numbers and texts are different ids.
    fn key(&self) -> String {
        self.id.to_string()
    }
}

/// What a host and a server have said to each other, as far as another server would need to know.
#[derive(Debug, Default)]
struct Talk {
    /// The handshake's first message and its id.
    initialize: Option<(Bytes, String)>,
    /// Its last.
    initialized: Option<Bytes>,
    /// Requests without an answer: id and method.
    waiting: BTreeMap<String, (Value, String)>,
}

impl Talk {
    fn asked(&mut self, line: &Bytes) {
        let Some(message) = Message::read(line) else {
            return;
        };
        let Some(method) = message.method.as_deref() else {
            return;
        };
        match method {
            "initialize" => self.initialize = Some((line.clone(), message.key())),
            "notifications/initialized" => self.initialized = Some(line.clone()),
            _ => {}
        }
        if !message.id.is_null() {
            self.waiting
                .insert(message.key(), (message.id.clone(), method.to_owned()));
        }
    }

    fn answered(&mut self, line: &[u8]) {
        if let Some(message) = Message::read(line)
            && message.method.is_none()
        {
            self.waiting.remove(&message.key());
        }
    }

    /// Answers what a server that is gone has left unanswered. A handshake is not among it: it is said again.
    fn give_up(&mut self) -> Vec<Value> {
        const CALL: &str = "failed: unavailable. The Greenroom server that was serving this call ended before it answered. The sandbox \
            is not lost: its variables and files are kept, and a run that had begun goes on in it (get_run without run_id lists runs). \
            Look before you call again.";
        let waiting = std::mem::take(&mut self.waiting);
        let (kept, lost): (BTreeMap<_, _>, BTreeMap<_, _>) = waiting
            .into_iter()
            .partition(|(_, (_, method))| method == "initialize");
        self.waiting = kept;
        lost.into_values()
            .map(|(id, method)| match method.as_str() {
                "tools/call" => {
                    let content = json!([{ "type": "text", "text": CALL }]);
                    json!({ "jsonrpc": "2.0", "id": id, "result": { "content": content, "isError": true } })
                }
                _ => {
                    let error = json!({ "code": -32603, "message": "the server ended before it answered: ask again" });
                    json!({ "jsonrpc": "2.0", "id": id, "error": error })
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(talk: &mut Talk, messages: &[Value]) {
        for message in messages {
            talk.asked(&Bytes::from(message.to_string()));
        }
    }

    #[tokio::test]
    async fn a_server_that_dies_under_a_greeting_is_not_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = super::super::socket_path(dir.path()).unwrap();
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        let attachment = Attachment {
            start: Start {
                state_dir: dir.path().to_owned(),
                program: PathBuf::new(),
                arguments: Vec::new(),
            },
            digest: String::new(),
            conversation: None,
            carrier: ConversationId::parse("carrier-of-a-test").unwrap(),
        };
        let servers = async {
            // The first takes the connection along.
            drop(listener.accept().await.unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            let _hello: Hello = lines::hear(&mut stream).await.unwrap();
            lines::say(&mut stream, &Greeting::Welcome).await.unwrap();
        };
        let (attached, ()) = tokio::join!(attachment.attach(Standing::Again), servers);
        attached.unwrap();
    }

    #[test]
    fn what_is_unanswered_is_answered_truthfully() {
        let mut talk = Talk::default();
        asked(
            &mut talk,
            &[
                json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize" }),
                json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
                json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }),
                json!({ "jsonrpc": "2.0", "id": "1", "method": "tools/call" }),
                json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call" }),
                json!({ "jsonrpc": "2.0", "id": 9, "result": {} }),
            ],
        );
        talk.asked(&Bytes::from_static(b"not json"));
        talk.answered(
            json!({ "jsonrpc": "2.0", "id": 0, "result": {} })
                .to_string()
                .as_bytes(),
        );
        talk.answered(
            json!({ "jsonrpc": "2.0", "id": 2, "result": {} })
                .to_string()
                .as_bytes(),
        );
        talk.answered(
            json!({ "method": "notifications/progress", "params": {} })
                .to_string()
                .as_bytes(),
        );
        let answers = talk.give_up();
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert_eq!(
            (&answers[0]["id"], &answers[0]["result"]["isError"]),
            (&json!("1"), &json!(true))
        );
        assert_eq!(
            (&answers[1]["id"], &answers[1]["error"]["code"]),
            (&json!(1), &json!(-32603))
        );
        assert!(talk.give_up().is_empty(), "once");
        assert!(
            talk.initialize.is_some() && talk.initialized.is_some(),
            "to be said again"
        );
    }

    #[test]
    fn a_handshake_that_was_not_answered_is_asked_again_not_given_up() {
        let mut talk = Talk::default();
        asked(
            &mut talk,
            &[json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize" })],
        );
        assert!(talk.give_up().is_empty());
        assert!(talk.waiting.contains_key("0"));
    }
}
