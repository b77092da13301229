//! Languages: what a run asks for, and what a kernel offers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes of a [`KernelName`].
const NAME_BYTES: usize = 24;

/// What runs code. Python and the shell are the agent's own; everything else is a Jupyter kernel of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Language {
    /// IPython, or the plain interpreter where the image has no IPython.
    Python,
    /// One persistent bash.
    Bash,
    /// The same with a plain POSIX shell, in images that have no bash.
    Sh,
    /// JavaScript: a kernel of its own, or the one for TypeScript.
    JavaScript,
    /// TypeScript.
    TypeScript,
    /// Any other, by the language or the name of its kernelspec.
    Other(KernelName),
}

impl Language {
    /// Those with a name here, in the order in which they are offered.
    pub const KNOWN: [Self; 5] = [
        Self::Python,
        Self::Bash,
        Self::Sh,
        Self::JavaScript,
        Self::TypeScript,
    ];

    /// The name on the wire and in answers.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Python => "python",
            Self::Bash => "bash",
            Self::Sh => "sh",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Other(name) => name.as_str(),
        }
    }

    /// Whose kernel runs it where it has none: so that what one says the other knows. An image has one shell, which
    /// answers to both names.
    #[must_use]
    pub const fn stand_in(&self) -> Option<Self> {
        match self {
            Self::JavaScript => Some(Self::TypeScript),
            Self::Bash => Some(Self::Sh),
            Self::Sh => Some(Self::Bash),
            Self::Python | Self::TypeScript | Self::Other(_) => None,
        }
    }

    /// Whether its code is commands.
    #[must_use]
    pub const fn is_shell(&self) -> bool {
        matches!(self, Self::Bash | Self::Sh)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no name of a language: 1 to 24 letters, digits and `+#._-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLanguage;

impl fmt::Display for NoLanguage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a language's name has 1 to {NAME_BYTES} letters, digits and +#._-"
        )
    }
}

impl std::error::Error for NoLanguage {}

impl FromStr for Language {
    type Err = NoLanguage;

    /// Accepts the names and the aliases that people and models write.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let name = name.trim().to_ascii_lowercase();
        Ok(match name.as_str() {
            "python" | "python3" | "py" | "ipython" => Self::Python,
            "bash" => Self::Bash,
            "sh" | "shell" => Self::Sh,
            "javascript" | "js" => Self::JavaScript,
            "typescript" | "ts" => Self::TypeScript,
            _ => Self::Other(KernelName::parse(&name)?),
        })
    }
}

impl TryFrom<String> for Language {
    type Error = NoLanguage;

    fn try_from(name: String) -> Result<Self, NoLanguage> {
        name.parse()
    }
}

impl From<Language> for String {
    fn from(language: Language) -> Self {
        language.as_str().to_owned()
    }
}

/// The name of a kernel that this crate does not know: lower case and short, so that it can be carried about
/// like the ones that it knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelName {
    bytes: [u8; NAME_BYTES],
    length: u8,
}

impl KernelName {
    fn parse(name: &str) -> Result<Self, NoLanguage> {
        let fits = (1..=NAME_BYTES).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+#._-".contains(&b));
        if !fits {
            return Err(NoLanguage);
        }
        let mut bytes = [0; NAME_BYTES];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let length = u8::try_from(name.len()).map_err(|_| NoLanguage)?;
        Ok(Self { bytes, length })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_name_their_language() {
        for (name, language) in [
            ("py", Language::Python),
            ("Python", Language::Python),
            ("bash", Language::Bash),
            ("sh", Language::Sh),
            ("shell", Language::Sh),
            ("JS", Language::JavaScript),
            (" ts ", Language::TypeScript),
        ] {
            assert_eq!(name.parse(), Ok(language), "{name}");
        }
        for language in Language::KNOWN {
            assert_eq!(language.as_str().parse(), Ok(language));
        }
    }

    #[test]
    fn any_kernel_has_a_name() {
        for name in ["r", "c++17", "julia-1.11", "f#"] {
            let language: Language = name.to_uppercase().parse().unwrap();
            assert_eq!(language.as_str(), name);
            let json = serde_json::to_string(&language).unwrap();
            assert_eq!(json, format!("{name:?}"));
            assert_eq!(serde_json::from_str::<Language>(&json).unwrap(), language);
        }
        for name in ["", " ", "a b", "../x", "é", &"x".repeat(25)] {
            assert_eq!(name.parse::<Language>(), Err(NoLanguage), "{name}");
        }
        assert!(serde_json::from_str::<Language>("\"a b\"").is_err());
    }
}
