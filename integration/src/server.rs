//! A Greenroom server as a process of its own, with a state directory and a deployment of its own.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{Client, Docker, Era, remains};

/// How long a server may take to become ready: it may have to prepare the image and boot on a busy machine.
const READY: Duration = Duration::from_secs(120);

/// How long a warm sandbox whose server was killed may take to end itself: 30 s, and a busy machine.
const ENDS_ITSELF: Duration = Duration::from_secs(90);

/// Lines of a pool whose sandboxes are wanted many at once, as a busy machine boots them: one after the other.
pub const MANY_BOOTS: &str = "preload = []\nclaim_wait = \"50s\"\nboot_timeout = \"60s\"\n";

/// How long a sweep may take: it looks every 30 s, and acts on what has been without an owner for 30 s.
const SWEPT: Duration = Duration::from_secs(180);

/// What a test configures; the rest is the product's defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sandboxes kept warm.
    pub warm: u32,
    /// Sandboxes at most.
    pub max: u32,
    /// Further lines of `[pool.python]`.
    pub pool: String,
    /// Further top-level lines and tables, before any table of the harness.
    pub top: String,
    /// By what it is served.
    pub scheme: Scheme,
    /// Another engine than the host's.
    pub socket: Option<PathBuf>,
    /// What its environment says besides.
    pub env: Vec<(String, String)>,
}

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// With a certificate of an authority of its own.
    Https,
}

impl Config {
    async fn docker(&self) -> Result<Docker> {
        match &self.socket {
            Some(socket) => Docker::at(socket).await,
            None => Docker::connect().await,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            warm: 1,
            max: 8,
            pool: "preload = []\n".into(),
            top: String::new(),
            scheme: Scheme::Http,
            socket: None,
            env: Vec::new(),
        }
    }
}

/// A running server. Stopped and swept by [`Greenroom::finish`]; dropped without it, it is killed and swept.
#[derive(Debug)]
pub struct Greenroom {
    child: Child,
    home: TempDir,
    port: u16,
    deployment: String,
    config: Config,
    swept: bool,
    killed: bool,
}

impl Greenroom {
    /// Starts the built server with a fresh deployment and waits until it is ready.
    ///
    /// # Errors
    /// The binary is not built, Docker is not there (the message says what to type), or it does not get ready.
    pub async fn start(config: &Config) -> Result<Self> {
        let mut server = Self::start_unready(config).await?;
        server.ready().await?;
        Ok(server)
    }

    /// The same, as soon as it serves at all: for hosts on which it gets no sandbox.
    ///
    /// # Errors
    /// As [`Greenroom::start`].
    pub async fn start_unready(config: &Config) -> Result<Self> {
        config.docker().await?;
        let home = tempfile::Builder::new().prefix("greenroom-it-").tempdir()?;
        let name = home
            .path()
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or("it")
            .to_lowercase();
        let deployment = name.replace('.', "-");
        let port = free_port()?;
        std::fs::write(
            home.path().join("greenroom.toml"),
            toml(config, home.path(), port, &deployment),
        )?;
        certify(config.scheme, home.path())?;
        let child = spawn(home.path(), &["serve"], &config.env)?;
        let mut server = Self {
            child,
            home,
            port,
            deployment,
            config: config.clone(),
            swept: false,
            killed: false,
        };
        server.answers("/healthz").await?;
        Ok(server)
    }

    /// A second server of the same deployment: same state directory, another port.
    ///
    /// # Errors
    /// As [`Greenroom::start`].
    pub async fn twin(&self, config: &Config) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("greenroom-it-twin-").tempdir()?;
        let port = free_port()?;
        std::fs::write(
            home.path().join("greenroom.toml"),
            toml(config, self.home.path(), port, &self.deployment),
        )?;
        let child = spawn(home.path(), &["serve"], &config.env)?;
        let mut server = Self {
            child,
            home,
            port,
            deployment: self.deployment.clone(),
            config: config.clone(),
            // Its sandboxes are swept with those of the first server.
            swept: true,
            killed: false,
        };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&mut self) -> Result<()> {
        self.answers("/readyz").await
    }

    async fn answers(&mut self, path: &str) -> Result<()> {
        let waited = timeout(READY, async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    bail!("the server ended with {status}; its log:\n{}", self.log());
                }
                if self.probe(path).await == Some(200) {
                    return Ok(());
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        match waited.await {
            Ok(result) => result,
            Err(_) => bail!("not ready after {READY:?}; its log:\n{}", self.log()),
        }
    }

    async fn probe(&self, path: &str) -> Option<u16> {
        // Whose certificate it is does not matter here.
        let http = reqwest::Client::builder()
            .tls_danger_accept_invalid_certs(true)
            .build()
            .ok()?;
        Some(http.get(self.url(path)).send().await.ok()?.status().as_u16())
    }

    /// The server's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// An address on the server.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let scheme = match self.config.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        format!("{scheme}://127.0.0.1:{}{path}", self.port)
    }

    /// The authority that vouches for a server that speaks https, as PEM.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.home.path().join("ca.pem")
    }

    /// The name under which its sandboxes are labelled.
    #[must_use]
    pub fn deployment(&self) -> &str {
        &self.deployment
    }

    /// The configuration file, for other commands of the binary.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.home.path().join("greenroom.toml")
    }

    /// The server's process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// An MCP client over streamable HTTP.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn client(&self, era: Era) -> Result<Client> {
        Client::http(&self.url("/mcp"), era).await
    }

    /// SIGKILL, then the same server again: same port, same state directory.
    ///
    /// # Errors
    /// It does not come up again.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.kill().await?;
        self.restart().await
    }

    /// The same server again after it has ended: same port, same state directory.
    ///
    /// # Errors
    /// It does not come up again.
    pub async fn restart(&mut self) -> Result<()> {
        self.child = spawn(self.home.path(), &["serve"], &self.config.env)?;
        self.ready().await
    }

    /// SIGKILL and no more.
    ///
    /// # Errors
    /// It was gone already.
    pub async fn kill(&mut self) -> Result<()> {
        self.killed = true;
        Ok(self.child.kill().await?)
    }

    /// A twin of this server's deployment has stopped: if it was killed before, what it had warm then ends later.
    pub fn waits_for_those_of(&mut self, twin: &Self) {
        self.killed |= twin.killed;
    }

    /// SIGTERM, and the status it ends with.
    ///
    /// # Errors
    /// It is still there after a minute.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal("TERM").await?;
        let status = timeout(Duration::from_secs(60), self.child.wait())
            .await
            .context("SIGTERM did not end it within 60 s")??;
        // By force: what it had warm ends itself.
        self.killed |= !status.success();
        Ok(status)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended already.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().context("the server has ended already")?;
        Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status()
            .await?;
        Ok(())
    }

    /// Waits until the log says something.
    ///
    /// # Errors
    /// It has not after a minute.
    pub async fn wait_log(&self, what: &str) -> Result<()> {
        let said = async {
            while !self.log().contains(what) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(60), said)
            .await
            .with_context(|| format!("never said {what:?}; the log:\n{}", self.log()))
    }

    /// The number behind a metric's full name with labels, 0 where it is not there.
    ///
    /// # Errors
    /// `/metrics` does not answer.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = reqwest::get(self.url("/metrics")).await?.text().await?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        Ok(value.unwrap_or(0.0))
    }

    /// Waits until a metric has at least this value.
    ///
    /// # Errors
    /// It has not after a minute.
    pub async fn wait_metric(&self, name: &str, at_least: f64) -> Result<()> {
        let waited = timeout(Duration::from_secs(60), async {
            while self.metric(name).await? < at_least {
                sleep(Duration::from_millis(50)).await;
            }
            Ok::<_, anyhow::Error>(())
        });
        waited
            .await
            .with_context(|| format!("{name} did not reach {at_least}; the log:\n{}", self.log()))?
    }

    /// Waits until this many sandboxes stand ready.
    ///
    /// # Errors
    /// As [`Greenroom::wait_metric`].
    pub async fn wait_warm(&self, count: u32) -> Result<()> {
        self.wait_metric(
            "greenroom_pool_sandboxes{pool=\"python\",state=\"warm\"}",
            count.into(),
        )
        .await
    }

    /// Waits until what an engine forgot as it was killed is swept: that is a running server's work, at its second
    /// look.
    ///
    /// # Errors
    /// Something is still there after some minutes.
    pub async fn wait_swept(&self) -> Result<()> {
        let docker = self.config.docker().await?;
        let forgotten = async || {
            let known = docker.known(&self.deployment).await?;
            let there = remains::in_cgroups(&self.deployment)?;
            let forgotten = &there - &known.running;
            Ok::<_, anyhow::Error>((known.begun && forgotten.is_empty(), forgotten))
        };
        let swept = async {
            while !forgotten().await?.0 {
                sleep(Duration::from_millis(500)).await;
            }
            Ok(())
        };
        match timeout(SWEPT, swept).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("not swept: {:?}; its log:\n{}", forgotten().await?.1, self.log()),
        }
    }

    /// Stops the server as an operator does. Its sandboxes stay unlooked at: a twin may own some of them.
    ///
    /// # Errors
    /// It did not exit 0.
    pub async fn stop(&mut self) -> Result<()> {
        if self.child.id().is_none() || self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let status = self.terminate().await?;
        if !status.success() {
            bail!("SIGTERM ended the server with {status}; its log:\n{}", self.log());
        }
        Ok(())
    }

    /// Stops the server as an operator does, removes the sandboxes that belong to conversations, and checks
    /// that nothing else of the deployment is left.
    ///
    /// # Errors
    /// It did not exit 0, or warm sandboxes, containers, cgroups or processes were left behind.
    pub async fn finish(mut self) -> Result<()> {
        let docker = self.config.docker().await?;
        let mut containers = docker.ids(&self.deployment).await?;
        self.stop().await?;
        // What a killed server had warm ends by itself, half a minute after it.
        let gone = async {
            while !docker.unadopted(&self.deployment).await?.is_empty() {
                sleep(Duration::from_millis(200)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        let patience = if self.killed {
            ENDS_ITSELF
        } else {
            Duration::from_secs(1)
        };
        let gone = timeout(patience, gone).await;
        let warm = docker.unadopted(&self.deployment).await?;
        containers.append(&mut docker.ids(&self.deployment).await?);
        docker.sweep(&self.deployment).await?;
        self.swept = true;
        if gone.is_err() {
            bail!(
                "left behind by a server that ended: {warm:?}; its log:\n{}",
                self.log()
            );
        }
        remains::none_left(&self.deployment, &containers).await
    }
}

/// A test that failed does not get to [`Greenroom::finish`], and leaves nothing behind all the same.
impl Drop for Greenroom {
    fn drop(&mut self) {
        if self.swept {
            return;
        }
        // Else it would go on to boot while its sandboxes are swept.
        drop(self.child.start_kill());
        let deployment = self.deployment.clone();
        let config = self.config.clone();
        // A thread with a runtime of its own: the test's is in the middle of unwinding.
        let sweep = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async { config.docker().await?.sweep(&deployment).await })
        });
        if !matches!(sweep.join(), Ok(Ok(()))) {
            eprintln!("sandboxes of {} are left behind", self.deployment);
        }
    }
}

fn spawn(home: &Path, arguments: &[&str], env: &[(String, String)]) -> Result<Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(home.join("log"))?;
    let binary = binary()?;
    Command::new(&binary)
        .args(arguments)
        .arg("--config")
        .arg(home.join("greenroom.toml"))
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} does not start", binary.display()))
}

/// The server's binary, which lies beside the tests' own.
///
/// # Errors
/// It is not built: says what to type.
pub fn binary() -> Result<PathBuf> {
    beside("greenroom")?.context("the server's binary is not built: type `make build`")
}

/// The static agent: named by `make test`, or laid beside the server's binary by `make agent`.
///
/// # Errors
/// It is not built: says what to type.
pub fn agent() -> Result<PathBuf> {
    match std::env::var_os("GREENROOM_AGENT") {
        Some(named) => Ok(named.into()),
        None => beside("greenroom-agent")?.context("the agent is not built: type `make agent`"),
    }
}

/// Tests lie in `deps`, a folder below the binaries; a bench lies among them.
fn beside(name: &str) -> Result<Option<PathBuf>> {
    let own = std::env::current_exe()?;
    let mut places = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    Ok(places.find(|path| path.is_file()))
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// An authority, and what it vouches for.
fn certify(scheme: Scheme, home: &Path) -> Result<()> {
    if scheme == Scheme::Http {
        return Ok(());
    }
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    // A name of its own: what bears its issuer's name counts as signed by itself.
    let name = &mut authority.distinguished_name;
    name.push(rcgen::DnType::CommonName, "the tests' authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
    ];
    let own = rcgen::KeyPair::generate()?;
    let root = authority.self_signed(&own)?;
    let key = rcgen::KeyPair::generate()?;
    let mut server = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    server.use_authority_key_identifier_extension = true;
    let certificate = server.signed_by(&key, &rcgen::Issuer::new(authority, own))?;
    std::fs::write(home.join("ca.pem"), root.pem())?;
    std::fs::write(home.join("cert.pem"), certificate.pem())?;
    std::fs::write(home.join("key.pem"), key.serialize_pem())?;
    Ok(())
}

fn toml(config: &Config, state: &Path, port: u16, deployment: &str) -> String {
    let Config {
        warm,
        max,
        pool,
        top,
        socket,
        env: _,
        scheme,
    } = config;
    let http = match scheme {
        Scheme::Http => String::new(),
        Scheme::Https => format!(
            "[http]\ntls_cert = {:?}\ntls_key = {:?}\n",
            state.join("cert.pem"),
            state.join("key.pem")
        ),
    };
    let socket = socket
        .as_ref()
        .map(|socket| format!("socket = {socket:?}\n"))
        .unwrap_or_default();
    format!(
        "listen = \"127.0.0.1:{port}\"\nstate_dir = {state:?}\n{top}\n{http}[engine]\ndeployment = \"{deployment}\"\n{socket}\n\
         [pool.python]\nwarm = {warm}\nwarm_max = {warm}\nmax = {max}\n{pool}",
        state = state.join("state").display().to_string(),
    )
}
