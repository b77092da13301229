//! The checked-in `*.json` are what the types say. After a wanted change: `BLESS=1 cargo test -p greenroom-tool-schemas`.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf};

use greenroom_tool_schemas::{Definition, ExecuteCode, Folder, Pools, ResultMeta, ToolName, clean_schema};
use serde_json::{Value, json};

fn published(name: &str, value: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("{name}.json"));
    let rendered = format!("{value:#}\n");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &rendered).expect("the crate's folder can be written");
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        checked_in,
        rendered,
        "{} is not what the types say",
        path.display()
    );
}

fn definitions() -> impl Iterator<Item = Definition> {
    ToolName::FULL
        .into_iter()
        .chain(ToolName::AZURE)
        .flat_map(|name| [Pools::One, Pools::Several].map(|pools| Definition::of(name, pools)))
}

#[test]
fn a_folder_is_named_only_where_one_is_shared() {
    for (name, argument) in [
        (ToolName::UploadFile, "source"),
        (ToolName::DownloadFile, "save_to"),
    ] {
        let shared = Definition::offering(name, Pools::One, Folder::Shared);
        assert!(shared.arguments().contains(&argument), "{name}");
        assert!(
            !Definition::of(name, Pools::One).arguments().contains(&argument),
            "{name}"
        );
        assert!(
            !shared.hints.read_only,
            "{name} writes, inside or on the user's machine"
        );
    }
    assert!(Definition::of(ToolName::DownloadFile, Pools::One).hints.read_only);
}

#[test]
fn the_published_contract_is_what_the_types_say() {
    for name in ToolName::FULL.into_iter().chain(ToolName::AZURE) {
        published(name.as_str(), &Definition::of(name, Pools::One).to_json());
    }
    published("result", &Value::Object(clean_schema::<ResultMeta>()));
}

/// Everything in a schema that some client warns about or refuses.
fn offences(at: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let at = format!("{at}/{key}");
                if matches!(
                    key.as_str(),
                    "$schema" | "$ref" | "$defs" | "format" | "oneOf" | "anyOf" | "x-mcp-header"
                ) || (key == "default" && value.is_null())
                    || (key == "type" && !value.is_string())
                    || (key == "enum" && value.as_array().is_some_and(|words| words.contains(&Value::Null)))
                {
                    found.push(at.clone());
                }
                offences(&at, value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| offences(at, item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn schemas_are_closed_and_clean() {
    for tool in definitions() {
        let schema = Value::Object(tool.input_schema.clone());
        let mut found = Vec::new();
        // A property may be called as it likes; only its schema counts.
        let properties = schema["properties"].as_object().unwrap();
        for (name, property) in properties {
            offences(name, property, &mut found);
            assert!(
                property["description"].is_string(),
                "{}: {name} says nothing",
                tool.name
            );
        }
        assert!(found.is_empty(), "{}: {found:?}", tool.name);
        assert_eq!(schema["type"], "object", "{}", tool.name);
        assert_eq!(schema["additionalProperties"], json!(false), "{}", tool.name);
        let own_word = !tool.name.is_azure();
        assert_eq!(
            tool.arguments().contains(&"conversation_id"),
            own_word,
            "{}",
            tool.name
        );
        for key in schema.as_object().unwrap().keys() {
            let known = ["type", "properties", "required", "additionalProperties"];
            assert!(known.contains(&key.as_str()), "{}: {key}", tool.name);
        }
    }
}

/// What is left for hosts that know a part of JSON Schema, such as Gemini's, once they have dropped
/// `additionalProperties`: nothing but these words.
#[test]
fn a_schema_says_little_but_what_every_host_knows() {
    fn check(at: &str, schema: &Value) {
        const KNOWN: [&str; 9] = [
            "type",
            "description",
            "properties",
            "required",
            "enum",
            "items",
            "minimum",
            "maximum",
            "additionalProperties",
        ];
        let schema = schema.as_object().unwrap();
        for key in schema.keys() {
            assert!(KNOWN.contains(&key.as_str()), "{at}: {key}");
        }
        for (name, property) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            check(&format!("{at}.{name}"), property);
        }
        if let Some(items) = schema.get("items") {
            check(&format!("{at}[]"), items);
        }
    }
    for tool in definitions() {
        check(tool.name.as_str(), &Value::Object(tool.input_schema.clone()));
    }
}

#[test]
fn a_pool_is_an_argument_only_where_there_is_a_choice() {
    for name in ToolName::FULL {
        assert!(!Definition::of(name, Pools::One).arguments().contains(&"pool"));
        assert!(Definition::of(name, Pools::Several).arguments().contains(&"pool"));
    }
}

#[test]
fn names_titles_and_descriptions_fit_every_client() {
    for tool in definitions() {
        assert!(tool.name.as_str().bytes().all(|b| b.is_ascii_lowercase()
            || b == b'_'
            || (tool.name.is_azure() && b.is_ascii_uppercase())));
        assert!(!tool.title.is_empty());
        assert!(
            (40..2000).contains(&tool.description.len()),
            "{}: {}",
            tool.name,
            tool.description.len()
        );
        assert!(!tool.hints.read_only || !tool.hints.destructive, "{}", tool.name);
    }
}

#[test]
fn what_models_write_for_numbers_and_booleans_is_read() {
    let read = |value: Value| serde_json::from_value::<ExecuteCode>(value);
    let parsed =
        read(json!({"code": "1", "timeout_seconds": "30", "background": "true", "max_output_chars": 2000.0}))
            .unwrap();
    assert_eq!(
        (parsed.timeout_seconds, parsed.background, parsed.max_output_chars),
        (Some(30), Some(true), Some(2000))
    );
    for (field, value) in [
        ("timeout_seconds", json!(1.5)),
        ("timeout_seconds", json!(-1)),
        ("timeout_seconds", json!("soon")),
        ("timeout_seconds", json!([])),
        ("background", json!("maybe")),
        ("background", json!(1)),
        ("colour", json!(1)),
    ] {
        assert!(
            read(json!({"code": "1", field: value})).is_err(),
            "{field} {value}"
        );
    }
}
