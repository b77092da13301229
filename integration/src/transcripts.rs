//! Transcripts: an agent's tasks as Markdown files, each call and its answer, read by people and replayed by a test.
//!
//! A fenced block whose language is `python` or `bash` runs that code; `call TOOL` holds the arguments of another
//! tool as JSON; `answer` is the text that came back, with what differs from time to time masked.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One task.
#[derive(Clone, Debug, PartialEq)]
pub struct Transcript {
    /// Its file.
    pub path: PathBuf,
    /// All of it, in order.
    pub parts: Vec<Part>,
}

/// What a transcript is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Words for people.
    Prose(String),
    /// A call: the language of its block, and what is in it.
    Call(String, String),
    /// What came back.
    Answer(String),
}

impl Transcript {
    /// All that are checked in, by name.
    ///
    /// # Errors
    /// The folder or one of its files cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/transcripts"));
        let mut paths = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
        paths.sort();
        let read = |path: PathBuf| -> Result<Self> {
            let text = fs::read_to_string(&path)?;
            Ok(Self {
                parts: parse(&text),
                path,
            })
        };
        paths.into_iter().map(read).collect()
    }

    /// The name of its file.
    #[must_use]
    pub fn name(&self) -> String {
        self.path
            .file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
    }

    /// As it is written to its file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for part in &self.parts {
            // Writing to a String cannot fail.
            let _ = match part {
                Part::Prose(text) => writeln!(out, "{text}\n"),
                Part::Call(language, text) => writeln!(out, "```{language}\n{text}\n```\n"),
                Part::Answer(text) => writeln!(out, "```answer\n{text}\n```\n"),
            };
        }
        out.trim_end().to_owned() + "\n"
    }

    /// The answers.
    pub fn answers(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Answer(text) => Some(text.as_str()),
            Part::Prose(_) | Part::Call(..) => None,
        })
    }
}

/// The tool and the arguments of a call.
///
/// # Errors
/// Its block is none that a call has.
pub fn arguments(language: &str, text: &str) -> Result<(String, Value)> {
    match language.split_once(' ') {
        None => Ok((
            "execute_code".to_owned(),
            json!({ "language": language, "code": text }),
        )),
        Some(("call", tool)) => Ok((tool.to_owned(), serde_json::from_str(text)?)),
        Some((language, arguments)) => {
            let mut arguments: Value = serde_json::from_str(arguments)?;
            arguments["language"] = language.into();
            arguments["code"] = text.into();
            Ok(("execute_code".to_owned(), arguments))
        }
    }
}

fn parse(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lines = text.lines();
    let mut prose = Vec::new();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            prose.push(line);
            continue;
        };
        flush(&mut prose, &mut parts);
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        parts.push(match language {
            "answer" => Part::Answer(block.join("\n")),
            _ => Part::Call(language.to_owned(), block.join("\n")),
        });
    }
    flush(&mut prose, &mut parts);
    parts
}

fn flush(prose: &mut Vec<&str>, parts: &mut Vec<Part>) {
    let text = prose.join("\n").trim().to_owned();
    prose.clear();
    if !text.is_empty() {
        parts.push(Part::Prose(text));
    }
}

/// A text without what differs from one time to the next: durations, dates, ids of runs and processes, addresses.
#[must_use]
pub fn masked(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(masked_line).collect();
    lines.join("\n")
}

fn masked_line(line: &str) -> String {
    if let Some(("[1]", process)) = line.split_once(' ')
        && is_number(process)
    {
        return "[1] …".to_owned();
    }
    let mut shown: Vec<String> = Vec::new();
    let mut words = line.split(' ').peekable();
    while let Some(word) = words.next() {
        let unit = words
            .peek()
            .map(|next| next.split_at(next.find(MARKS_AFTER).unwrap_or(next.len())));
        let bare = word.trim_matches(['(', ')', ',']);
        match unit {
            // The unit depends on the number.
            Some((unit, rest)) if UNITS.contains(&unit) && is_number(word) => {
                words.next();
                shown.push(format!("…{rest}"));
            }
            _ if is_shaped(bare, "dddd-dd-dd") || is_shaped(bare, "dd:dd") => {
                shown.push(word.replace(bare, "…"))
            }
            _ => shown.push(without_ids(word)),
        }
        // `1 min 42 s`, or a date and a time of the day.
        if let [.., before, last] = shown.as_slice()
            && before == "…"
            && last.starts_with('…')
        {
            shown.remove(shown.len() - 2);
        }
    }
    shown.join(" ")
}

const UNITS: [&str; 4] = ["ms", "s", "min", "h"];
const MARKS_AFTER: [char; 5] = ['.', ',', ';', ':', ')'];

/// Whether a text is shaped like a pattern in which `d` is a digit: a date, a time of the day.
fn is_shaped(text: &str, pattern: &str) -> bool {
    let fits = |(shape, c): (char, char)| {
        if shape == 'd' {
            c.is_ascii_digit()
        } else {
            c == shape
        }
    };
    text.len() == pattern.len() && pattern.chars().zip(text.chars()).all(fits)
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// Hexadecimal digits behind these are nobody's business.
const MARKS: [&str; 2] = ["run-", "0x"];

fn without_ids(word: &str) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some((at, mark)) = MARKS
        .iter()
        .filter_map(|mark| Some((rest.find(mark)?, *mark)))
        .min()
    {
        let (before, behind) = rest.split_at(at + mark.len());
        let digits = behind.chars().take_while(char::is_ascii_hexdigit).count();
        out.push_str(before);
        if digits >= 8 {
            out.push('…');
            rest = &behind[digits..];
        } else {
            rest = behind;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_is_read_as_it_is_written() {
        let text = "# A task\n\nWords.\n\n```python\nx = 1\n\nx\n```\n\n```answer\nstatus: ok\n```\n\n```call list_files\n{}\n```\n";
        let parts = parse(text);
        assert_eq!(parts.len(), 4);
        let transcript = Transcript {
            path: PathBuf::from("t.md"),
            parts,
        };
        assert_eq!(transcript.text(), text);
        assert_eq!(transcript.answers().collect::<Vec<_>>(), ["status: ok"]);
    }

    #[test]
    fn what_differs_is_masked() {
        for (text, shown) in [
            (
                "status: ok · 12 ms · session: new",
                "status: ok · … · session: new",
            ),
            ("at work for 1 min 42 s. This", "at work for …. This"),
            ("run_id: run-0123456789, runs", "run_id: run-…, runs"),
            (
                "/mnt/data/.greenroom/runs/run-0123456789.stdout.txt",
                "/mnt/data/.greenroom/runs/run-….stdout.txt",
            ),
            ("<B object at 0x7f0123456789>", "<B object at 0x…>"),
            ("3 rows, 2 s", "3 rows, …"),
            ("[1] 10", "[1] …"),
            ("[1] 10 20", "[1] 10 20"),
            ("a.txt (3 B, 2026-11-26 05:11)", "a.txt (3 B, …)"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }

    #[test]
    fn calls_are_code_or_json() {
        let (tool, code) = arguments("python {\"timeout_seconds\": 2}", "x").unwrap();
        assert_eq!(
            (tool.as_str(), &code),
            (
                "execute_code",
                &json!({"timeout_seconds": 2, "language": "python", "code": "x"})
            )
        );
        let (tool, listed) = arguments("call list_files", "{\"recursive\": true}").unwrap();
        assert_eq!(
            (tool.as_str(), &listed),
            ("list_files", &json!({"recursive": true}))
        );
        assert!(arguments("call list_files", "nonsense").is_err());
    }
}
