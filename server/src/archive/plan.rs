//! When a session's files are archived next: pure, and tested as a table.

use std::time::Duration;

/// Two archives of one session are at least so far apart, but for the one before its end.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same where a run has ended that names no file, so that there is little hope of any.
const PERHAPS: Duration = Duration::from_secs(300);
/// An archive costs its sandbox no more than this part of the time.
const SHARE: u32 = 10;
/// How long before a session's end its files are archived: an archive may take ten seconds, and wait for others.
const LEAD: Duration = Duration::from_secs(60);
/// The shortest wait: a lease's long poll counts whole seconds.
const LEAST: Duration = Duration::from_secs(1);

/// What a vigil sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Until the session ends, if nothing more happens.
    pub(super) ends_in: Duration,
    /// How long the session may be idle.
    pub(super) idle: Duration,
    pub(super) stirred: Stirred,
    /// Whether something is at work in it.
    pub(super) busy: bool,
    /// Since when it is watched.
    pub(super) watched: Duration,
    /// Since the last archive was begun, and what it took.
    pub(super) last: Option<(Duration, Duration)>,
}

/// Whether files have changed since the last archive was begun, as far as this server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stirred {
    /// Nothing has happened.
    No,
    /// A run has ended, and names none.
    Perhaps,
    Yes,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Save,
    /// Once more, since there may be no later time.
    SaveBeforeEnd,
    /// Look again after this long at the latest.
    Wait(Duration),
}

pub(super) fn plan(look: Look) -> Step {
    // A session that may be idle for seconds only is given a part of them.
    let lead = LEAD.min(look.idle / 2);
    let until_lead = look.ends_in.saturating_sub(lead);
    if until_lead.is_zero() {
        // Once in that time. It is no longer than the lead, but a call may have lengthened it in between.
        return match look.last {
            Some((since, _)) if since < lead => Step::Wait((lead - since).max(LEAST)),
            Some(_) | None => Step::SaveBeforeEnd,
        };
    }
    let interval = match (look.stirred, look.busy) {
        (Stirred::Yes, _) | (_, true) => INTERVAL,
        (Stirred::Perhaps, false) => PERHAPS,
        (Stirred::No, false) => return Step::Wait(until_lead.max(LEAST)),
    };
    let due = match look.last {
        Some((since, took)) => interval.max(took * SHARE).saturating_sub(since),
        None if look.stirred == Stirred::Yes => Duration::ZERO,
        None => interval.saturating_sub(look.watched),
    };
    if due.is_zero() {
        Step::Save
    } else {
        Step::Wait(due.min(until_lead).max(LEAST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stirred::{No, Perhaps, Yes};

    #[test]
    fn archives_are_made_after_changes_and_before_the_end() {
        let seconds = Duration::from_secs;
        let wait = |s| Step::Wait(seconds(s));
        for (ends_in, idle, stirred, busy, last, step) in [
            // Nothing happens until the end is near; then once.
            (7200, 7200, No, false, None, wait(7140)),
            (60, 7200, No, false, None, Step::SaveBeforeEnd),
            (50, 7200, No, false, Some((10, 2)), wait(50)),
            (60, 7200, Yes, false, Some((200, 2)), Step::SaveBeforeEnd),
            // Short lives have short leads.
            (8, 8, No, false, None, wait(4)),
            (4, 8, No, false, None, Step::SaveBeforeEnd),
            (3, 8, No, false, Some((1, 1)), wait(3)),
            (1, 1, No, false, None, wait(1)),
            (0, 1, No, false, None, Step::SaveBeforeEnd),
            // After changes at once, then once a minute, and less often where it is much.
            (7200, 7200, Yes, false, None, Step::Save),
            (7200, 7200, Yes, false, Some((10, 1)), wait(50)),
            (7200, 7200, Yes, false, Some((60, 1)), Step::Save),
            (7200, 7200, Yes, false, Some((60, 30)), wait(240)),
            (100, 7200, Yes, false, Some((10, 30)), wait(40)),
            (7200, 7200, No, false, Some((500, 1)), wait(7140)),
            // A run that names no file is no reason to hurry.
            (7200, 7200, Perhaps, false, None, wait(290)),
            (7200, 7200, Perhaps, false, Some((100, 1)), wait(200)),
            (7200, 7200, Perhaps, true, Some((61, 1)), Step::Save),
            (100, 7200, Perhaps, false, None, wait(40)),
            // What works on in the background is looked at once a minute.
            (7200, 7200, No, true, None, wait(50)),
            (7200, 7200, No, true, Some((61, 1)), Step::Save),
        ] {
            let look = Look {
                ends_in: seconds(ends_in),
                idle: seconds(idle),
                stirred,
                busy,
                watched: seconds(10),
                last: last.map(|(since, took)| (seconds(since), seconds(took))),
            };
            assert_eq!(plan(look), step, "{look:?}");
        }
    }

    /// Whatever is seen, a vigil neither spins nor sleeps through the end.
    #[test]
    fn every_wait_has_its_bounds() {
        let times = [0, 1, 5, 59, 60, 61, 300, 86_400].map(Duration::from_secs);
        for ends_in in times {
            for idle in times {
                for since in times {
                    for (stirred, busy) in [
                        (No, false),
                        (Perhaps, false),
                        (Yes, false),
                        (No, true),
                        (Yes, true),
                    ] {
                        for last in [None, Some((since, ends_in))] {
                            let watched = since;
                            let look = Look {
                                ends_in,
                                idle,
                                stirred,
                                busy,
                                watched,
                                last,
                            };
                            if let Step::Wait(wait) = plan(look) {
                                assert!(wait >= LEAST, "{look:?} {wait:?}");
                                let lead = LEAD.min(idle / 2);
                                let latest = ends_in.saturating_sub(lead).max(lead).max(LEAST);
                                assert!(wait <= latest, "{look:?} {wait:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
