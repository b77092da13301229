//! How each type of setting is read from a layer and printed back.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use greenroom_protocol::Language;

use super::{
    layers::Raw,
    units::{Cpus, Period, Size},
};
use crate::conversation::PoolName;

/// A type that a setting may have.
pub(super) trait Setting: Sized {
    /// Reads a value, or says what would be right.
    fn read(raw: &Raw) -> Result<Self, String>;
    /// The value as TOML.
    fn show(&self) -> String;
}

/// What an error calls a value.
fn name(raw: &Raw) -> String {
    match raw {
        Raw::Text(text) | Raw::Loose(text) => format!("{text:?}"),
        Raw::Number(text) => text.clone(),
        Raw::Bool(flag) => flag.to_string(),
        Raw::List(_) => "a list".to_owned(),
        Raw::Other(what) => (*what).to_owned(),
    }
}

/// Reads a type that is written as a TOML string.
fn from_text<T: FromStr<Err = String>>(raw: &Raw, example: &str) -> Result<T, String> {
    match raw {
        Raw::Text(text) | Raw::Loose(text) => text.parse(),
        Raw::Number(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => {
            Err(format!("{} is not text: write it as {example:?}", name(raw)))
        }
    }
}

impl Setting for String {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) | Raw::Loose(text) if !text.chars().any(char::is_control) => Ok(text.clone()),
            Raw::Text(_) | Raw::Loose(_) | Raw::Number(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => {
                Err(format!("expected plain text, not {}", name(raw)))
            }
        }
    }

    fn show(&self) -> String {
        // Control characters were refused, so Rust's escapes are TOML's.
        format!("{self:?}")
    }
}

impl Setting for bool {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Bool(flag) => Ok(*flag),
            Raw::Loose(text) if text == "true" => Ok(true),
            Raw::Loose(text) if text == "false" => Ok(false),
            Raw::Text(_) | Raw::Loose(_) | Raw::Number(_) | Raw::List(_) | Raw::Other(_) => {
                Err(format!("expected true or false, not {}", name(raw)))
            }
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! whole_number {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            fn read(raw: &Raw) -> Result<Self, String> {
                let wrong = || format!("expected a whole number from 0 to {}, not {}", <$type>::MAX, name(raw));
                match raw {
                    Raw::Number(text) | Raw::Loose(text) => text.parse().map_err(|_| wrong()),
                    Raw::Text(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => Err(wrong()),
                }
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
whole_number!(u16, u32, usize);

impl Setting for Duration {
    fn read(raw: &Raw) -> Result<Self, String> {
        from_text::<Period>(raw, "10m").map(|period| period.0)
    }

    fn show(&self) -> String {
        format!("\"{}\"", Period(*self))
    }
}

impl Setting for Size {
    fn read(raw: &Raw) -> Result<Self, String> {
        from_text(raw, "512MiB")
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for Cpus {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Number(text) | Raw::Loose(text) => text.parse(),
            Raw::Text(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => {
                Err(format!("expected a number such as 1 or 0.5, not {}", name(raw)))
            }
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for SocketAddr {
    fn read(raw: &Raw) -> Result<Self, String> {
        let wrong = || format!("{} is not an address and port: write 127.0.0.1:8484", name(raw));
        match raw {
            Raw::Text(text) | Raw::Loose(text) => text.parse().map_err(|_| wrong()),
            Raw::Number(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => Err(wrong()),
        }
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for PathBuf {
    fn read(raw: &Raw) -> Result<Self, String> {
        let path = Self::from(String::read(raw)?);
        if path.is_absolute() {
            Ok(path)
        } else {
            Err(format!("{} is not an absolute path", name(raw)))
        }
    }

    fn show(&self) -> String {
        format!("{:?}", self.to_string_lossy())
    }
}

impl Setting for PoolName {
    fn read(raw: &Raw) -> Result<Self, String> {
        Self::parse(&String::read(raw)?)
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Setting for Language {
    fn read(raw: &Raw) -> Result<Self, String> {
        let text = String::read(raw)?;
        text.parse()
            .map_err(|error| format!("{text:?} is no language: {error}"))
    }

    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

/// A list is a TOML array, and in variables and flags separated by commas.
impl<T: Setting> Setting for Vec<T> {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::List(items) => items.iter().map(T::read).collect(),
            Raw::Loose(text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| T::read(&Raw::Loose(item.to_owned())))
                .collect(),
            Raw::Text(_) | Raw::Number(_) | Raw::Bool(_) | Raw::Other(_) => {
                Err(format!("expected a list, not {}", name(raw)))
            }
        }
    }

    fn show(&self) -> String {
        let items: Vec<String> = self.iter().map(T::show).collect();
        format!("[{}]", items.join(", "))
    }
}

/// Where nothing is set there is nothing to show.
impl<T: Setting> Setting for Option<T> {
    fn read(raw: &Raw) -> Result<Self, String> {
        T::read(raw).map(Some)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(String::new, T::show)
    }
}

/// Implements [`Setting`] for an enum whose variants are words.
macro_rules! words {
    ($type:ty { $($word:literal => $variant:path),* $(,)? }) => {
        impl $crate::config::settings::Setting for $type {
            fn read(raw: &$crate::config::layers::Raw) -> Result<Self, String> {
                let text = String::read(raw)?;
                match text.as_str() {
                    $($word => Ok($variant),)*
                    _ => Err(format!("{text:?} is not one of {}", [$($word),*].join(", "))),
                }
            }

            fn show(&self) -> String {
                match self {
                    $($variant => format!("{:?}", $word),)*
                }
            }
        }
    };
}
pub(super) use words;
