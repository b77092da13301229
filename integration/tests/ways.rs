//! Files in and out without passing the model: links, a shared folder, `greenroom cp`, a seed, resources.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, Result};
use greenroom_integration::{Answer, Client, Config, Era, Greenroom, binary};
use reqwest::{StatusCode, header};
use serde_json::json;
use tokio::{io::AsyncWriteExt, process::Command};

/// The one link in an answer.
fn link(answer: &Answer) -> Result<String> {
    let line = answer.text.lines().find(|line| line.starts_with("http://"));
    Ok(line
        .with_context(|| format!("no link: {}", answer.text))?
        .to_owned())
}

async fn upload_link(client: &Client, id: &str, path: &str) -> Result<String> {
    let answer = client
        .call("upload_file", json!({ "conversation_id": id, "path": path }))
        .await?;
    assert!(!answer.is_error, "{}", answer.text);
    link(&answer)
}

async fn download_link(client: &Client, id: &str, path: &str) -> Result<String> {
    let arguments = json!({ "conversation_id": id, "path": path, "link": true });
    link(&client.call("download_file", arguments).await?)
}

#[tokio::test]
async fn a_person_uploads_by_a_link_that_is_good_once_on_any_server() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let mut twin = greenroom.twin(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let http = reqwest::Client::new();
    let id = "uploads-by-a-link";
    let link = upload_link(&client, id, "in/<b>data</b> 1.csv").await?;

    let page = http.get(&link).send().await?;
    assert_eq!(page.status(), StatusCode::OK);
    let policy = page.headers()[header::CONTENT_SECURITY_POLICY]
        .to_str()?
        .to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert_eq!(page.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    let page = page.text().await?;
    assert!(
        page.contains("/mnt/data/in/&lt;b&gt;data&lt;/b&gt; 1.csv"),
        "{page}"
    );

    // By the other server, which has never heard of it; as a page of its own would.
    let elsewhere = link.replace(&greenroom.url(""), &twin.url(""));
    let origin = twin.url("");
    let sent = http
        .put(&elsewhere)
        .header(header::ORIGIN, origin.trim_end_matches('/'))
        .body("a,b\n1,2\n")
        .send()
        .await?;
    assert_eq!(sent.status(), StatusCode::CREATED);
    for again in [&link, &elsewhere] {
        let again = http.put(again).body("other").send().await?;
        assert_eq!(again.status(), StatusCode::CONFLICT);
        assert!(again.text().await?.contains("used already"));
    }
    let read = client
        .python(id, "open('/mnt/data/in/<b>data</b> 1.csv').read()")
        .await?;
    assert_eq!(read.result(), "'a,b\\n1,2\\n'", "{}", read.text);

    let mut forged = link.clone();
    forged.push('x');
    assert_eq!(
        http.put(&forged).body("x").send().await?.status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        http.post(&link).body("x").send().await?.status(),
        StatusCode::METHOD_NOT_ALLOWED
    );
    let log = greenroom.log();
    let token = link.split('/').nth(4).context("a token")?;
    assert!(!log.contains(token), "a link is a secret");
    client.close().await?;
    twin.stop().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_person_downloads_by_a_link_in_ranges_and_nothing_runs() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Legacy).await?;
    let http = reqwest::Client::new();
    let id = "downloads-by-a-link";
    let made = client
        .python(id, "open('p.html', 'w').write('<script>0123456789</script>')")
        .await?;
    assert_eq!(made.result(), "27", "{}", made.text);
    let link = download_link(&client, id, "p.html").await?;
    let whole = http.get(&link).send().await?;
    assert_eq!(whole.status(), StatusCode::OK);
    for (name, value) in [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "sandbox; default-src 'none'; frame-ancestors 'none'",
        ),
        (header::CONTENT_LENGTH, "27"),
        (header::ACCEPT_RANGES, "bytes"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        assert_eq!(whole.headers()[&name], value);
    }
    let saved = whole.headers()[header::CONTENT_DISPOSITION].to_str()?;
    assert!(saved.starts_with("attachment; filename=\"p.html\""), "{saved}");
    assert_eq!(whole.text().await?, "<script>0123456789</script>");
    for (range, status, body) in [
        ("bytes=8-11", 206, "0123"),
        ("bytes=-9", 206, "</script>"),
        ("bytes=18-", 206, "</script>"),
        ("bytes=27-", 416, "the range begins at or after the file's end\n"),
    ] {
        let part = http.get(&link).header(header::RANGE, range).send().await?;
        assert_eq!(part.status(), status, "{range}");
        assert_eq!(part.text().await?, body, "{range}");
    }
    let head = http.head(&link).send().await?;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()[header::CONTENT_LENGTH], "27");
    assert_eq!(
        http.put(&link).body("x").send().await?.status(),
        StatusCode::METHOD_NOT_ALLOWED
    );
    // After the sandbox has ended it leads nowhere, and makes none.
    client
        .call("reset_session", json!({ "conversation_id": id }))
        .await?;
    assert_eq!(http.get(&link).send().await?.status(), StatusCode::GONE);
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn images_and_legacy_texts_are_shown() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let id = "images-and-legacy-texts";
    let make = "\
from PIL import Image
Image.effect_noise((3000, 2000), 90).save('large.png')
Image.new('RGB', (300, 200), 'red').save('small.webp')
open('latin.txt', 'wb').write('déjà vu, garçon à côté\\n'.encode('latin-1')); 1";
    let made = client.python(id, make).await?;
    assert_eq!(made.result(), "1", "{}", made.text);
    let get = |path: &str, side: u32| json!({ "conversation_id": id, "path": path, "max_pixels": side });
    let large = client.call("download_file", get("large.png", 600)).await?;
    assert!(
        large.text.contains("image of 3000 × 2000, shown as 600 × 400"),
        "{}",
        large.text
    );
    assert_eq!(large.images.len(), 1);
    let small = client.call("download_file", get("small.webp", 600)).await?;
    assert!(small.images[0].starts_with(b"\x89PNG"), "{}", small.text);
    let latin = client
        .call(
            "download_file",
            json!({ "conversation_id": id, "path": "latin.txt" }),
        )
        .await?;
    assert!(latin.text.contains("decoded from windows-1252"), "{}", latin.text);
    assert!(
        latin.text.ends_with("déjà vu, garçon à côté\n\n"),
        "{}",
        latin.text
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn stdio_copies_beneath_the_shared_folder_only_and_serves_links_itself() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let home = tempfile::tempdir()?;
    let shared = home.path().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("in.csv"), "a\n1\n")?;
    fs::write(home.path().join("secret"), "secret")?;
    std::os::unix::fs::symlink("../secret", shared.join("out"))?;
    let mut command = Command::new(binary()?);
    command
        .args(["stdio", "--share"])
        .arg(&shared)
        .arg("--config")
        .arg(greenroom.config_path())
        .args(["--set", "pool.python.warm=0"]);
    let client = Client::stdio(command, Era::Legacy).await?;
    let up = client
        .call(
            "upload_file",
            json!({ "path": "data/in.csv", "source": "in.csv" }),
        )
        .await?;
    assert!(
        up.text.contains("/mnt/data/data/in.csv is written"),
        "{}",
        up.text
    );
    for source in ["out", "../secret", "/etc/passwd"] {
        let refused = client
            .call("upload_file", json!({ "path": "x", "source": source }))
            .await?;
        assert!(
            refused.is_error && refused.text.contains("not beneath"),
            "{}",
            refused.text
        );
    }
    let down = json!({ "path": "data/in.csv", "save_to": "results/out.csv" });
    let saved = client.call("download_file", down.clone()).await?;
    assert!(
        saved.text.contains("is saved on the user's machine"),
        "{}",
        saved.text
    );
    assert_eq!(fs::read_to_string(shared.join("results/out.csv"))?, "a\n1\n");
    let again = client.call("download_file", down).await?;
    assert!(
        again.is_error && again.text.contains("exists already"),
        "{}",
        again.text
    );

    let link = link(
        &client
            .call("download_file", json!({ "path": "data/in.csv", "link": true }))
            .await?,
    )?;
    assert!(link.starts_with("http://127.0.0.1:"), "{link}");
    assert_eq!(reqwest::get(&link).await?.text().await?, "a\n1\n");

    let listed = client.resources().await?;
    let (uri, size) = listed.first().context("a resource")?;
    assert!(uri.ends_with("/files/data/in.csv"), "{uri}");
    assert_eq!(*size, Some(4));
    assert_eq!(client.read(uri).await?, "a\n1\n");
    assert!(client.read(&uri.replace("in.csv", "none.csv")).await.is_err());
    assert!(
        client
            .read("greenroom://somebody-elses/files/data/in.csv")
            .await
            .is_err()
    );
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn cp_copies_into_and_out_of_a_conversation_without_a_server() -> Result<()> {
    let mut greenroom = Greenroom::start(&Config::default()).await?;
    let client = greenroom.client(Era::Modern).await?;
    let id = "copied-by-hand";
    assert_eq!(client.python(id, "x = 41").await?.status(), "ok");
    client.close().await?;
    greenroom.stop().await?;
    let home = tempfile::tempdir()?;
    let cp = |from: String, to: String| {
        let mut command = Command::new(binary()?);
        command
            .arg("cp")
            .args([from, to])
            .arg("--config")
            .arg(greenroom.config_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok::<_, anyhow::Error>(command)
    };
    let file = home.path().join("in.bin");
    fs::write(&file, vec![7; 3 << 20])?;
    let done = cp(file.display().to_string(), format!("{id}:deep/"))?
        .output()
        .await?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let back = home.path().join("back.bin");
    let done = cp(format!("{id}:deep/in.bin"), back.display().to_string())?
        .output()
        .await?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read(&back)?, vec![7; 3 << 20]);
    let mut typed = cp("-".into(), format!("{id}:typed"))?.spawn()?;
    let mut input = typed.stdin.take().context("its input")?;
    input.write_all(b"typed").await?;
    drop(input);
    assert!(typed.wait().await?.success());
    let shown = cp(format!("{id}:typed"), "-".into())?.output().await?;
    assert_eq!(
        shown.stdout,
        b"typed",
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
    for (from, to, says) in [
        (format!("{id}:none"), "-", "no such file"),
        ("nobody-is-here:x".to_owned(), "-", "no sandbox"),
        (
            "gr-0000000000000000000000:x".to_owned(),
            "-",
            "not one that Greenroom gave out",
        ),
        ("a".to_owned(), "b", "CONVERSATION:PATH"),
    ] {
        let refused = cp(from, to.to_owned())?.output().await?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains(says), "{text}");
    }
    greenroom.finish().await
}

#[tokio::test]
async fn each_new_sandbox_finds_its_pools_seed() -> Result<()> {
    let seed = tempfile::tempdir()?;
    fs::create_dir(seed.path().join("lib"))?;
    fs::write(seed.path().join("lib/tool.py"), "answer = 42\n")?;
    fs::write(seed.path().join("README"), "hello")?;
    let config = Config {
        pool: format!("preload = []\nseed = {:?}\n", seed.path()),
        ..Config::default()
    };
    let greenroom = Greenroom::start(&config).await?;
    let client = greenroom.client(Era::Modern).await?;
    for id in ["finds-its-seed-1", "finds-its-seed-2"] {
        let code = "import os\nfrom lib import tool\n(tool.answer, open('README').read(), os.stat('README').st_uid == os.getuid(), os.access('lib', os.W_OK))";
        let found = client.python(id, code).await?;
        assert_eq!(found.result(), "(42, 'hello', True, True)", "{}", found.text);
    }
    client.close().await?;
    greenroom.finish().await
}

#[tokio::test]
async fn a_large_deletion_does_not_hold_up_the_conversation() -> Result<()> {
    let config = Config {
        top: "tools = \"full\"\n".into(),
        ..Config::default()
    };
    let greenroom = Greenroom::start(&config).await?;
    let client = greenroom.client(Era::Modern).await?;
    let id = "deletes-very-much";
    let make = "import os; os.mkdir('many'); [open(f'many/{n}', 'w').close() for n in range(30_000)]; open('kept', 'w').write('kept')";
    assert_eq!(client.python(id, make).await?.status(), "ok");
    let deletion = client.call("delete_file", json!({ "conversation_id": id, "path": "many" }));
    let looks = async {
        for _ in 0..5 {
            let read = json!({ "conversation_id": id, "path": "kept" });
            let read =
                tokio::time::timeout(Duration::from_secs(20), client.call("download_file", read)).await??;
            assert!(read.text.ends_with("kept\n"), "{}", read.text);
        }
        Ok::<_, anyhow::Error>(())
    };
    let (deleted, looks) = tokio::join!(deletion, looks);
    looks?;
    let deleted = deleted?;
    assert!(
        deleted.text.contains("with the 30,000 entries in it"),
        "{}",
        deleted.text
    );
    client.close().await?;
    greenroom.finish().await
}
