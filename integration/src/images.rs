//! Images that tests make themselves, without a registry: one file, compiled here, imported as a whole root.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use bollard::query_parameters::CreateImageOptionsBuilder;
use bytes::Bytes;
use futures_util::TryStreamExt;

use crate::Docker;

/// What such images are called.
const REPOSITORY: &str = "greenroom-test/app";

/// An image that holds nothing but `images/app.rs` as a static program: no shell, no libraries, no `/etc`. Made once for
/// each version of that file. It runs as user 1000, whom it does not know by name.
///
/// # Errors
/// It does not compile, or there is no engine.
pub async fn static_app() -> Result<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/app.rs");
    let tag = tag(&std::fs::read(&source)?);
    let image = format!("{REPOSITORY}:{tag}");
    let docker = Docker::connect().await?;
    if docker.api().inspect_image(&image).await.is_ok() {
        return Ok(image);
    }
    let folder = tempfile::tempdir()?;
    let program = compile(&source, folder.path())?;
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_path_with_name(&program, "app")?;
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(REPOSITORY)
        .tag(&tag)
        .changes(vec![
            r#"ENTRYPOINT ["/app"]"#.to_owned(),
            r#"CMD ["from-image"]"#.to_owned(),
            "ENV GREETING=from-image SECRET=of-the-image".to_owned(),
            "USER 1000".to_owned(),
            "EXPOSE 8080".to_owned(),
        ])
        .build();
    let body = bollard::body_full(Bytes::from(archive.into_inner()?));
    let made = docker.api().create_image(Some(options), Some(body), None);
    made.try_collect::<Vec<_>>()
        .await
        .context("the image is not imported")?;
    Ok(image)
}

fn compile(source: &Path, folder: &Path) -> Result<PathBuf> {
    let program = folder.join("app");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args([
            "-O",
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "-o",
        ])
        .arg(&program)
        .arg(source)
        .status()
        .context("there is no rustc")?;
    ensure!(status.success(), "{} does not compile", source.display());
    Ok(program)
}

/// FNV-1a: it tells versions apart, and that is all.
fn tag(source: &[u8]) -> String {
    let hash = source.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}
