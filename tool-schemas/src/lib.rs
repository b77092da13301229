//! Argument and result types of Greenroom's tools: the published contract, of which the `*.json` beside
//! this crate are the rendering that a test compares.

mod names;

pub use names::ToolName;
