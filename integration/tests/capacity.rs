//! Bounds and ends: the pool's maximum, idle ends, two servers, a clean exit.

use std::time::Duration;

use anyhow::{Result, ensure};
use greenroom_integration::{Config, Docker, Era, Greenroom, MANY_BOOTS};
use tokio::time::{sleep, timeout};

#[tokio::test]
async fn at_the_maximum_the_caller_is_told_which() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 1,
        max: 2,
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    for conversation in ["first-of-two-places", "second-of-two-places"] {
        assert_eq!(client.python(conversation, "1").await?.session(), "new");
    }
    let third = client.python("third-of-two-places", "1").await?;
    assert!(
        third.is_error && third.text.contains("capacity") && third.text.contains('2'),
        "{}",
        third.text
    );
    assert_eq!(third.session(), "none");
    let still = client.python("first-of-two-places", "2").await?;
    assert_eq!((still.result(), still.session()), ("2", "existing"));
    client
        .call(
            "reset_session",
            serde_json::json!({ "conversation_id": "first-of-two-places" }),
        )
        .await?;
    let fourth = client.python("third-of-two-places", "1").await?;
    assert_eq!(fourth.session(), "new", "a place was free again: {}", fourth.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn an_idle_end_is_said_with_its_reason() -> Result<()> {
    let pool = "preload = []\nidle = \"2s\"\n".to_owned();
    let greenroom = Greenroom::start(&Config {
        pool,
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    client.python("goes-for-a-walk", "x = 1").await?;
    let docker = Docker::connect().await?;
    let ended = async {
        loop {
            let all = docker.containers(greenroom.deployment()).await?;
            let exited = |c: &bollard::models::ContainerSummary| {
                c.state.is_some_and(|s| s.to_string() == "exited")
                    && c.names.iter().flatten().any(|n| n.starts_with("/gr-"))
            };
            if all.iter().any(exited) {
                return Ok::<_, anyhow::Error>(());
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(60), ended).await??;
    let after = client.python("goes-for-a-walk", "'x' in dir()").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("False", "restarted"),
        "{}",
        after.text
    );
    assert_eq!(after.field("restart_reason"), "idle", "{}", after.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn two_servers_share_one_conversation() -> Result<()> {
    let config = Config {
        warm: 1,
        ..Config::default()
    };
    let one = Greenroom::start(&config).await?;
    let mut two = one.twin(&config).await?;
    let (a, b) = (one.client(Era::Modern).await?, two.client(Era::Modern).await?);
    let add = "n = globals().get('n', 0) + 1; n";
    let (first, second) = tokio::join!(
        a.python("raced-for-by-two", add),
        b.python("raced-for-by-two", add)
    );
    let mut counts = [first?.result().to_owned(), second?.result().to_owned()];
    counts.sort();
    assert_eq!(counts, ["1", "2"], "one sandbox served both");
    for (client, expected) in [(&a, "3"), (&b, "4"), (&a, "5")] {
        assert_eq!(client.python("raced-for-by-two", add).await?.result(), expected);
    }
    a.close().await?;
    b.close().await?;
    two.stop().await?;
    one.finish().await
}

#[tokio::test]
async fn a_burst_is_answered_whole() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        max: 8,
        pool: MANY_BOOTS.into(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    let calls = (0..6).map(|n| {
        let client = &client;
        async move {
            client
                .python(&format!("one-of-the-burst-{n}"), &format!("{n} * 2"))
                .await
        }
    });
    for (n, answer) in futures_util::future::try_join_all(calls)
        .await?
        .into_iter()
        .enumerate()
    {
        assert_eq!(
            (answer.result(), answer.session()),
            ((n * 2).to_string().as_str(), "new"),
            "{}",
            answer.text
        );
    }
    client.close().await?;
    greenroom.finish().await
}

/// Goes on until there are.
async fn never_more_than(max: u32, docker: &Docker, deployment: &str) -> Result<()> {
    loop {
        let running = docker.running(deployment).await?;
        ensure!(running <= max as usize, "{running} sandboxes at once");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_is_answered_whole() -> Result<()> {
    const MAX: u32 = 20;
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        max: MAX,
        pool: MANY_BOOTS.into(),
        // One principal has three quarters of them at most.
        top: "[limits]\ncalls = 300\n".into(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    let calls = (0..200).map(|n| {
        let client = &client;
        async move { client.python(&format!("one-of-the-storm-{n:03}"), "1").await }
    });
    let docker = Docker::connect().await?;
    let answers = tokio::select! {
        answers = futures_util::future::join_all(calls) => answers,
        broken = never_more_than(MAX, &docker, greenroom.deployment()) => return broken,
    };
    let mut served = 0;
    for answer in answers {
        let answer = answer?;
        if answer.is_error {
            // Each is told which limit it met, and when to come back.
            let told = answer.text.contains("limit max = 20") || answer.text.contains("claims_waiting");
            assert!(told && answer.text.contains("again"), "{}", answer.text);
        } else {
            assert_eq!((answer.result(), answer.session()), ("1", "new"));
            served += 1;
        }
    }
    assert_eq!(served, MAX, "every place was given away");
    client.close().await?;
    greenroom.finish().await
}
