//! Real clients, each telling the same story or, over REST, one of its own: the scripts under `integration/clients/`,
//! against one server.

use std::{env, fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use greenroom_integration::{Config, Greenroom, binary, node, packages};
use tokio::{
    process::Command,
    time::{Instant, timeout},
};

/// Scripts, each with the folder of packages that it needs.
const SCRIPTS: [(&str, &str); 10] = [
    ("python", "python/mcp_sdk.py"),
    ("python", "python/fastmcp_client.py"),
    ("python", "python/openai_agents.py"),
    ("python", "python/pydantic_ai_client.py"),
    ("python-langchain", "python-langchain/langchain_client.py"),
    ("python-sessions", "python-sessions/azure_sessions.py"),
    ("node", "node/sdk_v1.mjs"),
    ("node", "node/sdk_v2.mjs"),
    ("node", "node/langchain.mjs"),
    ("node", "node/inspector.mjs"),
];

/// A story takes some 15 s, and some scripts tell several, on a busy machine.
const IN_TIME: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn every_client_tells_the_story() -> Result<()> {
    let packages = packages();
    ensure!(
        packages.join("python-sessions/stamp").is_file(),
        "the clients are not installed: type `scripts/test-clients`"
    );
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        max: 32,
        // As shipped, so that the first plot does not wait for its imports; but patient, since stories begin at once.
        pool: "idle = \"3m\"\nclaim_wait = \"50s\"\nboot_timeout = \"60s\"\n".into(),
        ..Config::default()
    })
    .await?;
    let modules = node_modules(&packages)?;
    let told: Vec<Result<()>> = stream::iter(SCRIPTS)
        .map(|(needs, script)| tell(needs, script, &packages, modules.path(), &greenroom))
        .buffer_unordered(2)
        .collect()
        .await;
    let failed: Vec<String> = told
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(
        failed.is_empty(),
        "{}\nthe server's log:\n{}",
        failed.join("\n"),
        greenroom.log()
    );
    greenroom.finish().await
}

async fn tell(
    needs: &str,
    script: &str,
    packages: &Path,
    modules: &Path,
    greenroom: &Greenroom,
) -> Result<()> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let mut command = if needs == "node" {
        let name = own.file_name().context("a script has a name")?;
        let mut node = node(packages);
        node.arg(modules.join(name));
        node
    } else {
        let mut python = Command::new(packages.join(needs).join("bin/python3"));
        // Leaves no bytecode in the tree.
        python.arg("-B").arg(&own);
        python
    };
    command
        .arg(greenroom.url("/mcp"))
        .arg(binary()?)
        .arg(greenroom.config_path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let began = Instant::now();
    let output = timeout(IN_TIME, command.output())
        .await
        .with_context(|| format!("{script} is not through after {IN_TIME:?}"))??;
    ensure!(
        output.status.success(),
        "{script} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    eprintln!("{script}: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// Node looks for packages beside the script: so the scripts are copied to where packages can lie beside them.
fn node_modules(packages: &Path) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/node"))? {
        let path = entry?.path();
        if let Some(name) = path
            .file_name()
            .filter(|_| path.extension().is_some_and(|e| e == "mjs"))
        {
            fs::copy(&path, folder.path().join(name))?;
        }
    }
    std::os::unix::fs::symlink(
        packages.join("node/node_modules"),
        folder.path().join("node_modules"),
    )?;
    Ok(folder)
}
