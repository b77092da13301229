//! What a deployment can leave on the host that the engine no longer lists: cgroups and shims.

use std::{collections::BTreeSet, fs, io, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{sleep, timeout};

/// How long the kernel and containerd may take to clear up behind containers that were removed.
const CLEARED: Duration = Duration::from_secs(30);

/// Waits until no cgroup of the deployment has a container in it and no shim of these containers runs, and
/// removes the empty cgroup that held them.
///
/// # Errors
/// Something is left after half a minute: says what.
pub(crate) async fn none_left(deployment: &str, containers: &BTreeSet<String>) -> Result<()> {
    let cleared = async {
        while !left(deployment, containers)?.is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    match timeout(CLEARED, cleared).await {
        Ok(outcome) => outcome?,
        Err(_) => bail!(
            "left on the host after the engine forgot it: {:?}",
            left(deployment, containers)?
        ),
    }
    // The server that made it was gone before the conversations' own sandboxes were.
    for parent in parents(deployment)? {
        fs::remove_dir(parent)?;
    }
    Ok(())
}

/// Containers that still have a cgroup of the deployment, by the engine's ids.
///
/// # Errors
/// The cgroups cannot be read.
pub(crate) fn in_cgroups(deployment: &str) -> Result<BTreeSet<String>> {
    let mut containers = BTreeSet::new();
    for parent in parents(deployment)? {
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                containers.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    Ok(containers)
}

fn left(deployment: &str, containers: &BTreeSet<String>) -> Result<Vec<String>> {
    let cgroups = in_cgroups(deployment)?;
    let mut left: Vec<_> = cgroups.iter().map(|id| format!("the cgroup of {id}")).collect();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // It may end while it is looked at.
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if containers.iter().any(|id| line.contains(id.as_str())) {
            left.push(format!("{}: {line}", process.display()));
        }
    }
    Ok(left)
}

/// The deployment's cgroup in each hierarchy, wherever the engine stands in it: named `greenroom_<deployment>_<hash>`,
/// where only letters and digits are kept, so this looks for what the engine is asked for and not for how it is made.
fn parents(deployment: &str) -> Result<Vec<PathBuf>> {
    let shown: String = deployment
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let prefix = format!("greenroom_{shown}_");
    let mut parents = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = open.pop() {
        let entries = match fs::read_dir(&directory) {
            // It was somebody else's, and is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // A hierarchy may be there under two names; the second is a symbolic link.
            if !entry.file_type()?.is_dir() {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                parents.push(entry.path());
            } else {
                open.push(entry.path());
            }
        }
    }
    Ok(parents)
}
