//! The official conformance suite against Greenroom's own HTTP stack: with the handler that it asks for, where nothing
//! may fail, and with the tools that are shipped, where nothing may fail but what needs such a handler.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::needless_pass_by_value,
    reason = "JSON that was just written is handed over"
)]
#![expect(
    deprecated,
    reason = "the suite asks for what the protocol has deprecated, too"
)]

mod fixtures;
mod suite;

use std::{path::Path, sync::Arc};

use anyhow::Result;
use fixtures::Fixtures;
use greenroom::{
    auth::Gate,
    config::{Inputs, Loaded, Offers},
    conversation::Secret,
    engine::docker::DockerEngine,
    http::{self, App, Http, Rest, Served},
    links::Links,
    mcp::{Mcp, Ways},
    metrics::Metrics,
    sessions::Sessions,
};
use greenroom_integration::{Config, Greenroom};
use suite::{LEGACY, MODERN, Report};

/// The shipped HTTP stack with the fixtures behind it, and its address.
async fn serve_fixtures() -> Result<(Served, String)> {
    let inputs = Inputs {
        text: "listen = \"127.0.0.1:0\"".into(),
        ..Inputs::default()
    };
    let config = Arc::new(Loaded::read(&inputs)?.config);
    // Never asked: the fixtures have no sandboxes.
    let engine = Arc::new(DockerEngine::connect(config.docker("conformance", "conformance")).await?);
    let (secret, metrics) = (Secret::new([9; 32]), Metrics::new());
    let sessions = Sessions::new(secret.clone(), engine, []);
    let links = Links::new(secret.clone(), sessions.clone(), config.links.clone(), http::door);
    let ways = Ways {
        links: links.clone(),
        share: None,
    };
    let mcp = Mcp::new(
        Arc::clone(&config),
        Offers::from(&*config),
        secret.clone(),
        sessions.clone(),
        ways,
        metrics.clone(),
    );
    let rest = Rest::new(
        Arc::clone(&config),
        Offers::from(&*config),
        secret,
        sessions,
        metrics.clone(),
        mcp.in_flight(),
    );
    let http = Http::bind(&config).await?;
    let url = format!("http://{}/mcp", http.address());
    let app = App {
        gate: Arc::new(Gate::open(&config)?),
        endpoint: mcp.endpoint_over(Fixtures::new()),
        sse: None,
        links,
        rest,
        metrics,
    };
    Ok((http.start(app, &config), url))
}

async fn fixtures(revision: &str) -> Result<Report> {
    let (served, url) = serve_fixtures().await?;
    let report = suite::run(&url, revision, None).await?;
    served.finish().await;
    Ok(report)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_passes_in_2025_11_25() -> Result<()> {
    let report = fixtures(LEGACY).await?;
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert!(report.passed >= 80, "{} checks", report.passed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_passes_in_2026_07_28() -> Result<()> {
    let report = fixtures(MODERN).await?;
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert!(report.passed >= 120, "{} checks", report.passed);
    Ok(())
}

/// The suite itself compares with the list: a failure that is not on it fails, and so does a listed one that passes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shipped_lacks_only_the_fixtures() -> Result<()> {
    let greenroom = Greenroom::start(&Config::default()).await?;
    let baselines = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    for revision in [LEGACY, MODERN] {
        let baseline = baselines.join(format!("needs-fixtures-{revision}.yml"));
        let report = suite::run(&greenroom.url("/mcp"), revision, Some(&baseline)).await?;
        assert!(report.passed > 0);
    }
    greenroom.finish().await
}
