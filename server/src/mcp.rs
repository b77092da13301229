//! MCP: tools, conversations, answers and transports. The only place that names `rmcp`.

mod conversation;
mod minted;
mod render;
mod transcript;
