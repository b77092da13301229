use std::{collections::BTreeSet, fs, path::PathBuf};

use super::*;
use crate::rest::{address::Operation, ask::Ask};

/// After a wanted change: `BLESS=1 cargo test -p greenroom openapi`.
#[test]
fn the_published_document_is_what_the_types_say() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let rendered = format!("{:#}\n", document());
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &rendered).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == rendered,
        "{} is not what the types say",
        path.display()
    );
}

#[test]
fn every_request_is_one_that_the_router_knows() {
    for row in ROWS {
        let (path, query) = row.example();
        let address = Address::read(row.method, &path, Some(&query)).unwrap();
        assert_eq!(address.dialect, row.dialect, "{} {}", row.method, row.path);
        let fits = match address.operation {
            Operation::Execute => matches!(row.body, Sent::Execution),
            Operation::Upload => matches!(row.body, Sent::Form),
            Operation::Put(_) => matches!(row.body, Sent::Bytes),
            Operation::Poll(_)
            | Operation::List
            | Operation::Describe(_)
            | Operation::Download(_)
            | Operation::Delete(_)
            | Operation::Session
            | Operation::Sessions
            | Operation::EndSession
            | Operation::StopSession
            | Operation::Pool
            | Operation::Log => matches!(row.body, Sent::Nothing),
        };
        assert!(fits, "{} {}", row.method, row.path);
    }
    let ids: BTreeSet<&str> = ROWS.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), ROWS.len());
}

/// Each member of a request makes a difference to how it is read.
#[test]
fn every_member_of_a_request_is_read() {
    let document = document();
    let request = &document["components"]["schemas"]["ExecutionRequest"]["properties"];
    let members: Vec<&String> = request.as_object().unwrap().keys().collect();
    assert_eq!(members.len(), 10);
    let read = |body: &Value| Ask::read(body.to_string().as_bytes());
    for member in members {
        // Nothing that any of them can be.
        let mut body = json!({ "code": "Nio3" });
        if matches!(member.as_str(), "shellType" | "stdin") {
            body = json!({ "shellCommand": "true" });
        }
        let without = read(&body).unwrap();
        body[member] = json!({});
        assert_ne!(read(&body), Ok(without), "{member}");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(of: &Value, found: &mut Vec<String>) {
        match of {
            Value::Object(members) => {
                for (name, value) in members {
                    match value.as_str().filter(|_| name == "$ref") {
                        Some(to) => found.push(to.to_owned()),
                        None => references(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > ROWS.len());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
