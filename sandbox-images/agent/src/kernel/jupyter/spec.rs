//! Kernelspecs: which Jupyter kernels are installed, and how each is started and interrupted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Bytes of a file of a kernelspec that are looked at: it travels on a command line.
const SPEC_BYTES: u64 = 32 << 10;
/// Folders of kernels that are looked into.
const LOOKS: usize = 64;

/// What a `kernel.json` says, as far as it matters here.
///
/// Source: <https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Spec {
    /// The command; `{connection_file}` and `{resource_dir}` stand for what they say.
    pub(super) argv: Vec<String>,
    /// What it runs.
    pub(super) language: String,
    /// How it is interrupted.
    pub(super) interrupt_mode: Interrupt,
    /// Variables that it wants.
    pub(super) env: BTreeMap<String, String>,
    /// Whatever its maker wanted to add.
    pub(super) metadata: Metadata,
}

/// How a kernel is interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Interrupt {
    /// By SIGINT, to it and what it has started.
    #[default]
    Signal,
    /// By `interrupt_request` on its control channel.
    Message,
}

/// The part of the metadata that is meant for Greenroom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) greenroom: Own,
}

/// What an image may want of us for a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Own {
    /// The file beside `kernel.json` with code that runs once, before any other, and shows nothing. Once read: that code.
    pub(super) prelude: String,
    /// Code that raises what is wrong with the code of a run, for a kernel that only says that something is. `{code}`
    /// stands for that code, as a string in JSON.
    pub(super) explain: String,
}

/// The kernels in these folders, by name; of two with one name the first counts.
pub(super) fn installed(folders: &[PathBuf]) -> Vec<(String, Spec)> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for folder in folders {
        let mut kernels: Vec<PathBuf> = fs::read_dir(folder.join("jupyter/kernels"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).take(LOOKS).collect())
            .unwrap_or_default();
        kernels.sort();
        for kernel in kernels {
            let name = kernel.file_name().and_then(|name| name.to_str());
            if let (Some(name), Some(spec)) = (name, read(&kernel))
                && names.insert(name.to_owned())
            {
                found.push((name.to_owned(), spec));
            }
        }
    }
    found
}

/// A kernelspec that can be used; anything else is none.
fn read(kernel: &Path) -> Option<Spec> {
    let text = |name: &str| {
        let mut text = String::new();
        let file = fs::File::open(kernel.join(name)).ok()?;
        file.take(SPEC_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    };
    let mut spec: Spec = serde_json::from_str(&text("kernel.json")?).ok()?;
    let own = &mut spec.metadata.greenroom;
    if !own.prelude.is_empty() {
        own.prelude = text(&own.prelude)?;
    }
    for argument in &mut spec.argv {
        *argument = argument.replace("{resource_dir}", &kernel.to_string_lossy());
    }
    (!spec.argv.is_empty()).then_some(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(folder: &Path, name: &str, json: &str) {
        let kernel = folder.join("jupyter/kernels").join(name);
        fs::create_dir_all(&kernel).unwrap();
        fs::write(kernel.join("kernel.json"), json).unwrap();
    }

    #[test]
    fn the_first_of_a_name_counts_and_what_is_no_spec_does_not() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        install(
            first.path(),
            "ir",
            r#"{"argv": ["R", "{resource_dir}/x", "{connection_file}"], "language": "R", "display_name": "R"}"#,
        );
        install(first.path(), "broken", "{");
        install(first.path(), "empty", r#"{"argv": [], "language": "x"}"#);
        install(second.path(), "ir", r#"{"argv": ["other"], "language": "R"}"#);
        install(
            second.path(),
            "js",
            r#"{"argv": ["js"], "language": "javascript", "interrupt_mode": "message", "env": {"A": "b"},
                "metadata": {"other": 1, "greenroom": {"prelude": "first.js"}}}"#,
        );
        fs::write(second.path().join("jupyter/kernels/js/first.js"), "1").unwrap();
        let folders = [
            first.path().to_owned(),
            "/nowhere".into(),
            second.path().to_owned(),
        ];
        let found = installed(&folders);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ir", "js"]);
        let resource = first.path().join("jupyter/kernels/ir/x");
        assert_eq!(found[0].1.argv[1], resource.to_str().unwrap());
        assert_eq!(found[0].1.interrupt_mode, Interrupt::Signal);
        assert_eq!(found[1].1.interrupt_mode, Interrupt::Message);
        assert_eq!(found[1].1.metadata.greenroom.prelude, "1");
    }
}
