//! The engine contract on the fake engine; `integration/tests/engine_docker.rs` runs the same on Docker.

mod support;

use std::sync::Arc;

use greenroom::{
    engine::Engine,
    sandbox::{SandboxId, SandboxSpec},
};
use support::{
    contract::{Bench, contract},
    fake_engine::FakeEngine,
};

impl Bench for FakeEngine {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(self.clone())
    }

    fn stranger(&self) -> Arc<dyn Engine> {
        Arc::new(self.of("theirs"))
    }

    fn spec(&self) -> SandboxSpec {
        support::spec()
    }

    async fn pause(&self, id: &SandboxId) {
        Self::pause(self, id);
    }

    async fn displace(&self, id: &SandboxId) {
        Self::displace(self, id);
    }

    async fn kill(&self, id: &SandboxId) {
        Self::kill(self, id, 137, false);
    }
}

#[tokio::test(start_paused = true)]
async fn the_fake_engine_keeps_the_contract() {
    let engine = FakeEngine::new();
    contract(&engine).await;
    engine.assert_nothing_left().await;
}
