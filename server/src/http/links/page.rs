//! The page of a link for an upload: a place to drop a file on.

use std::time::SystemTime;

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};

use crate::{config::Size, links::clock};

/// With `{path}`, `{limit}`, `{until}` and `{nonce}`.
const PAGE: &str = include_str!("page.html");

/// The page for one path. Its script and style are its own, and nothing else is loaded or run.
pub(super) fn of(path: &str, expires: SystemTime, limit: Size) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let mut response = Response::new(Body::from(render(path, expires, limit, &nonce)));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn render(path: &str, expires: SystemTime, limit: Size, nonce: &str) -> String {
    PAGE.replace("{nonce}", nonce)
        .replace("{limit}", &limit.to_string())
        .replace("{until}", &clock(expires))
        // Last: it may hold anything.
        .replace("{path}", &escaped(path))
}

/// A model chose it, after reading a stranger's page perhaps.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut html, c| {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c if c.is_control() => html.extend(c.escape_default()),
            c => html.push(c),
        }
        html
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_a_path_and_runs_nothing_of_it() {
        let path = "<script>alert('x')</script>\n{nonce}";
        let page = render(path, SystemTime::UNIX_EPOCH, Size::mib(4), "n0");
        assert!(
            page.contains("/mnt/data/&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;\\n{nonce}"),
            "{page}"
        );
        assert!(
            page.contains("4MiB") && page.contains("1970-01-01 00:00 UTC"),
            "{page}"
        );
        assert_eq!(page.matches("nonce=\"n0\"").count(), 2);
        for left in ["{path}", "{limit}", "{until}"] {
            assert!(!page.contains(left), "{left}");
        }
    }
}
