//! The arguments of Azure's tools, as what our own would be.

use greenroom_protocol::Language;
use greenroom_tool_schemas as schemas;

use super::{Execute, Form, execute};
use crate::{
    config::{Limits, PoolConfig},
    error::Failure,
};

pub(super) fn code(
    args: schemas::RunPythonCode,
    pool: &PoolConfig,
    limits: &Limits,
) -> Result<Execute, Failure> {
    of(
        args.python_code,
        Language::Python,
        args.timeout_seconds,
        pool,
        limits,
    )
}

pub(super) fn command(
    args: schemas::RunShellCommand,
    pool: &PoolConfig,
    limits: &Limits,
) -> Result<Execute, Failure> {
    let command = match (args.shell_command, args.exec_command_and_args) {
        (Some(command), None) => command,
        (None, Some(words)) if !words.is_empty() => words
            .iter()
            .map(|word| quoted(word))
            .collect::<Vec<_>>()
            .join(" "),
        _ => {
            return Err(Failure::bad_argument(
                "one of shellCommand and execCommandAndArgs is needed, not both".to_owned(),
            ));
        }
    };
    of(command, Language::Bash, args.timeout_seconds, pool, limits)
}

/// Azure's calls have fewer wishes than ours.
fn of(
    code: String,
    language: Language,
    timeout_seconds: Option<u64>,
    pool: &PoolConfig,
    limits: &Limits,
) -> Result<Execute, Failure> {
    let args = schemas::ExecuteCode {
        code,
        language: None,
        timeout_seconds,
        background: None,
        max_output_chars: None,
    };
    let execute = execute(args, pool, limits)?;
    let form = Form::Azure;
    Ok(Execute {
        language,
        form,
        ..execute
    })
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
