//! Code that means harm: what it reaches, what its conversation hears, and what its neighbours do not feel.

use anyhow::{Context, Result};
use greenroom_integration::{Client, Config, Docker, Era, Greenroom};

/// A quiet neighbour must still have its variable after whatever happened beside it.
async fn beside(code: &str, bash: bool, check: impl Fn(&greenroom_integration::Answer)) -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        warm: 2,
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    client.python("quiet-neighbour", "kept = 1").await?;
    client.python("means-harm-today", "mine = 1").await?;
    let answer = if bash {
        client.bash("means-harm-today", code).await?
    } else {
        client.python("means-harm-today", code).await?
    };
    if answer.is_error {
        eprintln!("{}", greenroom.log());
    }
    check(&answer);
    let neighbour = client.python("quiet-neighbour", "kept").await?;
    assert_eq!(
        (neighbour.result(), neighbour.session()),
        ("1", "existing"),
        "{}",
        neighbour.text
    );
    let own = client.python("means-harm-today", "'alive'").await?;
    assert_eq!(own.result(), "'alive'", "{}", own.text);
    client.close().await?;
    greenroom.finish().await
}

async fn fresh(config: &Config) -> Result<(Greenroom, Client)> {
    let greenroom = Greenroom::start(config).await?;
    let client = greenroom.client(Era::Modern).await?;
    Ok((greenroom, client))
}

#[tokio::test]
async fn pid_1_cannot_be_killed_from_inside() -> Result<()> {
    beside("kill -9 1; echo code $?", true, |answer| {
        assert!(answer.text.contains("code 1"), "{}", answer.text);
        assert_eq!(answer.session(), "existing");
    })
    .await
}

#[tokio::test]
async fn killing_all_that_one_may_costs_the_kernels_only() -> Result<()> {
    let (greenroom, client) = fresh(&Config::default()).await?;
    client.python("kills-its-children", "mine = 1").await?;
    client.bash("kills-its-children", "kill -9 -1").await?;
    let mut after = client.python("kills-its-children", "'mine' in dir()").await?;
    assert!(
        after.text.contains("are gone"),
        "the loss of variables is said: {}",
        after.text
    );
    // The signal may still be on its way to Python when this run is: then that dies of it during the run.
    if after.status() == "kernel_died" {
        after = client.python("kills-its-children", "'mine' in dir()").await?;
    }
    assert_eq!(
        (after.result(), after.session()),
        ("False", "existing"),
        "the sandbox lives: {}",
        after.text
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_fork_bomb_meets_its_limit() -> Result<()> {
    let bomb = "\
import subprocess
children = []
try:
    while True:
        children.append(subprocess.Popen(['sleep', '600']))
except OSError as error:
    print('stopped by', error.errno)
for child in children:
    child.kill()
len(children) > 50
";
    beside(bomb, false, |answer| {
        assert!(answer.text.contains("stopped by 11"), "{}", answer.text);
        assert_eq!(
            (answer.result(), answer.session()),
            ("True", "existing"),
            "{}",
            answer.text
        );
    })
    .await
}

/// Mostly the allocation is refused. Where the host is quicker, it is its choice whether the process or the whole
/// sandbox goes; that is said either way.
#[tokio::test]
async fn a_memory_bomb_is_said_to_be_one() -> Result<()> {
    let bomb = "x = [bytearray(b'1' * (64 << 20)) for _ in range(64)]";
    beside(bomb, false, |answer| {
        let whole = answer.session() == "restarted" && answer.field("restart_reason") == "out_of_memory";
        let process = answer.session() == "existing" && answer.status() == "kernel_died";
        let refused = answer.text.contains("MemoryError");
        assert!(refused || process || whole, "{}", answer.text);
    })
    .await
}

#[tokio::test]
async fn a_full_disk_is_an_error_of_its_own_code() -> Result<()> {
    let pool = "preload = []\ndisk = \"1GiB\"\n".to_owned();
    let (greenroom, client) = fresh(&Config {
        pool,
        ..Config::default()
    })
    .await?;
    let fill = "with open('big', 'wb') as f:\n  for _ in range(4096): f.write(b'x' * (1 << 20))";
    let full = client.python("fills-its-disk", fill).await?;
    assert_eq!(full.status(), "error", "{}", full.text);
    assert!(full.text.contains("No space left"), "{}", full.text);
    let after = client
        .python("fills-its-disk", "import os; os.remove('big'); 'lives'")
        .await?;
    assert_eq!(
        (after.result(), after.session()),
        ("'lives'", "existing"),
        "{}",
        after.text
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn there_is_no_network_and_nothing_of_the_host() -> Result<()> {
    let (greenroom, client) = fresh(&Config::default()).await?;
    let probe = "\
import os, socket
def reach(where):
    try:
        socket.create_connection(where, timeout=2).close(); return 'reached'
    except OSError as e:
        return 'no'
print([reach(w) for w in [('169.254.169.254', 80), ('172.17.0.1', 22), ('10.0.0.1', 53), ('1.1.1.1', 443)]])
print(sorted(k for k in os.environ if 'GREENROOM' in k and 'KERNEL' not in k), os.getuid(), os.path.exists('/var/run/docker.sock'))
print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])
";
    let answer = client.python("looks-around-here", probe).await?;
    assert!(
        answer.text.contains("['no', 'no', 'no', 'no']"),
        "{}",
        answer.text
    );
    assert!(answer.text.contains("[] 65532 False"), "{}", answer.text);
    assert!(answer.text.contains("0000000000000000"), "{}", answer.text);
    let socket = client
        .python("looks-around-here", "open('/run/greenroom/agent.sock')")
        .await?;
    assert_eq!(socket.status(), "error", "{}", socket.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_container_removed_behind_the_servers_back_is_said() -> Result<()> {
    let (greenroom, client) = fresh(&Config::default()).await?;
    client.python("removed-from-outside", "x = 1").await?;
    let docker = Docker::connect().await?;
    let mut found = None;
    for container in docker.containers(greenroom.deployment()).await? {
        if container
            .names
            .iter()
            .flatten()
            .any(|name| name.starts_with("/gr-"))
        {
            found = container.id;
        }
    }
    docker
        .remove(&found.context("the conversation has a container")?)
        .await?;
    let after = client.python("removed-from-outside", "'x' in dir()").await?;
    assert_eq!(
        (after.result(), after.session()),
        ("False", "restarted"),
        "{}",
        after.text
    );
    assert_eq!(after.field("restart_reason"), "removed", "{}", after.text);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn endless_output_is_counted_not_kept() -> Result<()> {
    let (greenroom, client) = fresh(&Config::default()).await?;
    let answer = client
        .bash(
            "prints-without-end",
            "head -c 200000000 /dev/zero | tr '\\0' 'y'; echo; echo over",
        )
        .await?;
    assert_eq!(answer.status(), "ok", "{}", answer.text);
    assert_eq!(answer.meta["stdout"]["bytes"], 200_000_006, "{}", answer.meta);
    assert!(
        answer.text.len() < 40_000 && answer.text.contains("over"),
        "{} characters",
        answer.text.len()
    );
    client.close().await?;
    greenroom.finish().await
}

/// A sandbox whose kernel hangs answers nobody, its engine included.
#[tokio::test]
async fn a_sandbox_that_hangs_is_replaced_and_leaves_nothing() -> Result<()> {
    let (greenroom, client) = fresh(&Config {
        warm: 0,
        ..Config::default()
    })
    .await?;
    client.python("hangs-in-its-kernel", "x = 1").await?;
    let docker = Docker::connect().await?;
    let id = docker
        .ids(greenroom.deployment())
        .await?
        .pop_first()
        .context("a sandbox")?;
    let state = docker.api().inspect_container(&id, None).await?.state;
    let pid = state.and_then(|state| state.pid).context("it runs")?;
    let stopped = std::process::Command::new("kill")
        .args(["-STOP", &pid.to_string()])
        .status()?;
    assert!(stopped.success());
    // The first may be answered before it is certain that nobody will.
    let mut said = String::new();
    for _ in 0..4 {
        let after = client.python("hangs-in-its-kernel", "'x' in dir()").await?;
        said += &after.text;
        if after.result() == "False" {
            break;
        }
        assert_ne!(after.result(), "True", "{}", after.text);
    }
    assert!(
        said.contains("session: restarted") && said.contains("result:\nFalse"),
        "{said}"
    );
    client.close().await?;
    greenroom.finish().await
}
