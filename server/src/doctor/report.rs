//! What the doctor found, as a table.

use std::fmt;

/// Every check, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Report {
    checks: Vec<Check>,
}

/// One line of the report.
#[derive(Debug)]
struct Check {
    what: String,
    found: Found,
}

/// What a check found.
#[derive(Debug)]
pub(super) enum Found {
    /// It is as it should be.
    Good(String),
    /// It works, and its operator should know this.
    Note(String),
    /// It does not work, and what to type or do about it.
    Bad { problem: String, repair: String },
}

impl Report {
    pub(super) fn add(&mut self, what: impl Into<String>, found: Found) {
        self.checks.push(Check {
            what: what.into(),
            found,
        });
    }

    pub(super) fn good(&mut self, what: impl Into<String>, text: impl Into<String>) {
        self.add(what, Found::Good(text.into()));
    }

    pub(super) fn bad(
        &mut self,
        what: impl Into<String>,
        problem: impl fmt::Display,
        repair: impl Into<String>,
    ) {
        let (problem, repair) = (problem.to_string(), repair.into());
        self.add(what, Found::Bad { problem, repair });
    }

    /// Whether a server would work here.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.checks
            .iter()
            .all(|check| !matches!(check.found, Found::Bad { .. }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .checks
            .iter()
            .map(|check| check.what.len())
            .max()
            .unwrap_or(0);
        for Check { what, found } in &self.checks {
            match found {
                Found::Good(text) => writeln!(f, "ok    {what:width$}  {text}")?,
                Found::Note(text) => writeln!(f, "note  {what:width$}  {text}")?,
                Found::Bad { problem, repair } => {
                    writeln!(f, "FAIL  {what:width$}  {problem}")?;
                    writeln!(f, "      {:width$}  → {repair}", "")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_is_wrong_and_what_to_type() {
        let mut report = Report::default();
        report.good("engine", "Docker 20.10");
        report.add("live-restore", Found::Note("is off".into()));
        assert!(report.is_well());
        report.bad("runtime", "the engine has no runtime \"runsc\"", "make setup");
        assert!(!report.is_well());
        assert_eq!(
            report.to_string(),
            "ok    engine        Docker 20.10\n\
             note  live-restore  is off\n\
             FAIL  runtime       the engine has no runtime \"runsc\"\n      \
                                 \x20             → make setup\n"
        );
    }
}
