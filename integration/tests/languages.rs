//! Languages besides Python and bash, through a real client, the built server, Docker and gVisor.

use anyhow::{Result, ensure};
use greenroom_integration::{Client, Config, Era, Greenroom};
use serde_json::json;

/// A conversation in one language, each code with what its answer must hold.
async fn tell(client: &Client, conversation: &str, told: &[(&str, &str, &str, &str)]) -> Result<()> {
    for (language, code, status, text) in told {
        let answer = client.run(conversation, language, code).await?;
        ensure!(
            answer.status() == *status && answer.text.contains(text),
            "{language}: {code}\nis not {status} with {text:?} but\n{}",
            answer.text
        );
        ensure!(
            answer.text.contains(&format!("status: {status}")),
            "{}",
            answer.text
        );
    }
    Ok(())
}

#[tokio::test]
async fn typescript_and_javascript_are_one_conversation_with_the_rest() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let name = "speaks-many-languages";
    let told = [
        (
            "typescript",
            "const rows: number[] = [1, 2, 3]; rows.length",
            "ok",
            "3",
        ),
        ("js", "rows.push(4); rows", "ok", "[ 1, 2, 3, 4 ]"),
        (
            "ts",
            "await new Promise((done) => setTimeout(done, 20)); Deno.cwd()",
            "ok",
            "/mnt/data",
        ),
        (
            "javascript",
            "console.log('out'); console.error('err'); Deno.writeTextFileSync('rows.json', JSON.stringify(rows))",
            "ok",
            "rows.json",
        ),
        (
            "python",
            "import json; sum(json.load(open('rows.json')))",
            "ok",
            "10",
        ),
        ("bash", "wc -c < rows.json", "ok", "9"),
        ("ts", "Deno.jupyter.md`| a |\n|---|\n| 1 |`", "ok", "| 1 |"),
        ("ts", "throw new RangeError('too far')", "error", "too far"),
        ("ts", "let broken = ;", "error", "SyntaxError"),
        ("ts", "prompt('who is there?')", "error", "there is no terminal"),
        ("ts", "await fetch('https://example.com')", "error", "TypeError"),
        ("ts", "rows.length", "ok", "4"),
    ];
    tell(&client, name, &told).await?;
    let answer = client.run(name, "js", "1").await?;
    assert_eq!(answer.field("language"), "javascript", "{}", answer.text);
    let refused = client.run(name, "cobol", "DISPLAY 1").await?;
    assert!(refused.is_error, "{}", refused.text);
    assert!(
        refused
            .text
            .contains("there are: python, bash, javascript, typescript"),
        "{}",
        refused.text
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_language_that_dies_leaves_the_others_alone() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let name = "one-language-crashes";
    let told = [
        ("python", "kept = 1", "ok", ""),
        ("ts", "const lost = 1; Deno.exit(3)", "kernel_died", "exit code 3"),
        ("ts", "typeof lost", "ok", "undefined"),
        ("python", "kept", "ok", "1"),
        ("ts", "const again = 5; again", "ok", "5"),
        ("bash", "pkill -9 deno; sleep 1", "ok", ""),
        ("ts", "typeof again", "ok", "undefined"),
        ("python", "kept", "ok", "1"),
    ];
    tell(&client, name, &told).await?;
    // A loop can be interrupted without a loss.
    tell(&client, name, &[("ts", "const stays = 7; stays", "ok", "7")]).await?;
    let arguments = json!({
        "conversation_id": name, "language": "ts", "code": "while (true) {}", "timeout_seconds": 1,
    });
    let slow = client.call("execute_code", arguments).await?;
    assert_eq!(slow.status(), "timed_out", "{}", slow.text);
    assert!(
        slow.text.contains("Variables and files are kept"),
        "{}",
        slow.text
    );
    tell(&client, name, &[("ts", "stays", "ok", "7")]).await?;
    client.close().await?;
    greenroom.finish().await
}

/// Needs `make image-r`, which `.ci/run` does not do.
#[tokio::test]
#[ignore = "needs the image with R: make image-r"]
async fn r_is_found_by_its_kernelspec() -> Result<()> {
    let greenroom = Greenroom::start(&Config {
        pool: "image = \"greenroom/r:latest\"\npreload = []\n".into(),
        ..Config::default()
    })
    .await?;
    let client = greenroom.client(Era::Modern).await?;
    let name = "statistics-in-r";
    let told = [
        ("r", "x <- c(1, 2, 3); mean(x)", "ok", "2"),
        ("R", "x[2] + 1", "ok", "3"),
        ("r", "cat('printed\\n'); message('told')", "ok", "printed"),
        (
            "r",
            "frame <- data.frame(name = c('é', 'b'), value = c(1.5, 2)); frame",
            "ok",
            "1.5",
        ),
        (
            "r",
            "write.csv(frame, 'frame.csv', row.names = FALSE)",
            "ok",
            "frame.csv",
        ),
        (
            "python",
            "import pandas as pd; pd.read_csv('frame.csv')['value'].sum()",
            "ok",
            "3.5",
        ),
        ("r", "stop('too bad')", "error", "too bad"),
        ("r", "1 +", "error", "unexpected end of input"),
        ("r", "readline('who? ')", "error", "terminal"),
        ("r", "exists('frame')", "ok", "TRUE"),
    ];
    tell(&client, name, &told).await?;
    for code in [
        "plot(1:10, main = 'Ελλάδα 漢字')",
        "library(ggplot2); ggplot(frame, aes(name, value)) + geom_col()",
    ] {
        let plot = client.run(name, "r", code).await?;
        assert_eq!((plot.status(), plot.images.len()), ("ok", 1), "{}", plot.text);
    }
    let arguments =
        json!({ "conversation_id": name, "language": "r", "code": "repeat {}", "timeout_seconds": 1 });
    let slow = client.call("execute_code", arguments).await?;
    assert_eq!(slow.status(), "timed_out", "{}", slow.text);
    tell(
        &client,
        name,
        &[
            ("r", "x", "ok", "1"),
            // A kernel asks to be left, as `quit()` of Python does here: nothing is lost.
            ("r", "quit(status = 4)", "ok", ""),
            ("r", "exists('x')", "ok", "TRUE"),
            ("r", "tools::pskill(Sys.getpid(), 9)", "kernel_died", ""),
        ],
    )
    .await?;
    tell(&client, name, &[("r", "exists('x')", "ok", "FALSE")]).await?;
    client.close().await?;
    greenroom.finish().await
}
