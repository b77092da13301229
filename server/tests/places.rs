//! Each crate with an opinion is met in one place.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether a line of code, not of prose, names a crate.
fn names(line: &str, name: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|word| word == name)
        && code.contains(&format!("{name}::"))
        || code.trim_start().starts_with(&format!("use {name}"))
}

#[test]
fn opinionated_crates_stay_in_their_places() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 40, "the sources are where they are looked for");
    for (name, place) in [
        ("rmcp", "mcp"),
        ("axum", "http"),
        ("bollard", "engine/docker"),
        ("jsonwebtoken", "auth/token"),
        ("object_store", "archive/store"),
        ("chacha20poly1305", "archive/seal"),
    ] {
        let mut met = 0;
        for file in &files {
            let relative = file.strip_prefix(&root).unwrap().with_extension("");
            let text = fs::read_to_string(file).unwrap();
            let naming: Vec<&str> = text.lines().filter(|line| names(line, name)).collect();
            met += naming.len();
            assert!(
                naming.is_empty() || relative.starts_with(place),
                "{name} in {}: {naming:?}",
                file.display()
            );
        }
        assert!(met > 0, "{name} is not met at all");
    }
}
