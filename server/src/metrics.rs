//! The numbers, and what each of them means: rendered for Prometheus at `/metrics`.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use greenroom_protocol::Language;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    archive::{ArchiveEvent, ArchiveObserver},
    auth::gate::Refusal,
    conversation::PoolName,
    error::FailureKind,
    pool::{Census, Hit, PoolEvent, PoolObserver},
};

/// From a hot call (2 ms) to a run that goes on until patience is over.
const CALL_SECONDS: [f64; 16] = [
    0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// From a boot without preload on an idle machine to one that just kept its deadline.
const BOOT_SECONDS: [f64; 10] = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0];

/// From a warm sandbox at hand to the longest wait.
const CLAIM_SECONDS: [f64; 10] = [0.001, 0.005, 0.02, 0.05, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// From a look that finds nothing new to the largest archive on a busy machine.
const ARCHIVE_SECONDS: [f64; 10] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Every number of this process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Registry,
    /// One at a time renders: pools' gauges are set anew for each.
    rendering: Mutex<()>,
    sandboxes: Family<PoolState, Gauge>,
    live: Family<OfPool, Gauge>,
    claims_waiting: Family<OfPool, Gauge>,
    boots: Family<PoolOutcome, Counter>,
    boot_seconds: Histograms<OfPool>,
    claims: Family<PoolOutcome, Counter>,
    claim_seconds: Histograms<OfPool>,
    condemned: Family<PoolReason, Counter>,
    runs: Family<Run, Counter>,
    call_seconds: Histograms<Call>,
    calls_in_flight: Gauge,
    failures: Family<Failed, Counter>,
    connections: Gauge,
    refused: Family<Refused, Counter>,
    archives: Family<ByOutcome, Counter>,
    archive_seconds: Histogram,
    restores: Family<ByOutcome, Counter>,
    restore_seconds: Histogram,
    archive_bytes: Gauge,
    archives_swept: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolState {
    pool: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolOutcome {
    pool: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolReason {
    pool: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Run {
    language: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    tool: &'static str,
    session: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    credential: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All numbers at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut shared = Shared {
            registry: Registry::with_prefix("greenroom"),
            rendering: Mutex::default(),
            sandboxes: Family::default(),
            live: Family::default(),
            claims_waiting: Family::default(),
            boots: Family::default(),
            boot_seconds: Family::new_with_constructor(|| Histogram::new(BOOT_SECONDS)),
            claims: Family::default(),
            claim_seconds: Family::new_with_constructor(|| Histogram::new(CLAIM_SECONDS)),
            condemned: Family::default(),
            runs: Family::default(),
            call_seconds: Family::new_with_constructor(|| Histogram::new(CALL_SECONDS)),
            calls_in_flight: Gauge::default(),
            failures: Family::default(),
            connections: Gauge::default(),
            refused: Family::default(),
            archives: Family::default(),
            archive_seconds: Histogram::new(ARCHIVE_SECONDS),
            restores: Family::default(),
            restore_seconds: Histogram::new(ARCHIVE_SECONDS),
            archive_bytes: Gauge::default(),
            archives_swept: Counter::default(),
        };
        shared.register();
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What a pool's keeper reports to.
    #[must_use]
    pub fn observer(&self, pool: &PoolName) -> Arc<dyn PoolObserver> {
        Arc::new(Observer {
            metrics: self.clone(),
            pool: pool.to_string(),
        })
    }

    /// What the archives report to.
    #[must_use]
    pub fn of_archives(&self) -> Arc<dyn ArchiveObserver> {
        Arc::new(self.clone())
    }

    /// A call begins; it ends when the answer is dropped.
    #[must_use]
    pub fn call_begins(&self) -> InFlight {
        self.shared.calls_in_flight.inc();
        InFlight(self.shared.calls_in_flight.clone())
    }

    /// A call was answered.
    pub fn call_ended(&self, tool: &'static str, session: &'static str, took: Duration) {
        let call = self.shared.call_seconds.get_or_create(&Call { tool, session });
        call.observe(took.as_secs_f64());
    }

    /// A call could not be served.
    pub fn failed(&self, kind: FailureKind) {
        let kind = kind.as_str();
        self.shared.failures.get_or_create(&Failed { kind }).inc();
    }

    /// A run ended, as its caller was told.
    pub fn run_ended(&self, language: Language, status: &'static str) {
        // What an outcome names is the guest's word: only what is known becomes a series of its own.
        let known = Language::KNOWN.iter().find(|known| **known == language);
        let language = known.map_or("other", Language::as_str);
        self.shared.runs.get_or_create(&Run { language, status }).inc();
    }

    /// A request was not let in.
    pub fn refused(&self, refusal: Refusal) {
        let credential = refusal.as_str();
        self.shared.refused.get_or_create(&Refused { credential }).inc();
    }

    /// A connection was opened; it ends when the answer is dropped.
    #[must_use]
    pub fn connection_opens(&self) -> InFlight {
        self.shared.connections.inc();
        InFlight(self.shared.connections.clone())
    }

    /// Everything as OpenMetrics text, with these pools' present numbers.
    #[must_use]
    pub fn render<'a>(&self, pools: impl IntoIterator<Item = (&'a PoolName, Census)>) -> String {
        let shared = &self.shared;
        // Nothing panics while it holds the lock.
        let _turn = shared.rendering.lock().unwrap_or_else(PoisonError::into_inner);
        // Pools come and go while a server runs, and one that has gone has no number.
        shared.sandboxes.clear();
        shared.live.clear();
        shared.claims_waiting.clear();
        for (pool, census) in pools {
            self.count(pool, &census);
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.shared.registry);
        text
    }

    fn count(&self, pool: &PoolName, census: &Census) {
        let counts = census.counts;
        for (state, number) in [
            ("booting", counts.booting),
            ("warm", counts.warm),
            ("claimed", counts.claimed),
            ("condemned", counts.condemned),
        ] {
            let pool = pool.to_string();
            self.shared
                .sandboxes
                .get_or_create(&PoolState { pool, state })
                .set(gauge(number));
        }
        let of_pool = OfPool {
            pool: pool.to_string(),
        };
        self.shared
            .claims_waiting
            .get_or_create(&of_pool)
            .set(gauge(census.waiting));
        if let Some(live) = census.live {
            self.shared.live.get_or_create(&of_pool).set(gauge(live));
        }
    }
}

fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Shared {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "pool_sandboxes",
            "Sandboxes that a pool of this server answers for, by what they are doing",
            self.sandboxes.clone(),
        );
        registry.register(
            "pool_live",
            "Sandboxes of a pool that the engine had when it was last asked, whoever made them",
            self.live.clone(),
        );
        registry.register(
            "pool_claims_waiting",
            "Calls that wait for a sandbox",
            self.claims_waiting.clone(),
        );
        registry.register(
            "requests_refused",
            "Requests that were not let in, by their credential: missing or bad",
            self.refused.clone(),
        );
        registry.register(
            "boots",
            "Boots by outcome: ok, or where they failed",
            self.boots.clone(),
        );
        registry.register(
            "boot_seconds",
            "Time from the begin of a boot until warm",
            self.boot_seconds.clone(),
        );
        registry.register(
            "claims",
            "Claims by outcome; the hit rate is warm / (warm + booted)",
            self.claims.clone(),
        );
        registry.register(
            "claim_seconds",
            "Time that granted claims waited",
            self.claim_seconds.clone(),
        );
        registry.register(
            "condemned",
            "Sandboxes that a pool had destroyed, by reason",
            self.condemned.clone(),
        );
        registry.register(
            "runs",
            "Runs by how they ended, as their callers were told",
            self.runs.clone(),
        );
        registry.register(
            "call_seconds",
            "Time from a tool call's arrival to its answer, by how it found its session",
            self.call_seconds.clone(),
        );
        registry.register(
            "calls_in_flight",
            "Tool calls that are being worked on",
            self.calls_in_flight.clone(),
        );
        registry.register(
            "failures",
            "Calls that could not be served, by kind",
            self.failures.clone(),
        );
        registry.register("connections", "Open HTTP connections", self.connections.clone());
        registry.register(
            "archives",
            "Archives of a session's files by outcome: stored, unchanged, yielded to another server's, or why not",
            self.archives.clone(),
        );
        registry.register(
            "archive_seconds",
            "Time to archive a session's files, or to find that they have not changed",
            self.archive_seconds.clone(),
        );
        registry.register(
            "restores",
            "Archives that fresh sandboxes were to be filled from, by outcome: kept, none, or why not",
            self.restores.clone(),
        );
        registry.register(
            "restore_seconds",
            "Time to look for an archive, and to fill a sandbox from it",
            self.restore_seconds.clone(),
        );
        registry.register(
            "archive_bytes",
            "Bytes of all archives at the last sweep",
            self.archive_bytes.clone(),
        );
        registry.register(
            "archives_swept",
            "Archives that were removed because they were too old or too many",
            self.archives_swept.clone(),
        );
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Counts something as long as it lives.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Debug)]
struct Observer {
    metrics: Metrics,
    pool: String,
}

impl Observer {
    fn claim(&self, outcome: &'static str) {
        let label = PoolOutcome {
            pool: self.pool.clone(),
            outcome,
        };
        self.metrics.shared.claims.get_or_create(&label).inc();
    }

    fn boot(&self, outcome: &'static str) {
        let label = PoolOutcome {
            pool: self.pool.clone(),
            outcome,
        };
        self.metrics.shared.boots.get_or_create(&label).inc();
    }
}

impl ArchiveObserver for Metrics {
    fn observe(&self, event: ArchiveEvent) {
        let shared = &self.shared;
        match event {
            ArchiveEvent::Save { outcome, took } => {
                shared.archives.get_or_create(&ByOutcome { outcome }).inc();
                shared.archive_seconds.observe(took.as_secs_f64());
            }
            ArchiveEvent::Restore { outcome, took } => {
                shared.restores.get_or_create(&ByOutcome { outcome }).inc();
                shared.restore_seconds.observe(took.as_secs_f64());
            }
            ArchiveEvent::Swept { bytes, gone } => {
                shared.archive_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
                shared.archives_swept.inc_by(gone as u64);
            }
        }
    }
}

impl PoolObserver for Observer {
    fn observe(&self, event: PoolEvent) {
        let of_pool = || OfPool {
            pool: self.pool.clone(),
        };
        match event {
            PoolEvent::Booted { took } => {
                self.boot("ok");
                self.metrics
                    .shared
                    .boot_seconds
                    .get_or_create(&of_pool())
                    .observe(took.as_secs_f64());
            }
            PoolEvent::BootFailed(fault) => self.boot(fault.as_str()),
            PoolEvent::Granted { hit, waited } => {
                self.claim(match hit {
                    Hit::Warm => "warm",
                    Hit::Booted => "booted",
                });
                self.metrics
                    .shared
                    .claim_seconds
                    .get_or_create(&of_pool())
                    .observe(waited.as_secs_f64());
            }
            PoolEvent::Refused { .. } => self.claim("refused"),
            PoolEvent::Abandoned => self.claim("abandoned"),
            PoolEvent::Condemned(why) => {
                let label = PoolReason {
                    pool: self.pool.clone(),
                    reason: why.as_str(),
                };
                self.metrics.shared.condemned.get_or_create(&label).inc();
            }
            PoolEvent::Adopted | PoolEvent::LetGo | PoolEvent::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{BootFault, Counts, Readiness, Why};

    #[test]
    fn every_number_has_its_line() {
        let metrics = Metrics::new();
        let pool = PoolName::parse("python").unwrap();
        let observer = metrics.observer(&pool);
        for event in [
            PoolEvent::Booted {
                took: Duration::from_millis(900),
            },
            PoolEvent::BootFailed(BootFault::Deadline),
            PoolEvent::Granted {
                hit: Hit::Warm,
                waited: Duration::ZERO,
            },
            PoolEvent::Granted {
                hit: Hit::Booted,
                waited: Duration::from_secs(2),
            },
            PoolEvent::Refused {
                waited: Duration::ZERO,
            },
            PoolEvent::Abandoned,
            PoolEvent::Condemned(Why::Aged),
        ] {
            observer.observe(event);
        }
        metrics.failed(FailureKind::Capacity);
        metrics.run_ended(Language::Python, "ok");
        metrics.call_ended("execute_code", "new", Duration::from_millis(20));
        let archives = metrics.of_archives();
        for event in [
            ArchiveEvent::Save {
                outcome: "stored",
                took: Duration::from_millis(300),
            },
            ArchiveEvent::Restore {
                outcome: "kept",
                took: Duration::from_millis(30),
            },
            ArchiveEvent::Swept { bytes: 77, gone: 2 },
        ] {
            archives.observe(event);
        }
        let in_flight = (metrics.call_begins(), metrics.connection_opens());
        drop(metrics.call_begins());
        let census = Census {
            counts: Counts {
                warm: 2,
                booting: 1,
                ..Counts::default()
            },
            waiting: 3,
            prepared: None,
            live: Some(4),
            failures: 0,
            last_boot_error: None,
            backoff_until: None,
            last_destroy_error: None,
            readiness: Readiness::Ready,
        };
        let text = metrics.render([(&pool, census.clone())]);
        drop(in_flight);
        for line in [
            "greenroom_pool_sandboxes{pool=\"python\",state=\"warm\"} 2",
            "greenroom_pool_sandboxes{pool=\"python\",state=\"booting\"} 1",
            "greenroom_pool_live{pool=\"python\"} 4",
            "greenroom_pool_claims_waiting{pool=\"python\"} 3",
            "greenroom_boots_total{pool=\"python\",outcome=\"ok\"} 1",
            "greenroom_boots_total{pool=\"python\",outcome=\"deadline\"} 1",
            "greenroom_boot_seconds_bucket{le=\"1.0\",pool=\"python\"} 1",
            "greenroom_claims_total{pool=\"python\",outcome=\"warm\"} 1",
            "greenroom_claims_total{pool=\"python\",outcome=\"booted\"} 1",
            "greenroom_claims_total{pool=\"python\",outcome=\"refused\"} 1",
            "greenroom_claims_total{pool=\"python\",outcome=\"abandoned\"} 1",
            "greenroom_claim_seconds_count{pool=\"python\"} 2",
            "greenroom_condemned_total{pool=\"python\",reason=\"aged\"} 1",
            "greenroom_runs_total{language=\"python\",status=\"ok\"} 1",
            "greenroom_call_seconds_count{tool=\"execute_code\",session=\"new\"} 1",
            "greenroom_calls_in_flight 1",
            "greenroom_failures_total{kind=\"capacity\"} 1",
            "greenroom_connections 1",
            "greenroom_archives_total{outcome=\"stored\"} 1",
            "greenroom_archive_seconds_count 1",
            "greenroom_restores_total{outcome=\"kept\"} 1",
            "greenroom_restore_seconds_bucket{le=\"0.05\"} 1",
            "greenroom_archive_bytes 77",
            "greenroom_archives_swept_total 2",
        ] {
            assert!(
                text.lines().any(|have| have == line),
                "{line}\nis missing in\n{text}"
            );
        }
        // A reload has put another pool in its place.
        let other = PoolName::parse("other").unwrap();
        let text = metrics.render([(&other, census)]);
        for family in ["sandboxes", "live", "claims_waiting"] {
            let of = |pool: &str| text.contains(&format!("greenroom_pool_{family}{{pool=\"{pool}\""));
            assert_eq!([of("python"), of("other")], [false, true], "{family}\n{text}");
        }
        assert!(
            text.contains("greenroom_boots_total{pool=\"python\""),
            "what has happened has happened"
        );
    }
}
