//! The layers that a setting may come from, and the walk over them that finds every problem at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::settings::Setting;

/// Prefix of the environment variables that are settings.
const ENV_PREFIX: &str = "GREENROOM_";

/// A value as some layer wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    /// A TOML string.
    Text(String),
    /// A variable or a flag: the setting's type decides how to read it.
    Loose(String),
    /// A TOML number, as written.
    Number(String),
    /// A TOML boolean.
    Bool(bool),
    /// A TOML array.
    List(Vec<Self>),
    /// Something that no setting takes.
    Other(&'static str),
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A line of the file, from 1.
    File(usize),
    /// An environment variable.
    Env(String),
    /// The command line.
    Flag,
    /// Nobody set it.
    Default,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub source: Source,
    /// The setting's key, empty for syntax errors.
    pub key: String,
    /// What, and what would be right.
    pub message: String,
}

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Debug, thiserror::Error)]
pub struct Report {
    pub(super) file: Option<PathBuf>,
    /// The problems.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        writeln!(
            f,
            "the configuration has {count} problem{}:",
            if count == 1 { "" } else { "s" }
        )?;
        for problem in &self.problems {
            write!(f, "  {}: ", self.place(&problem.source))?;
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            writeln!(f, "{}", problem.message)?;
        }
        Ok(())
    }
}

impl Report {
    fn place(&self, source: &Source) -> String {
        place(source, self.file.as_deref())
    }
}

/// A source as `greenroom config` and reports print it.
pub(super) fn place(source: &Source, file: Option<&Path>) -> String {
    match source {
        Source::File(line) => match file {
            Some(path) => format!("{}:{line}", path.display()),
            None => format!("line {line}"),
        },
        Source::Env(name) => name.clone(),
        Source::Flag => "command line".to_owned(),
        Source::Default => "default".to_owned(),
    }
}

/// A setting as it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Its key, dotted.
    pub key: String,
    /// Its value as TOML, empty where it has none.
    pub value: String,
    /// Who set it.
    pub source: Source,
}

/// File, environment and flags, from which settings are taken one by one.
#[derive(Debug, Default)]
pub(super) struct Layers {
    file: BTreeMap<String, (usize, Raw)>,
    tables: BTreeMap<String, usize>,
    env: BTreeMap<String, String>,
    flags: BTreeMap<String, String>,
    known: BTreeSet<String>,
    used_env: BTreeSet<String>,
    pub(super) effective: Vec<Effective>,
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    /// Reads the file's text and keeps the variables that start with `GREENROOM_`. Empty ones count as unset.
    pub(super) fn new(
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut layers = Self {
            env: env
                .into_iter()
                .filter(|(name, value)| name.starts_with(ENV_PREFIX) && !value.is_empty())
                .collect(),
            flags: flags.into_iter().collect(),
            ..Self::default()
        };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            layers.problem(Source::File(line), "", error.message().to_owned());
        }
        layers.flatten(text, "", document.get_ref());
        layers
    }

    fn flatten(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = join(prefix, name.get_ref());
            let line = line_of(text, name.span().start);
            if let DeValue::Table(inner) = value.get_ref() {
                self.tables.insert(key.clone(), line);
                self.flatten(text, &key, inner);
            } else {
                self.file.insert(key, (line, raw(value.get_ref())));
            }
        }
    }

    /// The names of the tables directly under `section`, with their lines.
    pub(super) fn tables_under(&self, section: &str) -> Vec<(String, usize)> {
        let prefix = format!("{section}.");
        let under = self.tables.iter().filter_map(|(key, line)| {
            let name = key.strip_prefix(&prefix)?;
            (!name.contains('.') || name.starts_with('"')).then(|| (name.to_owned(), *line))
        });
        under.collect()
    }

    /// Takes a setting: the flag, else the variable, else the file's, else the default. What cannot be read is
    /// a problem, and the default stands in so that the walk goes on.
    pub(super) fn take<T: Setting>(&mut self, key: &str, default: T) -> T {
        self.take_from(key, default).0
    }

    /// [`take`](Self::take), with the source, for checks that a later problem has to point at.
    pub(super) fn take_from<T: Setting>(&mut self, key: &str, default: T) -> (T, Source) {
        self.known.insert(key.to_owned());
        let variable = variable(key);
        let ambiguous = self.env.contains_key(&variable) && !self.used_env.insert(variable.clone());
        if ambiguous {
            let message = "this variable names two settings; set them in the file".to_owned();
            self.problem(Source::Env(variable.clone()), key, message);
        }
        let found = if let Some(text) = self.flags.get(key) {
            Some((Raw::Loose(text.clone()), Source::Flag))
        } else if let Some(text) = self.env.get(&variable) {
            Some((Raw::Loose(text.clone()), Source::Env(variable)))
        } else {
            self.file
                .get(key)
                .map(|(line, raw)| (raw.clone(), Source::File(*line)))
        };
        let (value, source) = match found {
            None => (default, Source::Default),
            Some((raw, source)) => match T::read(&raw) {
                Ok(value) => (value, source),
                Err(message) => {
                    self.problem(source.clone(), key, message);
                    (default, source)
                }
            },
        };
        self.effective.push(Effective {
            key: key.to_owned(),
            value: value.show(),
            source: source.clone(),
        });
        (value, source)
    }

    /// Takes every text directly under a section, whatever it is called: flags over the file. Variables do not reach
    /// there, and the values are not shown.
    pub(super) fn take_secrets(&mut self, section: &str) -> Vec<(String, String, Source)> {
        let prefix = format!("{section}.");
        let file = self
            .file
            .iter()
            .map(|(key, (line, raw))| (key.clone(), raw.clone(), Source::File(*line)));
        let flags = self
            .flags
            .iter()
            .map(|(key, text)| (key.clone(), Raw::Loose(text.clone()), Source::Flag));
        let found: BTreeMap<String, (Raw, Source)> = file
            .chain(flags)
            .filter(|(key, ..)| key.starts_with(&prefix))
            .map(|(key, raw, source)| (key, (raw, source)))
            .collect();
        // An empty table is one all the same.
        self.tables.remove(section);
        let mut taken = Vec::new();
        for (key, (raw, source)) in found {
            self.known.insert(key.clone());
            let name = key[prefix.len()..].to_owned();
            match raw {
                Raw::Text(text) | Raw::Loose(text) if !text.contains('\0') => {
                    self.effective.push(Effective {
                        key,
                        value: "\"****\"".to_owned(),
                        source: source.clone(),
                    });
                    taken.push((name, text, source));
                }
                Raw::Text(_)
                | Raw::Loose(_)
                | Raw::Number(_)
                | Raw::Bool(_)
                | Raw::List(_)
                | Raw::Other(_) => self.problem(source, &key, "expected text".to_owned()),
            }
        }
        taken
    }

    /// Whether any key under a section is set.
    pub(super) fn is_set_under(&self, section: &str) -> bool {
        self.first_under(section) != Source::Default
    }

    /// Where the first key under a section was set.
    pub(super) fn first_under(&self, section: &str) -> Source {
        let prefix = format!("{section}.");
        let mut under = self
            .effective
            .iter()
            .filter(|effective| effective.key.starts_with(&prefix) && effective.source != Source::Default);
        under
            .next()
            .map_or(Source::Default, |effective| effective.source.clone())
    }

    /// Where a setting that was taken came from.
    pub(super) fn source(&self, key: &str) -> Source {
        let taken = self.effective.iter().find(|effective| effective.key == key);
        taken.map_or(Source::Default, |effective| effective.source.clone())
    }

    pub(super) fn problem(&mut self, source: Source, key: &str, message: String) {
        self.problems.push(Problem {
            source,
            key: key.to_owned(),
            message,
        });
    }

    /// Keys below `section` are no further problem: the section itself is one.
    pub(super) fn give_up_on(&mut self, section: &str) {
        let inner = format!("{section}.");
        self.file.retain(|key, _| !key.starts_with(&inner));
        self.tables
            .retain(|key, _| key != section && !key.starts_with(&inner));
    }

    /// Reports every key that nobody took, with the keys that are known beside it.
    pub(super) fn finish(&mut self) {
        let mut strays: Vec<(Source, String)> = Vec::new();
        for (key, (line, _)) in &self.file {
            if !self.known.contains(key) {
                strays.push((Source::File(*line), key.clone()));
            }
        }
        for (key, line) in &self.tables {
            let inner = format!("{key}.");
            let within = |known: &String| known.starts_with(&inner);
            let has_keys = self.file.keys().any(within);
            if !has_keys && !self.known.iter().any(within) {
                strays.push((Source::File(*line), key.clone()));
            }
        }
        for key in self.flags.keys().filter(|key| !self.known.contains(*key)) {
            strays.push((Source::Flag, key.clone()));
        }
        for (source, key) in strays {
            let message = self.unknown(&key);
            self.problem(source, &key, message);
        }
        for name in self
            .env
            .keys()
            .filter(|name| !self.used_env.contains(*name))
            .cloned()
            .collect::<Vec<_>>()
        {
            let message = "no setting has this variable; `greenroom config` lists the settings".to_owned();
            self.problem(Source::Env(name), "", message);
        }
        self.problems.sort();
        self.problems.dedup();
    }

    fn unknown(&self, key: &str) -> String {
        let section = key.rsplit_once('.').map_or("", |(section, _)| section);
        let mut beside: Vec<&str> = self
            .known
            .iter()
            .filter_map(|known| match section {
                "" => known.split('.').next(),
                _ => known.strip_prefix(section)?.strip_prefix('.'),
            })
            .collect();
        beside.dedup();
        if beside.is_empty() {
            format!("there is no section {section:?}")
        } else {
            format!("unknown key; known here: {}", beside.join(", "))
        }
    }
}

/// The variable that overrides a key: `pool.python.warm` is `GREENROOM_POOL_PYTHON_WARM`.
pub(super) fn variable(key: &str) -> String {
    format!(
        "{ENV_PREFIX}{}",
        key.replace(['.', '-'], "_").to_ascii_uppercase()
    )
}

fn join(prefix: &str, name: &str) -> String {
    let plain = !name.is_empty() && !name.contains(|c: char| c == '.' || c.is_control() || c == '"');
    let name = if plain {
        name.to_owned()
    } else {
        format!("{name:?}")
    };
    if prefix.is_empty() {
        name
    } else {
        format!("{prefix}.{name}")
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Raw::Number(number.to_string()),
            Err(_) => Raw::Other("a number out of range"),
        },
        DeValue::Float(number) => Raw::Number(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Raw::Bool(*flag),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|b| **b == b'\n').count() + 1
}
