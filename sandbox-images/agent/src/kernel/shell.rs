//! The bash kernel: one interactive bash, told each run as one line, so that nothing in the code can leave
//! it waiting for the rest.
//!
//! Interactive, because only then does an interrupt give up the whole of what is running and come back for
//! more. It reads its standard input, a line a run, that says: `eval` this code with these descriptors. The
//! code is one quoted word, so open quotes, missing `fi`s and here-documents are the `eval`'s to complain
//! of; its standard input is `/dev/null`; and bash takes back what `exec` did to descriptors 0, 1, 2 and
//! ours when the `eval` is over. A second line, which an interrupt of the first leaves alone, tells the
//! exit code. What bash itself has to say (prompts, notices of jobs) goes to `/dev/null`.

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use command_fds::{CommandFdExt, FdMapping};
use greenroom_protocol::{AgentConfig, Language, RunError};

use super::{
    KernelError,
    dialect::{Dialect, Done, Ends, Reply, Request},
    driver::Driver,
};
use crate::child::Quarters;

/// Options last for their run: a `set -e` in one would otherwise end the shell in another.
///
/// A function of the code's that is called `builtin` would stand before all of our own words. With POSIXLY_CORRECT
/// set, `unset` is found before any function, whatever that is called; it keeps the exit code meanwhile.
const UNMASK: &str = "POSIXLY_CORRECT=$?; \\unset -f builtin";
/// See [`UNMASK`].
const RESET: &str = "\\unset POSIXLY_CORRECT; \\builtin set +abefkuvxCEHPT -hB; \\builtin set +o pipefail +o posix +o monitor; \\builtin shopt -u inherit_errexit";

/// How to speak to bash.
#[derive(Debug, Default)]
pub(super) struct Shell {
    run: u64,
}

impl Shell {
    pub(super) fn kernel(config: &AgentConfig, quarters: Arc<Quarters>) -> Driver<Self> {
        Driver::new(Self::default(), quarters, config)
    }

    fn report(&self) -> String {
        format!(
            "{UNMASK}; \\builtin printf 'end %d %d\\n' {} \"$POSIXLY_CORRECT\" >&200; {RESET}\n",
            self.run
        )
    }
}

impl Dialect for Shell {
    fn language(&self) -> Language {
        Language::Bash
    }

    fn command(&self, quarters: &Quarters, ends: Ends) -> Result<Command, KernelError> {
        let program = quarters.find("bash").ok_or_else(|| KernelError::Absent {
            language: Language::Bash,
            reason: "no bash and no sh on PATH".to_owned(),
        })?;
        let failed = |error: String| KernelError::Start {
            language: Language::Bash,
            reason: error,
        };
        let answers = ends.talk.try_clone().map_err(|error| failed(error.to_string()))?;
        let mut command = quarters.command(program);
        command
            .args(["--noprofile", "--norc", "--noediting", "-i"])
            .env("PS1", "")
            .env("PS2", "")
            .env("TERM", "dumb")
            .env("PAGER", "cat")
            .stdin(Stdio::from(ends.talk))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: answers,
                    child_fd: 200,
                },
                FdMapping {
                    parent_fd: ends.stdout,
                    child_fd: 201,
                },
                FdMapping {
                    parent_fd: ends.stderr,
                    child_fd: 202,
                },
            ])
            .map_err(|error| failed(error.to_string()))?;
        Ok(command)
    }

    fn opening(&self) -> String {
        format!(
            "unset HISTFILE MAILCHECK PROMPT_COMMAND; PS1= PS2=; shopt -u checkjobs; set +o history; {RESET}; \
             printf 'ready bash %s\\n' \"$BASH_VERSION\" >&200\n"
        )
    }

    fn request(&mut self, run: &Request<'_>) -> String {
        self.run += 1;
        format!(
            "\\builtin printf 'begin %d\\n' {} >&200; \\builtin eval {} </dev/null >&201 2>&202 200>&- 201>&- 202>&-\n{}",
            self.run,
            quote(run.code),
            self.report()
        )
    }

    fn remind(&self) -> Option<String> {
        // An interrupt may have hit the report itself; and one that meets bash between the fork of a program and
        // its wait for it has no effect until that program ends.
        Some(self.report())
    }

    fn settle(&self) -> Option<String> {
        Some(format!("\\builtin printf 'settled %d\\n' {} >&200\n", self.run))
    }

    fn says_when_it_begins(&self) -> bool {
        true
    }

    fn reply(&self, line: &str) -> Result<Reply, String> {
        understood(line, self.run)
    }
}

/// What a shell says in this run: `ready` and its version, or a word, the run's number, and an exit code.
pub(super) fn understood(line: &str, run: u64) -> Result<Reply, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut numbers = rest.split(' ').map(str::parse::<u64>);
    match (word, numbers.next(), numbers.next()) {
        ("ready", ..) => Ok(Reply::Ready(rest.to_owned())),
        ("settled", Some(Ok(said)), None) if said == run => Ok(Reply::Settled),
        ("begin", Some(Ok(said)), None) if said == run => Ok(Reply::Began),
        ("end", Some(Ok(said)), Some(Ok(code))) if said == run => Ok(Reply::Done(ended(code))),
        // The second report of a run that was interrupted.
        ("begin" | "settled", Some(Ok(_)), None) | ("end", Some(Ok(_)), Some(Ok(_))) => Ok(Reply::Nothing),
        _ => Err("it said what is no message".to_owned()),
    }
}

fn ended(code: u64) -> Done {
    let code = i32::try_from(code).unwrap_or(i32::MAX);
    let error = match code {
        0 => None,
        130 => Some(("interrupted", "interrupted".to_owned())),
        _ => Some(("exit", format!("the last command ended with exit code {code}"))),
    };
    Done {
        failed: code != 0,
        error: error.map(|(name, message)| RunError {
            name: name.to_owned(),
            message,
            traceback: String::new(),
        }),
        result: None,
        exit_code: Some(code),
    }
}

/// Code as one word on one line. A shell has no NUL: what stands behind one in C never was.
fn quote(code: &str) -> String {
    let mut quoted = String::with_capacity(code.len() + code.len() / 8 + 3);
    quoted.push_str("$'");
    for character in code.chars() {
        match character {
            '\'' => quoted.push_str("\\'"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\0' => {}
            _ => quoted.push(character),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn bash_reads_code_as_it_was_written(code in "[^\0]*") {
            let word = quote(&code);
            prop_assert!(!word.contains('\n'));
            let out = Command::new("bash").args(["-c", &format!("printf %s {word}")]).output().unwrap();
            prop_assert_eq!(String::from_utf8_lossy(&out.stdout), code);
        }
    }

    #[test]
    fn only_answers_to_this_run_count() {
        let shell = Shell { run: 7 };
        assert_eq!(shell.reply("begin 7"), Ok(Reply::Began));
        assert_eq!(shell.reply("end 6 0"), Ok(Reply::Nothing));
        assert_eq!(
            shell.reply("end 7 0"),
            Ok(Reply::Done(Done {
                exit_code: Some(0),
                ..Done::default()
            }))
        );
        let Ok(Reply::Done(failed)) = shell.reply("end 7 3") else {
            panic!("no end")
        };
        assert_eq!((failed.failed, failed.exit_code), (true, Some(3)));
        for nonsense in ["", "end", "end 7", "end 7 x", "hello 1", "begin -1"] {
            assert!(shell.reply(nonsense).is_err(), "{nonsense}");
        }
    }
}
