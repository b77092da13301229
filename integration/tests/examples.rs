//! The published examples of each REST dialect, asked with curl: what is answered, byte for byte but for ids and times.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use greenroom_integration::{Config, Greenroom};

/// After a wanted change: `BLESS=1 cargo test -p greenroom-integration --test examples`.
#[tokio::test]
async fn curl_is_answered_as_published() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("curl");
    let endpoint = greenroom.url("/pools/python");
    let script = folder.join("examples");
    let output = tokio::task::spawn_blocking(move || Command::new(script).arg(endpoint).output())
        .await?
        .context("the script does not start")?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let seen = String::from_utf8(output.stdout)?;
    let path = folder.join("examples.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &seen)?;
    }
    let expected = std::fs::read_to_string(&path)?;
    // Example by example: one that differs is shown, and not the whole.
    let (mut seen, mut expected) = (seen.split("\n## "), expected.split("\n## "));
    loop {
        match (seen.next(), expected.next()) {
            (None, None) => break,
            (seen, expected) => ensure!(
                seen == expected,
                "answered:\n{}\n\nexpected:\n{}",
                seen.unwrap_or("nothing"),
                expected.unwrap_or("nothing")
            ),
        }
    }
    greenroom.finish().await
}
