//! What stands below a run's output: changed files, what is left of the state, and the next step.

use std::{fmt::Write as _, time::Duration};

use greenroom_protocol::{
    FileChangeKind, KernelFate, Language, Loss, LossCause, RunOutcome, RunStatus, limits,
};

use super::{
    super::transcript::{Ahead, Stage, Transcript},
    hints::hints,
    reason_words,
    text::{name, size, span},
};

/// A kernel that took longer to start than this is worth a word.
const SLOW_START: Duration = Duration::from_secs(2);

/// What is left of the state, and what to do next.
pub(super) fn notes(transcript: &Transcript, timeout: Option<Duration>) -> Vec<String> {
    let Some(outcome) = transcript.outcome() else {
        return vec![going_on(transcript)];
    };
    let mut notes = Vec::new();
    if let Some(took) = transcript.boot.filter(|took| *took >= SLOW_START) {
        notes.push(format!(
            "{} was started for this run, which took {}; later runs do not wait for that",
            outcome.language,
            span(took)
        ));
    }
    if transcript.stood_in {
        notes.push("this image has no bash: its sh ran this, which knows POSIX only".to_owned());
    }
    notes.extend(stopped(outcome, timeout));
    notes.extend(outcome.lost.as_ref().map(|loss| missed(loss, outcome.language)));
    if outcome.background_ended > 0 {
        notes.push(format!(
            "the sandbox was full of processes, so {} that earlier runs had left in the background were ended",
            outcome.background_ended
        ));
    }
    notes.extend(hints(transcript, outcome).into_iter().map(str::to_owned));
    notes
}

/// Why a run was stopped and what that has cost, for one that did not just end.
fn stopped(outcome: &RunOutcome, timeout: Option<Duration>) -> Option<String> {
    let language = outcome.language.as_str();
    let error = outcome.error.as_ref().map(|error| error.name.as_str());
    if error == Some("kernel_start") {
        return Some(format!(
            "{language} could not be started, so the code did not run. {}, files are kept. Send it again; if that fails too, \
             reset_session gives a fresh sandbox",
            capital(state_of(outcome.language))
        ));
    }
    let left = match outcome.kernel {
        KernelFate::Kept => "Variables and files are kept".to_owned(),
        KernelFate::Restarted => format!(
            "{language} was restarted: {}, files are kept",
            state_of(outcome.language)
        ),
    };
    let (what, next) = match outcome.status {
        RunStatus::Ok | RunStatus::Error if outcome.kernel == KernelFate::Kept => return None,
        RunStatus::Ok | RunStatus::Error => return Some(left),
        RunStatus::TimedOut => (
            match timeout {
                Some(limit) => format!("the run was stopped at its limit of {}", span(limit)),
                None => "the run was stopped at its time limit".to_owned(),
            },
            ". If it needs longer, pass a larger timeout_seconds, with background true where that is minutes",
        ),
        RunStatus::Cancelled => ("the run was cancelled".to_owned(), ""),
        RunStatus::KernelDied => (
            match error {
                Some("exit") => format!("the code ended the {language} process itself"),
                _ => format!("{language} died during the run"),
            },
            match error {
                Some("out_of_memory") => {
                    ". It needs less memory at once: read files in chunks or only some columns, and delete what is not needed"
                }
                _ => "",
            },
        ),
    };
    Some(format!("{what}. {left}{next}"))
}

/// What a kernel loses with its process.
const fn state_of(language: Language) -> &'static str {
    match language {
        Language::Bash | Language::Sh => {
            "its variables, functions, current directory and background jobs are gone"
        }
        Language::Python | Language::JavaScript | Language::TypeScript | Language::Other(_) => {
            "its variables and imports are gone"
        }
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// A name was missed that may have been there before variables were lost.
fn missed(loss: &Loss, language: Language) -> String {
    let how = match &loss.cause {
        LossCause::Run { run, status } => format!("with run {run} ({})", status.as_str()),
        LossCause::Between => "since it died between two runs".to_owned(),
        LossCause::Sandbox { reason } => format!("with the earlier sandbox ({})", reason_words(*reason)),
    };
    format!(
        "what {language} knew was lost {} ago {how}: define and import again what the code needs",
        span(Duration::from_millis(loss.ago_ms))
    )
}

fn going_on(transcript: &Transcript) -> String {
    let follow = format!(
        "get_run with run_id {:?}, since {} and wait_seconds 50",
        transcript.id.0, transcript.next
    );
    match &transcript.stage {
        Stage::Queued { behind: Some(ahead) } => queued(transcript, ahead, &follow),
        Stage::Queued { behind: None } if transcript.standing.is_none() => format!(
            "the sandbox has not answered, so the run may not have begun. {} shows whether it has; if the sandbox stays silent, \
             the next execute_code gets a fresh one and says so",
            capital(&follow)
        ),
        Stage::Queued { behind: None } => {
            format!("the run is about to start. For its output call {follow}; cancel_run stops it")
        }
        Stage::Running | Stage::Finished(_) => {
            format!("the run goes on in the background. For the rest call {follow}; cancel_run stops it")
        }
    }
}

/// A busy kernel: behind what a run waits, and that nothing has to be done for it.
fn queued(transcript: &Transcript, ahead: &Ahead, follow: &str) -> String {
    let busy = transcript
        .language
        .as_ref()
        .map_or("the kernel", Language::as_str);
    let free = match transcript.language {
        Some(Language::Bash | Language::Sh) => Language::Python,
        Some(_) | None => Language::Bash,
    };
    format!(
        "{busy} is busy: run {} has been at work for {}. This run waits behind it and starts by itself, so do not send it \
         again. {follow} follows it; cancel_run with run_id {:?} ends the one before it, with {:?} it withdraws this one; {free} has \
         a queue of its own and can be used meanwhile",
        ahead.run,
        span(ahead.running(transcript.at_ms)),
        ahead.run.0,
        transcript.id.0,
    )
}

/// Changed files and notes.
pub(super) fn tail(outcome: Option<&RunOutcome>, notes: &[String]) -> String {
    let mut tail = String::new();
    let files = outcome
        .map(|outcome| outcome.files.as_slice())
        .unwrap_or_default();
    if !files.is_empty() {
        tail.push_str("\n\nfiles:");
        for file in files {
            let _ = match file.change {
                FileChangeKind::Deleted => write!(tail, "\n  deleted {}", name(&file.path)),
                FileChangeKind::Created => {
                    write!(tail, "\n  created {} ({})", name(&file.path), size(file.size))
                }
                FileChangeKind::Modified => {
                    write!(tail, "\n  changed {} ({})", name(&file.path), size(file.size))
                }
            };
        }
        if files.len() >= limits::CHANGED_FILES {
            tail.push_str("\n  … and perhaps more: list_files shows all");
        }
    }
    if !notes.is_empty() {
        tail.push('\n');
    }
    for note in notes {
        let _ = write!(tail, "\nnote: {note}.");
    }
    tail
}
