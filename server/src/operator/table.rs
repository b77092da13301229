//! Sandboxes as a table for a person.

use std::{fmt, time::Duration};

use super::{Shown, State};

const HEADS: [&str; 10] = [
    "SESSION", "POOL", "STATE", "AGE", "IDLE", "ENDS IN", "CPU", "MEMORY", "DISK", "SANDBOX",
];

/// A table of sandboxes.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [Shown]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = std::iter::once(HEADS.map(str::to_owned))
            .chain(self.0.iter().map(row))
            .collect();
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn row(shown: &Shown) -> [String; 10] {
    let none = || "-".to_owned();
    let (state, idle, ends) = match &shown.state {
        State::Booting => ("booting".to_owned(), none(), none()),
        State::Warm => ("warm".to_owned(), none(), none()),
        State::Bound {
            idle_seconds,
            ends_in_seconds,
        } => (
            "bound".to_owned(),
            seconds(*idle_seconds),
            seconds(*ends_in_seconds),
        ),
        State::Ending => ("ending".to_owned(), none(), none()),
        State::Silent => ("does not answer".to_owned(), none(), none()),
        State::Ended { reason: None } => ("ended".to_owned(), none(), none()),
        State::Ended { reason: Some(reason) } => (format!("ended: {reason:?}"), none(), none()),
    };
    let cpu = shown.cpu_milliseconds.map(Duration::from_millis);
    [
        shown.session.clone().unwrap_or_else(none),
        shown.pool.clone(),
        state,
        seconds(shown.age_seconds),
        idle,
        ends,
        cpu.map_or_else(none, |cpu| format!("{:.1}s", cpu.as_secs_f64())),
        shown.memory_bytes.map_or_else(none, mebibytes),
        shown.disk_bytes.map_or_else(none, mebibytes),
        shown.sandbox.to_string(),
    ]
}

fn mebibytes(bytes: u64) -> String {
    format!("{}MiB", bytes >> 20)
}

fn seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::SandboxId;

    #[test]
    fn columns_line_up() {
        let shown = Shown {
            sandbox: SandboxId::parse("grs-000000000000000000000001").unwrap(),
            session: Some("0123456789ab".to_owned()),
            pool: "python".to_owned(),
            state: State::Bound {
                idle_seconds: 61,
                ends_in_seconds: 7140,
            },
            age_seconds: 3,
            cpu_milliseconds: Some(1250),
            memory_bytes: Some(34 << 20),
            disk_bytes: Some(5 << 20),
        };
        assert_eq!(
            Table(&[shown]).to_string(),
            "SESSION       POOL    STATE  AGE  IDLE  ENDS IN  CPU   MEMORY  DISK  SANDBOX\n\
             0123456789ab  python  bound  3s   1m1s  1h59m    1.2s  34MiB   5MiB  grs-000000000000000000000001\n"
        );
    }
}
