//! The task that owns the hands: passes requests to the files process one by one, and replaces a process
//! that the guest killed, stopped or made useless.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use greenroom_protocol::{Refusal, RefusalKind};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    child::Process,
    hands::Hands,
    wire::{Answer, Reply, Request},
};
use crate::child::Quarters;

/// Requests that wait for the one under way.
pub(super) const QUEUE: usize = 64;
/// What takes a fraction of a second at most, with room for a sandbox that has no processor left.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A request, the descriptors that go with it, and where its answer goes.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) request: Request,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What the agent can see of the journal without asking for it.
#[derive(Debug)]
pub(super) struct Signal {
    descriptor: OwnedFd,
    seq: AtomicU64,
}

impl Signal {
    /// True if something may have changed since the journal was last brought up to date.
    pub(super) fn is_raised(&self) -> bool {
        // An error is a reason to ask, which answers it.
        rustix::io::ioctl_fionread(&self.descriptor) != Ok(0)
    }

    /// The newest change that the journal has told of.
    pub(super) fn seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }
}

/// Where the hands are.
#[derive(Debug)]
pub(super) enum Workplace {
    /// On our own threads, as our own user.
    Here(Arc<Mutex<Hands>>),
    /// In a process of the guest's.
    Process {
        quarters: Quarters,
        work_dir: String,
        live: Option<Box<Process>>,
    },
}

#[derive(Debug)]
pub(super) struct Owner {
    pub(super) workplace: Workplace,
    pub(super) orders: mpsc::Receiver<Order>,
    /// Of the hands that work now.
    pub(super) signal: watch::Sender<Option<Arc<Signal>>>,
    /// The newest change that any journal has told of.
    pub(super) seq: u64,
}

impl Owner {
    /// Works until the last handle is gone.
    pub(super) async fn run(mut self) {
        // A process is there before the first request, so that the first request is no slower. Where it
        // cannot be started, that request says so.
        drop(self.watch().await);
        while let Some(order) = self.orders.recv().await {
            let answer = self.perform(&order.request, &order.descriptors).await;
            // Whoever does not wait for it any more has no use for it.
            drop(order.answer.send(answer));
        }
    }

    async fn perform(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Answer {
        let mut attempts = request.attempts();
        loop {
            attempts -= 1;
            let answer = match self.ready().await {
                Ok(()) => self.exchange(request, descriptors).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => return answer.inspect(|(reply, _)| self.follow(reply)),
                Err(error) if attempts == 0 => {
                    return Err(failed(&error));
                }
                Err(error) => tracing::debug!(%error, "the files process is replaced"),
            }
        }
    }

    /// Sees to it that somebody is there to work.
    async fn ready(&mut self) -> io::Result<()> {
        match &self.workplace {
            Workplace::Here(_) => Ok(()),
            Workplace::Process { live: Some(live), .. } if !live.is_gone() => Ok(()),
            Workplace::Process { .. } => self.watch().await,
        }
    }

    /// Starts the hands if need be, and takes over the journal's signal.
    async fn watch(&mut self) -> io::Result<()> {
        if let Workplace::Process {
            quarters,
            work_dir,
            live,
        } = &mut self.workplace
        {
            *live = Some(Box::new(Process::start(quarters, work_dir)?));
        }
        // Beyond any mark of an earlier journal, which may have gone further than it told.
        self.seq += 1 << 32;
        let watch = Request::Watch { seq: self.seq };
        let (_, mut descriptors) = self
            .exchange(&watch, &[])
            .await?
            .map_err(|refusal| io::Error::other(refusal.message))?;
        self.signal.send_replace(descriptors.pop().map(|descriptor| {
            Arc::new(Signal {
                descriptor,
                seq: AtomicU64::new(self.seq),
            })
        }));
        Ok(())
    }

    /// One exchange within its time. A process that fails is killed.
    async fn exchange(&mut self, request: &Request, descriptors: &[OwnedFd]) -> io::Result<Answer> {
        match &mut self.workplace {
            Workplace::Here(hands) => {
                let hands = Arc::clone(hands);
                let request = request.clone();
                let descriptors = descriptors
                    .iter()
                    .map(OwnedFd::try_clone)
                    .collect::<io::Result<Vec<_>>>()?;
                spawn_blocking(move || {
                    let mut hands = hands.lock().unwrap_or_else(PoisonError::into_inner);
                    hands.perform(request, &descriptors)
                })
                .await
                .map_err(io::Error::other)
            }
            Workplace::Process { live, .. } => {
                let Some(process) = live.take() else {
                    return Err(io::ErrorKind::NotConnected.into());
                };
                // Taken out, so that a process is dropped, and thereby killed, unless all went well.
                let answer = timeout(ANSWER_TIME, process.exchange(request, descriptors))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                if let Err(refusal) = &answer
                    && refusal.kind == RefusalKind::Internal
                {
                    // The guest can take its descriptors away, for one: a new process has them again.
                    return Err(io::Error::other(refusal.message.clone()));
                }
                *live = Some(process);
                Ok(answer)
            }
        }
    }

    fn follow(&mut self, reply: &Reply) {
        if let Reply::Changed { seq, .. } = reply {
            self.seq = self.seq.max(*seq);
            if let Some(signal) = &*self.signal.borrow() {
                signal.seq.store(*seq, Ordering::Release);
            }
        }
    }
}

/// Both attempts failed, or the only one that may be made.
fn failed(error: &io::Error) -> Refusal {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof};
    let kind = error.kind();
    let what = if matches!(kind, UnexpectedEof | BrokenPipe | ConnectionReset) {
        "was killed from inside the sandbox".to_owned()
    } else if kind == TimedOut {
        "did not answer in time".to_owned()
    } else {
        format!("failed: {error}")
    };
    Refusal {
        kind: RefusalKind::Internal,
        message: format!("the process that works on the sandbox's files {what}"),
    }
}

impl Request {
    /// How often it may be tried where the process broke: an unanswered deletion may have been done, and
    /// doing it again would then answer that nothing was there.
    fn attempts(&self) -> u32 {
        match self {
            Self::Delete { .. } => 1,
            Self::List { .. }
            | Self::Read { .. }
            | Self::Create { .. }
            | Self::Append { .. }
            | Self::Commit { .. }
            | Self::Discard { .. }
            | Self::Watch { .. }
            | Self::Mark
            | Self::Changes { .. } => 2,
        }
    }
}
