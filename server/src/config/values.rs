//! Values that are words, or words beside something else.

use std::{path::PathBuf, time::Duration};

use greenroom_tool_schemas::ToolName;

use super::{
    Aliases, ArchivePlace, EngineKind, ErrorStyle, LogFormat, MetaPath, Runtime,
    layers::Raw,
    settings::{Setting, words},
};
use crate::auth::{Required, Scope, Signing};

/// What a sandbox reaches of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Egress {
    None,
}

words!(Required { "auto" => Required::Auto, "always" => Required::Always, "never" => Required::Never });
words!(Scope { "run" => Scope::Run, "files" => Scope::Files, "admin" => Scope::Admin });
words!(Signing {
    "RS256" => Signing::Rs256, "RS384" => Signing::Rs384, "RS512" => Signing::Rs512,
    "PS256" => Signing::Ps256, "PS384" => Signing::Ps384, "PS512" => Signing::Ps512,
    "ES256" => Signing::Es256, "ES384" => Signing::Es384, "EdDSA" => Signing::EdDsa,
});
words!(Egress { "none" => Egress::None });
words!(Aliases { "none" => Aliases::None, "azure" => Aliases::Azure });
words!(ErrorStyle { "result" => ErrorStyle::Result, "flag" => ErrorStyle::Flag });
words!(LogFormat { "text" => LogFormat::Text, "json" => LogFormat::Json });
words!(EngineKind { "docker" => EngineKind::Docker });
words!(Runtime { "runsc" => Runtime::Runsc, "runc" => Runtime::Runc });

/// `"standard"`, `"full"`, or a list of names.
pub(super) struct Tools(pub(super) Vec<ToolName>);

impl Setting for Tools {
    fn read(raw: &Raw) -> Result<Self, String> {
        if let Raw::Text(word) | Raw::Loose(word) = raw {
            match word.as_str() {
                "standard" => return Ok(Self(ToolName::STANDARD.to_vec())),
                "full" => return Ok(Self(ToolName::FULL.to_vec())),
                _ => {}
            }
        }
        let names =
            Vec::<String>::read(raw).map_err(|_| "expected \"standard\", \"full\" or a list of tools")?;
        let tools: Result<Vec<ToolName>, String> = names
            .iter()
            .map(|name| {
                name.parse().map_err(|()| {
                    format!(
                        "there is no tool {name:?}; there are: {}",
                        ToolName::FULL.map(ToolName::as_str).join(", ")
                    )
                })
            })
            .collect();
        match tools? {
            tools if tools.is_empty() => Err("must name at least one tool".to_owned()),
            tools => Ok(Self(tools)),
        }
    }

    fn show(&self) -> String {
        if self.0 == ToolName::STANDARD {
            return "\"standard\"".to_owned();
        }
        if self.0 == ToolName::FULL {
            return "\"full\"".to_owned();
        }
        self.0
            .iter()
            .map(|tool| tool.as_str().to_owned())
            .collect::<Vec<_>>()
            .show()
    }
}

/// `"never"`, or a time.
pub(super) struct EvictAfter(pub(super) Option<Duration>);

impl Setting for EvictAfter {
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) | Raw::Loose(text) if text == "never" => Ok(Self(None)),
            Raw::Text(_) | Raw::Loose(_) | Raw::Number(_) | Raw::Bool(_) | Raw::List(_) | Raw::Other(_) => {
                Duration::read(raw).map(|time| Self(Some(time)))
            }
        }
    }

    fn show(&self) -> String {
        self.0.map_or_else(|| "\"never\"".to_owned(), |time| time.show())
    }
}

/// `"on"`, `"off"`, a folder, or a bucket.
impl Setting for ArchivePlace {
    fn read(raw: &Raw) -> Result<Self, String> {
        match String::read(raw)?.as_str() {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::StateDir),
            text if text.starts_with('/') => Ok(Self::Folder(PathBuf::from(text))),
            text => match text
                .strip_prefix("s3://")
                .map(|rest| rest.split_once('/').unwrap_or((rest, "")))
            {
                Some((bucket, prefix)) if is_bucket(bucket) => Ok(Self::S3 {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_matches('/').to_owned(),
                }),
                Some((bucket, _)) => Err(format!(
                    "{bucket:?} is no name of a bucket: 3 to 63 small letters, digits, - and ."
                )),
                None => Err(format!(
                    "{text:?} is neither \"on\", \"off\", the absolute path of a folder nor s3://BUCKET/PREFIX"
                )),
            },
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Off => "\"off\"".to_owned(),
            Self::StateDir => "\"on\"".to_owned(),
            Self::Folder(path) => path.show(),
            Self::S3 { bucket, prefix } => format!("s3://{bucket}/{prefix}").show(),
        }
    }
}

fn is_bucket(name: &str) -> bool {
    let is_good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
    (3..=63).contains(&name.len()) && name.bytes().all(is_good)
}

impl Setting for MetaPath {
    fn read(raw: &Raw) -> Result<Self, String> {
        let segments: Vec<String> = String::read(raw)?
            .split('>')
            .map(|part| part.trim().to_owned())
            .collect();
        if segments.iter().any(String::is_empty) {
            return Err(
                "expected a key of _meta, or keys within one another as \"outer > inner\"".to_owned(),
            );
        }
        Ok(Self(segments))
    }

    fn show(&self) -> String {
        self.0.join(" > ").show()
    }
}
