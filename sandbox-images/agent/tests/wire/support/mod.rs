//! What the agent's tests share: an agent over an in-memory channel, a client of it, a scripted kernel.

mod client;
mod kernel;

use greenroom_agent::{
    Agent, Parts,
    child::Quarters,
    files::{FileUser, Files},
};
use greenroom_protocol::{AgentConfig, Language, LeaseRequest, Platform};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::{
    client::{Answer, Client, request, run},
    kernel::{Scripted, Start},
};

/// An agent and what keeps its connections served.
pub(crate) struct Bench {
    pub(crate) agent: Agent,
    pub(crate) work_dir: tempfile::TempDir,
    served: std::sync::Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Bench {
    /// An agent with these kernels; all of them are to be ready.
    pub(crate) fn new(kernels: Vec<Scripted>) -> Self {
        let ready = kernels.iter().map(Scripted::named).collect();
        Self::with(
            &AgentConfig {
                ready,
                ..AgentConfig::default()
            },
            kernels,
        )
    }

    pub(crate) fn with(config: &AgentConfig, kernels: Vec<Scripted>) -> Self {
        let work_dir = tempfile::tempdir().unwrap();
        let parts = Parts {
            kernels: kernels.into_iter().map(|kernel| Box::new(kernel) as _).collect(),
            files: Files::start(work_dir.path().to_str().unwrap(), FileUser::Own).unwrap(),
            quarters: Quarters::new(config, std::path::PathBuf::new()),
            platform: Platform {
                gvisor: false,
                kernel: "a test".into(),
                cpus: 1,
                memory_bytes: 1,
                disk_bytes: 1,
            },
        };
        Self {
            agent: Agent::start(config, parts),
            work_dir,
            served: std::sync::Mutex::default(),
        }
    }

    /// A new connection, and a client on it.
    pub(crate) async fn connect(&self) -> Client {
        let (near, far) = tokio::io::duplex(1 << 20);
        let agent = self.agent.clone();
        let served = AbortOnDropHandle::new(tokio::spawn(async move { agent.serve(far).await }));
        self.served.lock().unwrap().push(served);
        Client::connect(near).await
    }

    /// A client whose session holds the lease, with the news told.
    pub(crate) async fn leased(&self) -> Client {
        let client = self.connect().await;
        client.post("/lease", &lease('a')).await.expect(200);
        client.post("/lease/told", &()).await.expect(204);
        client
    }
}

/// A python kernel and an agent around it.
pub(crate) fn python() -> Bench {
    Bench::new(vec![Scripted::new(Language::Python)])
}

/// A lease of two hours' idle time and a day's life, under a key of this digit.
pub(crate) fn lease(digit: char) -> LeaseRequest {
    LeaseRequest {
        key: greenroom_protocol::KeyDigest(digit.to_string().repeat(64)),
        idle_ms: 2 * 3600 * 1000,
        lifetime_ms: 24 * 3600 * 1000,
        restarted: None,
        files: greenroom_protocol::FilesFate::Gone,
    }
}
