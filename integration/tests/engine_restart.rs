//! The engine goes away and comes back: sandboxes, runs and the warm pool are not its.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use greenroom_integration::{Config, Era, Greenroom, LiveRestore, PrivateEngine};
use tokio::time::{sleep, timeout};

fn config(engine: &PrivateEngine) -> Config {
    Config {
        warm: 2,
        ..engine.config()
    }
}

/// SIGKILL of the engine while a run goes on, and then an upgrade's SIGTERM.
#[tokio::test]
async fn an_engine_that_is_killed_costs_neither_a_run_nor_the_warm_pool() -> Result<()> {
    let mut engine = PrivateEngine::start(LiveRestore::On).await?;
    let greenroom = Greenroom::start(&config(&engine)).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "outlives-its-engine";
    client.python(conversation, "x = 41").await?;
    greenroom.wait_warm(2).await?;
    let before = ids(&engine, &greenroom).await?;
    assert_eq!(before.len(), 3, "one bound, two warm");

    let slow = "import time\nopen('begun', 'w').close()\nfor i in range(8): print(i, flush=True); time.sleep(1)\nx + 1";
    let killed = async {
        let begun = async {
            while !client.bash(conversation, "ls").await?.text.contains("begun") {}
            Ok::<_, anyhow::Error>(())
        };
        timeout(Duration::from_secs(60), begun)
            .await
            .context("the run does not begin")??;
        sleep(Duration::from_secs(1)).await;
        engine.kill_and_restart().await
    };
    let (run, killed) = tokio::join!(client.python(conversation, slow), killed);
    killed?;
    let run = run?;
    assert_eq!(
        (run.status(), run.result(), run.session()),
        ("ok", "42", "existing"),
        "{}",
        run.text
    );
    assert!(
        run.text.contains("0\n1\n2\n3\n4\n5\n6\n7\n"),
        "nothing is missing: {}",
        run.text
    );

    // A warm one that is not reached for half a minute ends itself: the second absence begins once the first is over.
    greenroom.wait_warm(2).await?;
    engine.restart().await?;
    let after = client.python(conversation, "x").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("41", "existing"),
        "{}",
        after.text
    );
    assert_eq!(
        ids(&engine, &greenroom).await?,
        before,
        "the same sandboxes, and no others"
    );
    // The warm ones are not only there, they serve.
    let new = client.python("comes-after-the-restart", "'here'").await?;
    assert_eq!((new.result(), new.session()), ("'here'", "new"), "{}", new.text);
    client.close().await?;
    greenroom.finish().await?;
    engine.finish().await
}

/// Without live-restore an engine takes its containers along. That is a loss, and said to be one.
#[tokio::test]
async fn an_engine_without_live_restore_takes_state_along_and_that_is_said() -> Result<()> {
    let mut engine = PrivateEngine::start(LiveRestore::Off).await?;
    let greenroom = Greenroom::start(&config(&engine)).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "ends-with-its-engine";
    client.python(conversation, "x = 41").await?;
    engine.restart().await?;
    let after = client.python(conversation, "'x' in dir()").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("False", "restarted"),
        "{}",
        after.text
    );
    let later = client.python(conversation, "1").await?;
    assert_eq!(later.session(), "existing", "{}", later.text);
    client.close().await?;
    greenroom.finish().await?;
    engine.finish().await
}

async fn ids(engine: &PrivateEngine, greenroom: &Greenroom) -> Result<BTreeSet<String>> {
    engine.docker().await?.ids(greenroom.deployment()).await
}
