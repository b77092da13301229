//! The tools by name.

use std::{fmt, str::FromStr};

/// A tool, by the name that clients call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ToolName {
    /// Runs code.
    ExecuteCode,
    /// Writes a file.
    UploadFile,
    /// Lists files.
    ListFiles,
    /// Reads a file.
    DownloadFile,
    /// Follows a run, or lists the runs.
    GetRun,
    /// Stops a run.
    CancelRun,
    /// Ends the sandbox.
    ResetSession,
    /// Deletes a file or a folder.
    DeleteFile,
    /// Says what the sandbox is and has.
    SessionInfo,
    /// Azure's: names an environment.
    LaunchShell,
    /// Azure's: runs Python in one.
    RunPythonCode,
    /// Azure's: runs a command in one.
    RunShellCommand,
}

impl ToolName {
    /// What `tools = "standard"` offers, in the order in which tools are introduced.
    pub const STANDARD: [Self; 7] = [
        Self::ExecuteCode,
        Self::UploadFile,
        Self::ListFiles,
        Self::DownloadFile,
        Self::GetRun,
        Self::CancelRun,
        Self::ResetSession,
    ];

    /// What `tools = "full"` offers.
    pub const FULL: [Self; 9] = [
        Self::ExecuteCode,
        Self::UploadFile,
        Self::ListFiles,
        Self::DownloadFile,
        Self::GetRun,
        Self::CancelRun,
        Self::ResetSession,
        Self::DeleteFile,
        Self::SessionInfo,
    ];

    /// What `aliases = "azure"` adds: the tools of dynamic sessions under their own names.
    pub const AZURE: [Self; 3] = [Self::LaunchShell, Self::RunPythonCode, Self::RunShellCommand];

    /// Whether it is one of those.
    #[must_use]
    pub fn is_azure(self) -> bool {
        Self::AZURE.contains(&self)
    }

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExecuteCode => "execute_code",
            Self::UploadFile => "upload_file",
            Self::ListFiles => "list_files",
            Self::DownloadFile => "download_file",
            Self::GetRun => "get_run",
            Self::CancelRun => "cancel_run",
            Self::ResetSession => "reset_session",
            Self::DeleteFile => "delete_file",
            Self::SessionInfo => "session_info",
            Self::LaunchShell => "launchShell",
            Self::RunPythonCode => "runPythonCodeInRemoteEnvironment",
            Self::RunShellCommand => "runShellCommandInRemoteEnvironment",
        }
    }
}

impl fmt::Display for ToolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ToolName {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        // What launchShell was called at first.
        if name == "launchPythonEnvironment" {
            return Ok(Self::LaunchShell);
        }
        Self::FULL
            .into_iter()
            .chain(Self::AZURE)
            .find(|tool| tool.as_str() == name)
            .ok_or(())
    }
}
