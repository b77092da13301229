//! Arguments of a call, parsed once into types: everything behind this file knows that they hold.

mod azure;
mod path;

use std::time::Duration;

use base64::{
    Engine as _,
    alphabet::STANDARD as ALPHABET,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use greenroom_protocol::{Language, RunId, limits};
use greenroom_tool_schemas::{self as schemas, Definition, Encoding, ToolName};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub(super) use self::path::WorkPath;
use crate::{
    config::{Limits, PoolConfig, Size},
    error::Failure,
    guest::{Depth, WriteMode},
};

/// Longest that `get_run` waits: hosts give up after 60 s without a word.
const WAIT_SECONDS: u64 = 50;

/// What `max_output_chars` may be.
const OUTPUT_CHARS: std::ops::RangeInclusive<u64> = 1_000..=200_000;

/// Most bytes of a file in one answer: as base64 they stay below the size at which hosts cut.
pub(super) const DOWNLOAD_BYTES: u64 = 600 << 10;

/// Azure's word for a conversation.
const ENVIRONMENT: &str = "environmentId";

/// Fewer pixels show nothing.
const PIXELS_LEAST: u32 = 16;

/// Models leave the padding out, or put it where none belongs.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a call asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    Execute(Execute),
    Upload {
        path: WorkPath,
        content: Bytes,
        mode: WriteMode,
    },
    UploadLink {
        path: WorkPath,
    },
    UploadFrom {
        path: WorkPath,
        source: String,
    },
    List {
        path: WorkPath,
        depth: Depth,
    },
    Download(Download),
    DownloadLink {
        path: WorkPath,
    },
    DownloadTo {
        path: WorkPath,
        save_to: String,
    },
    ListRuns,
    GetRun {
        id: RunId,
        since: u64,
        wait: Duration,
    },
    CancelRun {
        id: RunId,
    },
    Reset {
        keep: KeepFiles,
    },
    Delete {
        path: WorkPath,
    },
    Info,
    Launch,
}

/// Code to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Execute {
    pub code: String,
    pub language: Language,
    pub timeout: Duration,
    pub waiting: Waiting,
    pub chars: usize,
    pub form: Form,
}

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Download {
    pub path: WorkPath,
    pub offset: u64,
    pub length: Option<u64>,
    /// Longest side of an image as it is shown, in pixels.
    pub side: u32,
}

/// What the answer to a run looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A text for a model.
    Text,
    /// Azure's JSON.
    Azure,
}

/// Whether a reset spares the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepFiles {
    /// The fresh sandbox gets them.
    Yes,
    /// They go with the rest.
    No,
}

/// Whether a call waits for its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// As long as patience lasts.
    Patiently,
    /// Until it is accepted.
    NotAtAll,
}

/// A call's arguments as they came, without what counts as left out.
#[derive(Clone, Debug)]
pub(super) struct Arguments<'a> {
    tool: &'a Definition,
    fields: Map<String, Value>,
}

impl<'a> Arguments<'a> {
    /// Takes the arguments of a tool: `null` and `""` of what is optional count as left out, but for a file's
    /// content, which may be empty.
    ///
    /// # Errors
    /// Fields that the tool does not know, with those that it knows.
    pub(super) fn new(tool: &'a Definition, mut fields: Map<String, Value>) -> Result<Self, Failure> {
        let (known, required) = (tool.arguments(), tool.required());
        let unknown: Vec<String> = fields
            .keys()
            .filter(|name| !known.contains(&name.as_str()))
            .map(|name| format!("{:?}", shown(name)))
            .collect();
        if !unknown.is_empty() {
            return Err(Failure::bad_argument(format!(
                "{} has no argument {}; it has: {}",
                tool.name,
                unknown.join(", "),
                known.join(", ")
            )));
        }
        fields.retain(|name, value| {
            let is_empty_file = name == "content" && !value.is_null();
            required.contains(&name.as_str())
                || is_empty_file
                || !(value.is_null() || value.as_str() == Some(""))
        });
        Ok(Self { tool, fields })
    }

    /// Takes out which conversation the call is for.
    ///
    /// # Errors
    /// It is no text.
    pub(super) fn conversation(&mut self) -> Result<Option<String>, Failure> {
        if !self.tool.name.is_azure() {
            return self.address("conversation_id");
        }
        match self.fields.get(ENVIRONMENT) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(Failure::bad_argument(format!(
                "{ENVIRONMENT} is the text that launchShell told"
            ))),
        }
    }

    /// Takes out one of the arguments that say where a call goes.
    ///
    /// # Errors
    /// It is no text.
    pub(super) fn address(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.fields.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Failure::bad_argument(format!("{name} is a text"))),
        }
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// What is missing, of the wrong type or over a limit, by name.
    pub(super) fn request(self, pool: &PoolConfig, limits: &Limits) -> Result<Request, Failure> {
        match self.tool.name {
            ToolName::ExecuteCode => execute(self.read()?, pool, limits).map(Request::Execute),
            ToolName::UploadFile => upload(self.read()?, limits.upload),
            ToolName::ListFiles => list(&self.read()?),
            ToolName::DownloadFile => download(self.read()?),
            ToolName::GetRun => get_run(self.read()?),
            ToolName::CancelRun => {
                let schemas::CancelRun { run_id: id } = self.read()?;
                run_id(id).map(|id| Request::CancelRun { id })
            }
            ToolName::ResetSession => {
                let schemas::ResetSession { keep_files } = self.read()?;
                let keep = match keep_files {
                    Some(true) => KeepFiles::Yes,
                    Some(false) | None => KeepFiles::No,
                };
                Ok(Request::Reset { keep })
            }
            ToolName::DeleteFile => {
                let schemas::DeleteFile { path } = self.read()?;
                file(&path).map(|path| Request::Delete { path })
            }
            ToolName::SessionInfo => self.read().map(|schemas::SessionInfo {}| Request::Info),
            ToolName::LaunchShell => self.read().map(|schemas::LaunchShell {}| Request::Launch),
            ToolName::RunPythonCode => azure::code(self.read()?, pool, limits).map(Request::Execute),
            ToolName::RunShellCommand => azure::command(self.read()?, pool, limits).map(Request::Execute),
        }
    }

    fn read<T: DeserializeOwned>(self) -> Result<T, Failure> {
        for name in self.tool.required() {
            if !self.fields.contains_key(name) {
                return Err(Failure::bad_argument(format!(
                    "{} needs the argument {name}",
                    self.tool.name
                )));
            }
        }
        serde_path_to_error::deserialize(Value::Object(self.fields)).map_err(|error| {
            let field = error.path().to_string();
            Failure::bad_argument(format!("{field}: {}", shown(&error.into_inner().to_string())))
        })
    }
}

/// A caller's own text in an error: not more of it than tells which.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(200).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn execute(args: schemas::ExecuteCode, pool: &PoolConfig, limits: &Limits) -> Result<Execute, Failure> {
    if args.code.len() > limits::CODE_BYTES {
        return Err(Failure::bad_argument(format!(
            "code has at most {} bytes, this one has {}: put data into files with upload_file",
            limits::CODE_BYTES,
            args.code.len()
        )));
    }
    let timeout = match args.timeout_seconds {
        None => pool.run_timeout,
        Some(seconds) => {
            let timeout = Duration::from_secs(seconds);
            if seconds == 0 || timeout > pool.run_timeout_max {
                return Err(Failure::bad_argument(format!(
                    "timeout_seconds is from 1 to {} (limit run_timeout_max), not {seconds}",
                    pool.run_timeout_max.as_secs()
                )));
            }
            timeout
        }
    };
    let chars = match args.max_output_chars {
        None => limits.output_chars,
        Some(chars) if OUTPUT_CHARS.contains(&chars) => usize::try_from(chars).unwrap_or(limits.output_chars),
        Some(chars) => {
            let (least, most) = (OUTPUT_CHARS.start(), OUTPUT_CHARS.end());
            return Err(Failure::bad_argument(format!(
                "max_output_chars is from {least} to {most}, not {chars}"
            )));
        }
    };
    Ok(Execute {
        code: args.code,
        language: language(args.language.as_deref(), pool)?,
        timeout,
        waiting: match args.background {
            Some(true) => Waiting::NotAtAll,
            Some(false) | None => Waiting::Patiently,
        },
        chars,
        form: Form::Text,
    })
}

/// Which languages there are is the image's to say: the agent refuses what it lacks, and names what it has.
fn language(named: Option<&str>, pool: &PoolConfig) -> Result<Language, Failure> {
    match named {
        None => Ok(pool.language()),
        Some(name) => name
            .parse()
            .map_err(|error| Failure::bad_argument(format!("language {:?} is none: {error}", shown(name)))),
    }
}

fn upload(args: schemas::UploadFile, limit: Size) -> Result<Request, Failure> {
    let path = file(&args.path)?;
    let text = match (args.content, args.source) {
        (Some(text), None) => text,
        (Some(_), Some(_)) => {
            return Err(Failure::bad_argument(
                "content and source exclude each other".to_owned(),
            ));
        }
        (None, _) if args.append == Some(true) => {
            return Err(Failure::bad_argument("append needs content".to_owned()));
        }
        (None, Some(source)) => return Ok(Request::UploadFrom { path, source }),
        (None, None) => return Ok(Request::UploadLink { path }),
    };
    let content = match args.encoding {
        None | Some(Encoding::Utf8) => text.into(),
        Some(Encoding::Base64) => {
            let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            let decoded = BASE64.decode(text.trim_end_matches('='));
            decoded
                .map(Bytes::from)
                .map_err(|error| Failure::bad_argument(format!("content is not base64: {error}")))?
        }
    };
    if content.len() as u64 > limit.bytes() {
        return Err(Failure::bad_argument(format!(
            "content has at most {} bytes (limit upload = {limit}), this one has {}",
            limit.bytes(),
            content.len()
        )));
    }
    let mode = if args.append == Some(true) {
        WriteMode::Append
    } else {
        WriteMode::Replace
    };
    Ok(Request::Upload { path, content, mode })
}

fn list(args: &schemas::ListFiles) -> Result<Request, Failure> {
    Ok(Request::List {
        path: WorkPath::parse(args.path.as_deref().unwrap_or_default()).map_err(|what| bad_path(&what))?,
        depth: if args.recursive == Some(true) {
            Depth::All
        } else {
            Depth::One
        },
    })
}

fn download(args: schemas::DownloadFile) -> Result<Request, Failure> {
    if let Some(length) = args
        .length
        .filter(|length| !(1..=DOWNLOAD_BYTES).contains(length))
    {
        return Err(Failure::bad_argument(format!(
            "length is from 1 to {DOWNLOAD_BYTES} bytes, not {length}"
        )));
    }
    let path = file(&args.path)?;
    let is_part = args.offset.or(args.length).or(args.max_pixels).is_some();
    match (args.link == Some(true), args.save_to) {
        (false, None) => {}
        (true, Some(_)) => {
            return Err(Failure::bad_argument(
                "link and save_to exclude each other".to_owned(),
            ));
        }
        _ if is_part => {
            return Err(Failure::bad_argument(
                "link and save_to are for whole files: leave out offset, length and max_pixels".to_owned(),
            ));
        }
        (true, None) => return Ok(Request::DownloadLink { path }),
        (false, Some(save_to)) => return Ok(Request::DownloadTo { path, save_to }),
    }
    let side = match args.max_pixels {
        None => limits::IMAGE_PIXELS,
        Some(pixels) => u32::try_from(pixels)
            .ok()
            .filter(|side| (PIXELS_LEAST..=limits::IMAGE_PIXELS).contains(side))
            .ok_or_else(|| {
                Failure::bad_argument(format!(
                    "max_pixels is from {PIXELS_LEAST} to {}, not {pixels}",
                    limits::IMAGE_PIXELS
                ))
            })?,
    };
    Ok(Request::Download(Download {
        path,
        offset: args.offset.unwrap_or(0),
        length: args.length,
        side,
    }))
}

fn get_run(args: schemas::GetRun) -> Result<Request, Failure> {
    let wait = args.wait_seconds.unwrap_or(0);
    if wait > WAIT_SECONDS {
        return Err(Failure::bad_argument(format!(
            "wait_seconds is at most {WAIT_SECONDS}, not {wait}: call again"
        )));
    }
    let Some(id) = args.run_id else {
        return Ok(Request::ListRuns);
    };
    Ok(Request::GetRun {
        id: run_id(id)?,
        since: args.since.unwrap_or(0),
        wait: Duration::from_secs(wait),
    })
}

fn run_id(text: String) -> Result<RunId, Failure> {
    let id = RunId(text);
    if id.is_valid() {
        Ok(id)
    } else {
        Err(Failure::bad_argument(format!(
            "run_id {:?} is none: answers tell them",
            shown(&id.0)
        )))
    }
}

/// A path that names something below the work directory, and not that itself.
fn file(text: &str) -> Result<WorkPath, Failure> {
    let path = WorkPath::parse(text).map_err(|what| bad_path(&what))?;
    if path.as_str().is_empty() || text.ends_with('/') {
        return Err(bad_path(&format!("{:?} names no file", shown(text))));
    }
    Ok(path)
}

fn bad_path(what: &str) -> Failure {
    Failure::bad_argument(format!("path: {what}"))
}

#[cfg(test)]
mod tests {
    use greenroom_tool_schemas::Pools;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::{Inputs, Loaded};

    fn read(tool: ToolName, arguments: Value) -> Result<Request, Failure> {
        let config = Loaded::read(&Inputs::default()).unwrap().config;
        let Value::Object(fields) = arguments else {
            panic!("an object")
        };
        let definition = Definition::of(tool, Pools::One);
        let mut arguments = Arguments::new(&definition, fields)?;
        arguments.address("conversation_id")?;
        arguments.request(&config.pools[&config.default_pool], &config.limits)
    }

    #[test]
    fn good_arguments_become_requests() {
        let Ok(Request::Execute(execute)) = read(
            ToolName::ExecuteCode,
            json!({"code": "", "language": "sh", "timeout_seconds": null, "max_output_chars": "", "conversation_id": null}),
        ) else {
            panic!("code that is empty is code")
        };
        assert_eq!(
            (execute.language, execute.timeout.as_secs(), execute.chars),
            (Language::Sh, 600, 24_000)
        );
        assert_eq!(
            read(
                ToolName::UploadFile,
                json!({"path": "/mnt/data/a//./b", "content": "aGk", "encoding": "base64", "append": true})
            ),
            Ok(Request::Upload {
                path: WorkPath::parse("a/b").unwrap(),
                content: "hi".into(),
                mode: WriteMode::Append
            })
        );
        let Ok(Request::Upload { content, .. }) =
            read(ToolName::UploadFile, json!({"path": "a", "content": ""}))
        else {
            panic!("an empty file is a file")
        };
        assert!(content.is_empty());
        for content in [json!({"path": "a"}), json!({"path": "a", "content": null})] {
            let path = WorkPath::parse("a").unwrap();
            assert_eq!(
                read(ToolName::UploadFile, content),
                Ok(Request::UploadLink { path })
            );
        }
        assert_eq!(
            read(ToolName::DownloadFile, json!({"path": "a", "link": "true"})),
            Ok(Request::DownloadLink {
                path: WorkPath::parse("a").unwrap()
            })
        );
        assert_eq!(
            read(
                ToolName::ListFiles,
                json!({"path": "/mnt/data", "recursive": true})
            ),
            Ok(Request::List {
                path: WorkPath::parse("").unwrap(),
                depth: Depth::All
            })
        );
        assert_eq!(
            read(ToolName::GetRun, json!({"run_id": ""})),
            Ok(Request::ListRuns)
        );
        assert_eq!(
            read(ToolName::GetRun, json!({"run_id": "r-1", "wait_seconds": 50})),
            Ok(Request::GetRun {
                id: RunId("r-1".into()),
                since: 0,
                wait: Duration::from_secs(50)
            })
        );
        for (arguments, keep) in [
            (json!({}), KeepFiles::No),
            (json!({ "keep_files": null }), KeepFiles::No),
            (json!({ "keep_files": false }), KeepFiles::No),
            (json!({ "keep_files": true }), KeepFiles::Yes),
        ] {
            assert_eq!(
                read(ToolName::ResetSession, arguments),
                Ok(Request::Reset { keep })
            );
        }
        assert_eq!(read(ToolName::SessionInfo, json!({})), Ok(Request::Info));
        assert_eq!(
            read(ToolName::DeleteFile, json!({"path": "a"})),
            Ok(Request::Delete {
                path: WorkPath::parse("a").unwrap()
            })
        );
    }

    #[test]
    fn bad_arguments_name_themselves_and_the_limit() {
        use ToolName::{CancelRun, DownloadFile, ExecuteCode, GetRun, ListFiles, UploadFile};
        for (tool, arguments, says) in [
            (ExecuteCode, json!({}), "needs the argument code"),
            (ExecuteCode, json!({"code": null}), "code: invalid type: null"),
            (
                ExecuteCode,
                json!({"code": 7}),
                "code: invalid type: integer `7`, expected a string",
            ),
            (
                ExecuteCode,
                json!({"code": "1", "colour": 1, "size": 2}),
                "has no argument \"colour\", \"size\"; it has: background, code, ",
            ),
            (
                ExecuteCode,
                json!({"code": "#".repeat((1 << 20) + 1)}),
                "at most 1048576 bytes",
            ),
            (
                ExecuteCode,
                json!({"code": "1", "language": "visual basic"}),
                "\"visual basic\" is none: a language's name has 1 to 24 letters, digits and +#._-",
            ),
            (
                ExecuteCode,
                json!({"code": "1", "timeout_seconds": 0}),
                "from 1 to 14400 (limit run_timeout_max), not 0",
            ),
            (
                ExecuteCode,
                json!({"code": "1", "timeout_seconds": 14_401}),
                "not 14401",
            ),
            (
                ExecuteCode,
                json!({"code": "1", "timeout_seconds": "soon"}),
                "timeout_seconds: invalid value: string \"soon\", expected a whole",
            ),
            (
                ExecuteCode,
                json!({"code": "1", "max_output_chars": 10}),
                "from 1000 to 200000, not 10",
            ),
            (
                ExecuteCode,
                json!({"code": "1", "conversation_id": 7}),
                "conversation_id is a text",
            ),
            (UploadFile, json!({"content": "x"}), "needs the argument path"),
            (
                UploadFile,
                json!({"path": "x", "append": true}),
                "append needs content",
            ),
            (
                UploadFile,
                json!({"path": "x", "source": "y"}),
                "upload_file has no argument \"source\"",
            ),
            (
                DownloadFile,
                json!({"path": "x", "link": true, "offset": 5}),
                "for whole files",
            ),
            (
                UploadFile,
                json!({"path": "../x", "content": ""}),
                "path: a path has no \"..\"",
            ),
            (
                UploadFile,
                json!({"path": "/etc/x", "content": ""}),
                "below /mnt/data only",
            ),
            (
                UploadFile,
                json!({"path": "/mnt/database", "content": ""}),
                "below /mnt/data only",
            ),
            (UploadFile, json!({"path": "a\0b", "content": ""}), "NUL"),
            (
                UploadFile,
                json!({"path": "x".repeat(5000), "content": ""}),
                "at most 1024 bytes, this one has 5000",
            ),
            (
                UploadFile,
                json!({"path": "x".repeat(300), "content": ""}),
                "at most 255 bytes, one has 300",
            ),
            (UploadFile, json!({"path": "a/", "content": ""}), "names no file"),
            (UploadFile, json!({"path": "", "content": ""}), "names no file"),
            (
                UploadFile,
                json!({"path": "x", "content": "%%", "encoding": "base64"}),
                "content is not base64",
            ),
            (
                UploadFile,
                json!({"path": "x", "content": "", "encoding": "gzip"}),
                "encoding: unknown variant `gzip`",
            ),
            (
                ListFiles,
                json!({"recursive": "maybe"}),
                "recursive: invalid value",
            ),
            (
                DownloadFile,
                json!({"path": "x", "length": 0}),
                "from 1 to 614400 bytes, not 0",
            ),
            (
                DownloadFile,
                json!({"path": "x", "offset": -1}),
                "offset: invalid",
            ),
            (
                DownloadFile,
                json!({"path": "x", "max_pixels": 4000}),
                "max_pixels is from 16 to 1568, not 4000",
            ),
            (
                GetRun,
                json!({"run_id": "r", "wait_seconds": 51}),
                "at most 50, not 51",
            ),
            (GetRun, json!({"run_id": "../x"}), "run_id \"../x\" is none"),
            (CancelRun, json!({"run_id": ""}), "run_id \"\" is none"),
        ] {
            let failure = read(tool, arguments.clone()).unwrap_err();
            assert!(failure.text.contains(says), "{tool} {says}: {failure}");
            assert!(failure.text.len() < 1000, "{failure}");
        }
    }

    #[test]
    fn an_upload_keeps_its_limit() {
        let args = schemas::UploadFile {
            path: "x".into(),
            content: Some("12345".into()),
            encoding: None,
            append: None,
            source: None,
        };
        let failure = upload(args, Size(4)).unwrap_err();
        assert!(
            failure
                .text
                .contains("at most 4 bytes (limit upload = 4B), this one has 5"),
            "{failure}"
        );
    }

    proptest! {
        #[test]
        fn a_path_that_is_taken_stays_below_the_work_directory(text in "[a./\\\\\0ä -]{0,40}") {
            if let Ok(path) = WorkPath::parse(&text) {
                prop_assert!(!path.as_str().starts_with('/') && !path.as_str().contains('\0'));
                prop_assert!(path.as_str().split('/').all(|part| part != ".." && part != "."));
            }
        }
    }
}
