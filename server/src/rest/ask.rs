//! What an execute request wants to run: both shapes of body, both names of the code, numbers that are strings.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value};

use super::{
    fault::{Code, Fault},
    shell::{Command, Program, Shell},
};

/// What is to run, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) what: What,
    pub(crate) mode: Mode,
    /// Left out: the pool's limit.
    pub(crate) timeout: Option<Duration>,
    /// Bytes of each stream that the answer has at most.
    pub(crate) most: Option<usize>,
    /// The only place of an identifier in A0.
    pub(crate) identifier: Option<String>,
}

/// What is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// In the pool's first language.
    Code(String),
    /// In a shell of its own.
    Shell(Shell),
}

/// Whether the answer waits for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Synchronous,
    Asynchronous,
}

impl Mode {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Synchronous => "Synchronous",
            Self::Asynchronous => "Asynchronous",
        }
    }
}

impl Ask {
    /// Reads a body. Members may stand in `properties` or beside it; unknown ones are ignored.
    ///
    /// # Errors
    /// A [`Fault`] of status 400 that names the member.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Fault> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| Fault::bad(format!("the body is no JSON: {error}")))?;
        let Value::Object(flat) = body else {
            return Err(Fault::bad("the body is a JSON object"));
        };
        let members = Members {
            wrapped: flat.get("properties").and_then(Value::as_object),
            flat: &flat,
        };
        Ok(Self {
            what: members.what()?,
            mode: match members.word("executionType")?.as_deref() {
                None | Some("synchronous") => Mode::Synchronous,
                Some("asynchronous") => Mode::Asynchronous,
                Some(_) => return Err(members.wrong("executionType", "Synchronous or Asynchronous")),
            },
            timeout: members.number("timeoutInSeconds", 1)?.map(Duration::from_secs),
            most: members
                .number("outputStreamsMaxLength", 0)?
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            identifier: members.text("identifier")?,
        })
    }
}

struct Members<'a> {
    wrapped: Option<&'a Map<String, Value>>,
    flat: &'a Map<String, Value>,
}

impl Members<'_> {
    /// A null is as good as nothing.
    fn member(&self, name: &str) -> Option<&Value> {
        let wrapped = self.wrapped.and_then(|members| members.get(name));
        wrapped
            .or_else(|| self.flat.get(name))
            .filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, what: &str) -> Fault {
        Fault::bad(format!("{name} is {what}")).of(name)
    }

    fn text(&self, name: &str) -> Result<Option<String>, Fault> {
        match self.member(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    /// The value of an enumeration, in lower case.
    fn word(&self, name: &str) -> Result<Option<String>, Fault> {
        let word = self.text(name)?.map(|word| word.to_ascii_lowercase());
        Ok(word.filter(|word| !word.is_empty()))
    }

    fn number(&self, name: &str, least: u64) -> Result<Option<u64>, Fault> {
        let Some(value) = self.member(name) else {
            return Ok(None);
        };
        let number = match value {
            Value::String(digits) => digits.trim().parse().ok(),
            Value::Number(number) => number.as_u64(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let number = number.filter(|number| *number >= least);
        number
            .map(Some)
            .ok_or_else(|| self.wrong(name, &format!("a whole number from {least} on")))
    }

    fn what(&self) -> Result<What, Fault> {
        match (self.text("shellCommand")?, self.member("execCommandAndArgs")) {
            (Some(_), Some(_)) => {
                Err(Fault::bad("either shellCommand or execCommandAndArgs, not both").of("shellCommand"))
            }
            (Some(line), None) => self.shell(Command::Line(line)),
            (None, Some(words)) => {
                let words = words.as_array().map(|words| {
                    let words = words.iter().map(|word| word.as_str().map(str::to_owned));
                    words.collect::<Option<Vec<_>>>()
                });
                match words.flatten() {
                    Some(words) if !words.is_empty() => self.shell(Command::Words(words)),
                    _ => Err(self.wrong("execCommandAndArgs", "a list of strings, the command first")),
                }
            }
            (None, None) => self.code(),
        }
    }

    fn shell(&self, command: Command) -> Result<What, Fault> {
        let program = match self.word("shellType")?.as_deref() {
            None => Program::Any,
            Some("bash") => Program::Bash,
            Some("sh") => Program::Sh,
            Some(_) => return Err(self.wrong("shellType", "bash or sh")),
        };
        Ok(What::Shell(Shell {
            command,
            program,
            stdin: self.text("stdin")?,
        }))
    }

    fn code(&self) -> Result<What, Fault> {
        let code = match self.text("code")? {
            Some(code) => Some(code),
            None => self.text("pythonCode")?,
        };
        let code = code.ok_or_else(|| {
            Fault::new(
                Code::PropertiesMissing,
                "the body has nothing to run: code, or shellCommand",
            )
            .of("code")
        })?;
        match self.word("codeInputType")?.as_deref() {
            None | Some("inline" | "inlinetext") => Ok(What::Code(code)),
            Some("inlinebase64") => {
                let decoded = BASE64.decode(code.trim()).ok();
                let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
                text.map(What::Code)
                    .ok_or_else(|| self.wrong("code", "base64 of UTF-8, as codeInputType says"))
            }
            Some(_) => Err(self.wrong("codeInputType", "Inline, InlineText or InlineBase64")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<Ask, Fault> {
        Ask::read(body.to_string().as_bytes())
    }

    #[test]
    fn both_shapes_and_both_names_are_read() {
        let bodies = [
            json!({ "properties": { "identifier": "conv-0001", "codeInputType": "inline", "executionType": "synchronous", "pythonCode": "6*7" } }),
            json!({ "properties": { "identifier": "conv-0001", "code": "6*7", "useEmptyKernel": true } }),
            json!({ "identifier": "conv-0001", "codeInputType": "Inline", "executionType": "Synchronous", "code": "6*7", "stdin": null }),
            json!({ "identifier": "conv-0001", "codeInputType": "InlineBase64", "code": "Nio3" }),
        ];
        for body in bodies {
            let ask = read(&body).unwrap();
            assert_eq!(ask.what, What::Code("6*7".into()), "{body}");
            assert_eq!((ask.mode, ask.timeout, ask.most), (Mode::Synchronous, None, None));
            assert_eq!(ask.identifier.as_deref(), Some("conv-0001"));
        }
    }

    #[test]
    fn numbers_may_be_strings_and_words_of_any_case() {
        let ask = read(
            &json!({ "properties": { "code": "1", "executionType": "ASYNCHRONOUS" }, "timeoutInSeconds": "60",
            "outputStreamsMaxLength": 65536 }),
        );
        let ask = ask.unwrap();
        assert_eq!(
            (ask.mode, ask.timeout, ask.most),
            (Mode::Asynchronous, Some(Duration::from_secs(60)), Some(65536))
        );
    }

    #[test]
    fn commands_are_lines_or_words() {
        let line = read(&json!({ "shellCommand": "echo hello", "code": "ignored" }))
            .unwrap()
            .what;
        let shell = |command, program, stdin: Option<&str>| {
            What::Shell(Shell {
                command,
                program,
                stdin: stdin.map(str::to_owned),
            })
        };
        assert_eq!(
            line,
            shell(Command::Line("echo hello".into()), Program::Any, None)
        );
        let words = json!({ "execCommandAndArgs": ["cat", "-"], "shellType": "SH", "stdin": "x" });
        let expected = Command::Words(vec!["cat".into(), "-".into()]);
        assert_eq!(
            read(&words).unwrap().what,
            shell(expected, Program::Sh, Some("x"))
        );
    }

    #[test]
    fn bad_bodies_name_the_member() {
        for (body, code, target) in [
            (json!({}), Code::PropertiesMissing, Some("code")),
            (json!({ "properties": {} }), Code::PropertiesMissing, Some("code")),
            (json!({ "code": null }), Code::PropertiesMissing, Some("code")),
            (json!({ "code": 7 }), Code::ValidationFailed, Some("code")),
            (
                json!({ "code": "!", "codeInputType": "InlineBase64" }),
                Code::ValidationFailed,
                Some("code"),
            ),
            (
                json!({ "code": "1", "codeInputType": "file" }),
                Code::ValidationFailed,
                Some("codeInputType"),
            ),
            (
                json!({ "code": "1", "executionType": "later" }),
                Code::ValidationFailed,
                Some("executionType"),
            ),
            (
                json!({ "code": "1", "timeoutInSeconds": 0 }),
                Code::ValidationFailed,
                Some("timeoutInSeconds"),
            ),
            (
                json!({ "code": "1", "timeoutInSeconds": "soon" }),
                Code::ValidationFailed,
                Some("timeoutInSeconds"),
            ),
            (
                json!({ "shellCommand": "a", "execCommandAndArgs": ["b"] }),
                Code::ValidationFailed,
                Some("shellCommand"),
            ),
            (
                json!({ "execCommandAndArgs": [] }),
                Code::ValidationFailed,
                Some("execCommandAndArgs"),
            ),
            (
                json!({ "shellCommand": "a", "shellType": "zsh" }),
                Code::ValidationFailed,
                Some("shellType"),
            ),
            (json!([]), Code::ValidationFailed, None),
        ] {
            let fault = read(&body).unwrap_err();
            assert_eq!((fault.code, fault.target.as_deref()), (code, target), "{body}");
        }
        assert_eq!(Ask::read(b"\xff{").unwrap_err().code, Code::ValidationFailed);
    }
}
