//! What a pool adds to its image, as the file has it, and what of the server's own environment its installers get.

use std::{
    fs,
    path::{Path, PathBuf},
};

use greenroom_protocol::Masked;

use super::layers::{Layers, Source};
use crate::{
    engine::docker::Installers,
    sandbox::{DebianPackage, Dependencies, Requirement, Requirements},
};

/// Entries of one list: what needs more has a requirements file.
const ENTRIES: usize = 500;
/// A requirements file: a thousand packages with the hashes of all their wheels come to less.
const FILE_BYTES: u64 = 1 << 20;

/// Variables of the server's that installers get, as far as they are set: how an index is reached, and nothing that
/// changes what is installed or where. Whatever a package runs at its installation can read them.
const FOR_INSTALLERS: [&str; 11] = [
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_RETRIES",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];
/// Variables that name the certificates that this host trusts, the first first.
const CERTIFICATES: [&str; 2] = ["PIP_CERT", "SSL_CERT_FILE"];

/// Reads `packages`, `apt` and `requirements` of a pool.
pub(super) fn dependencies(from: &mut Layers, section: &str, file: Option<&Path>) -> Dependencies {
    let python = list(from, &format!("{section}.packages"), Requirement::parse);
    let apt = list(from, &format!("{section}.apt"), DebianPackage::parse);
    let key = format!("{section}.requirements");
    let (named, source) = from.take_from(&key, None::<String>);
    let requirements = named.and_then(|named| match read(&named, file) {
        Ok(text) => Some(Requirements::new(text)),
        Err(message) => {
            from.problem(source, &key, message);
            None
        }
    });
    Dependencies::new(python, apt, requirements)
}

/// How installers reach their indexes; `own` is the server's environment.
pub(super) fn installers(network: String, own: &[(String, String)]) -> Installers {
    let value = |name: &str| {
        own.iter()
            .find(|(known, value)| known == name && !value.is_empty())
    };
    let env = FOR_INSTALLERS.iter().filter_map(|name| value(name));
    let certificates = CERTIFICATES.iter().filter_map(|name| value(name));
    Installers {
        network,
        env: env
            .map(|(name, value)| (name.clone(), Masked::new(value.clone())))
            .collect(),
        certificates: certificates
            .map(|(_, path)| PathBuf::from(path))
            .chain(Installers::default().certificates)
            .collect(),
    }
}

/// Reads a list, and has every entry that is wrong told.
fn list<T>(from: &mut Layers, key: &str, parse: fn(&str) -> Result<T, String>) -> Vec<T> {
    let (entries, source) = from.take_from(key, Vec::<String>::new());
    if entries.len() > ENTRIES {
        let message = format!("at most {ENTRIES} entries: write more into a file for requirements");
        from.problem(source, key, message);
        return Vec::new();
    }
    let mut read = Vec::with_capacity(entries.len());
    for entry in entries {
        match parse(&entry) {
            Ok(one) => read.push(one),
            Err(message) => from.problem(Source::clone(&source), key, message),
        }
    }
    read
}

/// A requirements file's text; a relative path begins where the configuration lies.
fn read(named: &str, file: Option<&Path>) -> Result<String, String> {
    let path = match (Path::new(named), file.and_then(Path::parent)) {
        (path, _) if path.is_absolute() => path.to_owned(),
        (path, Some(folder)) => folder.join(path),
        (path, None) => {
            let message =
                "is not an absolute path, and there is no file of the configuration that it could lie beside";
            return Err(format!("{} {message}", path.display()));
        }
    };
    let shown = path.display();
    let unreadable = |error| format!("{shown} cannot be read: {error}");
    let facts = fs::metadata(&path).map_err(unreadable)?;
    // Anything but a regular file could be waited for without end.
    if !facts.is_file() {
        return Err(format!("{shown} is no file"));
    }
    if facts.len() > FILE_BYTES {
        return Err(format!("{shown} is larger than {} KiB", FILE_BYTES >> 10));
    }
    let text = fs::read_to_string(&path).map_err(unreadable)?;
    if text.contains('\0') {
        return Err(format!("{shown} is no text"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use crate::config::{Inputs, Loaded};

    fn inputs(text: &str) -> Inputs {
        Inputs {
            text: text.to_owned(),
            root: true,
            cpus: 2,
            ..Inputs::default()
        }
    }

    #[test]
    fn what_is_wrong_with_any_entry_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("large.txt"), vec![b'#'; (1 << 20) + 1]).unwrap();
        std::fs::write(folder.path().join("binary.txt"), b"\xff").unwrap();
        let text = "[pool.a]\npackages = [\"six\", \"--pre\", \"x; rm -rf /\"]\napt = [\"libpq5-\"]\n\
                    requirements = \"missing.txt\"\n[pool.b]\nrequirements = \"large.txt\"\n[pool.c]\n\
                    requirements = \"binary.txt\"\n[pool.d]\nrequirements = \".\"\ninstall_timeout = \"0s\"\n";
        let inputs = Inputs {
            file: Some(folder.path().join("greenroom.toml")),
            ..inputs(&format!("default_pool = \"a\"\n{text}"))
        };
        let report = Loaded::read(&inputs).unwrap_err().to_string();
        for line in [
            ":3: pool.a.packages: \"--pre\" is no Python package",
            ":3: pool.a.packages: \"x; rm -rf /\" is no Python package: options",
            ":4: pool.a.apt: \"libpq5-\" is no Debian package",
            ":5: pool.a.requirements: ",
            "missing.txt cannot be read: No such file",
            ":7: pool.b.requirements: ",
            "large.txt is larger than 1024 KiB",
            ":9: pool.c.requirements: ",
            "binary.txt cannot be read: stream did not contain valid UTF-8",
            ":11: pool.d.requirements: ",
            " is no file",
            ":12: pool.d.install_timeout: must be at least 1s",
        ] {
            assert!(report.contains(line), "{line}\nis missing in\n{report}");
        }
        assert!(report.starts_with("the configuration has 8 problems"), "{report}");
        let nowhere = super::read("x.txt", None).unwrap_err();
        assert!(nowhere.contains("not an absolute path"), "{nowhere}");
    }

    #[test]
    fn a_pool_has_what_it_lists_and_a_changed_file_is_another_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let load = |content: &str| {
            std::fs::write(folder.path().join("r.txt"), content).unwrap();
            let text = "[pool.python]\npackages = [\"six==1\"]\napt = [\"jq\"]\nrequirements = \"r.txt\"\n";
            let inputs = Inputs {
                file: Some(folder.path().join("greenroom.toml")),
                ..inputs(text)
            };
            let loaded = Loaded::read(&inputs).unwrap();
            let pool = loaded.config.pools[&loaded.config.default_pool].clone();
            (pool, loaded.to_toml())
        };
        let (pool, shown) = load("--index-url https://me:hidden@example.org\n");
        let wished = &pool.dependencies;
        assert_eq!(
            (wished.python()[0].as_str(), wished.apt()[0].as_str()),
            ("six==1", "jq")
        );
        assert!(wished.requirements().unwrap().reveal().contains("hidden"));
        assert!(
            !shown.contains("hidden") && shown.contains("\"r.txt\""),
            "{shown}"
        );
        assert!(!format!("{pool:?}").contains("hidden"));
        assert_ne!(load("x\n").0, pool);
    }

    #[test]
    fn installers_get_what_leads_to_an_index_and_nothing_else() {
        let own = [
            ("PIP_INDEX_URL", "https://me:secret@example.org/simple"),
            ("PIP_TARGET", "/elsewhere"),
            ("PIP_CERT", "/my/certs.pem"),
            ("https_proxy", "http://proxy:3128"),
            ("HTTP_PROXY", ""),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("GREENROOM_SECRET_FILE", "/secret"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let installers = super::installers("bridge".to_owned(), &own);
        let names: Vec<_> = installers.env.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["PIP_INDEX_URL", "https_proxy"]);
        assert_eq!(installers.certificates[0].to_str(), Some("/my/certs.pem"));
        assert!(!format!("{installers:?}").contains("secret"));
    }
}
