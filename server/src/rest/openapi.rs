//! The OpenAPI document of the data plane: its answers are the types that answers are written from, its requests a table
//! that a test sends through the router.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    address::{Address, Dialect},
    execution::{Modern, Old, Wrapped},
    fault::Envelope,
    listing::{FileObject, Files, Listing, OldFiles},
    session::{SessionObject, SessionPage},
};
use crate::auth::Scope;

/// One request.
struct Row {
    method: &'static str,
    /// Below the pool's address.
    path: &'static str,
    id: &'static str,
    dialect: Dialect,
    summary: &'static str,
    parameters: &'static [Parameter],
    body: Sent,
    /// The status where all went well, and what comes with it.
    answers: &'static [(u16, Content)],
}

/// A parameter of the query.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameter {
    Identifier,
    Folder,
    Recursive,
    Filename,
    Skip,
}

/// What a request's body is.
#[derive(Clone, Copy)]
enum Sent {
    Nothing,
    /// What is to run.
    Execution,
    /// Files as a form.
    Form,
    /// One file.
    Bytes,
}

/// What an answer's body is.
#[derive(Clone, Copy)]
enum Content {
    Nothing,
    Text,
    Bytes,
    Json(fn(&mut SchemaGenerator) -> Schema),
}

fn of<T: JsonSchema>(from: &mut SchemaGenerator) -> Schema {
    from.subschema_for::<T>()
}

/// What is to run. Members may stand in `properties`, too; words are read in any case, numbers as strings, and members
/// that are not known are ignored.
#[derive(JsonSchema)]
#[schemars(rename = "ExecutionRequest", rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "requests are read liberally, member by member: this is how they are best written"
)]
struct ExecutionRequest {
    /// The conversation, where the query does not name it.
    identifier: Option<String>,
    /// Code of the pool's first language; `pythonCode` is the same.
    code: Option<String>,
    /// `Inline`, or `InlineBase64` where `code` is so encoded.
    code_input_type: Option<CodeInput>,
    /// A line for a shell of its own in the work directory, instead of code.
    shell_command: Option<String>,
    /// A command and its arguments, instead of a line.
    exec_command_and_args: Option<Vec<String>>,
    /// The shell of `shellCommand`.
    shell_type: Option<ShellType>,
    /// What the command reads.
    stdin: Option<String>,
    /// Whether the answer waits for the end.
    execution_type: Option<ExecutionType>,
    /// Ends the execution; lowered to the pool's limit.
    #[schemars(range(min = 1))]
    timeout_in_seconds: Option<u64>,
    /// Bytes of each stream that the answer has at most.
    output_streams_max_length: Option<u64>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "words of the document")]
enum CodeInput {
    Inline,
    InlineBase64,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "words of the document")]
enum ShellType {
    Bash,
    Sh,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "words of the document")]
enum ExecutionType {
    Synchronous,
    Asynchronous,
}

const SESSION: &[Parameter] = &[Parameter::Identifier];
const FOLDER: &[Parameter] = &[Parameter::Identifier, Parameter::Folder];
const LIST: &[Parameter] = &[Parameter::Identifier, Parameter::Folder, Parameter::Recursive];

/// In the order of the data plane's documentation.
const ROWS: &[Row] = &[
    Row {
        method: "POST",
        path: "executions",
        id: "execute",
        dialect: Dialect::B,
        summary: "Run code or a command",
        parameters: SESSION,
        body: Sent::Execution,
        answers: &[
            (200, Content::Json(of::<Modern<'static>>)),
            (202, Content::Json(of::<Modern<'static>>)),
        ],
    },
    Row {
        method: "GET",
        path: "executions/{id}",
        id: "getExecution",
        dialect: Dialect::B,
        summary: "What became of an execution",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[
            (200, Content::Json(of::<Modern<'static>>)),
            (202, Content::Json(of::<Modern<'static>>)),
        ],
    },
    Row {
        method: "POST",
        path: "files",
        id: "uploadFiles",
        dialect: Dialect::B,
        summary: "Upload files as a form",
        parameters: FOLDER,
        body: Sent::Form,
        answers: &[(200, Content::Json(of::<FileObject>))],
    },
    Row {
        method: "GET",
        path: "files",
        id: "listFiles",
        dialect: Dialect::B,
        summary: "List a folder; with an api-version up to 2024-08-02 the older shape",
        parameters: LIST,
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<Files>))],
    },
    Row {
        method: "GET",
        path: "files/{name}",
        id: "describeFile",
        dialect: Dialect::B,
        summary: "What a file is",
        parameters: FOLDER,
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<FileObject>))],
    },
    Row {
        method: "PUT",
        path: "files/{name}",
        id: "putFile",
        dialect: Dialect::B,
        summary: "Upload one file: the body is its content",
        parameters: FOLDER,
        body: Sent::Bytes,
        answers: &[(200, Content::Json(of::<FileObject>))],
    },
    Row {
        method: "DELETE",
        path: "files/{name}",
        id: "deleteFile",
        dialect: Dialect::B,
        summary: "Delete a file; with an api-version up to 2024-08-02 the answer is 200",
        parameters: FOLDER,
        body: Sent::Nothing,
        answers: &[(204, Content::Nothing)],
    },
    Row {
        method: "GET",
        path: "files/{name}/content",
        id: "downloadFile",
        dialect: Dialect::B,
        summary: "Download a file, or a Range of it",
        parameters: FOLDER,
        body: Sent::Nothing,
        answers: &[(200, Content::Bytes), (206, Content::Bytes)],
    },
    Row {
        method: "POST",
        path: "code/execute",
        id: "executeCode",
        dialect: Dialect::A,
        summary: "Run code or a command",
        parameters: SESSION,
        body: Sent::Execution,
        answers: &[(200, Content::Json(of::<Wrapped<'static>>))],
    },
    Row {
        method: "POST",
        path: "files/upload",
        id: "uploadFilesA",
        dialect: Dialect::A,
        summary: "Upload files as a form",
        parameters: SESSION,
        body: Sent::Form,
        answers: &[(200, Content::Json(of::<Listing>))],
    },
    Row {
        method: "GET",
        path: "files/content/{name}",
        id: "downloadFileA",
        dialect: Dialect::A,
        summary: "Download a file, or a Range of it",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[(200, Content::Bytes), (206, Content::Bytes)],
    },
    Row {
        method: "POST",
        path: "python/execute",
        id: "executePython",
        dialect: Dialect::A0,
        summary: "Run code or a command",
        parameters: SESSION,
        body: Sent::Execution,
        answers: &[(200, Content::Json(of::<Old<'static>>))],
    },
    Row {
        method: "POST",
        path: "python/uploadFile",
        id: "uploadFilesA0",
        dialect: Dialect::A0,
        summary: "Upload files as a form",
        parameters: SESSION,
        body: Sent::Form,
        answers: &[(200, Content::Json(of::<OldFiles>))],
    },
    Row {
        method: "GET",
        path: "python/files",
        id: "listFilesA0",
        dialect: Dialect::A0,
        summary: "List the work directory",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<OldFiles>))],
    },
    Row {
        method: "GET",
        path: "python/downloadFile",
        id: "downloadFileA0",
        dialect: Dialect::A0,
        summary: "Download a file, or a Range of it",
        parameters: &[Parameter::Identifier, Parameter::Filename],
        body: Sent::Nothing,
        answers: &[(200, Content::Bytes), (206, Content::Bytes)],
    },
    Row {
        method: "GET",
        path: "session",
        id: "showSession",
        dialect: Dialect::B,
        summary: "The session; never makes one",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<SessionObject>))],
    },
    Row {
        method: "DELETE",
        path: "session",
        id: "endSession",
        dialect: Dialect::B,
        summary: "End the session: its sandbox and files are gone",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[(204, Content::Nothing)],
    },
    Row {
        method: "GET",
        path: "listSessions",
        id: "listSessions",
        dialect: Dialect::B,
        summary: "Sessions that this server has served over REST",
        parameters: &[Parameter::Skip],
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<SessionPage>))],
    },
    Row {
        method: "POST",
        path: ".management/getSession",
        id: "getSession",
        dialect: Dialect::B,
        summary: "The session; never makes one",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<SessionObject>))],
    },
    Row {
        method: "POST",
        path: ".management/stopSession",
        id: "stopSession",
        dialect: Dialect::B,
        summary: "End the session: its sandbox and files are gone",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[(200, Content::Text)],
    },
    Row {
        method: "POST",
        path: ".management/listSessions",
        id: "listSessionsManaged",
        dialect: Dialect::B,
        summary: "Sessions that this server has served over REST",
        parameters: &[Parameter::Skip],
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<SessionPage>))],
    },
    Row {
        method: "GET",
        path: ".management/logs",
        id: "showLogs",
        dialect: Dialect::B,
        summary: "What a container's program has written",
        parameters: SESSION,
        body: Sent::Nothing,
        answers: &[(200, Content::Text)],
    },
    Row {
        method: "GET",
        path: "metadata",
        id: "showPool",
        dialect: Dialect::B,
        summary: "What the pool is: runtimes, packages, limits",
        parameters: &[],
        body: Sent::Nothing,
        answers: &[(200, Content::Json(of::<Map<String, Value>>))],
    },
];

/// The document.
pub(crate) fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut schemas = settings.into_generator();
    let fault = of::<Envelope>(&mut schemas);
    let mut paths = Map::new();
    for row in ROWS {
        let path = paths
            .entry(format!("/pools/{{pool}}/{}", row.path))
            .or_insert_with(|| json!({ "parameters": path_parameters(row.path) }));
        path[row.method.to_ascii_lowercase()] = operation(row, &fault, &mut schemas);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Greenroom: sessions over REST",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The wire format of Azure Container Apps dynamic sessions. The path decides the dialect. Requests below \
                            a pool of containers go to their programs and are not listed.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "key": { "type": "apiKey", "in": "header", "name": "x-ms-apikey" },
            },
        },
        "security": [{}, { "bearer": [] }, { "key": [] }],
    })
}

fn operation(row: &Row, fault: &Schema, schemas: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<Value> = row
        .parameters
        .iter()
        .map(|parameter| parameter.described(row))
        .collect();
    parameters.push(
        json!({ "name": "api-version", "in": "query", "schema": { "type": "string", "format": "date" },
        "description": "Any date. Left out: the newest" }),
    );
    let mut responses = Map::new();
    for (status, content) in row.answers {
        responses.insert(status.to_string(), content.described(*status, schemas));
    }
    let problem =
        json!({ "description": "An error", "content": { "application/json": { "schema": fault } } });
    responses.insert("default".to_owned(), problem);
    let mut operation = json!({
        "operationId": row.id,
        "summary": row.summary,
        "tags": [format!("{:?}", row.dialect)],
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(body) = row.body.described(schemas) {
        operation["requestBody"] = json!({ "required": true, "content": body });
    }
    if let Some(scope) = row.scope() {
        operation["x-greenroom-scope"] = scope.as_str().into();
    }
    operation
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = ["pool", "id", "name"];
    let named = names
        .into_iter()
        .filter(|name| *name == "pool" || path.contains(&format!("{{{name}}}")));
    named
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect()
}

impl Row {
    /// The address of an example, as a client would send it.
    fn example(&self) -> (String, String) {
        let path = self.path.replace("{id}", "5f0c").replace("{name}", "a.txt");
        let query = self.parameters.iter().map(|parameter| match parameter {
            Parameter::Identifier => "identifier=conv-0001",
            Parameter::Folder => "path=data",
            Parameter::Recursive => "recursive=true",
            Parameter::Filename => "filename=a.txt",
            Parameter::Skip => "skip=3",
        });
        let query: Vec<&str> = query.collect();
        (format!("/pools/python/{path}"), query.join("&"))
    }

    fn scope(&self) -> Option<Scope> {
        let (path, query) = self.example();
        let address = Address::read(self.method, &path, Some(&query)).ok()?;
        address.operation.scope()
    }
}

impl Parameter {
    fn described(self, row: &Row) -> Value {
        let (name, schema, text) = match self {
            Self::Identifier => (
                "identifier",
                json!({ "type": "string", "minLength": 4, "maxLength": 128 }),
                "The conversation",
            ),
            Self::Folder => (
                "path",
                json!({ "type": "string" }),
                "A folder of the work directory. Left out: itself",
            ),
            Self::Recursive => ("recursive", json!({ "type": "boolean" }), "Folders within it too"),
            Self::Filename => ("filename", json!({ "type": "string" }), "Which file"),
            Self::Skip => (
                "skip",
                json!({ "type": "integer", "minimum": 0 }),
                "Sessions before the page",
            ),
        };
        // The body may have it instead.
        let is_required = match self {
            Self::Identifier => !matches!(row.body, Sent::Execution),
            Self::Filename => true,
            Self::Folder | Self::Recursive | Self::Skip => false,
        };
        json!({ "name": name, "in": "query", "required": is_required, "schema": schema, "description": text })
    }
}

impl Sent {
    fn described(self, schemas: &mut SchemaGenerator) -> Option<Value> {
        Some(match self {
            Self::Nothing => return None,
            Self::Execution => json!({ "application/json": { "schema": of::<ExecutionRequest>(schemas) } }),
            Self::Form => json!({ "multipart/form-data": { "schema":
                { "type": "object", "properties": { "file": { "type": "string", "contentMediaType": "application/octet-stream" } } } } }),
            Self::Bytes => json!({ "application/octet-stream": {} }),
        })
    }
}

impl Content {
    fn described(self, status: u16, schemas: &mut SchemaGenerator) -> Value {
        let text = match status {
            202 => "Not over yet: Operation-Location says where to ask",
            204 => "Done",
            206 => "The part that was asked for",
            _ => "The answer",
        };
        match self {
            Self::Nothing => json!({ "description": text }),
            Self::Text => {
                json!({ "description": text, "content": { "text/plain": { "schema": { "type": "string" } } } })
            }
            Self::Bytes => json!({ "description": text, "content": { "application/octet-stream": {} } }),
            Self::Json(schema) => {
                json!({ "description": text, "content": { "application/json": { "schema": schema(schemas) } } })
            }
        }
    }
}

#[cfg(test)]
mod tests;
