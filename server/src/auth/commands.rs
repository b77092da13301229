//! `greenroom key`: keys made, shown and taken back, as texts.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use super::{ApiKey, BadKey, KeyError, KeyFile, KeyId, Order, Record, Scope};
use crate::{config::Config, conversation::PoolName, operator::Format};

const HEADS: [&str; 6] = ["ID", "NAME", "SCOPES", "POOLS", "CREATED", "EXPIRES"];

/// Why a command is not done.
#[derive(Debug, thiserror::Error)]
pub enum KeyCommandError {
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// A pool's name.
    #[error("{0}")]
    BadPool(String),
    /// No such pool.
    #[error("there is no pool {name}; there are: {known}")]
    NoPool {
        /// Which.
        name: PoolName,
        /// Those that are configured.
        known: String,
    },
    /// Neither an id nor a key.
    #[error("{text:?} is no key's id, which `greenroom key list` shows: {bad}")]
    NoId {
        /// What was typed, if that can be told.
        text: String,
        /// As a key.
        bad: BadKey,
    },
}

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What its operator calls it.
    pub name: String,
    /// What its holder may do; nothing is `run` and `files`.
    pub scopes: Vec<Scope>,
    /// Where, if not everywhere.
    pub pools: Vec<String>,
    /// How long, if not for ever.
    pub lasts: Option<Duration>,
}

/// A key that was made: the key is for standard output, so that a script can take it; the rest for whoever watches.
#[derive(Debug)]
pub struct Made {
    /// The key. It cannot be shown again.
    pub key: ApiKey,
    /// What to know of it.
    pub note: String,
}

/// `greenroom key create`
///
/// # Errors
/// [`KeyCommandError`].
pub fn create(config: &Config, wanted: Wanted) -> Result<Made, KeyCommandError> {
    let mut pools = Vec::new();
    for name in &wanted.pools {
        let name = PoolName::parse(name).map_err(KeyCommandError::BadPool)?;
        if !config.pools.contains_key(&name) {
            let known: Vec<&str> = config.pools.keys().map(PoolName::as_str).collect();
            let known = known.join(", ");
            return Err(KeyCommandError::NoPool { name, known });
        }
        if !pools.contains(&name) {
            pools.push(name);
        }
    }
    let scopes = if wanted.scopes.is_empty() {
        [Scope::Run, Scope::Files].into_iter().collect()
    } else {
        wanted.scopes.into_iter().collect()
    };
    let order = Order {
        name: wanted.name,
        scopes,
        pools,
        lasts: wanted.lasts,
    };
    let (key, record) = KeyFile::of(&config.state_dir).create(order, SystemTime::now())?;
    let until = record
        .expires
        .map_or_else(String::new, |time| format!(" until {}", shown(time)));
    let note = format!(
        "key {} is good for {} in {}{until}. It is shown this once; running servers know it already",
        record.id,
        scopes_of(&record),
        match record.pools.as_slice() {
            [] => "every pool".to_owned(),
            _ => format!("pool {}", pools_of(&record)),
        },
    );
    Ok(Made { key, note })
}

/// `greenroom key rotate`, by the id or by the whole key.
///
/// # Errors
/// [`KeyCommandError`].
pub fn rotate(config: &Config, which: &str, grace: Duration) -> Result<Made, KeyCommandError> {
    let id = named(which)?;
    let (key, record) = KeyFile::of(&config.state_dir).rotate(&id, grace, SystemTime::now())?;
    let until = match record.former {
        Some(former) => format!("the old one is good until {}", shown(former.until)),
        None => "the old one is none any more".to_owned(),
    };
    let note = format!("key {id} is another one now, with the same sessions; {until}");
    Ok(Made { key, note })
}

/// `greenroom key list`
///
/// # Errors
/// [`KeyCommandError`].
pub fn list(config: &Config, format: Format) -> Result<String, KeyCommandError> {
    let records = KeyFile::of(&config.state_dir).list()?;
    Ok(match format {
        Format::Json => {
            let keys: Vec<_> = records.iter().map(as_json).collect();
            format!("{:#}\n", json!(keys))
        }
        Format::Table if records.is_empty() => "there are no keys\n".to_owned(),
        Format::Table => table(&records, SystemTime::now()),
    })
}

/// `greenroom key revoke`, by the id or by the whole key.
///
/// # Errors
/// [`KeyCommandError`].
pub fn revoke(config: &Config, which: &str) -> Result<String, KeyCommandError> {
    let id = named(which)?;
    let file = KeyFile::of(&config.state_dir);
    let record = file.revoke(&id)?;
    let mut text = format!("revoked {} {}", record.id, record.name)
        .trim_end()
        .to_owned()
        + "\n";
    if file.list()?.is_empty() {
        text += "it was the last one: servers let nobody in by a key until there is another\n";
    }
    Ok(text)
}

/// Which key is meant.
fn named(which: &str) -> Result<KeyId, KeyCommandError> {
    match (KeyId::parse(which), ApiKey::parse(which)) {
        (Some(id), _) => Ok(id),
        (None, Ok(key)) => Ok(key.id().clone()),
        (None, Err(bad)) => {
            // What may be a key is not repeated.
            let text = match bad {
                BadKey::Check => "…".to_owned(),
                BadKey::Shape => which.chars().take(12).collect(),
            };
            Err(KeyCommandError::NoId { text, bad })
        }
    }
}

fn shown(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn scopes_of(record: &Record) -> String {
    let scopes: Vec<&str> = record.scopes.iter().map(Scope::as_str).collect();
    scopes.join(",")
}

fn pools_of(record: &Record) -> String {
    let pools: Vec<&str> = record.pools.iter().map(PoolName::as_str).collect();
    pools.join(",")
}

fn as_json(record: &Record) -> serde_json::Value {
    json!({
        "id": record.id.as_str(),
        "name": record.name,
        "scopes": record.scopes.iter().map(Scope::as_str).collect::<Vec<_>>(),
        "pools": record.pools.iter().map(PoolName::as_str).collect::<Vec<_>>(),
        "created": shown(record.created),
        "expires": record.expires.map(shown),
    })
}

fn table(records: &[Record], now: SystemTime) -> String {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let rows = records.iter().map(|record| {
        let expires = match record.expires {
            None => "never".to_owned(),
            Some(time) if record.is_expired(now) => format!("{} (over)", shown(time)),
            Some(time) => shown(time),
        };
        [
            record.id.to_string(),
            or_none(record.name.clone()),
            scopes_of(record),
            if record.pools.is_empty() {
                "all".to_owned()
            } else {
                pools_of(record)
            },
            shown(record.created),
            expires,
        ]
    });
    let rows: Vec<_> = std::iter::once(HEADS.map(str::to_owned)).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0);
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, Loaded};

    fn config(temp: &tempfile::TempDir) -> Config {
        let text = format!("state_dir = {:?}\n[pool.python]\n[pool.other]\n", temp.path());
        let inputs = Inputs {
            text,
            ..Inputs::default()
        };
        Loaded::read(&inputs).unwrap().config
    }

    #[test]
    fn a_key_is_made_listed_and_taken_back() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(&temp);
        assert_eq!(list(&config, Format::Table).unwrap(), "there are no keys\n");
        let made = create(&config, Wanted::default()).unwrap();
        assert!(made.note.contains("run,files in every pool"), "{}", made.note);
        assert!(!made.note.contains(made.key.reveal()));
        let narrow = Wanted {
            name: "ci".to_owned(),
            scopes: vec![Scope::Admin],
            pools: vec!["other".to_owned(), "other".to_owned()],
            lasts: Some(Duration::from_secs(0)),
        };
        let narrow = create(&config, narrow).unwrap();
        let table = list(&config, Format::Table).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(
            lines[0].starts_with("ID        NAME  SCOPES     POOLS  CREATED"),
            "{table}"
        );
        assert!(
            lines[1].contains("-     run,files  all") && lines[1].ends_with("never"),
            "{table}"
        );
        assert!(
            lines[2].contains("ci    admin      other") && lines[2].ends_with("(over)"),
            "{table}"
        );
        let json: serde_json::Value = serde_json::from_str(&list(&config, Format::Json).unwrap()).unwrap();
        assert_eq!(
            (&json[1]["name"], &json[1]["pools"][0], &json[0]["expires"]),
            (&"ci".into(), &"other".into(), &serde_json::Value::Null)
        );
        assert_eq!(
            revoke(&config, made.key.id().as_str()).unwrap(),
            format!("revoked {}\n", made.key.id())
        );
        let last = revoke(&config, narrow.key.reveal()).unwrap();
        assert!(
            last.starts_with(&format!("revoked {} ci\nit was the last one", narrow.key.id())),
            "{last}"
        );
    }

    #[test]
    fn a_typo_is_told_from_an_unknown_key() {
        let temp = tempfile::tempdir().unwrap();
        let config = config(&temp);
        let key = create(&config, Wanted::default()).unwrap().key;
        let mut typo = key.reveal().to_owned();
        typo.pop();
        typo.push('_');
        let wrong = revoke(&config, &typo).unwrap_err().to_string();
        assert!(
            wrong.contains("that is no key") && !wrong.contains(&key.reveal()[12..]),
            "{wrong}"
        );
        typo.pop();
        typo.push(if key.reveal().ends_with('0') { '1' } else { '0' });
        let wrong = revoke(&config, &typo).unwrap_err().to_string();
        assert!(
            wrong.contains("copied wrongly") && !wrong.contains(&key.reveal()[4..20]),
            "{wrong}"
        );
        let unknown = ApiKey::mint().unwrap();
        let wrong = revoke(&config, unknown.reveal()).unwrap_err().to_string();
        assert!(
            wrong.contains(&format!("there is no key {}", unknown.id())),
            "{wrong}"
        );
        for pools in ["nowhere", "No Pool"] {
            let wanted = Wanted {
                pools: vec![pools.to_owned()],
                ..Wanted::default()
            };
            let refused = create(&config, wanted).unwrap_err().to_string();
            assert!(refused.contains("pool"), "{refused}");
        }
        assert_eq!(KeyFile::of(&config.state_dir).list().unwrap().len(), 1);
    }
}
