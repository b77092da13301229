//! `greenroom ARGUMENTS…` as people type it beside a running server, with that server's configuration.

use std::{process::Output, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{process::Command, time::timeout};

use crate::server::{Greenroom, binary};

/// A command that takes longer hangs.
const IN_TIME: Duration = Duration::from_secs(120);

impl Greenroom {
    /// Types it.
    ///
    /// # Errors
    /// It cannot be started, or hangs.
    pub async fn types(&self, arguments: &[&str]) -> Result<Output> {
        let output = Command::new(binary()?)
            .arg("--config")
            .arg(self.config_path())
            .args(arguments)
            .kill_on_drop(true)
            .output();
        let output = timeout(IN_TIME, output)
            .await
            .with_context(|| format!("{arguments:?} hangs"))?;
        Ok(output?)
    }

    /// What it prints, without the end of its last line.
    ///
    /// # Errors
    /// It does not succeed: with what it said.
    pub async fn prints(&self, arguments: &[&str]) -> Result<String> {
        let output = self.types(arguments).await?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}
