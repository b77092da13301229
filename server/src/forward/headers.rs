//! Which headers pass, in and out: hop-by-hop ones never (RFC 9110, 7.6.1), credentials never, and what would speak for
//! a whole origin only on one that is the program's own.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, COOKIE, HOST, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
        X_CONTENT_TYPE_OPTIONS,
    },
};

use super::Origin;

/// What a document of a program may do on an origin that is not its own: run, and have no origin at all.
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox allow-scripts allow-forms");

/// Between two neighbours only, beside what `Connection` names.
const HOP: [HeaderName; 8] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// The same, of no standard.
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const API_KEY: HeaderName = HeaderName::from_static("x-ms-apikey");

/// What an answer could say for all that its origin serves, from then on or at once.
const ORIGIN_WIDE: [&str; 9] = [
    "set-cookie",
    "clear-site-data",
    "strict-transport-security",
    "service-worker-allowed",
    "alt-svc",
    "nel",
    "report-to",
    "reporting-endpoints",
    "public-key-pins",
];

/// Headers that only Greenroom speaks in.
const OURS: [&str; 2] = ["x-greenroom-", "x-ms-"];

/// Why a request is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Odd {
    /// A length and a coding: two readers could disagree where the request ends.
    #[error("a request has Content-Length or Transfer-Encoding, not both")]
    Framing,
    /// Several lengths.
    #[error("a request has one Content-Length")]
    Lengths,
}

/// Where a request comes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way<'a> {
    pub(crate) origin: Origin,
    /// `Host`, or the authority of HTTP/2.
    pub(crate) host: Option<&'a str>,
    /// The path that was cut off.
    pub(crate) prefix: &'a str,
}

/// Which upgrade a request asks for, if any.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = listed(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| named).cloned()
}

/// Refuses what two readers could read as two different requests.
///
/// # Errors
/// [`Odd`].
pub(crate) fn check(headers: &HeaderMap) -> Result<(), Odd> {
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    if lengths > 0 && headers.contains_key(TRANSFER_ENCODING) {
        return Err(Odd::Framing);
    }
    if lengths > 1 {
        return Err(Odd::Lengths);
    }
    Ok(())
}

/// Makes a request's headers those that its program gets.
pub(crate) fn inward(headers: &mut HeaderMap, way: Way<'_>) {
    let upgrade = upgrade(headers);
    strip_hops(headers);
    for credential in [&AUTHORIZATION, &API_KEY] {
        remove(headers, credential);
    }
    if way.origin == Origin::Shared {
        // Browsers send those of every other program on this host's name.
        remove(headers, &COOKIE);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    let mut say = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    if let Some(host) = way.host {
        say("x-forwarded-host", host);
    }
    say("x-forwarded-prefix", way.prefix);
    // Where TLS ends here, or in front of this server, that was said already.
    if !headers.contains_key("x-forwarded-proto") {
        headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    }
    let host = way.host.and_then(|host| HeaderValue::from_str(host).ok());
    headers.insert(HOST, host.unwrap_or(HeaderValue::from_static("localhost")));
}

/// Makes a program's answer one that this origin can give.
pub(crate) fn outward(headers: &mut HeaderMap, origin: Origin) {
    let upgrade = upgrade(headers);
    strip_hops(headers);
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| OURS.iter().any(|prefix| name.as_str().starts_with(prefix)))
        .cloned()
        .collect();
    for name in &ours {
        remove(headers, name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    if origin == Origin::Own {
        return;
    }
    for name in ORIGIN_WIDE {
        while headers.remove(name).is_some() {}
    }
    debug_assert!(!headers.contains_key(SET_COOKIE) && !headers.contains_key(STRICT_TRANSPORT_SECURITY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Beside the program's own: a browser keeps all of them.
    headers.append(CONTENT_SECURITY_POLICY, SANDBOX);
}

fn strip_hops(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = listed(headers).filter_map(|name| name.parse().ok()).collect();
    for name in named.iter().chain(&HOP).chain([&PROXY_CONNECTION]) {
        remove(headers, name);
    }
}

/// What `Connection` names.
fn listed(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn remove(headers: &mut HeaderMap, name: &HeaderName) {
    while headers.remove(name).is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut shown: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        shown.sort();
        shown
    }

    fn way(origin: Origin) -> Way<'static> {
        Way {
            origin,
            host: Some("greenroom.example:8484"),
            prefix: "/pools/app",
        }
    }

    #[test]
    fn a_program_gets_no_credentials_and_no_hops() {
        let sent = [
            ("host", "greenroom.example:8484"),
            ("authorization", "Bearer s3cret"),
            ("x-ms-apikey", "s3cret"),
            ("proxy-authorization", "s3cret"),
            ("cookie", "other=1"),
            ("connection", "keep-alive, X-Hop"),
            ("connection", "x-other-hop"),
            ("x-hop", "1"),
            ("x-other-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-own", "stays"),
            ("expect", "100-continue"),
        ];
        let mut headers = map(&sent);
        inward(&mut headers, way(Origin::Shared));
        let expected = [
            "expect: 100-continue",
            "host: greenroom.example:8484",
            "x-forwarded-host: greenroom.example:8484",
            "x-forwarded-prefix: /pools/app",
            "x-forwarded-proto: http",
            "x-own: stays",
        ];
        assert_eq!(shown(&headers), expected);
        let mut headers = map(&sent);
        inward(&mut headers, way(Origin::Own));
        assert!(headers.contains_key(COOKIE) && !headers.contains_key(AUTHORIZATION));
    }

    #[test]
    fn an_upgrade_passes_where_it_is_meant() {
        let meant = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
        ];
        let mut headers = map(&meant);
        inward(&mut headers, way(Origin::Shared));
        assert_eq!(headers[UPGRADE], "websocket");
        assert_eq!(headers[CONNECTION], "upgrade");
        assert!(headers.contains_key("sec-websocket-key"));
    }

    #[test]
    fn an_answer_speaks_for_itself_only() {
        let said = [
            ("content-type", "text/html"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("clear-site-data", "\"*\""),
            ("service-worker-allowed", "/"),
            ("content-security-policy", "default-src 'self'"),
            ("x-greenroom-session", "existing"),
            ("x-ms-error-code", "Fake"),
            ("connection", "close"),
            ("x-own", "stays"),
        ];
        let mut headers = map(&said);
        outward(&mut headers, Origin::Shared);
        let expected = [
            "content-security-policy: default-src 'self'",
            "content-security-policy: sandbox allow-scripts allow-forms",
            "content-type: text/html",
            "x-content-type-options: nosniff",
            "x-own: stays",
        ];
        assert_eq!(shown(&headers), expected);
        let mut headers = map(&said);
        outward(&mut headers, Origin::Own);
        assert_eq!(headers.get_all(SET_COOKIE).iter().count(), 2);
        assert_eq!(headers.get_all(CONTENT_SECURITY_POLICY).iter().count(), 1);
        assert!(!headers.contains_key("x-greenroom-session") && !headers.contains_key("x-ms-error-code"));
    }

    #[test]
    fn a_request_that_could_be_two_is_none() {
        for (pairs, expected) in [
            (&[("content-length", "3")][..], Ok(())),
            (&[("transfer-encoding", "chunked")], Ok(())),
            (
                &[("content-length", "3"), ("transfer-encoding", "chunked")],
                Err(Odd::Framing),
            ),
            (
                &[("content-length", "3"), ("content-length", "3")],
                Err(Odd::Lengths),
            ),
        ] {
            assert_eq!(check(&map(pairs)), expected);
        }
    }
}
