//! The tools of Azure's dynamic sessions, for programs and models that were made for those.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::lenient::whole;

/// Arguments of `launchShell`: none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LaunchShell {}

/// Arguments of `runPythonCodeInRemoteEnvironment`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RunPythonCode {
    /// The environmentId that launchShell told.
    pub environment_id: String,
    /// The code.
    pub python_code: String,
    /// The run is interrupted after this long.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64", range(min = 1))]
    pub timeout_seconds: Option<u64>,
}

/// Arguments of `runShellCommandInRemoteEnvironment`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RunShellCommand {
    /// The environmentId that launchShell told.
    pub environment_id: String,
    /// The command, for bash.
    #[serde(default)]
    #[schemars(with = "String")]
    pub shell_command: Option<String>,
    /// A program and its arguments instead, which no shell reads.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub exec_command_and_args: Option<Vec<String>>,
    /// The run is interrupted after this long.
    #[serde(default, deserialize_with = "whole")]
    #[schemars(with = "u64", range(min = 1))]
    pub timeout_seconds: Option<u64>,
}
