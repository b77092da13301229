//! The tools as clients list them: titles, descriptions, annotations, schemas.

use serde_json::{Map, Value, json};

use crate::{
    Address, CancelRun, DeleteFile, DownloadFile, ExecuteCode, GetRun, LaunchShell, ListFiles, ResetSession,
    RunPythonCode, RunShellCommand, SessionInfo, ToolName, UploadFile, clean_schema,
};

/// One tool as `tools/list` shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its name.
    pub name: ToolName,
    /// Its name for people.
    pub title: &'static str,
    /// What a model reads: when to use it, what persists, what a failure means.
    pub description: &'static str,
    /// What hosts may rely on when they ask for confirmation.
    pub hints: Hints,
    /// A closed object schema.
    pub input_schema: Map<String, Value>,
}

/// MCP's annotations; all four are always said, since their defaults are the worst case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hints {
    /// It changes nothing, and makes no sandbox.
    pub read_only: bool,
    /// It may destroy something.
    pub destructive: bool,
    /// Twice is the same as once.
    pub idempotent: bool,
}

/// Changes nothing.
const LOOK: Hints = hints(true, false, true);

const fn hints(read_only: bool, destructive: bool, idempotent: bool) -> Hints {
    Hints {
        read_only,
        destructive,
        idempotent,
    }
}

/// Whether a server offers one pool or several: with one, `pool` is no argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pools {
    /// One.
    One,
    /// Several, so that a call may choose.
    Several,
}

/// Whether a server may copy files from and to a folder of the user's machine: else no argument names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// It may not.
    None,
    /// Beneath the one that the user shares.
    Shared,
}

/// The arguments that name files of the user's machine.
const OF_THE_FOLDER: [&str; 2] = ["source", "save_to"];

impl Definition {
    /// The definition of a tool, without a shared folder.
    #[must_use]
    pub fn of(name: ToolName, pools: Pools) -> Self {
        Self::offering(name, pools, Folder::None)
    }

    /// The definition of a tool.
    #[must_use]
    pub fn offering(name: ToolName, pools: Pools, folder: Folder) -> Self {
        let (title, description, own_hints, own) = match name {
            ToolName::ExecuteCode => (
                "Run code",
                EXECUTE_CODE,
                hints(false, true, false),
                clean_schema::<ExecuteCode>(),
            ),
            ToolName::UploadFile => (
                "Write a file",
                UPLOAD_FILE,
                hints(false, true, false),
                clean_schema::<UploadFile>(),
            ),
            ToolName::ListFiles => ("List files", LIST_FILES, LOOK, clean_schema::<ListFiles>()),
            ToolName::DownloadFile => ("Read a file", DOWNLOAD_FILE, LOOK, clean_schema::<DownloadFile>()),
            ToolName::GetRun => ("Follow a run", GET_RUN, LOOK, clean_schema::<GetRun>()),
            ToolName::CancelRun => (
                "Stop a run",
                CANCEL_RUN,
                hints(false, false, true),
                clean_schema::<CancelRun>(),
            ),
            ToolName::ResetSession => (
                "Start afresh",
                RESET_SESSION,
                hints(false, true, true),
                clean_schema::<ResetSession>(),
            ),
            ToolName::DeleteFile => (
                "Delete a file",
                DELETE_FILE,
                hints(false, true, true),
                clean_schema::<DeleteFile>(),
            ),
            ToolName::SessionInfo => (
                "About the sandbox",
                SESSION_INFO,
                LOOK,
                clean_schema::<SessionInfo>(),
            ),
            ToolName::LaunchShell => (
                "Name an environment",
                LAUNCH_SHELL,
                LOOK,
                clean_schema::<LaunchShell>(),
            ),
            ToolName::RunPythonCode => (
                "Run Python",
                RUN_PYTHON_CODE,
                hints(false, true, false),
                clean_schema::<RunPythonCode>(),
            ),
            ToolName::RunShellCommand => (
                "Run a command",
                RUN_SHELL_COMMAND,
                hints(false, true, false),
                clean_schema::<RunShellCommand>(),
            ),
        };
        // An environmentId is Azure's word for where a call goes.
        let mut input_schema = if name.is_azure() {
            closed(own)
        } else {
            addressed(own, pools)
        };
        if folder == Folder::None
            && let Some(Value::Object(properties)) = input_schema.get_mut("properties")
        {
            properties.retain(|name, _| !OF_THE_FOLDER.contains(&name.as_str()));
        }
        Self {
            name,
            title,
            description,
            // To save a file on the user's machine is no mere look.
            hints: match (name, folder) {
                (ToolName::DownloadFile, Folder::Shared) => hints(false, false, false),
                _ => own_hints,
            },
            input_schema,
        }
    }

    /// The names of its arguments, as errors list them.
    #[must_use]
    pub fn arguments(&self) -> Vec<&str> {
        let properties = self.input_schema.get("properties").and_then(Value::as_object);
        properties
            .into_iter()
            .flat_map(Map::keys)
            .map(String::as_str)
            .collect()
    }

    /// The names of the arguments that it cannot do without.
    #[must_use]
    pub fn required(&self) -> Vec<&str> {
        let required = self.input_schema.get("required").and_then(Value::as_array);
        required.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The definition as it is published and sent.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name.as_str(),
            "title": self.title,
            "description": self.description,
            "inputSchema": self.input_schema,
            "annotations": {
                "title": self.title,
                "readOnlyHint": self.hints.read_only,
                "destructiveHint": self.hints.destructive,
                "idempotentHint": self.hints.idempotent,
                "openWorldHint": false,
            },
        })
    }
}

/// What takes nothing says so.
fn closed(mut schema: Map<String, Value>) -> Map<String, Value> {
    schema.entry("properties").or_insert_with(|| json!({}));
    schema
}

/// Adds where a call goes to what a tool takes.
fn addressed(schema: Map<String, Value>, pools: Pools) -> Map<String, Value> {
    let address = clean_schema::<Address>();
    let mut schema = closed(schema);
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    if let (Some(own), Some(Value::Object(address))) = (properties.as_object_mut(), address.get("properties"))
    {
        for (name, property) in address {
            if name != "pool" || pools == Pools::Several {
                own.insert(name.clone(), property.clone());
            }
        }
    }
    schema
}

const EXECUTE_CODE: &str = "\
Run code in this conversation's own Linux sandbox. Use it to compute, analyse data, plot, convert files or test code.

Python (IPython), bash and JavaScript/TypeScript (Deno) keep their state: variables, imports, the current directory and files are there in the next call. The \
last expression is shown as in a notebook. Matplotlib figures come back as images by themselves. Relative paths are in /mnt/data, \
where the file tools work too. There is no network.

The first line of the answer tells the status and the session: `new` and `restarted` mean that no earlier variables exist, and no \
earlier files unless it says that they are kept. After an exception or a time-out everything is kept, unless the answer says \
otherwise. A run that lasts longer than an answer may take goes on in the background: follow it with get_run. Print what you need \
rather than everything: the middle of long output is left out and saved to a file.";

const UPLOAD_FILE: &str = "\
Write a file into the sandbox, text as it is or anything else as base64. It replaces a file of that name; append adds to it, for \
what is too long for one call. A file that only the user has comes by a link: leave content out. To make a file from data that is \
in the sandbox already, use execute_code.";

const LIST_FILES: &str =
    "List a folder of the sandbox, with sizes. It never makes a sandbox: without one it says so.";

const DOWNLOAD_FILE: &str = "\
Read a file of the sandbox: text as text, images as images, anything else as base64. A large file comes in parts: each answer tells \
the offset of the next. To give a file to the user, ask for a link. To search or summarise a large file, use execute_code instead.";

const GET_RUN: &str = "\
Follow a run that goes on in the background: what it printed, and its outcome once it has ended. Without run_id: the list of runs.";

const CANCEL_RUN: &str = "\
Stop a run. It is interrupted as by Ctrl-C, then killed if it does not stop; the answer of get_run tells which. Files are kept.";

const RESET_SESSION: &str = "\
End this conversation's sandbox: all variables and runs are gone for good, and so are its files unless keep_files is true. The next \
call gets a fresh one. Use it only if the user wants that, or if the sandbox is beyond repair.";

const DELETE_FILE: &str = "Delete a file, or a folder with all that is in it.";

const SESSION_INFO: &str = "\
What the sandbox is: languages and versions, limits, age, time left, runs. It never makes a sandbox: without one it says so.";

const LAUNCH_SHELL: &str = "\
Name a new remote environment: its environmentId is what the other two tools take. The sandbox itself starts with the first command.";

const RUN_PYTHON_CODE: &str = "\
Run Python in a remote environment. Variables and files in /mnt/data are there in the next call. The answer is JSON with stdout, \
stderr and exitCode; `session` in it tells when nothing from earlier exists. There is no network.";

const RUN_SHELL_COMMAND: &str = "\
Run a command with bash, which keeps its variables and current directory, in a remote environment. The answer is JSON with stdout, \
stderr and exitCode; `session` in it tells when nothing from earlier exists. There is no network.";
