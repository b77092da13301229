//! A pair of pipes as a transport: one process, which its client may start once or for every call. The pipes are its
//! own, or lead to a process that is attached to this one.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rmcp::{
    service::{ServerInitializeError, serve_server_with_ct},
    transport::stdio_pipes,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    caller::Carrier,
    service::{Door, Service},
    tools::Tools,
};
use crate::conversation::ConversationId;

/// How long letting go of a conversation that nobody comes back to may take, when the process is about to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A process that is attached to this one, as it said who it is.
#[derive(Debug)]
pub struct Attached {
    carrier: Carrier,
    fixed: Option<ConversationId>,
}

impl Attached {
    /// One that was not attached before. The id is what it minted for itself.
    #[must_use]
    pub const fn first(carrier: ConversationId, fixed: Option<ConversationId>) -> Self {
        Self {
            carrier: Carrier::new(carrier),
            fixed,
        }
    }

    /// One that lost its server: its conversation may have been reached before.
    #[must_use]
    pub const fn again(carrier: ConversationId, fixed: Option<ConversationId>) -> Self {
        Self {
            carrier: Carrier::from_earlier(carrier),
            fixed,
        }
    }
}

/// Serves this process's own standard input and output.
///
/// # Errors
/// What cannot be spoken with at all.
pub(super) async fn own(
    tools: Arc<Tools>,
    fixed: Option<ConversationId>,
    closing: CancellationToken,
    stop: CancellationToken,
) -> io::Result<()> {
    let minted = tools.resolver().mint().map_err(io::Error::other)?;
    let attached = Attached::first(minted, fixed);
    let (input, output) = stdio_pipes();
    serve(tools, attached, (input, output), closing, stop).await
}

/// Serves until the input ends or `stop` says so.
///
/// # Errors
/// What cannot be spoken with at all.
pub(super) async fn serve<R, W>(
    tools: Arc<Tools>,
    attached: Attached,
    (input, output): (R, W),
    closing: CancellationToken,
    stop: CancellationToken,
) -> io::Result<()>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let Attached { carrier, fixed } = attached;
    let carrier = Arc::new(carrier);
    let door = Door::Carried {
        carrier: Arc::clone(&carrier),
        fixed,
    };
    let service = Service::new(Arc::clone(&tools), door, closing.clone());
    let input = UntilEnd { input, closing };
    match serve_server_with_ct(service, (input, output), stop).await {
        Ok(running) => {
            let quit = running.waiting().await.map_err(io::Error::other)?;
            tracing::debug!(?quit, "the input is over");
        }
        // A client that only looked whether we start.
        Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => {}
        Err(error) => return Err(io::Error::other(error)),
    }
    if timeout(FAREWELL, tools.carrier_ended(&carrier)).await.is_err() {
        tracing::debug!("a conversation of one call keeps its full idle time");
    }
    Ok(())
}

/// An input that says when it is over, before rmcp hears of it: calls that rmcp gives up after that are not
/// cancelled by their caller, so their runs go on.
struct UntilEnd<R> {
    input: R,
    closing: CancellationToken,
}

impl<R: AsyncRead + Unpin> AsyncRead for UntilEnd<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.input).poll_read(context, buffer));
        if read.is_err() || buffer.filled().len() == before {
            self.closing.cancel();
        }
        Poll::Ready(read)
    }
}
