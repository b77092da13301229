//! An engine that answers slowly, not at all, or with half an answer; and hands that reach past Greenroom.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bollard::query_parameters::RenameContainerOptionsBuilder;
use greenroom_integration::{
    Answer, Client, Config, Docker, Era, Flow, Greenroom, LiveRestore, PrivateEngine, Wire,
};
use tokio::time::{Instant, sleep};

/// No call takes longer than 55 s, on a quiet machine.
const ANSWERED: Duration = Duration::from_secs(70);
/// What nobody is bound to ends itself after 30 s; the sweep looks every 30 s.
const SWEPT: Duration = Duration::from_secs(180);

fn over(wire: &Wire) -> Config {
    Config {
        socket: Some(wire.socket()),
        ..Config::default()
    }
}

async fn not_ready(greenroom: &Greenroom, why: &str) -> Result<()> {
    let answer = reqwest::get(greenroom.url("/readyz")).await?;
    ensure!(answer.status() == 503, "{}", answer.status());
    let said = answer.text().await?;
    ensure!(said.contains(why), "{said}");
    Ok(())
}

async fn in_time(client: &Client, conversation: &str, code: &str) -> Result<Answer> {
    let began = Instant::now();
    let answer = client.python(conversation, code).await?;
    ensure!(
        began.elapsed() < ANSWERED,
        "{:?}: {}",
        began.elapsed(),
        answer.text
    );
    Ok(answer)
}

#[tokio::test]
async fn streams_that_are_cut_in_mid_frame_lose_no_line() -> Result<()> {
    let wire = Wire::to_the_engine()?;
    let greenroom = Greenroom::start(&over(&wire)).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "is-cut-three-times";
    client.python(conversation, "x = 41").await?;
    let slow = "import time\nfor i in range(80): print(i, 'x' * 200, flush=True); time.sleep(.1)\nx + 1";
    let cuts = async {
        for _ in 0..3 {
            sleep(Duration::from_secs(2)).await;
            assert!(wire.cut() > 0, "nothing was connected");
        }
    };
    let (run, ()) = tokio::join!(client.python(conversation, slow), cuts);
    let run = run?;
    assert_eq!(
        (run.status(), run.result(), run.session()),
        ("ok", "42", "existing"),
        "{}",
        run.text
    );
    let lines: String = (0..80).map(|i| format!("{i} {}\n", "x".repeat(200))).collect();
    assert!(run.text.contains(&lines), "{}", run.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn an_engine_that_is_slow_or_silent_is_said_and_costs_no_state() -> Result<()> {
    let wire = Wire::to_the_engine()?;
    let greenroom = Greenroom::start(&over(&wire)).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "meets-a-silent-engine";
    client.python(conversation, "x = 41").await?;

    wire.set(Flow::Slow(Duration::from_millis(100)));
    let slow = in_time(&client, conversation, "x").await?;
    assert_eq!(
        (slow.result(), slow.session()),
        ("41", "existing"),
        "{}",
        slow.text
    );
    let new = in_time(&client, "is-new-meanwhile", "1").await?;
    assert_eq!((new.result(), new.session()), ("1", "new"), "{}", new.text);

    wire.set(Flow::Frozen);
    let (known, new) = tokio::join!(
        in_time(&client, conversation, "x += 1"),
        in_time(&client, "finds-no-engine", "1"),
    );
    let known = known?;
    assert_eq!(known.status(), "queued", "{}", known.text);
    assert!(
        known.text.contains("the run may not have begun"),
        "{}",
        known.text
    );
    let new = new?;
    assert!(
        new.is_error && new.text.contains("engine does not answer"),
        "{}",
        new.text
    );
    wire.set(Flow::Through);
    let after = in_time(&client, conversation, "x").await?;
    assert_eq!(after.session(), "existing", "{}", after.text);
    assert!(
        ["41", "42"].contains(&after.result()),
        "once at most: {}",
        after.text
    );
    let new = in_time(&client, "finds-no-engine", "2").await?;
    assert_eq!(new.result(), "2", "{}", new.text);
    client.close().await?;
    greenroom.finish().await
}

/// What an operator's hands do to a container that a conversation has.
#[tokio::test]
async fn containers_that_are_paused_or_renamed_from_outside_cost_no_state() -> Result<()> {
    let mut greenroom = Greenroom::start(&Config::default()).await?;
    let (docker, client) = (Docker::connect().await?, greenroom.client(Era::Modern).await?);
    let conversation = "somebody-lays-hands-on";
    client.python(conversation, "x = 41").await?;
    let deployment = greenroom.deployment().to_owned();
    let bound = async || -> Result<String> {
        let all = docker.containers(&deployment).await?;
        let mut named = all.into_iter().filter(|container| {
            let mut names = container.names.iter().flatten();
            names.any(|name| name.starts_with("/gr-"))
        });
        named
            .next()
            .and_then(|container| container.id)
            .context("no sandbox is bound")
    };
    let is_there = async |client: &Client, what: &str| -> Result<()> {
        let answer = in_time(client, conversation, "x").await?;
        let seen = (answer.result(), answer.session());
        ensure!(seen == ("41", "existing"), "{what}: {}", answer.text);
        Ok(())
    };
    docker.api().pause_container(&bound().await?).await?;
    is_there(&client, "paused").await?;

    let id = bound().await?;
    let moved = format!("moved-{}", &id[..12]);
    let options = RenameContainerOptionsBuilder::default().name(&moved).build();
    docker.api().rename_container(&id, options).await?;
    is_there(&client, "renamed").await?;
    drop(client);
    // Who never saw it under its name finds it all the same, and nobody has to search again.
    greenroom.kill_and_restart().await?;
    let client = greenroom.client(Era::Modern).await?;
    is_there(&client, "renamed, and another server").await?;
    assert_eq!(bound().await?, id, "it has its name back");
    client.close().await?;
    greenroom.finish().await
}

fn on(engine: &PrivateEngine, pool: &str) -> Config {
    let mut config = engine.config();
    config.pool.push_str(pool);
    config
}

#[tokio::test]
async fn an_image_that_was_removed_is_made_again_or_missed_by_name() -> Result<()> {
    let engine = PrivateEngine::start(LiveRestore::On).await?;
    let greenroom = Greenroom::start(&on(&engine, "claim_wait = \"20s\"\n")).await?;
    let (docker, client) = (engine.docker().await?, greenroom.client(Era::Modern).await?);
    greenroom.wait_warm(1).await?;
    docker.untag("greenroom/prepared").await?;
    for conversation in ["takes-the-warm-one", "needs-the-image"] {
        let answer = in_time(&client, conversation, "1").await?;
        assert_eq!(
            (answer.result(), answer.session()),
            ("1", "new"),
            "{}",
            answer.text
        );
    }
    greenroom.wait_warm(1).await?;
    docker.untag("greenroom/").await?;
    in_time(&client, "takes-the-last-one", "1").await?;
    let missed = in_time(&client, "finds-no-image", "1").await?;
    not_ready(&greenroom, "image \"greenroom/base:trixie\" is not there").await?;
    assert!(missed.is_error, "{}", missed.text);
    let known = in_time(&client, "takes-the-last-one", "2").await?;
    assert_eq!(
        (known.result(), known.session()),
        ("2", "existing"),
        "{}",
        known.text
    );
    client.close().await?;
    greenroom.finish().await?;
    engine.finish().await
}

#[tokio::test]
async fn a_host_whose_disk_is_full_costs_writes_and_says_so() -> Result<()> {
    let engine = PrivateEngine::start_on_disk(LiveRestore::On, "1500m").await?;
    let greenroom = Greenroom::start(&on(&engine, "claim_wait = \"20s\"\n")).await?;
    let client = greenroom.client(Era::Modern).await?;
    let conversation = "writes-to-a-full-disk";
    in_time(&client, conversation, "x = 41").await?;
    greenroom.wait_warm(1).await?;
    engine.disk()?.fill()?;
    let write = "n = open('f', 'wb').write(b'x' * (64 << 20))";
    let written = in_time(&client, conversation, write).await?;
    assert_eq!(written.status(), "error", "{}", written.text);
    assert!(
        written.text.contains("No space left on device"),
        "{}",
        written.text
    );
    let after = in_time(&client, conversation, "x").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("41", "existing"),
        "{}",
        after.text
    );
    // The engine cannot so much as rename the warm one.
    let new = in_time(&client, "needs-some-room", "1").await?;
    assert!(
        new.is_error && new.text.contains("could be made within"),
        "{}",
        new.text
    );
    not_ready(&greenroom, "no space left on device").await?;
    engine.disk()?.clear()?;
    let new = in_time(&client, "needs-some-room", "1").await?;
    assert_eq!((new.result(), new.session()), ("1", "new"), "{}", new.text);
    // What was claimed in vain ends itself.
    greenroom.wait_warm(1).await?;
    let docker = engine.docker().await?;
    let began = Instant::now();
    while docker.unadopted(greenroom.deployment()).await?.len() > 1 {
        ensure!(began.elapsed() < SWEPT, "what was claimed in vain is still there");
        sleep(Duration::from_millis(200)).await;
    }
    client.close().await?;
    greenroom.finish().await?;
    engine.finish().await
}

#[tokio::test]
async fn a_runtime_that_is_missing_is_named() -> Result<()> {
    let mut engine = PrivateEngine::start(LiveRestore::On).await?;
    engine.forget_runtimes()?;
    engine.restart().await?;
    let greenroom = Greenroom::start_unready(&on(&engine, "claim_wait = \"5s\"\n")).await?;
    let client = greenroom.client(Era::Modern).await?;
    let missed = in_time(&client, "finds-no-runtime", "1").await?;
    not_ready(&greenroom, "the engine has no runtime \"runsc-4g\"").await?;
    assert!(missed.is_error, "{}", missed.text);
    client.close().await?;
    greenroom.finish().await?;
    engine.finish().await
}
