//! What a pool adds to its image: Python packages and Debian packages, each checked so that it can be nothing but the
//! name of one, and the hash that tells one such list from another.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::conversation::hex;

/// Goes up when the same list would come out as another image: what is kept of an installation, or how it is done.
const FORMAT: u32 = 2;

/// Longest entry of a list; a direct reference with its hash is 200 characters.
const ENTRY_BYTES: usize = 500;

/// Comparisons of a version, the longest first: `===` begins as `==` does.
const COMPARISONS: [&str; 8] = ["===", "==", "~=", "!=", "<=", ">=", "<", ">"];

/// Schemes that a direct reference may have. Not `file`: nothing of this machine is in the container that installs.
const SCHEMES: [&str; 3] = ["https://", "http://", "git+https://"];

/// What is installed on top of an image. Lists are sorted and have nothing twice, so that equal wishes are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dependencies {
    python: Vec<Requirement>,
    apt: Vec<DebianPackage>,
    requirements: Option<Requirements>,
}

impl Dependencies {
    /// What is to be installed.
    #[must_use]
    pub fn new(
        mut python: Vec<Requirement>,
        mut apt: Vec<DebianPackage>,
        requirements: Option<Requirements>,
    ) -> Self {
        python.sort_unstable();
        python.dedup();
        apt.sort_unstable();
        apt.dedup();
        Self {
            python,
            apt,
            requirements,
        }
    }

    /// Whether there is nothing to install.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.python.is_empty() && self.apt.is_empty() && self.requirements.is_none()
    }

    /// Python packages.
    #[must_use]
    pub fn python(&self) -> &[Requirement] {
        &self.python
    }

    /// Debian packages.
    #[must_use]
    pub fn apt(&self) -> &[DebianPackage] {
        &self.apt
    }

    /// A file of further Python packages.
    #[must_use]
    pub const fn requirements(&self) -> Option<&Requirements> {
        self.requirements.as_ref()
    }

    /// Names what comes of installing this on an image, by the engine's id of that: equal names, equal wishes. Which
    /// versions an index had on the day is no part of it: who wants to be sure pins them.
    #[must_use]
    pub fn digest(&self, image_id: &str) -> String {
        let mut hash = Sha256::new();
        // Lengths go first, so that no two lists run together into the same bytes.
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        part(&FORMAT.to_string());
        part(image_id);
        part(&self.python.len().to_string());
        self.python.iter().for_each(|one| part(&one.0));
        part(&self.apt.len().to_string());
        self.apt.iter().for_each(|one| part(&one.0));
        part(self.requirements.as_ref().map_or("", |file| &file.0));
        hex(&hash.finalize()[..16])
    }
}

/// One Python package as pip takes it: `geopandas==1.1`, `uvicorn[standard]>=0.30,<1`, `x @ https://…`. Never an option,
/// a path, or anything that a shell or a requirements file would read differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement(String);

impl Requirement {
    /// Reads one, in the grammar of PEP 508.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        // First, since every other message shows what was written.
        if has_userinfo(text) {
            let name = text
                .split(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))
                .next()
                .unwrap_or_default();
            return Err(format!(
                "the address of {name:?} has a user or a password, which logs would show: write it into the pool's \
                 `requirements` file, or into PIP_INDEX_URL of the server's environment"
            ));
        }
        let wrong = |why: &str| format!("{text:?} is no Python package: {why}");
        printable(text).map_err(|why| wrong(&why))?;
        let name = text
            .find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(name);
        if !is_python_name(name) {
            return Err(wrong("write its name, as in geopandas or geopandas==1.1"));
        }
        let rest =
            after_extras(rest.trim_start()).ok_or_else(|| wrong("its extras are written [one,two]"))?;
        if let Some(reference) = rest.strip_prefix('@') {
            let address = reference.split(" ;").next().unwrap_or_default().trim();
            if !SCHEMES.iter().any(|scheme| address.starts_with(scheme)) || address.contains(' ') {
                return Err(wrong("after @ comes an address with https, http or git+https"));
            }
        } else {
            let versions = rest.split(';').next().unwrap_or_default().trim();
            if !versions.is_empty() && !versions.split(',').all(is_comparison) {
                return Err(wrong("its versions are written ==1.1, or >=1.1,<2"));
            }
        }
        // In a marker too, since pip takes what follows for its own.
        if text.split(' ').any(|word| word.starts_with('-')) {
            return Err(wrong("options have no place here"));
        }
        Ok(Self(text.to_owned()))
    }

    /// As pip takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One Debian package as apt takes it: `libpq5`, or `libpq5=17.5-1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DebianPackage(String);

impl DebianPackage {
    /// Reads one, in the grammar of Debian's policy.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = |why: &str| format!("{text:?} is no Debian package: {why}");
        printable(text).map_err(|why| wrong(&why))?;
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let all =
            |text: &str, more: &str, is: fn(&char) -> bool| text.chars().all(|c| is(&c) || more.contains(c));
        let begins = |text: &str, is: fn(&char) -> bool| text.chars().next().is_some_and(|c| is(&c));
        let small = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
        // With a dash at its end apt would remove the package.
        if name.len() < 2 || !begins(name, small) || !all(name, "+.-", small) || name.ends_with('-') {
            return Err(wrong("a name is small letters, digits and + . -, as in libpq5"));
        }
        let fits = |version: &str| {
            begins(version, char::is_ascii_digit) && all(version, ".+:~-", char::is_ascii_alphanumeric)
        };
        if version.is_some_and(|version| !fits(version)) {
            return Err(wrong("a version is written libpq5=17.5-1"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Its name alone.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split('=').next().unwrap_or_default()
    }

    /// As apt takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The contents of a requirements file: pip's own syntax, options and hashes included. It may name an index with a
/// password, so it is never shown; what tells two apart is.
#[derive(Clone, PartialEq, Eq)]
pub struct Requirements(String);

impl Requirements {
    /// Takes a file's text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself: for the container that installs from it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Requirements({})", hex(&Sha256::digest(&self.0)[..8]))
    }
}

fn printable(text: &str) -> Result<(), String> {
    if text.len() > ENTRY_BYTES {
        return Err(format!("it is longer than {ENTRY_BYTES} bytes"));
    }
    // `$` and `\` mean something to pip, the others to a shell that never sees this, and none is in a package's name.
    match text
        .chars()
        .find(|c| !matches!(c, ' '..='~') || "$\\`|{}".contains(*c))
    {
        Some(stranger) => Err(format!("{stranger:?} has no place in it")),
        None => Ok(()),
    }
}

/// Whether an address in it says who asks: what stands between `://` and an `@` that the path has not begun before.
fn has_userinfo(text: &str) -> bool {
    text.split("://").skip(1).any(|address| {
        let authority = address.split(['/', '?', '#', ' ']).next();
        authority.is_some_and(|authority| authority.contains('@'))
    })
}

fn is_python_name(name: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    ends(name.chars().next()) && ends(name.chars().next_back())
}

/// What follows the extras, where there are any.
fn after_extras(rest: &str) -> Option<&str> {
    let Some(extras) = rest.strip_prefix('[') else {
        return Some(rest);
    };
    let (extras, rest) = extras.split_once(']')?;
    let is_good = |extra: &str| {
        is_python_name(extra)
            && extra
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    extras
        .split(',')
        .all(|extra| is_good(extra.trim()))
        .then(|| rest.trim_start())
}

/// Whether it is one comparison with a version, such as `>=1.1`.
fn is_comparison(text: &str) -> bool {
    let text = text.trim();
    let version = COMPARISONS.iter().find_map(|sign| text.strip_prefix(sign));
    version.is_some_and(|version| {
        let version = version.trim_start();
        version.starts_with(|c: char| c.is_ascii_alphanumeric())
            && version
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || ".*+!_-".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_python_package_is_a_name_with_versions_and_nothing_else() {
        for good in [
            "six",
            "geopandas==1.1",
            "geopandas == 1.1",
            " ruamel.yaml ",
            "uvicorn[standard]>=0.30,<1",
            "a[b, c-d] ~= 2.0",
            "torch==2.8.0+cpu",
            "x===1!2.0.post1",
            "pywin32; sys_platform == \"win32\"",
            "numpy>=2 ; python_version < '3.13' and extra == 'x'",
            "x @ https://example.org/x-1-py3-none-any.whl#sha256=00ff",
            "x @ git+https://example.org/x.git@v1 ; python_version > '3'",
        ] {
            assert_eq!(Requirement::parse(good).unwrap().as_str(), good.trim(), "{good}");
        }
        for (bad, why) in [
            ("", "write its name"),
            ("-r", "write its name"),
            ("--index-url=http://evil", "write its name"),
            ("-e .", "write its name"),
            ("./x", "write its name"),
            ("/etc/passwd", "write its name"),
            ("x-", "write its name"),
            ("six --pre", "versions"),
            ("six==1 --hash=sha256:00", "versions"),
            ("six; python_version > '3' --pre", "options"),
            ("six ; --pre", "options"),
            ("x @ file:///etc/passwd", "after @"),
            ("x @ https://a.example/x --pre", "after @"),
            ("x @ https://a.example/x ; --pre", "options"),
            ("six==", "versions"),
            ("six=1", "versions"),
            ("six && rm", "versions"),
            ("six\n-r other", r"'\n' has no place"),
            ("six==${SECRET}", "'$' has no place"),
            ("six\\", r"'\\' has no place"),
            ("six`id`", "'`' has no place"),
            ("sïx", "has no place"),
            ("x[", "extras"),
            ("x[]", "extras"),
            ("x[a;b]", "extras"),
        ] {
            let error = Requirement::parse(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(Requirement::parse(&"x".repeat(501)).is_err());
    }

    #[test]
    fn an_address_with_a_password_is_refused_and_not_shown() {
        for bad in [
            "x @ https://me:hidden@example.org/x-1.tar.gz",
            "x @ https://hidden@example.org/x-1.tar.gz",
            "x@git+https://me:hidden@example.org/x.git@v1",
            "x @ ftp://me:hidden@example.org/x",
            "x @ https://me:$hidden@example.org/x",
            "https://me:hidden@example.org/x",
        ] {
            let error = Requirement::parse(bad).unwrap_err();
            assert!(
                error.contains("requirements") && error.contains("PIP_INDEX_URL"),
                "{error}"
            );
            assert!(!error.contains("hidden"), "{error}");
        }
        assert!(Requirement::parse("x @ https://example.org/a@b/x.tar.gz").is_ok());
    }

    #[test]
    fn a_debian_package_is_a_name_with_a_version_and_nothing_else() {
        for good in [
            "libpq5",
            "g++",
            "libstdc++6",
            "python3.13",
            "libpq5=17.5-0+deb13u1",
            "x1=1:2~rc1",
        ] {
            assert_eq!(DebianPackage::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "x",
            "-y",
            "--yes",
            "libpq5-",
            "Libpq5",
            "libpq5/sid",
            "libpq5=",
            "libpq5=-1",
            "libpq5=a",
            "a b",
            "./x.deb",
            "lib;id",
            "lib$x",
            "^lib.*",
            "lib\n",
            "lib\nx",
            "libpq5:amd64",
        ] {
            // What surrounds it is cut off.
            let parsed = DebianPackage::parse(bad);
            assert!(parsed.is_err() || bad == "lib\n", "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_can_be_no_option_and_no_line_of_its_own(text: String) {
            for read in [
                Requirement::parse(&text).map(|one| one.0),
                DebianPackage::parse(&text).map(|one| one.0),
            ].into_iter().flatten() {
                prop_assert!(read.split(' ').all(|word| !word.starts_with('-')));
                prop_assert!(!read.is_empty() && read.chars().all(|c| matches!(c, ' '..='~')));
            }
        }
    }

    fn python(names: &[&str]) -> Vec<Requirement> {
        names
            .iter()
            .map(|name| Requirement::parse(name).unwrap())
            .collect()
    }

    fn apt(names: &[&str]) -> Vec<DebianPackage> {
        names
            .iter()
            .map(|name| DebianPackage::parse(name).unwrap())
            .collect()
    }

    #[test]
    fn a_digest_changes_with_everything_that_is_wished_for_and_with_nothing_else() {
        let file = |text: &str| Some(Requirements::new(text.to_owned()));
        let wishes = [
            Dependencies::new(python(&["six"]), Vec::new(), None),
            Dependencies::new(python(&["six==1"]), Vec::new(), None),
            Dependencies::new(python(&["six", "numpy"]), Vec::new(), None),
            Dependencies::new(Vec::new(), apt(&["six"]), None),
            Dependencies::new(python(&["six"]), apt(&["jq"]), None),
            Dependencies::new(Vec::new(), Vec::new(), file("six")),
            Dependencies::new(Vec::new(), Vec::new(), file("six\n")),
            Dependencies::new(python(&["six"]), Vec::new(), file("six")),
        ];
        let mut digests: Vec<_> = wishes.iter().map(|wish| wish.digest("sha256:a")).collect();
        digests.push(wishes[0].digest("sha256:b"));
        let all = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), all);
        let twice = Dependencies::new(python(&["numpy", "six", " six"]), Vec::new(), None);
        assert_eq!(twice, wishes[2]);
        assert_eq!(twice.digest("sha256:a"), wishes[2].digest("sha256:a"));
        assert!(Dependencies::default().is_empty() && !twice.is_empty());
    }

    #[test]
    fn a_requirements_file_is_not_shown() {
        let shown = |text: &str| format!("{:?}", Requirements::new(text.to_owned()));
        assert!(!shown("--index-url https://me:secret@x").contains("secret"));
        assert_ne!(shown("a"), shown("b"), "a changed file is another configuration");
    }
}
