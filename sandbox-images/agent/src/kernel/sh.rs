//! The kernel of images that have a plain POSIX shell and no bash: dash, busybox's ash, or one like them.
//!
//! As [`shell`](super::shell) does, it keeps one interactive shell, since only that gives up the whole of what runs at
//! an interrupt, and has it `eval` each run's code as one quoted word. What differs is what such a shell lacks:
//!
//! - It knows descriptors of one digit only. The answers go to its own descriptor 0, and the two streams wait at 8 and
//!   9, which the code finds closed; what it opens there is closed again after its run.
//! - Ash takes a signal that meets it reading descriptor 0 for the end of all input, and a job that ends is a signal.
//!   What it is told is therefore a script to it, which it opens by name: a [`Fifo`](super::dialect::Hears::Fifo).
//! - An error in `eval`, or in any special builtin, makes it throw away what it has read, and with that the report.
//!   After `command` it does not.
//! - Interrupted, dash throws that away all the same: the report is repeated then.
//!
//! `return` outside of a function ends such a shell, as it ends a script; in ash, `set -n` leaves a shell that does
//! nothing any more and is ended at the run's deadline.

use std::{
    fs,
    process::{Command, Stdio},
    sync::Arc,
};

use command_fds::{CommandFdExt, FdMapping};
use greenroom_protocol::{AgentConfig, Language};

use super::{
    KernelError,
    dialect::{Dialect, Ends, Hears, Reply, Request},
    driver::Driver,
    shell::understood,
};
use crate::child::Quarters;

/// No function can be called as a special builtin, and `unset` is one; `command` is none, and finds `echo` whatever
/// functions there are. A backslash keeps aliases away.
const UNMASK: &str = "\\unset -f command";
/// Options last for their run. What one shell has not, it only says so.
const RESET: &str = "\\command set +aefuvxC; \\command set +o pipefail; PS1=; PS2=";

/// How to speak to a POSIX shell.
#[derive(Debug)]
pub(super) struct Sh {
    /// What is behind its name, for people.
    version: String,
    work_dir: String,
    run: u64,
}

impl Sh {
    pub(super) fn kernel(config: &AgentConfig, quarters: Arc<Quarters>) -> Driver<Self> {
        let program = quarters
            .find("sh")
            .and_then(|program| fs::canonicalize(program).ok());
        let behind = program
            .as_deref()
            .and_then(|program| program.file_name()?.to_str());
        let version = match behind {
            Some(name) if name != "sh" => format!("sh ({name})"),
            _ => "sh".to_owned(),
        };
        let shell = Self {
            version,
            work_dir: config.work_dir.clone(),
            run: 0,
        };
        Driver::new(shell, quarters, config)
    }

    fn report(&self) -> String {
        format!(
            "greenroom_=$?; {UNMASK}; \\command echo end {} \"$greenroom_\" >&0; \\unset greenroom_; {RESET}\n",
            self.run
        )
    }
}

impl Dialect for Sh {
    fn language(&self) -> Language {
        Language::Sh
    }

    fn command(&self, quarters: &Quarters, ends: Ends) -> Result<Command, KernelError> {
        let program = quarters.find("sh").ok_or_else(|| KernelError::Absent {
            language: Language::Sh,
            reason: "no sh on PATH".to_owned(),
        })?;
        let mut command = quarters.command(program);
        command.args(["-i", "+m"]);
        // By its name alone, which it puts before what it complains of; its opening leads back.
        if let Some((folder, name)) = ends
            .fifo
            .as_deref()
            .and_then(|path| Some((path.parent()?, path.file_name()?)))
        {
            command.current_dir(folder).arg(name);
        }
        // Read at its start, from whatever file it names.
        command.env_remove("ENV");
        command
            .env("PS1", "")
            .env("PS2", "")
            .env("TERM", "dumb")
            .env("PAGER", "cat")
            .stdin(Stdio::from(ends.talk))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: ends.stdout,
                    child_fd: 8,
                },
                FdMapping {
                    parent_fd: ends.stderr,
                    child_fd: 9,
                },
            ])
            .map_err(|error| KernelError::Start {
                language: Language::Sh,
                reason: error.to_string(),
            })?;
        Ok(command)
    }

    fn opening(&self) -> String {
        format!(
            "\\unset MAIL MAILPATH; {RESET}; \\cd {}; \\unset OLDPWD; \\command echo ready {} >&0\n",
            quote(&self.work_dir),
            quote(&self.version)
        )
    }

    fn request(&mut self, run: &Request<'_>) -> String {
        self.run += 1;
        format!(
            "{UNMASK}; \\command echo begin {} >&0; \\command eval {} </dev/null >&8 2>&9 8>&- 9>&-\n{}",
            self.run,
            quote(run.code),
            self.report()
        )
    }

    fn remind(&self) -> Option<String> {
        Some(self.report())
    }

    fn settle(&self) -> Option<String> {
        Some(format!("{UNMASK}; \\command echo settled {} >&0\n", self.run))
    }

    fn hears(&self) -> Hears {
        Hears::Fifo
    }

    fn says_when_it_begins(&self) -> bool {
        true
    }

    fn reply(&self, line: &str) -> Result<Reply, String> {
        understood(line, self.run)
    }
}

/// Code as one word, of as many lines as it has: a plain shell has no other way to write a line's end.
fn quote(code: &str) -> String {
    format!("'{}'", code.replace('\0', "").replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn a_shell_reads_code_as_it_was_written(code in "[^\0]*") {
            let script = format!("printf %s {}", quote(&code));
            let out = Command::new("sh").args(["-c", &script]).output().unwrap();
            prop_assert_eq!(String::from_utf8_lossy(&out.stdout), code);
        }
    }
}
