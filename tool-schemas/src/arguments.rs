//! What the tools take. Doc comments are what a model reads; bounds are checked by the server, which names them.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::lenient::{flag, whole};

/// Which conversation and which pool: optional for every tool, and read apart from its own arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Address {
    /// The conversation_id that earlier answers told. Leave out if none was told; never make one up.
    #[schemars(with = "String")]
    pub conversation_id: Option<String>,
    /// Which kind of sandbox.
    #[schemars(with = "String")]
    pub pool: Option<String>,
}

/// Arguments of `execute_code`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteCode {
    /// The code.
    pub code: String,
    /// What runs it: python (default), bash (or sh, where the image has no bash), javascript, typescript, or another kernel of the image.
    #[serde(default)]
    #[schemars(with = "String")]
    pub language: Option<String>,
    /// The run is interrupted after this long.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64", range(min = 1))]
    pub timeout_seconds: Option<u64>,
    /// Answer at once with a run_id; the run goes on. Default: false.
    #[serde(default, deserialize_with = "flag")]
    #[schemars(with = "bool")]
    pub background: Option<bool>,
    /// Most characters of text in the answer; the middle of longer output is left out.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64", range(min = 1000, max = 200_000))]
    pub max_output_chars: Option<u64>,
}

/// Arguments of `upload_file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadFile {
    /// Where to, relative to /mnt/data. Folders are made.
    pub path: String,
    /// The whole content, or with append the next part of it. Leave out for a link by which the user uploads it.
    #[serde(default)]
    #[schemars(with = "String")]
    pub content: Option<String>,
    /// How content is written. Default: utf-8.
    #[serde(default)]
    #[schemars(with = "Encoding")]
    pub encoding: Option<Encoding>,
    /// Add to the end of the file instead of replacing it. Default: false.
    #[serde(default, deserialize_with = "flag")]
    #[schemars(with = "bool")]
    pub append: Option<bool>,
    /// A file on the user's machine to copy instead of content, beneath the folder that they share.
    #[serde(default)]
    #[schemars(with = "String")]
    pub source: Option<String>,
}

/// How the content of an upload is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Encoding {
    /// As it is.
    #[serde(rename = "utf-8", alias = "utf8", alias = "UTF-8", alias = "text")]
    Utf8,
    /// Base64, for what is no text.
    #[serde(rename = "base64", alias = "BASE64")]
    Base64,
}

/// Arguments of `list_files`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListFiles {
    /// The folder, relative to /mnt/data. Default: /mnt/data itself.
    #[serde(default)]
    #[schemars(with = "String")]
    pub path: Option<String>,
    /// With everything below. Default: false.
    #[serde(default, deserialize_with = "flag")]
    #[schemars(with = "bool")]
    pub recursive: Option<bool>,
}

/// Arguments of `download_file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DownloadFile {
    /// The file, relative to /mnt/data.
    pub path: String,
    /// First byte. Default: 0.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64")]
    pub offset: Option<u64>,
    /// Most bytes. Default: as many as fit one answer.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64", range(min = 1))]
    pub length: Option<u64>,
    /// An image is scaled down to this many pixels on its longer side. Default: 1568.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64", range(min = 16, max = 1568))]
    pub max_pixels: Option<u64>,
    /// Answer with a link by which the user downloads the file, instead of its content. Default: false.
    #[serde(default, deserialize_with = "flag")]
    #[schemars(with = "bool")]
    pub link: Option<bool>,
    /// Where to save it on the user's machine instead: a new file beneath the folder that they share.
    #[serde(default)]
    #[schemars(with = "String")]
    pub save_to: Option<String>,
}

/// Arguments of `get_run`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GetRun {
    /// The run. Leave out to list the runs.
    #[serde(default)]
    #[schemars(with = "String")]
    pub run_id: Option<String>,
    /// Show only what came from this event on; each answer tells the next number. Default: 0, everything.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64")]
    pub since: Option<u64>,
    /// Wait up to this long for the run to end. Default: 0.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64", range(max = 50))]
    pub wait_seconds: Option<u64>,
}

/// Arguments of `cancel_run`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRun {
    /// The run.
    pub run_id: String,
}

/// Arguments of `reset_session`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetSession {
    /// The next sandbox gets the files of /mnt/data. Default: false.
    #[serde(default, deserialize_with = "flag")]
    #[schemars(with = "bool")]
    pub keep_files: Option<bool>,
}

/// Arguments of `delete_file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteFile {
    /// The file or folder, relative to /mnt/data.
    pub path: String,
}

/// Arguments of `session_info`: none of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionInfo {}
