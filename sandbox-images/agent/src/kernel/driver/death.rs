//! How a kernel's process died, in words.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus};

use greenroom_protocol::RunError;

use crate::kernel::control::Control;

/// Who ended a process that a signal has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hand {
    /// The agent.
    Ours,
    /// Its own code, or the system.
    Another,
}

/// Notes that the process was waited for, and answers how it died, as [`death`].
pub(super) fn bury(
    control: &Control,
    status: &io::Result<ExitStatus>,
    memory: Option<u64>,
) -> (RunError, Option<i32>) {
    control.ended();
    let hand = if control.is_killed() {
        Hand::Ours
    } else {
        Hand::Another
    };
    death(status, hand, memory)
}

/// How a process died, in words, and its exit code. `memory` is what it held, if that was near all there is.
fn death(status: &io::Result<ExitStatus>, hand: Hand, memory: Option<u64>) -> (RunError, Option<i32>) {
    let code = status.as_ref().ok().and_then(ExitStatus::code);
    let signal = status.as_ref().ok().and_then(ExitStatusExt::signal);
    let (name, message) = match (code, signal, memory) {
        (_, Some(_), _) if hand == Hand::Ours => {
            ("killed", "the process was killed from outside of it".to_owned())
        }
        // Under gVisor a process that the memory limit has ended exits with 1 and without a word.
        (Some(1), _, Some(held)) | (_, Some(9), Some(held)) => (
            "out_of_memory",
            format!(
                "the process was killed while it held {} MiB: most probably out of memory",
                held >> 20
            ),
        ),
        (Some(code), ..) => ("exit", format!("the process ended itself with exit code {code}")),
        (_, Some(9), None) => (
            "killed",
            "the process was killed (signal 9), not by Greenroom".to_owned(),
        ),
        (_, Some(signal), _) => (
            "signal",
            format!("the process died of signal {signal}{}", signal_name(signal)),
        ),
        (None, None, _) => (
            "lost",
            "the process is gone, and the system does not say how it ended".to_owned(),
        ),
    };
    let error = RunError {
        name: name.to_owned(),
        message,
        traceback: String::new(),
    };
    (error, code)
}

/// What the signals that processes die of are called.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (SIGILL: an instruction that this processor lacks)",
        6 => " (SIGABRT: native code gave up)",
        7 => " (SIGBUS: a bad memory access in native code)",
        8 => " (SIGFPE: a bad calculation in native code)",
        11 => " (SIGSEGV: a bad memory access in native code)",
        15 => " (SIGTERM)",
        _ => "",
    }
}
