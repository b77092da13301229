//! Samples in, a table and JSON out.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

/// What was measured so far.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    samples: usize,
    p50: f64,
    p90: f64,
    p99: f64,
    aim: &'static str,
}

impl Report {
    /// Durations, shown in milliseconds.
    pub(crate) fn times(&mut self, what: impl Into<String>, times: &[Duration], aim: &'static str) {
        let millis: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        self.values(what, "ms", &millis, aim);
    }

    /// Values of any unit.
    pub(crate) fn values(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        values: &[f64],
        aim: &'static str,
    ) {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| percentile(&sorted, share);
        let row = Row {
            what: what.into(),
            unit,
            samples: sorted.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            aim,
        };
        eprintln!(
            "{}: p50 {:.2} {unit} of {} samples",
            row.what, row.p50, row.samples
        );
        self.rows.push(row);
    }

    /// Prints the table, and writes `bench-results/latest.json` beside it.
    #[expect(clippy::print_stdout, reason = "the table is what the command is for")]
    pub(crate) fn print(&self) -> Result<()> {
        println!("| what | n | p50 | p90 | p99 | aim |\n|---|---|---|---|---|---|");
        for Row {
            what,
            unit,
            samples,
            p50,
            p90,
            p99,
            aim,
        } in &self.rows
        {
            println!("| {what} | {samples} | {p50:.2} {unit} | {p90:.2} | {p99:.2} | {aim} |");
        }
        std::fs::create_dir_all("bench-results")?;
        std::fs::write("bench-results/latest.json", serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

/// The smallest value that at least this share of the sorted ones does not exceed; NaN where there are none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&sorted, 0.5), percentile(&sorted, 0.99)),
            (50.0, 99.0)
        );
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
