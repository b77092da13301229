//! Every path that clients send, and those that nobody should.

use proptest::prelude::*;

use super::*;

fn file(path: &str) -> FilePath {
    FilePath(path.to_owned())
}

fn read(line: &str) -> Result<Address, Fault> {
    let (method, target) = line.split_once(' ').unwrap();
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(path, query)| (path, Some(query)));
    Address::read(method, &format!("/pools/python{path}"), query)
}

#[test]
fn the_path_decides_and_the_version_where_it_leaves_it_open() {
    use Dialect::{A, A0, B};
    use Operation::{
        Delete, Describe, Download, EndSession, Execute, List, Poll, Pool, Put, Session, Sessions,
        StopSession, Upload,
    };
    const OLD: &str = "api-version=2024-02-02-preview";
    const NEW: &str = "api-version=2025-02-02-preview";
    for (line, dialect, operation) in [
        ("POST /python/execute/".to_owned(), A0, Execute),
        (format!("POST /code/execute?{NEW}"), A, Execute),
        (format!("POST //executions?{OLD}"), B, Execute),
        ("GET /executions/8963-a".into(), B, Poll("8963-a".into())),
        ("POST /python/uploadFile".into(), A0, Upload),
        (format!("POST /files/upload?{OLD}"), A, Upload),
        (format!("POST /files?{OLD}"), B, Upload),
        ("GET /python/files".into(), A0, List),
        (format!("GET //files?{OLD}"), A, List),
        ("GET /files?api-version=2024-08-02-preview".into(), A, List),
        ("GET /files?api-version=2024-10-02-preview".into(), B, List),
        ("GET /files?api-version=2025-07-01".into(), B, List),
        ("GET /files/".into(), B, List),
        (
            format!("GET /files/a%20b.txt?{OLD}"),
            A,
            Describe(file("a b.txt")),
        ),
        (
            format!("GET /files/a.txt?{NEW}&path=sub"),
            B,
            Describe(file("sub/a.txt")),
        ),
        (
            format!("GET /files/content/sub/a.txt?{OLD}"),
            A,
            Download(file("sub/a.txt")),
        ),
        (
            format!("GET /files/content/a.txt?{NEW}"),
            A,
            Download(file("a.txt")),
        ),
        (
            format!("GET /files/sub%2Fa.txt/content?{NEW}"),
            B,
            Download(file("sub/a.txt")),
        ),
        (format!("GET /files/a/content?{OLD}"), B, Download(file("a"))),
        (
            format!("GET /files/content/a/content?{OLD}"),
            A,
            Download(file("a/content")),
        ),
        (
            format!("GET /files/content/a/content?{NEW}"),
            B,
            Download(file("content/a")),
        ),
        (format!("GET /files/content?{NEW}"), B, Describe(file("content"))),
        (
            "GET /python/downloadFile?fileName=a+b.txt".into(),
            A0,
            Download(file("a b.txt")),
        ),
        ("HEAD /files/c++.txt/content".into(), B, Download(file("c++.txt"))),
        (format!("DELETE /files/a.txt?{OLD}"), A, Delete(file("a.txt"))),
        (
            format!("DELETE /files/a.txt?path=%2Fmnt%2Fdata&{NEW}"),
            B,
            Delete(file("a.txt")),
        ),
        ("PUT /files/a.txt".into(), B, Put(file("a.txt"))),
        ("GET /session".into(), B, Session),
        ("DELETE /session".into(), B, EndSession),
        ("GET /listSessions?skip=300".into(), B, Sessions),
        ("POST /.management/getSession".into(), B, Session),
        ("POST /.management/listSessions".into(), B, Sessions),
        ("POST /.management/stopSession".into(), B, StopSession),
        ("GET /metadata".into(), B, Pool),
    ] {
        let address = read(&line).unwrap_or_else(|fault| panic!("{line}: {fault}"));
        assert_eq!(
            (address.dialect, address.operation),
            (dialect, operation),
            "{line}"
        );
        assert_eq!(address.pool, "python");
    }
}

#[test]
fn what_is_no_request_says_why() {
    for (line, code) in [
        ("GET /nothing", Code::NotSupported),
        ("PATCH /files/a", Code::NotSupported),
        ("GET /", Code::NotSupported),
        ("DELETE /files", Code::NotSupported),
        ("GET /files?api-version=latest", Code::InvalidApiVersion),
        ("GET /files?api-version=2024-1-02", Code::InvalidApiVersion),
        ("GET /files?api-version=2024-01-02x", Code::InvalidApiVersion),
        ("GET /files/..%2Fa", Code::PathInvalid),
        ("GET /files/a?path=b/../..", Code::PathInvalid),
        ("GET /files/a?path=/etc", Code::PathInvalid),
        ("GET /files/a%00", Code::PathInvalid),
        ("GET /files/%FF", Code::ValidationFailed),
        ("GET /python/downloadFile", Code::ValidationFailed),
        ("GET /listSessions?skip=-1", Code::ValidationFailed),
    ] {
        assert_eq!(read(line).map_err(|fault| fault.code), Err(code), "{line}");
    }
}

#[test]
fn parameters_come_in_any_order_and_case() {
    let query = read("GET /files?Path=a%2Fb&IDENTIFIER=a+b%2Bc&recursive=TRUE&identifier=later")
        .unwrap()
        .query;
    assert_eq!(
        query.identifier.as_deref(),
        Some("a+b+c"),
        "a plus is literal in an identifier"
    );
    assert_eq!((query.folder.as_str(), query.recursive), ("a/b", true));
    let azures = "/subscriptions/S/resourceGroups/R/sessionPools/python/files";
    assert_eq!(Address::read("GET", azures, None).unwrap().pool, "python");
}

#[test]
fn folders_are_below_the_work_directory_however_written() {
    for (text, path) in [
        ("", ""),
        ("/", ""),
        ("/mnt/data", ""),
        ("/mnt/data/", ""),
        ("/mnt/data/sub", "sub"),
        ("a//b/", "a/b"),
    ] {
        assert_eq!(FilePath::parse(text), Ok(file(path)), "{text}");
    }
    assert_eq!(file("sub").below("a"), Ok(file("sub/a")));
    assert_eq!(file("sub").below("/mnt/data/a"), Ok(file("a")));
    assert_eq!(file("sub").below("mnt/data/a"), Ok(file("sub/mnt/data/a")));
}

#[test]
fn identifiers_have_azures_characters() {
    for good in ["abcd", "gr_|}{[]:\";'<>?/.,@#$%^&*()-+=!~`", &"x".repeat(128)] {
        assert!(identifier(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "abc",
        "ab cd",
        "ab\\cd",
        "äöü-äöü",
        "ab\ncd",
        &"x".repeat(129),
    ] {
        let fault = identifier(bad).unwrap_err();
        assert_eq!(fault.code, Code::ValidationFailed);
        assert!(
            bad.is_empty() || !fault.message.contains(bad),
            "an identifier is a secret"
        );
    }
}

#[test]
fn unfinished_executions_have_the_status_of_their_version() {
    for (line, status) in [
        ("GET /executions/a?api-version=2024-10-02-preview", 202),
        ("GET /executions/a?api-version=2025-02-02-preview", 202),
        ("GET /executions/a?api-version=2025-10-02-preview", 200),
        ("GET /executions/a", 200),
    ] {
        assert_eq!(read(line).unwrap().query.unfinished(), status, "{line}");
    }
}

proptest! {
    #[test]
    fn no_request_line_leads_out_or_panics(method in "GET|PUT|POST|DELETE", path in "[a-z/%.0-9A-F+]{0,60}", query in "[ -~]{0,60}") {
        if let Ok(address) = Address::read(&method, &format!("/pools/{path}"), Some(&query)) {
            let path = match address.operation {
                Operation::Put(path) | Operation::Describe(path) | Operation::Download(path) | Operation::Delete(path) => path,
                Operation::Execute
                | Operation::Poll(_)
                | Operation::Upload
                | Operation::List
                | Operation::Session
                | Operation::Sessions
                | Operation::EndSession
                | Operation::StopSession
                | Operation::Log
                | Operation::Pool => address.query.folder,
            };
            prop_assert!(!path.as_str().starts_with('/') && !path.as_str().split('/').any(|segment| segment == ".."));
        }
    }

    #[test]
    fn what_is_encoded_is_decoded(text: String) {
        prop_assert_eq!(decode(&encode(&text), Plus::Space).unwrap(), text);
    }
}

#[test]
fn what_is_forwarded_is_cut_off_as_it_came() {
    for (path, pool, prefix, rest) in [
        ("/pools/app", "app", "/pools/app", ""),
        ("/pools/app/", "app", "/pools/app", "/"),
        ("/pools/app//a%2Fb/", "app", "/pools/app", "//a%2Fb/"),
        ("//pools//app/x", "app", "//pools//app", "/x"),
        ("/pools/a%70p/x", "app", "/pools/a%70p", "/x"),
        (
            "/subscriptions/s/resourceGroups/r/sessionPools/app/x",
            "app",
            "/subscriptions/s/resourceGroups/r/sessionPools/app",
            "/x",
        ),
    ] {
        let below = Below::read(path).unwrap();
        assert_eq!(
            (below.pool.as_str(), below.prefix, below.rest),
            (pool, prefix, rest),
            "{path}"
        );
    }
    for path in ["/pools/", "/pools", "/subscriptions/s/resourceGroups", "", "/"] {
        assert_eq!(Below::read(path), None, "{path}");
    }
}

#[test]
fn a_tunnel_has_a_port() {
    for (path, port) in [
        ("/pools/app/tunnel/5432", Some(5432)),
        ("/pools/app//tunnel/5432/", Some(5432)),
        ("/pools/app/tunnel/0", None),
        ("/pools/app/tunnel/65536", None),
        ("/pools/app/tunnel/+1", None),
        ("/pools/app/tunnel", None),
        ("/pools/app/x/tunnel/1", None),
    ] {
        assert_eq!(Below::read(path).unwrap().tunnel(), port, "{path}");
    }
}

#[test]
fn of_a_forwarded_query_only_the_identifier_is_read() {
    for (query, identifier) in [
        ("identifier=conv-0001", Some("conv-0001")),
        ("api-version=nonsense&IDENTIFIER=a%2Bb+c&x=%zz", Some("a+b+c")),
        ("x=1", None),
        ("", None),
    ] {
        assert_eq!(identifier_in(query).unwrap().as_deref(), identifier, "{query}");
    }
}
