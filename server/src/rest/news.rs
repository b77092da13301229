//! What a caller must hear of its session beside the answer itself, in words for programs.

use chrono::{DateTime, SecondsFormat};
use greenroom_protocol::{FilesFate, Standing};
use schemars::JsonSchema;
use serde::Serialize;

/// The added member `greenroom`: there only where there is something to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct News {
    /// `new` or `restarted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<&'static str>,
    /// Why the earlier sandbox is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// What became of its files: `kept`, `gone`, `refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) files: Option<&'static str>,
    /// When kept files were as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) files_as_of: Option<String>,
    /// `restarted`, where variables were lost with a kernel and the sandbox goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<&'static str>,
    /// What processes that were left behind had printed since the last run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) late: String,
}

impl News {
    pub(crate) fn of(standing: &Standing) -> Self {
        let (reason, files) = match standing {
            Standing::Existing => return Self::default(),
            Standing::New => {
                return Self {
                    session: Some(standing.as_str()),
                    ..Self::default()
                };
            }
            Standing::Restarted { reason, files } => (*reason, *files),
        };
        let (fate, as_of) = match files {
            FilesFate::Gone => ("gone", None),
            FilesFate::Kept { as_of_ms, .. } => ("kept", Some(time(as_of_ms))),
            FilesFate::Refused { .. } => ("refused", None),
        };
        Self {
            session: Some(standing.as_str()),
            reason: Some(reason.as_str()),
            files: Some(fate),
            files_as_of: as_of,
            ..Self::default()
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The value of `x-greenroom-session`.
pub(crate) fn header(standing: &Standing) -> String {
    match standing {
        Standing::New | Standing::Existing => standing.as_str().to_owned(),
        Standing::Restarted { reason, .. } => format!("{} ({})", standing.as_str(), reason.as_str()),
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC. What cannot be is 1970: it may come from inside.
pub(crate) fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis);
    time.unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::RestartReason;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_news_is_told() {
        let restarted = |files| Standing::Restarted {
            reason: RestartReason::Idle,
            files,
        };
        let kept = FilesFate::Kept {
            as_of_ms: 1_700_000_000_123,
            left_out: 0,
        };
        for (standing, told, header_says) in [
            (Standing::Existing, json!({}), "existing"),
            (Standing::New, json!({ "session": "new" }), "new"),
            (
                restarted(FilesFate::Gone),
                json!({ "session": "restarted", "reason": "idle", "files": "gone" }),
                "restarted (idle)",
            ),
            (
                restarted(kept),
                json!({ "session": "restarted", "reason": "idle", "files": "kept", "filesAsOf": "2023-11-14T22:13:20.123Z" }),
                "restarted (idle)",
            ),
        ] {
            assert_eq!(serde_json::to_value(News::of(&standing)).unwrap(), told);
            assert_eq!(header(&standing), header_says);
        }
        assert!(News::of(&Standing::Existing).is_none() && !News::of(&Standing::New).is_none());
        assert_eq!(time(u64::MAX), "1970-01-01T00:00:00.000Z");
    }
}
