//! Schemas as clients accept them: closed, without references, numeric formats, null unions or `$schema`.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

/// The schema of a type, cleaned at authoring time: strict clients refuse a tool over `format: "uint64"`.
#[must_use]
pub fn clean_schema<T: JsonSchema>() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let schema = settings.into_generator().into_root_schema_for::<T>();
    // Only `true` and `false` are no objects, and no argument type is either.
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    schema.remove("title");
    schema.remove("description");
    clean(&mut schema);
    schema
}

fn clean(schema: &mut Map<String, Value>) {
    schema.remove("$schema");
    if schema.get("default").is_some_and(Value::is_null) {
        schema.remove("default");
    }
    // schemars says `minimum: 0` of every unsigned number, and a format that JSON Schema does not know.
    if matches!(
        schema.get("type").and_then(Value::as_str),
        Some("integer" | "number")
    ) {
        schema.remove("format");
    }
    one_of_words(schema);
    for value in schema.values_mut() {
        clean_value(value);
    }
}

fn clean_value(value: &mut Value) {
    match value {
        Value::Object(map) => clean(map),
        Value::Array(items) => items.iter_mut().for_each(clean_value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Documented variants come as `oneOf` of constants; a plain `enum` is what models and strict clients know.
fn one_of_words(schema: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = schema.get("oneOf") else {
        return;
    };
    let words: Option<Vec<Value>> = variants
        .iter()
        .map(|variant| variant.get("const").cloned())
        .collect();
    if let Some(words) = words {
        schema.remove("oneOf");
        schema.insert("type".to_owned(), "string".into());
        schema.insert("enum".to_owned(), Value::Array(words));
    }
}
