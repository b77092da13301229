//! An MCP client as the tests use it: one call in, one answer out, in either era of the protocol.

use anyhow::{Context, Result};
use base64::Engine as _;
use rmcp::{
    RoleClient,
    model::{
        CallToolRequestParams, ClientConfig, ContentBlock, ProtocolVersion, ReadResourceRequestParams,
        ResourceContents,
    },
    service::{ClientLifecycleMode, ClientServiceExt, RunningService},
    transport::{
        StreamableHttpClientTransport, TokioChildProcess,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};

/// How a client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// `initialize`, as clients do up to 2025-11-25.
    Legacy,
    /// Stateless requests of 2026-07-28.
    Modern,
}

impl Era {
    fn lifecycle(self) -> ClientLifecycleMode {
        match self {
            Self::Legacy => ClientLifecycleMode::Initialize,
            Self::Modern => ClientLifecycleMode::Discover {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            },
        }
    }
}

/// A connected client.
#[derive(Debug)]
pub struct Client(RunningService<RoleClient, ClientConfig>);

impl Client {
    /// Connects over streamable HTTP.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn http(url: &str, era: Era) -> Result<Self> {
        let config =
            StreamableHttpClientTransportConfig::with_uri(url.to_owned()).max_concurrent_requests(64);
        let transport = StreamableHttpClientTransport::from_config(config);
        Ok(Self(
            ClientConfig::default()
                .serve_with_lifecycle(transport, era.lifecycle())
                .await?,
        ))
    }

    /// Starts `greenroom stdio` and talks to it over its standard streams.
    ///
    /// # Errors
    /// It does not start, or the handshake failed.
    pub async fn stdio(command: tokio::process::Command, era: Era) -> Result<Self> {
        let transport = TokioChildProcess::new(command)?;
        Ok(Self(
            ClientConfig::default()
                .serve_with_lifecycle(transport, era.lifecycle())
                .await?,
        ))
    }

    /// Names of the tools on offer.
    ///
    /// # Errors
    /// A protocol error.
    pub async fn tools(&self) -> Result<Vec<String>> {
        Ok(self
            .0
            .list_all_tools()
            .await?
            .into_iter()
            .map(|tool| tool.name.into_owned())
            .collect())
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// A protocol error; what a tool says of itself is in the answer.
    pub async fn call(&self, tool: &str, arguments: Value) -> Result<Answer> {
        let Value::Object(arguments) = arguments else {
            anyhow::bail!("arguments are an object")
        };
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let result = self.0.call_tool(params).await?;
        let meta = result
            .meta
            .as_ref()
            .and_then(|meta| meta.0.get("greenroom/result"))
            .cloned();
        let mut answer = Answer {
            meta: meta.unwrap_or(Value::Null),
            is_error: result.is_error == Some(true),
            ..Answer::default()
        };
        for block in result.content {
            match block {
                ContentBlock::Text(text) => {
                    answer.text.push_str(&text.text);
                    answer.text.push('\n');
                }
                ContentBlock::Image(image) => {
                    let bytes = base64::engine::general_purpose::STANDARD.decode(&image.data);
                    answer.images.push(bytes.context("an image block is base64")?);
                }
                ContentBlock::Audio(_) | ContentBlock::Resource(_) | ContentBlock::ResourceLink(_) | _ => {
                    anyhow::bail!("a block that no answer should have: {block:?}")
                }
            }
        }
        Ok(answer)
    }

    /// Runs Python in a conversation.
    ///
    /// # Errors
    /// A protocol error.
    pub async fn python(&self, conversation: &str, code: &str) -> Result<Answer> {
        self.call(
            "execute_code",
            json!({ "conversation_id": conversation, "code": code }),
        )
        .await
    }

    /// Runs bash in a conversation.
    ///
    /// # Errors
    /// A protocol error.
    pub async fn bash(&self, conversation: &str, code: &str) -> Result<Answer> {
        self.run(conversation, "bash", code).await
    }

    /// Runs code of any language in a conversation.
    ///
    /// # Errors
    /// A protocol error.
    pub async fn run(&self, conversation: &str, language: &str, code: &str) -> Result<Answer> {
        self.call(
            "execute_code",
            json!({ "conversation_id": conversation, "code": code, "language": language }),
        )
        .await
    }

    /// Addresses and sizes of the resources on offer.
    ///
    /// # Errors
    /// A protocol error.
    pub async fn resources(&self) -> Result<Vec<(String, Option<u64>)>> {
        let all = self.0.list_all_resources().await?;
        Ok(all
            .into_iter()
            .map(|resource| (resource.uri, resource.size))
            .collect())
    }

    /// Reads a resource that is text.
    ///
    /// # Errors
    /// A protocol error, or it is no text.
    pub async fn read(&self, uri: &str) -> Result<String> {
        let params = ReadResourceRequestParams::new(uri);
        match self.0.read_resource(params).await?.contents.pop() {
            Some(ResourceContents::TextResourceContents { text, .. }) => Ok(text),
            other => anyhow::bail!("no text: {other:?}"),
        }
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// The client's own task failed.
    pub async fn close(self) -> Result<()> {
        self.0.cancel().await?;
        Ok(())
    }
}

/// What a tool answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// All text blocks, each with a line end.
    pub text: String,
    /// All image blocks, decoded.
    pub images: Vec<Vec<u8>>,
    /// `_meta["greenroom/result"]`.
    pub meta: Value,
    /// `isError`.
    pub is_error: bool,
}

impl Answer {
    /// A string of the machine-readable part, empty where it is not there.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.meta.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// How the call found its session.
    #[must_use]
    pub fn session(&self) -> &str {
        self.field("session")
    }

    /// How the run ended.
    #[must_use]
    pub fn status(&self) -> &str {
        self.field("status")
    }

    /// The last expression.
    #[must_use]
    pub fn result(&self) -> &str {
        self.field("result")
    }
}
