//! A command that is to run by itself, as a line for the session's shell: a process of its own in the work directory,
//! which leaves nothing in that shell.

use super::fault::{Code, Fault};

/// Linux takes no longer word: 128 KiB with its end.
const WORD_BYTES: usize = (128 << 10) - 1;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shell {
    pub(crate) command: Command,
    /// What runs a line.
    pub(crate) program: Program,
    pub(crate) stdin: Option<String>,
}

/// The shell of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Bash, and sh in images without it.
    Any,
    /// Bash and nothing else.
    Bash,
    /// The plain one.
    Sh,
}

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// By a shell.
    Line(String),
    /// Without one.
    Words(Vec<String>),
}

impl Shell {
    /// The line. Its exit code is the command's.
    ///
    /// # Errors
    /// A word that no process can be given.
    pub(crate) fn script(&self) -> Result<String, Fault> {
        let mut run = "( cd /mnt/data && ".to_owned();
        match (&self.command, self.program) {
            (Command::Line(line), Program::Any) => {
                run.push_str(&format!("set -- -lc {}", word("shellCommand", line)?));
                // In a subshell: nobody else's function or arguments are touched.
                run.push_str(" && unset -f command && if command -v bash >/dev/null; then exec bash \"$@\"; else exec sh \"$@\"; fi");
            }
            (Command::Line(line), Program::Bash) => {
                run.push_str(&format!("exec -- bash -lc {}", word("shellCommand", line)?));
            }
            (Command::Line(line), Program::Sh) => {
                run.push_str(&format!("exec -- sh -lc {}", word("shellCommand", line)?));
            }
            (Command::Words(words), _) => {
                run.push_str("exec --");
                for text in words {
                    run.push(' ');
                    run.push_str(&word("execCommandAndArgs", text)?);
                }
            }
        }
        run.push_str(" )");
        match &self.stdin {
            // A builtin has no limit of a word.
            Some(text) if text.contains('\0') => Err(Fault::bad("stdin has no NUL").of("stdin")),
            Some(text) => Ok(format!("command printf %s {} | {run}", quote(text))),
            None => Ok(format!("{run} </dev/null")),
        }
    }
}

fn word(member: &str, text: &str) -> Result<String, Fault> {
    if text.len() > WORD_BYTES {
        return Err(Fault::new(
            Code::TooLarge,
            format!("a word of a command has at most {WORD_BYTES} bytes: upload a script and run that"),
        )
        .of(member));
    }
    if text.contains('\0') {
        return Err(Fault::bad(format!("{member} has no NUL")).of(member));
    }
    Ok(quote(text))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(command: Command, stdin: Option<&str>) -> Shell {
        Shell {
            command,
            program: Program::Bash,
            stdin: stdin.map(str::to_owned),
        }
    }

    #[test]
    fn commands_are_one_quoted_line() {
        let line = |text: &str| Command::Line(text.into());
        for (shell, script) in [
            (
                shell(line("echo hello"), None),
                "( cd /mnt/data && exec -- bash -lc 'echo hello' ) </dev/null",
            ),
            (
                shell(line("echo 'a'"), None),
                r"( cd /mnt/data && exec -- bash -lc 'echo '\''a'\''' ) </dev/null",
            ),
            (
                shell(Command::Words(vec!["cat".into(), "a b".into()]), Some("x'y\n")),
                "command printf %s 'x'\\''y\n' | ( cd /mnt/data && exec -- 'cat' 'a b' )",
            ),
            (
                Shell {
                    program: Program::Any,
                    ..shell(line("ls"), None)
                },
                "( cd /mnt/data && set -- -lc 'ls' && unset -f command && if command -v bash >/dev/null; then exec bash \"$@\"; else exec sh \"$@\"; fi ) </dev/null",
            ),
        ] {
            assert_eq!(shell.script().as_deref(), Ok(script));
        }
    }

    #[test]
    fn words_that_no_process_can_have_are_refused() {
        let long = shell(Command::Line("x".repeat(WORD_BYTES + 1)), None);
        assert_eq!(long.script().unwrap_err().code, Code::TooLarge);
        for shell in [
            shell(Command::Line("a\0b".into()), None),
            shell(Command::Line("a".into()), Some("\0")),
        ] {
            assert_eq!(shell.script().unwrap_err().code, Code::ValidationFailed);
        }
    }
}
