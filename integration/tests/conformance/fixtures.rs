//! The handler that the conformance suite asks for: tools, prompts and resources with prescribed names and answers.
//! Its answers are written as the JSON that goes over the wire; what surrounds them is Greenroom's own HTTP stack.

#[path = "fixtures/asking.rs"]
mod asking;
#[path = "fixtures/lists.rs"]
mod lists;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ErrorCode, GetPromptRequestParams,
        GetPromptResponse, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
        ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ReadResourceRequestParams,
        ReadResourceResponse, ServerConfig, SetLevelRequestParams, SubscribeRequestParams,
        SubscriptionFilter, Tool, UnsubscribeRequestParams,
    },
    service::{RequestContext, SubscriptionContext},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{sync::broadcast, time::sleep};

/// One red pixel.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";

/// No samples at all.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA=";

/// Between the messages of tools that send several.
const PAUSE: Duration = Duration::from_millis(50);

/// Which list has changed.
#[derive(Clone, Copy, Debug)]
enum Change {
    Tools,
    Prompts,
}

/// The handler. Clones share what they have handed out.
#[derive(Clone, Debug)]
pub(crate) struct Fixtures {
    changes: broadcast::Sender<Change>,
    /// States of requests under way: handles, so that nothing has to be sealed.
    states: Arc<Mutex<HashSet<String>>>,
}

impl Fixtures {
    pub(crate) fn new() -> Self {
        Self {
            changes: broadcast::channel(16).0,
            states: Arc::default(),
        }
    }
}

/// Reads a value that this file has written down.
fn wire<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn said(what: &str) -> CallToolResponse {
    complete(json!([text(what)]))
}

fn complete(content: Value) -> CallToolResponse {
    wire::<CallToolResult>(json!({ "resultType": "complete", "content": content })).into()
}

/// What tools answer that only answer.
fn plain(tool: &str) -> Option<Value> {
    let image = json!({ "type": "image", "data": PNG, "mimeType": "image/png" });
    Some(match tool {
        "test_simple_text" => json!([text("This is a simple text response for testing.")]),
        "test_image_content" => json!([image]),
        "test_audio_content" => json!([{ "type": "audio", "data": WAV, "mimeType": "audio/wav" }]),
        "test_embedded_resource" => json!([{ "type": "resource", "resource": {
            "uri": "test://embedded-resource", "mimeType": "text/plain", "text": "This is an embedded resource content." } }]),
        "test_multiple_content_types" => json!([
            text("Multiple content types test:"),
            image,
            { "type": "resource", "resource": {
                "uri": "test://mixed-content-resource", "mimeType": "application/json", "text": "{\"test\":\"data\",\"value\":123}" } },
        ]),
        "json_schema_2020_12_tool" | "test_header_parameter" => json!([text("taken")]),
        _ => return None,
    })
}

impl ServerHandler for Fixtures {
    fn get_info(&self) -> ServerConfig {
        let capabilities = json!({
            "completions": {}, "logging": {}, "prompts": { "listChanged": true },
            "resources": { "subscribe": true, "listChanged": true }, "tools": { "listChanged": true },
        });
        ServerConfig::new(wire(capabilities)).with_instructions("Fixtures of the conformance suite.")
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(lists::tools()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        lists::tools().into_iter().find(|tool| tool.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = &*request.name;
        if let Some(content) = plain(name) {
            return Ok(complete(content));
        }
        match name {
            "test_error_handling" => Ok(wire::<CallToolResult>(json!({
                "resultType": "complete", "content": [text("This tool intentionally returns an error for testing")], "isError": true,
            }))
            .into()),
            "test_tool_with_progress" => progress(&context).await,
            "test_tool_with_logging" | "test_logging_tool" => logging(&context).await,
            "test_reconnection" => Ok(said("The stream was not broken off.")),
            "test_missing_capability" => Err(ErrorData::new(
                ErrorCode(-32021),
                "this tool needs sampling",
                Some(json!({ "requiredCapabilities": { "sampling": {} } })),
            )),
            "test_trigger_tool_change" => Ok(self.change(Change::Tools)),
            "test_trigger_prompt_change" => Ok(self.change(Change::Prompts)),
            "test_sampling"
            | "test_elicitation"
            | "test_elicitation_sep1034_defaults"
            | "test_elicitation_sep1330_enums" => asking::at_once(&request, &context).await,
            _ => self.ask_by_result(&request, &context),
        }
    }

    async fn list_prompts(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(lists::prompts()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        lists::prompt(&request)
    }

    async fn list_resources(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(lists::resources()))
    }

    async fn list_resource_templates(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(
            lists::resource_templates(),
        ))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        lists::resource(&request.uri)
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn subscribe(
        &self,
        _request: SubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(
        &self,
        _request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.changes.subscribe();
        loop {
            let change = tokio::select! {
                () = context.cancelled() => return Ok(()),
                change = changes.recv() => change,
            };
            // What the client did not ask for is refused by the sink.
            let told = match change {
                Ok(Change::Tools) => context.sink().notify_tool_list_changed().await,
                Ok(Change::Prompts) => context.sink().notify_prompt_list_changed().await,
                Err(_) => continue,
            };
            drop(told);
        }
    }
}

impl Fixtures {
    fn change(&self, change: Change) -> CallToolResponse {
        // Nobody may be listening.
        drop(self.changes.send(change));
        said("changed")
    }
}

async fn progress(context: &RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
    for done in [0.0, 50.0, 100.0] {
        if let Some(token) = context.meta.get_progress_token() {
            let param = ProgressNotificationParam::new(token, done).with_total(100.0);
            drop(context.peer.notify_progress(param).await);
        }
        sleep(PAUSE).await;
    }
    Ok(said("done"))
}

/// Logs, unless a modern client did not ask for it.
async fn logging(context: &RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
    let modern = context.meta.protocol_version().is_some();
    for data in [
        "Tool execution started",
        "Tool processing data",
        "Tool execution completed",
    ] {
        if !modern || context.meta.log_level().is_some() {
            let message =
                json!({ "method": "notifications/message", "params": { "level": "info", "data": data } });
            drop(context.peer.send_notification(wire(message)).await);
        }
        sleep(PAUSE).await;
    }
    Ok(said("done"))
}
