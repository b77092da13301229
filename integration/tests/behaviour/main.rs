//! What a run does and what its answer says, case by case, over the real thing: the built server, Docker, gVisor
//! and a real MCP client, once through stdio and once over HTTP.
//!
//! Each group is one conversation, so a case finds the state that those before it left, as a model does. Every
//! case names what it expects of the answer and, where that matters, of the state afterwards.

mod bash;
mod case;
mod ends;
mod limits;
mod network;
mod output;
mod play;
mod python;
mod rich;
mod runs;

use anyhow::Result;
use greenroom_integration::{Client, Config, Era, Greenroom, binary};
use tokio::process::Command;

use case::Group;

/// Small enough to be filled in a test.
const POOL: &str = "disk = \"1GiB\"\n";

fn groups() -> Vec<Group> {
    vec![
        python::group(),
        rich::group(),
        output::group(),
        bash::group(),
        network::group(),
        ends::group(),
        runs::group(),
        limits::group(),
    ]
}

fn config() -> Config {
    Config {
        warm: 2,
        max: 12,
        pool: POOL.to_owned(),
        ..Config::default()
    }
}

#[test]
fn there_are_as_many_cases_as_were_promised() {
    let mut all = 0;
    for group in groups() {
        let mut names: Vec<_> = group.cases.iter().map(|case| case.name).collect();
        all += names.len();
        names.sort_unstable();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "{}: names are unique", group.name);
    }
    assert!(all >= 120, "{all}");
}

#[tokio::test]
async fn over_http() -> Result<()> {
    let greenroom = Greenroom::start(&config()).await?;
    let client = greenroom.client(Era::Modern).await?;
    play::all(&client, groups()).await?;
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn through_stdio() -> Result<()> {
    let greenroom = Greenroom::start(&config()).await?;
    let mut command = Command::new(binary()?);
    command.args(["stdio", "--config"]).arg(greenroom.config_path());
    let client = Client::stdio(command, Era::Legacy).await?;
    play::all(&client, groups()).await?;
    client.close().await?;
    greenroom.finish().await
}
