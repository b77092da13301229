//! How a server leaves: calls in flight are answered first, a second signal does not wait, conversations stay.

use std::time::Duration;

use anyhow::{Context, Result};
use greenroom_integration::{Client, Config, Era, Greenroom};
use tokio::time::{Instant, timeout};

/// Goes on for a while after its server was told to leave.
const SLOW: &str = "import time\nx = 41\nopen('begun', 'w').close()\ntime.sleep(6)\nx + 1";
/// Goes on until it is let, or for two minutes.
const ENDLESS: &str = "import os, time\nx = 41\nopen('begun', 'w').close()\nfor _ in range(1200):\n    \
                       if os.path.exists('go'): break\n    time.sleep(0.1)\nx += 1";

/// Waits for calls in flight longer than any test.
fn patient() -> Config {
    Config {
        top: "[limits]\ndrain = \"100s\"\n".into(),
        ..Config::default()
    }
}

/// Starts the slow run and returns once it is at work.
async fn begin(client: &Client, conversation: &str) -> Result<()> {
    let begun = async {
        while !client.bash(conversation, "ls").await?.text.contains("begun") {}
        Ok(())
    };
    timeout(Duration::from_secs(60), begun)
        .await
        .context("the run does not begin")?
}

#[tokio::test]
async fn the_first_signal_lets_calls_in_flight_be_answered() -> Result<()> {
    let mut greenroom = Greenroom::start(&patient()).await?;
    let (client, other) = (
        greenroom.client(Era::Modern).await?,
        greenroom.client(Era::Modern).await?,
    );
    let conversation = "is-answered-first";
    let leaves = async {
        begin(&other, conversation).await?;
        greenroom.terminate().await
    };
    let (answer, status) = tokio::join!(client.python(conversation, SLOW), leaves);
    let answer = answer.with_context(|| format!("not answered; the log:\n{}", greenroom.log()))?;
    assert_eq!(answer.result(), "42", "{}", answer.text);
    assert!(status?.success(), "a drain ends with 0");
    drop((client, other));
    greenroom.finish().await
}

#[tokio::test]
async fn a_second_signal_does_not_wait_and_costs_no_conversation() -> Result<()> {
    let mut greenroom = Greenroom::start(&patient()).await?;
    let (client, other) = (
        greenroom.client(Era::Modern).await?,
        greenroom.client(Era::Modern).await?,
    );
    let conversation = "outlives-impatience";
    let leaves = async {
        begin(&other, conversation).await?;
        let begun = Instant::now();
        greenroom.signal("TERM").await?;
        // The first one has to be taken before the second is more than its echo.
        greenroom.wait_log("a second signal ends it at once").await?;
        let status = greenroom.terminate().await?;
        anyhow::Ok((status, begun.elapsed()))
    };
    let (answer, left) = tokio::join!(client.python(conversation, ENDLESS), leaves);
    let (status, took) = left?;
    assert!(answer.is_err(), "nobody was left to answer");
    assert!(!status.success(), "an end by force is no success: {status}");
    assert!(
        took < Duration::from_secs(60),
        "it did not wait for the run: {took:?}"
    );
    drop((client, other));

    greenroom.restart().await?;
    let client = greenroom.client(Era::Modern).await?;
    client.bash(conversation, "touch go").await?;
    let after = client.python(conversation, "x + 1").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("43", "existing"),
        "{}",
        after.text
    );
    client.close().await?;
    greenroom.finish().await
}
