//! `greenroom doctor` on a host that is well, and on configurations that are not.

use anyhow::{Context as _, Result};
use greenroom::{
    config::{Inputs, Loaded},
    doctor,
};
use greenroom_integration::{Docker, agent};

/// The doctor's report under a configuration, and what is left of it on the engine.
async fn report(toml: &str) -> Result<(doctor::Report, usize)> {
    let docker = Docker::connect().await?;
    let state = tempfile::tempdir()?;
    let name = state
        .path()
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let deployment: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_lowercase();
    let text = format!(
        "state_dir = {:?}\nagent = {:?}\n[engine]\ndeployment = \"it-{deployment}\"\n{toml}",
        state.path().display().to_string(),
        agent()?.display().to_string(),
    );
    let inputs = Inputs {
        text,
        root: true,
        cpus: 2,
        ..Inputs::default()
    };
    let loaded = Loaded::read(&inputs).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let report = doctor::run(&loaded.config).await;
    let left = docker.containers(&deployment).await?.len();
    Ok((report, left))
}

#[tokio::test]
async fn a_host_that_is_set_up_is_well() -> Result<()> {
    let (report, left) = report("[pool.python]\npreload = []\n")
        .await
        .context("type `make setup agent`")?;
    let text = report.to_string();
    assert!(report.is_well(), "type `make setup agent`:\n{text}");
    for line in [
        "ok    isolation",
        "ok    limits",
        "ok    latency",
        "gVisor: Linux version",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    assert_eq!(left, 0, "the trial left its sandbox");
    println!("{text}");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_named_with_what_to_type() -> Result<()> {
    for (toml, problem, repair) in [
        (
            "socket = \"unix:///nowhere/docker.sock\"\n[pool.python]\n",
            "FAIL  engine",
            "→ make setup",
        ),
        (
            "[pool.python]\nimage = \"greenroom/no-such-image\"\n",
            "no-such-image\" is not there",
            "→ make image",
        ),
        (
            "[pool.python]\nimage = \"nobody.example/app:1\"\n",
            "app:1\" is not there",
            "→ docker pull nobody.example/app:1",
        ),
        (
            "[pool.python]\nlanguages = [\"python\"]\npreload = [\"no_such_module\"]\n",
            "FAIL  sandbox",
            "→ look at the image",
        ),
    ] {
        let (report, left) = report(toml).await?;
        let text = report.to_string();
        assert!(!report.is_well(), "{toml}:\n{text}");
        assert!(text.contains(problem) && text.contains(repair), "{toml}:\n{text}");
        assert_eq!(left, 0, "{toml}");
    }
    Ok(())
}
