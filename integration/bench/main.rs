//! The README's numbers: measured on real Docker and real gVisor, through a real MCP client.
//!
//! `make bench` prints a table and writes the same as JSON. A scenario starts its own servers and leaves
//! nothing behind. Nothing here asserts: the reader compares with the aim in the last column.

mod answers;
mod archive;
mod endurance;
mod files;
mod forward;
mod latency;
mod load;
mod report;
mod resources;

use anyhow::Result;
use report::Report;

/// How often the quick scenarios repeat; `--quick` for a smoke run. Names of groups run those only.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Hot calls.
    hot: usize,
    /// New conversations and boots.
    fresh: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let effort = if quick {
        Effort { hot: 100, fresh: 4 }
    } else {
        Effort { hot: 1000, fresh: 20 }
    };
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with("--"))
        .collect();
    let wanted = |group: &str| named.is_empty() || named.iter().any(|name| name == group);
    let mut report = Report::default();
    if wanted("latency") {
        latency::hot(&mut report, effort).await?;
        latency::fresh(&mut report, effort).await?;
        latency::useful(&mut report, effort).await?;
        latency::boots(&mut report, effort).await?;
        latency::burst(&mut report).await?;
    }
    if wanted("rest") {
        latency::programs(&mut report, effort).await?;
    }
    if wanted("forward") {
        forward::forwarded(&mut report, effort).await?;
    }
    if wanted("load") {
        load::processes(&mut report, effort).await?;
        load::many(&mut report, effort).await?;
    }
    if wanted("resources") {
        resources::idle(&mut report).await?;
        resources::server(&mut report).await?;
    }
    if wanted("files") {
        files::bulk(&mut report, effort).await?;
        files::front(&mut report, effort).await?;
        archive::keep(&mut report, effort).await?;
    }
    if wanted("endurance") {
        endurance::take_over(&mut report, effort).await?;
        endurance::sequence(&mut report, effort).await?;
        endurance::neighbours(&mut report, effort).await?;
    }
    if wanted("answers") {
        answers::characters(&mut report)?;
    }
    report.print()
}
