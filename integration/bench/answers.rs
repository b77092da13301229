//! How long answers are: those of an agent's tasks, as they are checked in and replayed by a test.

use anyhow::Result;
use greenroom_integration::transcripts::Transcript;

use crate::report::Report;

/// Characters of text in the answers of all transcripts.
pub(crate) fn characters(report: &mut Report) -> Result<()> {
    let transcripts = Transcript::all()?;
    let answers = transcripts.iter().flat_map(Transcript::answers);
    let counts: Vec<f64> = answers.map(|answer| answer.chars().count() as f64).collect();
    report.values(
        "characters of an answer, in the transcripts of tasks",
        "characters",
        &counts,
        "–",
    );
    Ok(())
}
