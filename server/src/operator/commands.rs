//! The commands as texts: what is done, and what is printed of it.

use std::{fmt::Write as _, time::Duration};

use super::{Operator, OperatorError, Shown, Table, Which};
use crate::config::Config;

/// What has no owner is ended once it has been seen so for half a minute.
const SECOND_LOOK: Duration = Duration::from_secs(31);

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For a person.
    Table,
    /// For a program.
    Json,
}

/// Whether a sweep does what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broom {
    /// It does.
    Wet,
    /// It shows it only.
    Dry,
}

/// `greenroom sessions`: lists sandboxes, or ends sessions and lists those.
///
/// # Errors
/// [`OperatorError`].
pub async fn sessions(config: &Config, format: Format, end: Option<Which>) -> Result<String, OperatorError> {
    let operator = Operator::connect(config).await?;
    let shown = match &end {
        None => operator.sandboxes().await?,
        Some(which) => operator.end(which).await?,
    };
    Ok(match (format, end) {
        (Format::Json, _) => json(&shown),
        (Format::Table, None) if shown.is_empty() => "there are no sandboxes\n".to_owned(),
        (Format::Table, None) => Table(&shown).to_string(),
        (Format::Table, Some(_)) => format!("ended {} sessions\n{}", shown.len(), Table(&shown)),
    })
}

fn json(shown: &[Shown]) -> String {
    // Made of strings and numbers, which have no way to fail.
    serde_json::to_string_pretty(shown).unwrap_or_default() + "\n"
}

/// `greenroom sweep`: shows what no server will clear away, and clears it away.
///
/// # Errors
/// [`OperatorError`].
pub async fn sweep(config: &Config, broom: Broom) -> Result<String, OperatorError> {
    let operator = Operator::connect(config).await?;
    let leftovers = operator.leftovers().await?;
    let mut text = String::new();
    for (id, ground) in &leftovers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{id}  {}", ground.as_str());
    }
    let images = operator.images().await?;
    for image in &images {
        let _ = writeln!(text, "{image}  no pool adds this to its image");
    }
    let sandboxes = leftovers.len();
    let _ = match broom {
        Broom::Dry => writeln!(
            text,
            "{sandboxes} sandboxes and {} images would be removed",
            images.len()
        ),
        Broom::Wet => {
            let removed = operator.remove_images(&images).await;
            let forgotten = operator.sweep(&leftovers, SECOND_LOOK).await?;
            writeln!(
                text,
                "removed {sandboxes} sandboxes, {removed} images, and {forgotten} containers that were forgotten"
            )
        }
    };
    Ok(text)
}
