//! Text of an answer: cut to a budget with exact counts, without control characters, with units that people read.

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use super::super::transcript::Captured;

/// Text without what drives a terminal: control characters are escaped, and a line that was overwritten by carriage
/// returns shows what a terminal would show. The agent has done so already; this is for one that lies.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            out.push('\n');
        }
        let shown = line.rsplit('\r').find(|part| !part.is_empty());
        for c in shown.unwrap_or_default().chars() {
            if c.is_control() && c != '\t' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
    }
    Cow::Owned(out)
}

/// A stream as a terminal would show it. What was overwritten is gone before anything is counted or cut.
pub(super) fn tidy(stream: &Captured) -> Captured {
    let mut tidy = Captured {
        text: String::with_capacity(stream.text.len()),
        gaps: Vec::with_capacity(stream.gaps.len()),
        ..stream.clone()
    };
    let mut at = 0;
    for (place, bytes) in &stream.gaps {
        tidy.text.push_str(&folded(&plain(&stream.text[at..*place])));
        tidy.gaps.push((tidy.text.len(), *bytes));
        at = *place;
    }
    tidy.text.push_str(&folded(&plain(&stream.text[at..])));
    tidy
}

/// So many equal lines in a row are said once, with their number.
const EQUAL_LINES: usize = 20;

/// A text whose many equal lines in a row are counted.
fn folded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let mut more = 0;
        while lines.next_if_eq(&line).is_some() {
            more += 1;
        }
        out.push_str(line);
        if more + 1 >= EQUAL_LINES {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "[… the same line {} more times …]", thousands(more as u64));
        } else {
            (0..more).for_each(|_| out.push_str(line));
        }
    }
    out
}

/// A file's name on one line: whatever would drive a terminal or begin another line is escaped.
pub(super) fn name(path: &str) -> Cow<'_, str> {
    if !path.contains(char::is_control) {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// A text within a budget of characters, and whether anything is missing from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Head, a line that counts what was left out, tail; or all of it.
    pub text: String,
    /// Whether anything was left out, here or before.
    pub truncated: bool,
}

/// Cuts the middle out of a stream. `whereabouts` says where more of it is.
pub(super) fn cut(stream: &Captured, budget: usize, whereabouts: Option<&str>) -> Cut {
    let (text, gaps) = (&stream.text, &stream.gaps);
    let chars = text.chars().count();
    let (head, tail) = if chars <= budget {
        (text.len(), text.len())
    } else {
        let head = budget / 2;
        let (head, tail) = (offset(text, head), offset(text, chars - (budget - head)));
        (line_end(text, head), line_begin(text, tail))
    };
    let mut out = String::with_capacity(text.len().min(budget * 4) + 128);
    let mut at = 0;
    let inline = |range: std::ops::Range<usize>| gaps.iter().filter(move |(place, _)| range.contains(place));
    for (place, bytes) in inline(0..head) {
        out.push_str(&text[at..*place]);
        left_out(&mut out, *bytes, whereabouts);
        at = *place;
    }
    out.push_str(&text[at..head]);
    // A gap just where the cut is belongs to the cut.
    let between: u64 = inline(head..tail + 1).map(|(_, bytes)| bytes).sum();
    let gone = (tail - head) as u64 + between;
    if gone > 0 {
        left_out(&mut out, gone, whereabouts);
    }
    at = tail;
    for (place, bytes) in inline(tail + 1..usize::MAX) {
        out.push_str(&text[at..*place]);
        left_out(&mut out, *bytes, whereabouts);
        at = *place;
    }
    out.push_str(&text[at..]);
    Cut {
        text: out,
        truncated: gone > 0 || !gaps.is_empty(),
    }
}

/// The end of the last whole line before a place, unless that costs half of what is before it.
fn line_end(text: &str, at: usize) -> usize {
    text[..at]
        .rfind('\n')
        .map_or(at, |newline| if newline >= at / 2 { newline + 1 } else { at })
}

/// The begin of the first whole line behind a place, unless that costs half of what is behind it.
fn line_begin(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    let whole = rest.find('\n').filter(|newline| *newline < rest.len() / 2);
    whole.map_or(at, |newline| at + newline + 1)
}

fn left_out(out: &mut String, bytes: u64, whereabouts: Option<&str>) {
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = match whereabouts {
        Some(place) => writeln!(out, "[… {} bytes left out; {place} …]", thousands(bytes)),
        None => writeln!(out, "[… {} bytes left out …]", thousands(bytes)),
    };
}

/// The byte offset of a character.
fn offset(text: &str, chars: usize) -> usize {
    text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
}

/// Splits a budget: nobody gets more than it needs, and what is left over goes to those who need more.
pub(super) fn share(budget: usize, needs: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|place| needs[*place]);
    let mut shares = vec![0; needs.len()];
    let mut left = budget;
    for (served, place) in order.into_iter().enumerate() {
        let fair = left / (needs.len() - served);
        shares[place] = needs[place].min(fair);
        left -= shares[place];
    }
    shares
}

/// `1,234,567`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `512 B`, `1.5 KiB`, `3.0 MiB`.
pub(super) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let scaled = |shift: u32| bytes as f64 / f64::from(1_u32 << shift);
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", scaled(10)),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", scaled(20)),
        _ => format!("{:.1} GiB", scaled(30)),
    }
}

/// `12 ms`, `3.2 s`, `2 min 5 s`, `3 h 10 min`.
pub(in crate::mcp) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn captured(text: &str, gaps: &[(usize, u64)]) -> Captured {
        Captured {
            text: text.to_owned(),
            gaps: gaps.to_vec(),
            ..Captured::default()
        }
    }

    #[test]
    fn what_was_cut_is_counted_exactly() {
        let whole = cut(&captured("short", &[]), 10, None);
        assert_eq!(
            whole,
            Cut {
                text: "short".into(),
                truncated: false
            }
        );
        let middle = cut(
            &captured("0123456789", &[]),
            4,
            Some("all of it is in /mnt/data/x"),
        );
        assert_eq!(
            middle.text,
            "01\n[… 6 bytes left out; all of it is in /mnt/data/x …]\n89"
        );
        let gap = cut(&captured("0123456789", &[(5, 1_000_000)]), 10, None);
        assert_eq!(gap.text, "01234\n[… 1,000,000 bytes left out …]\n56789");
        assert!(gap.truncated);
        let both = cut(&captured("0123456789", &[(5, 1000)]), 4, None);
        assert_eq!(both.text, "01\n[… 1,006 bytes left out …]\n89");
        let wide = cut(&captured("ääöö", &[]), 2, None);
        assert_eq!(wide.text, "ä\n[… 4 bytes left out …]\nö");
        let lines = cut(&captured("one\ntwo\nthree\nfour\nfive\n", &[]), 14, None);
        assert_eq!(
            lines.text, "one\n[… 15 bytes left out …]\nfive\n",
            "no line is half there"
        );
        let end = cut(&captured("abc", &[(3, 7)]), 10, None);
        assert_eq!(end.text, "abc\n[… 7 bytes left out …]\n");
    }

    proptest! {
        #[test]
        fn what_is_tidy_drives_no_terminal_and_keeps_its_gaps(
            text in "[a-c\r\n\t\u{1b}\u{7}\u{9b}é]{0,40}", places in prop::collection::vec((0_usize..40, 1_u64..99), 0..4)
        ) {
            let mut gaps: Vec<(usize, u64)> =
                places.into_iter().filter(|(at, _)| text.is_char_boundary(*at)).collect();
            gaps.sort_unstable();
            let once = tidy(&captured(&text, &gaps));
            prop_assert!(!once.text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
            let bytes = |gaps: &[(usize, u64)]| gaps.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>();
            prop_assert_eq!(bytes(&once.gaps), bytes(&gaps));
            prop_assert_eq!(&tidy(&once), &once);
            let lines = |text: &str| text.matches('\n').count();
            prop_assert_eq!(lines(&once.text), lines(&text));
        }

        #[test]
        fn a_cut_keeps_its_budget_and_loses_no_count(
            text in "\\PC{0,60}", budget in 0_usize..70, places in prop::collection::vec((0_usize..60, 1_u64..99), 0..4)
        ) {
            let mut gaps: Vec<(usize, u64)> =
                places.into_iter().filter(|(at, _)| text.is_char_boundary(*at)).collect();
            gaps.sort_unstable();
            gaps.dedup_by_key(|(at, _)| *at);
            let said: u64 = gaps.iter().map(|(_, bytes)| bytes).sum();
            let out = cut(&captured(&text, &gaps), budget, None).text;
            let (mut kept, mut counted) = (0, 0);
            for line in out.split_inclusive('\n') {
                match line.strip_prefix("[… ").and_then(|rest| rest.split_once(" bytes left out")) {
                    Some((number, _)) => counted += number.replace(',', "").parse::<u64>().unwrap(),
                    None => kept += line.replace('\n', "").chars().count(),
                }
            }
            prop_assert!(kept <= budget.max(text.chars().count().min(budget)));
            let lost = text.len() as u64 - out
                .split_inclusive('\n')
                .filter(|line| !line.starts_with("[… "))
                .map(|line| line.replace('\n', "").len() as u64)
                .sum::<u64>();
            prop_assert_eq!(counted, said + lost);
        }

        #[test]
        fn shares_add_up(budget in 0_usize..1000, needs in prop::collection::vec(0_usize..500, 0..6)) {
            let shares = share(budget, &needs);
            let (given, wanted): (usize, usize) = (shares.iter().sum(), needs.iter().sum());
            prop_assert!(shares.iter().zip(&needs).all(|(share, need)| share <= need));
            // Of what does not divide, less than one character a part is left.
            prop_assert!(given <= budget && given + needs.len() >= budget.min(wanted));
        }
    }

    #[test]
    fn terminals_are_not_driven() {
        for (text, shown) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("10%\r50%\r100%\ndone\r\n", "100%\ndone\n"),
            ("\u{1b}[31mred\u{7}\u{9b}", "\\u{1b}[31mred\\u{7}\\u{9b}"),
            ("\r  1%\r 99%\r100%", "100%"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn a_progress_bar_costs_what_is_left_of_it() {
        let bar: String = (0..=100).map(|n| format!("\r{n:3}%|{}", "#".repeat(n))).collect();
        let stream = captured(&format!("begin\n{bar}\nend\n"), &[(6, 12)]);
        let shown = cut(&tidy(&stream), 200, None);
        let full = "#".repeat(100);
        assert_eq!(
            shown.text,
            format!("begin\n[… 12 bytes left out …]\n100%|{full}\nend\n")
        );
    }

    #[test]
    fn many_equal_lines_are_counted() {
        let text = format!("a\n{}b\n{}", "x\n".repeat(1200), "y\n".repeat(19));
        let shown = tidy(&captured(&text, &[])).text;
        let few = "y\n".repeat(19);
        assert_eq!(
            shown,
            format!("a\nx\n[… the same line 1,199 more times …]\nb\n{few}")
        );
    }

    #[test]
    fn a_name_stays_on_its_line() {
        for (path, shown) in [
            ("a b.txt", "a b.txt"),
            ("two\nlines", "two\\nlines"),
            ("\x1b[31mred", "\\u{1b}[31mred"),
        ] {
            assert_eq!(name(path), shown);
        }
    }

    #[test]
    fn units_are_those_that_people_read() {
        assert_eq!(
            [size(0), size(1536), size(3 << 20), size(5 << 30)],
            ["0 B", "1.5 KiB", "3.0 MiB", "5.0 GiB"]
        );
        let spans = [12, 3200, 125_000, 11_400_000].map(|ms| span(Duration::from_millis(ms)));
        assert_eq!(spans, ["12 ms", "3.2 s", "2 min 5 s", "3 h 10 min"]);
        assert_eq!(
            [
                thousands(0),
                thousands(999),
                thousands(1000),
                thousands(1_234_567)
            ],
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
