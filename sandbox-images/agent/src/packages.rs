//! The image's own list of its packages, read when it is asked for.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use greenroom_protocol::{
    PACKAGES_PATH, Package, Packages,
    limits::{PACKAGES, PACKAGES_BYTES},
};
use tokio::task::spawn_blocking;

/// The list; empty where the image has none that can be read.
pub(crate) async fn listed() -> Packages {
    let packages = spawn_blocking(|| read(Path::new(PACKAGES_PATH))).await;
    Packages {
        packages: packages.ok().and_then(Result::ok).unwrap_or_default(),
    }
}

fn read(path: &Path) -> io::Result<Vec<Package>> {
    // Anything but a regular file could be waited for without end.
    if !path.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = Vec::new();
    File::open(path)?.take(PACKAGES_BYTES).read_to_end(&mut text)?;
    let mut packages: Vec<Package> = serde_json::from_slice(&text)?;
    packages.truncate(PACKAGES);
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_whatever_else_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("packages.json");
        std::fs::write(
            &list,
            r#"[{"kind": "python", "name": "numpy", "version": "2.5.5", "licence": "BSD"}]"#,
        )
        .unwrap();
        let numpy = Package {
            kind: "python".into(),
            name: "numpy".into(),
            version: "2.5.5".into(),
        };
        assert_eq!(read(&list).unwrap(), [numpy]);
        std::fs::write(&list, "[{").unwrap();
        assert!(read(&list).is_err(), "half a list");
        assert!(read(folder.path()).is_err(), "no file");
        assert!(read(&folder.path().join("none")).is_err());
    }
}
