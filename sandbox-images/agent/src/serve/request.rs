//! What a request brings: the arguments in its address, and a JSON body within its bounds.

use std::time::Duration;

use greenroom_protocol::{
    RefusalKind,
    limits::{JSON_BYTES, WAIT_SECS},
};
use http::Request;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::answer::{Refused, refuse};

/// How long a JSON body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The arguments behind the question mark.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Refused> {
        self.value(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| refuse(RefusalKind::BadRequest, format!("{name} must be a whole number")))
            })
            .transpose()
    }

    /// `true` or `false`; left out, `false`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refused> {
        match self.value(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(refuse(
                RefusalKind::BadRequest,
                format!("{name} must be true or false"),
            )),
        }
    }

    /// `wait` in seconds, cut to [`WAIT_SECS`].
    pub(super) fn wait(&self) -> Result<Option<Duration>, Refused> {
        Ok(self
            .number("wait")?
            .map(|seconds| Duration::from_secs(seconds.min(WAIT_SECS))))
    }
}

/// Reads the arguments of a request.
pub(super) fn query<B>(request: &Request<B>) -> Result<Query, Refused> {
    let text = request.uri().query().unwrap_or_default();
    let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode(key)?, decode(value)?))
    });
    Ok(Query(pairs.collect::<Result<_, Refused>>()?))
}

/// Percent-decodes one part of a path or query.
pub(super) fn decode(text: &str) -> Result<String, Refused> {
    let bad = || {
        refuse(
            RefusalKind::BadRequest,
            "the address is not well-formed UTF-8 in percent-encoding",
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                return Err(bad());
            };
            // Two hexadecimal digits fit into a byte.
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// Reads a JSON body within its bounds of size and time.
pub(super) async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refused> {
    let read = Limited::new(request.into_body(), JSON_BYTES).collect();
    let bytes = match timeout(BODY_TIME, read).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(refuse(
                RefusalKind::TooLarge,
                format!("a JSON body has at most {JSON_BYTES} bytes"),
            ));
        }
        Ok(Err(_)) => return Err(refuse(RefusalKind::BadRequest, "the body broke off")),
        Err(_) => return Err(refuse(RefusalKind::BadRequest, "the body did not arrive in time")),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| refuse(RefusalKind::BadRequest, format!("the body does not fit: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_decoded_or_refused() {
        for (text, decoded) in [
            ("", Some("")),
            ("a+b/c", Some("a+b/c")),
            ("a%20b%2Fc%00", Some("a b/c\0")),
            ("%e2%82%AC", Some("€")),
            ("%", None),
            ("%4", None),
            ("%4g", None),
            ("%+1", None),
            ("%ff", None),
        ] {
            assert_eq!(decode(text).ok().as_deref(), decoded, "{text}");
        }
    }

    #[test]
    fn arguments_are_found_by_name() {
        let request = Request::builder()
            .uri("/x?a=1&b&c=%3D&a=2&wait=9999")
            .body(())
            .unwrap();
        let query = query(&request).unwrap();
        assert_eq!(query.value("a"), Some("1"), "the first one counts");
        assert_eq!(query.value("b"), Some(""));
        assert_eq!(query.value("c"), Some("="));
        assert_eq!(query.value("d"), None);
        assert_eq!(query.wait().unwrap(), Some(Duration::from_secs(WAIT_SECS)));
        assert!(query.number("b").is_err());
    }
}
