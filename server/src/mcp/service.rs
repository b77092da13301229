//! The tools as an MCP server: what rmcp asks, in our words, and our answers, in the protocol's.

use std::sync::Arc;

use async_trait::async_trait;
use greenroom_tool_schemas::{Definition, RESULT_KEY};
use http::request::Parts;
use rmcp::{
    ErrorData, Peer, RoleServer, ServerHandler,
    model::{
        CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, CustomRequest,
        CustomResult, ErrorCode, Implementation, ListResourceTemplatesResult, ListResourcesResult,
        ListToolsResult, MetaObject, PaginatedRequestParams, ProgressNotificationParam, ProgressToken,
        ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, ServerCapabilities, ServerConfig,
        Tool, ToolAnnotations,
    },
    service::RequestContext,
};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    caller::{Caller, Carrier, Delivery, Freight, Progress},
    conversation::Asked,
    render::Answer,
    resources,
    tools::Tools,
    transports::Transports,
};
use crate::{auth::Identity, conversation::ConversationId};

/// How long a client may go by an old list: tools change with the configuration.
const LIST_TTL_MS: u64 = 5 * 60 * 1000;

/// What a 2026-07-28 result says of its server.
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// The tools behind one transport session, one modern request, or one stdio process. Cheap to make.
#[derive(Clone, Debug)]
pub(super) struct Service {
    tools: Arc<Tools>,
    door: Door,
    closing: CancellationToken,
}

/// By what way calls come in.
#[derive(Clone, Debug)]
pub(super) enum Door {
    /// HTTP: conversations may hang on the transport sessions that were handed out.
    Http(Arc<Transports>),
    /// One process with what its command line says, or one stream of the oldest HTTP transport.
    Carried {
        carrier: Arc<Carrier>,
        fixed: Option<ConversationId>,
    },
}

impl Service {
    pub(super) const fn new(tools: Arc<Tools>, door: Door, closing: CancellationToken) -> Self {
        Self { tools, door, closing }
    }

    fn carrier(&self, parts: Option<&Parts>) -> Option<Arc<Carrier>> {
        match &self.door {
            Door::Carried { carrier, .. } => Some(Arc::clone(carrier)),
            Door::Http(transports) => transports.carrier(parts?),
        }
    }

    const fn fixed(&self) -> Option<&ConversationId> {
        match &self.door {
            Door::Carried { fixed, .. } => fixed.as_ref(),
            Door::Http(_) => None,
        }
    }

    /// What a request that is no call says of its conversation.
    fn asked<'a>(
        &'a self,
        context: &'a RequestContext<RoleServer>,
        parts: Option<&'a Parts>,
        carrier: Option<&'a Carrier>,
    ) -> Result<Asked<'a>, ErrorData> {
        Ok(Asked {
            identity: self.identity(parts)?,
            meta: &context.meta.0.0,
            headers: parts.map(|parts| &parts.headers),
            fixed: self.fixed(),
            argument: None,
            carrier: carrier.map(Carrier::id),
        })
    }

    /// Who sent a request: over HTTP whoever its layer says, and nobody if it says nothing.
    fn identity<'a>(&self, parts: Option<&'a Parts>) -> Result<&'a Identity, ErrorData> {
        match (parts, &self.door) {
            (None, Door::Carried { .. }) => Ok(&Identity::LOCAL),
            (parts, _) => parts
                .and_then(|parts| parts.extensions.get())
                .ok_or_else(|| ErrorData::internal_error("the request has no sender", None)),
        }
    }
}

impl ServerHandler for Service {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(
            ServerCapabilities::builder()
                .enable_tools()
                .enable_resources()
                .build(),
        )
        .with_server_info(implementation())
        .with_instructions(self.tools.instructions())
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let identity = self.identity(context.extensions.get::<Parts>())?;
        let list = self.tools.definitions(identity);
        let mut list = ListToolsResult::with_all_items(list.iter().map(tool).collect());
        list.ttl_ms = Some(LIST_TTL_MS);
        // It is made for its caller.
        list.cache_scope = Some(CacheScope::Private);
        Ok(list)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools.definition(name).map(tool)
    }

    async fn list_resources(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let parts = context.extensions.get::<Parts>();
        let carrier = self.carrier(parts);
        let asked = self.asked(&context, parts, carrier.as_deref())?;
        Box::pin(resources::list(&self.tools, &asked, page)).await
    }

    async fn list_resource_templates(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(resources::templates())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let parts = context.extensions.get::<Parts>();
        let carrier = self.carrier(parts);
        let asked = self.asked(&context, parts, carrier.as_deref())?;
        let read = Box::pin(resources::read(&self.tools, &asked, &request)).await?;
        Ok(read.into())
    }

    /// What rmcp could not read as a request that it knows: an unknown method, or a known one with parameters of the
    /// wrong types.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        const KNOWN: [&str; 6] = [
            "resources/list",
            "resources/read",
            "ping",
            "server/discover",
            "tools/call",
            "tools/list",
        ];
        let method: String = request.method.chars().take(64).collect();
        // The modern era has no beginning.
        let modern = context.protocol_version() == Some(ProtocolVersion::V_2026_07_28);
        let begins = !modern && method == "initialize";
        Err(if begins || KNOWN.contains(&method.as_str()) {
            let message = format!("the parameters of {method} are not of the types that it takes");
            ErrorData::invalid_params(message, None)
        } else {
            ErrorData::new(ErrorCode::METHOD_NOT_FOUND, method, None)
        })
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let parts = context.extensions.get::<Parts>();
        let identity = self.identity(parts)?;
        let carrier = self.carrier(parts);
        let progress = Ticker::new(&context);
        let caller = Caller {
            identity,
            meta: &context.meta.0.0,
            headers: parts.map(|parts| &parts.headers),
            fixed: self.fixed(),
            carrier: carrier.as_deref(),
            cancelled: &context.ct,
            closing: &self.closing,
            progress: &progress,
        };
        // Boxed: the future of a whole call is large, and rmcp moves it about.
        let call = Box::pin(
            self.tools
                .call(&request.name, request.arguments.unwrap_or_default(), caller),
        );
        let Some((answer, freight)) = call.await else {
            let name: String = request.name.chars().take(64).collect();
            return Err(ErrorData::invalid_params(
                format!("there is no tool {name:?}"),
                None,
            ));
        };
        deliver(freight, parts, &context.ct);
        let modern = context.protocol_version() == Some(ProtocolVersion::V_2026_07_28);
        Ok(result(answer, modern).into())
    }
}

/// Over HTTP an answer has arrived once the response has been written out. On stdio rmcp shows no such moment: there
/// it is the next best one, when the answer is handed over. A caller that has left is told again.
fn deliver(freight: Freight, parts: Option<&Parts>, cancelled: &CancellationToken) {
    if cancelled.is_cancelled() {
        return;
    }
    match parts.and_then(|parts| parts.extensions.get::<Delivery>()) {
        Some(delivery) => delivery.carry(freight),
        None => freight.arrived(),
    }
}

fn implementation() -> Implementation {
    Implementation::new("greenroom", env!("CARGO_PKG_VERSION"))
        .with_title("Greenroom")
        .with_description("Gives every conversation its own sandboxed computer")
}

fn tool(definition: &Definition) -> Tool {
    let hints = definition.hints;
    Tool::new(
        definition.name.as_str(),
        definition.description,
        definition.input_schema.clone(),
    )
    .with_title(definition.title)
    .with_annotations(
        ToolAnnotations::with_title(definition.title)
            .read_only(hints.read_only)
            .destructive(hints.destructive)
            .idempotent(hints.idempotent)
            .open_world(false),
    )
}

fn result(answer: Answer, modern: bool) -> CallToolResult {
    let mut content = vec![ContentBlock::text(answer.text)];
    content.extend(
        answer
            .images
            .into_iter()
            .map(|image| ContentBlock::image(image.data, image.mime)),
    );
    let mut result = if answer.is_error {
        CallToolResult::error(content)
    } else {
        CallToolResult::success(content)
    };
    result.structured_content = answer.structured;
    let mut meta = MetaObject::default();
    meta.0.insert(
        RESULT_KEY.to_owned(),
        serde_json::to_value(&answer.meta).unwrap_or(Value::Null),
    );
    if modern {
        meta.0.insert(
            SERVER_INFO.to_owned(),
            serde_json::to_value(implementation()).unwrap_or(Value::Null),
        );
    }
    result.meta = Some(meta);
    result
}

/// Progress messages, where the client gave a token. The number is the seconds since the call came in: it rises
/// with each message, and there is no total.
#[derive(Debug)]
struct Ticker {
    to: Option<(Peer<RoleServer>, ProgressToken)>,
    started: Instant,
}

impl Ticker {
    fn new(context: &RequestContext<RoleServer>) -> Self {
        let token = context.meta.get_progress_token();
        Self {
            to: token.map(|token| (context.peer.clone(), token)),
            started: Instant::now(),
        }
    }
}

#[async_trait]
impl Progress for Ticker {
    async fn tell(&self, message: String) {
        let Some((peer, token)) = &self.to else {
            return;
        };
        let seconds = self.started.elapsed().as_secs_f64();
        let param = ProgressNotificationParam::new(token.clone(), seconds).with_message(message);
        if let Err(error) = peer.notify_progress(param).await {
            tracing::debug!(%error, "progress could not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use greenroom_tool_schemas::{Pools, ToolName};

    use super::*;
    use crate::config::{Inputs, Loaded};

    #[test]
    fn what_a_model_is_told_at_the_start_is_lean() {
        let config = Loaded::read(&Inputs::default()).unwrap().config;
        let tools = ToolName::STANDARD.map(|name| tool(&Definition::of(name, Pools::One)));
        let list = serde_json::to_string(&ListToolsResult::with_all_items(tools.to_vec())).unwrap();
        let instructions =
            crate::mcp::instructions::instructions(&config, config.pools.get(&config.default_pool));
        assert!(instructions.len() < 2048, "{}", instructions.len());
        assert!(
            list.len() + instructions.len() <= 10 * 1024,
            "{} + {}",
            list.len(),
            instructions.len()
        );
    }

    #[test]
    fn a_listed_tool_is_the_published_one() {
        for name in ToolName::FULL {
            let definition = Definition::of(name, Pools::One);
            assert_eq!(
                serde_json::to_value(tool(&definition)).unwrap(),
                definition.to_json(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_result_carries_its_machine_readable_part() {
        let answer = Answer {
            text: "hi".into(),
            is_error: true,
            ..Answer::default()
        };
        let value = serde_json::to_value(result(answer.clone(), true)).unwrap();
        assert_eq!(value["content"][0]["text"], "hi");
        assert_eq!(value["isError"], true);
        assert_eq!(value["_meta"]["greenroom/result"]["session"], "none");
        assert_eq!(value["_meta"][SERVER_INFO]["name"], "greenroom");
        assert!(value.get("structuredContent").is_none());
        let legacy = serde_json::to_value(result(answer, false)).unwrap();
        assert!(legacy["_meta"].get(SERVER_INFO).is_none());
    }
}
