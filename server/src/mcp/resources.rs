//! Resources in the protocol's words: a conversation's files, listed, read, and found by a template.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rmcp::{
    ErrorData,
    model::{
        CacheScope, ListResourceTemplatesResult, ListResourcesResult, PaginatedRequestParams,
        ReadResourceRequestParams, ReadResourceResult, Resource, ResourceContents, ResourceTemplate,
    },
};

use super::{
    conversation::Asked,
    tools::{Contents, TEMPLATE, Tools},
};
use crate::error::{Failure, FailureKind};

/// The template changes with a version of this program, as tools do.
const TEMPLATE_TTL_MS: u64 = 5 * 60 * 1000;

/// Files change at any time: no copy of a list or a file is good for longer than it takes to read it.
const NOW: u64 = 0;

/// `resources/list`
pub(super) async fn list(
    tools: &Tools,
    asked: &Asked<'_>,
    page: Option<PaginatedRequestParams>,
) -> Result<ListResourcesResult, ErrorData> {
    let from = match page.and_then(|page| page.cursor) {
        None => 0,
        Some(cursor) => cursor
            .parse()
            .map_err(|_| ErrorData::invalid_params("the cursor is none of ours", None))?,
    };
    let page = tools.list_resources(asked, from).await.map_err(error)?;
    let resources = page.files.into_iter().map(|file| {
        let mut resource = Resource::new(file.uri, file.path);
        resource.size = Some(file.size);
        resource.mime_type = file.mime.map(str::to_owned);
        resource
    });
    let mut list = ListResourcesResult::with_all_items(resources.collect())
        .with_ttl_ms(NOW)
        .with_cache_scope(CacheScope::Private);
    list.next_cursor = page.next.map(|next| next.to_string());
    Ok(list)
}

/// `resources/templates/list`
pub(super) fn templates() -> ListResourceTemplatesResult {
    let mut template = ResourceTemplate::new(TEMPLATE, "file");
    template.title = Some("A file of a conversation".to_owned());
    template.description = Some(
        "A file in a conversation's sandbox, by the conversation_id and the path in /mnt/data".to_owned(),
    );
    ListResourceTemplatesResult::with_all_items(vec![template])
        .with_ttl_ms(TEMPLATE_TTL_MS)
        .with_cache_scope(CacheScope::Public)
}

/// `resources/read`
pub(super) async fn read(
    tools: &Tools,
    asked: &Asked<'_>,
    request: &ReadResourceRequestParams,
) -> Result<ReadResourceResult, ErrorData> {
    let found = tools.read_resource(asked, &request.uri).await.map_err(error)?;
    let contents = found.ok_or_else(|| ErrorData::resource_not_found("there is no such resource", None))?;
    Ok(
        ReadResourceResult::new(vec![shown(contents, request.uri.clone())])
            .with_ttl_ms(NOW)
            .with_cache_scope(CacheScope::Private),
    )
}

fn shown(contents: Contents, uri: String) -> ResourceContents {
    let Contents { bytes, mime } = contents;
    let shown = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => {
            return ResourceContents::text(text, uri).with_mime_type(mime.unwrap_or("text/plain"));
        }
        Ok(text) => ResourceContents::blob(STANDARD.encode(text), uri),
        Err(error) => ResourceContents::blob(STANDARD.encode(error.into_bytes()), uri),
    };
    shown.with_mime_type(mime.unwrap_or("application/octet-stream"))
}

fn error(failure: Failure) -> ErrorData {
    match failure.kind {
        FailureKind::BadArgument | FailureKind::Forbidden | FailureKind::NotFound | FailureKind::Conflict => {
            ErrorData::invalid_params(failure.text, None)
        }
        FailureKind::Capacity
        | FailureKind::Busy
        | FailureKind::NoKernel
        | FailureKind::DiskFull
        | FailureKind::Unavailable
        | FailureKind::Generation
        | FailureKind::Lost
        | FailureKind::Internal => {
            tracing::warn!(error = %failure.text, "a resource could not be served");
            ErrorData::internal_error(failure.text, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_the_rest_is_not() {
        let of = |bytes: &[u8], mime| {
            let contents = Contents {
                bytes: bytes.to_vec(),
                mime,
            };
            serde_json::to_value(shown(contents, "greenroom://c/files/f".into())).unwrap()
        };
        let text = of("größe".as_bytes(), Some("text/csv"));
        assert_eq!(
            (&text["text"], &text["mimeType"]),
            (&"größe".into(), &"text/csv".into())
        );
        for binary in [&b"a\0b"[..], b"\xff\xfe"] {
            let blob = of(binary, None);
            assert_eq!(blob["blob"], STANDARD.encode(binary));
            assert_eq!(blob["mimeType"], "application/octet-stream");
        }
    }
}
