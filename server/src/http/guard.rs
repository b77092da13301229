//! Which `Host` and `Origin` a request may have: the wall against web pages that talk to their reader's machine.
//!
//! Browsers send no `Origin` with what a page embeds or leads to (`<img>`, a frame, a link), and a GET can take a
//! sandbox. They say of such a request that it is another site's (`Sec-Fetch-Site`, also to plain loopback), and
//! whose it is in `Referer`, which a page can leave out and not forge: that stands for the `Origin` there.

use std::{fmt, net::SocketAddr};

use axum::http::{HeaderMap, HeaderName, Uri, header, uri::Authority};

use crate::{config::HttpConfig, rest::address::Below};

/// Names of this machine, from this machine.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// From where a browser sends a request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// How.
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// What becomes of the answer.
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
/// That somebody has clicked, or typed.
const FETCH_USER: HeaderName = HeaderName::from_static("sec-fetch-user");
/// That nobody has asked for it yet.
const PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");

/// Links to files are permissions of their own, wherever they are shown.
const LINKS: &str = "/files/";

/// What is allowed.
#[derive(Debug)]
pub(super) struct Guard {
    hosts: Vec<Place>,
    /// Where hostile pages come from that this server serves itself.
    shunned: Option<u16>,
    origins: Vec<(String, Place)>,
}

/// A host, and the port if it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    port: Option<u16>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Host(String),
    NoHost,
    Origin(String),
    Page,
}

/// How a request came that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// From a program, or from a page that may.
    Itself,
    /// By a link on any page, whose reader has left it for what may be a container's program.
    ByLink,
    /// As a part of any page, one of that very program's perhaps: those on Greenroom's own address have no origin.
    Embedded,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "Host {host:?} is not allowed (http.allowed_hosts)"),
            Self::NoHost => f.write_str("the request names no Host"),
            Self::Origin(origin) => write!(f, "Origin {origin:?} is not allowed (http.allowed_origins)"),
            Self::Page => {
                f.write_str("a page of another site asks, which is not allowed (http.allowed_origins)")
            }
        }
    }
}

impl Guard {
    /// This machine's own names, the address that is listened on, and what is configured.
    pub(super) fn new(config: &HttpConfig, address: SocketAddr) -> Self {
        let any_port = |host: &str| Place {
            host: host.to_owned(),
            port: None,
        };
        let mut hosts: Vec<Place> = LOOPBACK.map(any_port).to_vec();
        hosts.push(any_port(&address.ip().to_string()));
        hosts.extend(config.allowed_hosts.iter().filter_map(|host| place(host)));
        let mut origins: Vec<(String, Place)> = LOOPBACK
            .iter()
            .flat_map(|host| ["http", "https"].map(|scheme| (scheme.to_owned(), any_port(host))))
            .collect();
        origins.extend(
            config
                .allowed_origins
                .iter()
                .filter_map(|origin| allowed_origin(origin)),
        );
        Self {
            hosts,
            shunned: None,
            origins,
        }
    }

    /// Pages of this port are refused, by whatever name of this machine.
    pub(super) fn shunning(mut self, port: Option<u16>) -> Self {
        self.shunned = port;
        self
    }

    /// How a request came, if it may pass.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Came, Refusal> {
        // Over HTTP/2 the host is part of the target.
        let host = match (uri.authority(), headers.get(header::HOST)) {
            (_, Some(host)) => host.as_bytes(),
            (Some(authority), None) => authority.as_str().as_bytes(),
            (None, None) => return Err(Refusal::NoHost),
        };
        let named = std::str::from_utf8(host).ok().and_then(place);
        let Some(own) = named.filter(|named| self.hosts.iter().any(|allowed| allowed.covers(named))) else {
            return Err(Refusal::Host(shown(host)));
        };
        for origin in headers.get_all(header::ORIGIN) {
            if !origin.to_str().is_ok_and(|origin| self.allows(&own, origin)) {
                return Err(Refusal::Origin(shown(origin.as_bytes())));
            }
        }
        let is_said = headers.contains_key(header::ORIGIN);
        if is_said || !is_foreign(headers) || uri.path().starts_with(LINKS) {
            return Ok(Came::Itself);
        }
        let from = headers.get(header::REFERER).and_then(|page| page.to_str().ok());
        if from
            .and_then(origin_of)
            .is_some_and(|from| self.allows(&own, from))
        {
            Ok(Came::Itself)
        } else if Below::read(uri.path()).is_none() {
            Err(Refusal::Page)
        } else if is_followed(headers) {
            Ok(Came::ByLink)
        } else {
            Ok(Came::Embedded)
        }
    }

    fn allows(&self, own: &Place, origin: &str) -> bool {
        sent_origin(origin).is_some_and(|(scheme, place)| {
            if place.port.is_some() && place.port == self.shunned {
                return false;
            }
            // A page of our own, by a name that is ours.
            is_own(own, &scheme, &place)
                || self
                    .origins
                    .iter()
                    .any(|(allowed, covers)| *allowed == scheme && covers.covers(&place))
        })
    }
}

/// Whether a browser says that a page of another site asks. One of this site is one of another origin.
fn is_foreign(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all(FETCH_SITE).iter();
    sites.any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"))
}

/// Whether somebody has followed a link. A page can load any number of frames, have pages fetched beforehand, and lead
/// its own window elsewhere again and again. Safari does not say who clicked, so that its links are taken for embedded.
fn is_followed(headers: &HeaderMap) -> bool {
    let says = |name, what: &str| headers.get(name).is_some_and(|value| value == what);
    says(FETCH_MODE, "navigate")
        && says(FETCH_DEST, "document")
        && says(FETCH_USER, "?1")
        && !headers.contains_key(PURPOSE)
}

/// The origin of a page.
fn origin_of(page: &str) -> Option<&str> {
    let begin = page.find("://")? + 3;
    let end = page[begin..].find(['/', '?', '#']);
    Some(end.map_or(page, |end| &page[..begin + end]))
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(100)]).into_owned()
}

impl Place {
    fn covers(&self, other: &Self) -> bool {
        self.host == other.host && (self.port.is_none() || self.port == other.port)
    }
}

/// `host`, `host:port`, `[::1]:port`; `:*` is any port.
fn place(text: &str) -> Option<Place> {
    let text = text.strip_suffix(":*").unwrap_or(text);
    let authority: Authority = text.parse().ok()?;
    if authority.as_str().contains('@') {
        return None;
    }
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.');
    Some(Place {
        host: host.to_ascii_lowercase(),
        port: authority.port_u16(),
    })
}

/// A configured origin; without a port it is the scheme's own one.
fn allowed_origin(text: &str) -> Option<(String, Place)> {
    let (scheme, rest) = text.split_once("://")?;
    let mut place = place(rest)?;
    if place.port.is_none() && !rest.ends_with(":*") {
        place.port = default_port(scheme);
    }
    Some((scheme.to_ascii_lowercase(), place))
}

/// Whether an origin is the very host, with its port, that the request is for.
fn is_own(own: &Place, scheme: &str, origin: &Place) -> bool {
    let port = own.port.or_else(|| default_port(scheme));
    port.is_some() && origin.host == own.host && origin.port == port
}

fn sent_origin(text: &str) -> Option<(String, Place)> {
    let (scheme, rest) = text.split_once("://")?;
    let mut place = place(rest)?;
    place.port = place.port.or_else(|| default_port(scheme));
    Some((scheme.to_ascii_lowercase(), place))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: Option<&str>, origin: Option<&str>) -> Result<(), Refusal> {
        let config = HttpConfig {
            allowed_hosts: vec!["greenroom.example".into(), "inner:8484".into()],
            allowed_origins: vec!["https://app.example".into(), "http://dev.example:*".into()],
            sse: true,
            tls: None,
            forward_listen: None,
        };
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        let guard = Guard::new(&config, "127.0.0.2:8484".parse().unwrap());
        guard.check(&Uri::from_static("/mcp"), &headers).map(|came| {
            assert_eq!(came, Came::Itself);
        })
    }

    fn guard() -> Guard {
        Guard::new(&HttpConfig::default(), "127.0.0.1:8484".parse().unwrap()).shunning(Some(8485))
    }

    fn asked(guard: &Guard, target: &'static str, headers: &[(&'static str, &str)]) -> Result<Came, Refusal> {
        let host = [("host", "localhost:8484")];
        let headers = host.iter().chain(headers);
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        guard.check(&Uri::from_static(target), &headers.collect())
    }

    #[test]
    fn only_known_hosts_are_served() {
        for host in [
            "localhost",
            "LOCALHOST:8484",
            "127.0.0.1:1",
            "[::1]:8484",
            "127.0.0.2:8484",
            "greenroom.example:443",
            "greenroom.example.",
            "inner:8484",
        ] {
            assert_eq!(check(Some(host), None), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "inner",
            "inner:80",
            "a@localhost",
            "",
            "lo cal",
        ] {
            assert_eq!(check(Some(host), None), Err(Refusal::Host(host.into())), "{host}");
        }
        assert_eq!(check(None, None), Err(Refusal::NoHost));
    }

    #[test]
    fn only_known_origins_are_served() {
        for origin in [
            "http://localhost:3000",
            "http://127.0.0.1",
            "http://[::1]:5173",
            "https://app.example",
            "https://app.example:443",
            "http://dev.example:9",
        ] {
            assert_eq!(check(Some("localhost"), Some(origin)), Ok(()), "{origin}");
        }
        for origin in [
            "null",
            "http://evil.example",
            "http://app.example",
            "https://app.example:8443",
            "https://dev.example:9",
            "http://localhost.evil.example",
            "http://localhost@evil.example",
            "",
        ] {
            assert_eq!(
                check(Some("localhost"), Some(origin)),
                Err(Refusal::Origin(origin.into())),
                "{origin}"
            );
        }
    }

    #[test]
    fn over_http_2_the_target_names_the_host() {
        let guard = Guard::new(
            &HttpConfig {
                allowed_hosts: vec![],
                allowed_origins: vec![],
                sse: true,
                tls: None,
                forward_listen: None,
            },
            "127.0.0.1:1".parse().unwrap(),
        );
        assert_eq!(
            guard.check(&Uri::from_static("http://localhost:1/mcp"), &HeaderMap::new()),
            Ok(Came::Itself)
        );
        assert!(
            guard
                .check(&Uri::from_static("http://evil.example/mcp"), &HeaderMap::new())
                .is_err()
        );
    }

    #[test]
    fn pages_of_forwarded_programs_are_refused() {
        for (origin, allowed) in [("http://localhost:8485", false), ("http://localhost:8486", true)] {
            let checked = asked(&guard(), "/mcp", &[("origin", origin)]);
            assert_eq!(checked.is_ok(), allowed, "{origin}");
        }
    }

    #[test]
    fn what_other_sites_embed_is_known_for_it() {
        for (site, page, is_foreign) in [
            ("same-origin", "", false),
            ("none", "", false),
            ("cross-site", "", true),
            ("same-site", "", true),
            ("new-word", "", true),
            ("cross-site", "http://evil.example/", true),
            ("cross-site", "http://localhost@evil.example/", true),
            ("cross-site", "http://evil.example/?http://localhost:3000/", true),
            ("cross-site", "http://evil.example?x=http://localhost:3000/", true),
            ("cross-site", "http://localhost:3000/chat?id=1", false),
            ("same-site", "http://localhost:3000", false),
            // The address of forwarded programs.
            ("same-site", "http://localhost:8485/pools/my-app/", true),
            ("cross-site", "http://127.0.0.1:8485/", true),
        ] {
            let mut headers = vec![("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")];
            if !page.is_empty() {
                headers.push(("referer", page));
            }
            for (target, foreign) in [
                ("/pools/python/files?identifier=conv-0001", Ok(Came::Embedded)),
                (
                    "/subscriptions/s/resourceGroups/g/sessionPools/my-app/",
                    Ok(Came::Embedded),
                ),
                ("/sse", Err(Refusal::Page)),
                ("/metrics", Err(Refusal::Page)),
                ("/", Err(Refusal::Page)),
                ("/files/token/a.png", Ok(Came::Itself)),
            ] {
                let expected = if is_foreign { foreign } else { Ok(Came::Itself) };
                assert_eq!(
                    asked(&guard(), target, &headers),
                    expected,
                    "{target} {headers:?}"
                );
            }
        }
        let told = [
            ("sec-fetch-site", "cross-site"),
            ("origin", "http://localhost:3000"),
        ];
        assert_eq!(
            asked(&guard(), "/sse", &told),
            Ok(Came::Itself),
            "an origin tells more"
        );
    }

    #[test]
    fn a_link_is_one_that_somebody_follows() {
        let followed = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
            ("sec-fetch-user", "?1"),
            ("sec-purpose", "prefetch"),
        ];
        let frame = [
            followed[0],
            followed[1],
            ("sec-fetch-dest", "iframe"),
            followed[3],
        ];
        let program = "/pools/my-app/x?identifier=conv-0001";
        for (target, headers, expected) in [
            (program, &followed[..4], Ok(Came::ByLink)),
            // A script leads its window elsewhere.
            (program, &followed[..3], Ok(Came::Embedded)),
            (program, &followed[..], Ok(Came::Embedded)),
            (program, &frame[..], Ok(Came::Embedded)),
            ("/sse", &followed[..4], Err(Refusal::Page)),
            ("/metrics", &followed[..4], Err(Refusal::Page)),
        ] {
            assert_eq!(asked(&guard(), target, headers), expected, "{target} {headers:?}");
        }
    }
}
