//! Argument and result types of Greenroom's tools: the published contract, of which the `*.json` beside
//! this crate are the rendering that a test compares.

mod arguments;
mod azure;
mod definition;
mod lenient;
mod names;
mod result;
mod schema;

pub use arguments::{
    Address, CancelRun, DeleteFile, DownloadFile, Encoding, ExecuteCode, GetRun, ListFiles, ResetSession,
    SessionInfo, UploadFile,
};
pub use azure::{LaunchShell, RunPythonCode, RunShellCommand};
pub use definition::{Definition, Folder, Hints, Pools};
pub use names::ToolName;
pub use result::{ErrorMeta, FileMeta, RESULT_KEY, ResultMeta, RunMeta, RunStatus, SessionState, StreamMeta};
pub use schema::clean_schema;
