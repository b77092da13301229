//! When the next boot may begin: what earlier ones ran into. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    PoolSpec,
    boot::BootError,
    census::{Readiness, Unready},
    claim::Delay,
    ledger::Boot,
    policy::{Backoff, Boots, Demand, boots, delay},
    room::Room,
};

/// Between looks of a claim's boot for room: it costs one list.
const CLAIM_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Before the reserve looks for room again. Other servers do the same, hence the jitter upon it.
const RESERVE_RETRY: Duration = Duration::from_secs(4);

/// How long a look at the host's memory is believed.
const SHORT: Duration = Duration::from_secs(10);

/// What stands in the way of boots.
#[derive(Debug)]
pub(super) struct Pace {
    /// Boots that failed in a row.
    boots: Backoff,
    /// Warm sandboxes that died young in a row: their boots succeed, and yet their kind is unsound.
    deaths: Backoff,
    trouble: Option<Trouble>,
    /// How the engine looked when it was last asked.
    room: Option<Room>,
    memory: Memory,
    /// Boots in a row that found no room.
    crowded: u32,
    claims_from: Option<Instant>,
    reserve_from: Option<Instant>,
}

/// How the host's memory looked when a boot last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    Enough,
    Short { since: Instant },
}

#[derive(Clone, Debug)]
struct Trouble {
    reason: String,
    unreachable: bool,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self {
            boots: Backoff::new(),
            deaths: Backoff::new(),
            trouble: None,
            room: None,
            memory: Memory::Enough,
            crowded: 0,
            claims_from: None,
            reserve_from: None,
        }
    }

    /// How many boots to begin now.
    pub(super) fn boots(&self, demand: Demand, now: Instant) -> Boots {
        let held = self.held_until(demand.waiting > 0).is_some_and(|at| at > now);
        if held {
            return Boots::default();
        }
        let after = |from: Option<Instant>| from.is_none_or(|at| at <= now);
        boots(&Demand {
            waiting: if after(self.claims_from) {
                demand.waiting
            } else {
                0
            },
            target: if after(self.reserve_from) {
                demand.target
            } else {
                0
            },
            // While they fail, one at a time is enough to find out that they no longer do.
            parallel: if self.failures() > 0 { 1 } else { demand.parallel },
            ..demand
        })
    }

    /// When something that stands in the way now will do so no longer.
    pub(super) fn next(&self, claims_wait: bool, now: Instant) -> Option<Instant> {
        [self.held_until(claims_wait), self.claims_from, self.reserve_from]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    pub(super) fn booted(&mut self) {
        self.boots.reset();
        self.memory = Memory::Enough;
        self.crowded = 0;
        self.claims_from = None;
        if self.deaths.streak() == 0 {
            self.trouble = None;
        }
    }

    pub(super) fn boot_failed(&mut self, error: &BootError, now: Instant, jitter: f64) {
        self.trouble = Some(Trouble {
            reason: error.to_string(),
            unreachable: error.is_unreachable(),
        });
        self.boots.failed(now, jitter);
    }

    /// A boot found no room.
    pub(super) fn no_room(&mut self, boot: Boot, room: Room, now: Instant, jitter: f64) {
        self.room = Some(room);
        self.memory = Memory::Enough;
        self.wait_for_room(boot, now, jitter);
    }

    /// A boot found the host without memory.
    pub(super) fn no_memory(&mut self, boot: Boot, now: Instant, jitter: f64) {
        self.memory = Memory::Short { since: now };
        self.wait_for_room(boot, now, jitter);
    }

    fn wait_for_room(&mut self, boot: Boot, now: Instant, jitter: f64) {
        self.reserve_from = Some(now + RESERVE_RETRY.mul_f64(0.5 + jitter));
        if boot == Boot::Claim {
            self.crowded = self.crowded.saturating_add(1);
            let (base, cap) = CLAIM_RETRY;
            self.claims_from = Some(now + delay(self.crowded, base, cap, jitter));
        }
    }

    /// Whether the last boot that looked found the host without memory.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.memory != Memory::Enough
    }

    /// The engine was looked at. Race: room that is seen does not shorten a wait, or all servers that see it
    /// would try for it at once, and again.
    pub(super) fn looked(&mut self, room: Room, now: Instant) {
        self.room = Some(room);
        // Where nobody boots, nobody would find out that there is memory again.
        if let Memory::Short { since } = self.memory
            && now - since >= SHORT
        {
            self.memory = Memory::Enough;
        }
    }

    /// A warm sandbox died. One that lived for long says nothing about the next.
    pub(super) fn died_young(&mut self, reason: String, now: Instant, jitter: f64) {
        self.trouble = Some(Trouble {
            reason,
            unreachable: false,
        });
        self.deaths.failed(now, jitter);
    }

    /// A sandbox was adopted, or has been warm for long: its kind is sound.
    pub(super) fn proved_sound(&mut self) {
        self.deaths.reset();
        if self.boots.streak() == 0 {
            self.trouble = None;
        }
    }

    pub(super) const fn room(&self) -> Option<Room> {
        self.room
    }

    pub(super) fn is_full(&self, max: usize) -> bool {
        self.room.is_some_and(|room| !room.admits(Boot::Claim, max))
    }

    pub(super) fn failures(&self) -> u32 {
        self.boots.streak().max(self.deaths.streak())
    }

    pub(super) fn reason(&self) -> Option<String> {
        self.trouble.as_ref().map(|trouble| trouble.reason.clone())
    }

    /// Until when failures hold boots back.
    pub(super) fn held_until(&self, claims_wait: bool) -> Option<Instant> {
        self.boots.until(claims_wait).max(self.deaths.until(claims_wait))
    }

    /// Why a claim waits in vain, where failures are the reason.
    pub(super) fn delay(&self) -> Option<Delay> {
        let Trouble { reason, unreachable } = self.trouble.clone()?;
        Some(if unreachable {
            Delay::EngineUnreachable { reason }
        } else {
            let failures = self.failures();
            Delay::Failing { failures, reason }
        })
    }

    /// Whether a claim that finds nothing warm would get a boot.
    pub(super) fn readiness(&self, spec: &PoolSpec) -> Readiness {
        let unready = if let Some(trouble) = self.trouble.as_ref().filter(|_| self.failures() > 0) {
            Unready::Failing {
                failures: self.failures(),
                reason: trouble.reason.clone(),
            }
        } else if self.is_short_of_memory() {
            Unready::NoMemory
        } else if self.is_full(spec.max) && self.room.is_some_and(|room| room.spare == 0) {
            Unready::Full { max: spec.max }
        } else if self.room.is_none() {
            Unready::Starting
        } else {
            return Readiness::Ready;
        };
        Readiness::Unready(unready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMAND: Demand = Demand {
        waiting: 1,
        warm: 0,
        booting: 0,
        target: 4,
        parallel: 2,
        free: usize::MAX,
    };

    fn failure() -> BootError {
        BootError::Agent("no python".into())
    }

    #[test]
    fn failing_boots_go_one_at_a_time_and_a_success_resets_them() {
        let now = Instant::now();
        let mut pace = Pace::new();
        assert_eq!(
            pace.boots(DEMAND, now),
            Boots {
                claims: 1,
                reserve: 1
            }
        );
        pace.boot_failed(&failure(), now, 1.0);
        assert_eq!(pace.boots(DEMAND, now), Boots::default());
        let then = pace.next(true, now).unwrap();
        assert_eq!(
            pace.boots(DEMAND, then),
            Boots {
                claims: 1,
                reserve: 0
            }
        );
        assert!(matches!(pace.delay(), Some(Delay::Failing { failures: 1, .. })));
        pace.booted();
        assert_eq!(
            pace.boots(DEMAND, now),
            Boots {
                claims: 1,
                reserve: 1
            }
        );
        assert_eq!(pace.delay(), None);
    }

    #[test]
    fn sandboxes_that_die_young_slow_boots_down_although_those_succeed() {
        let mut now = Instant::now();
        let mut pace = Pace::new();
        for _ in 0..8 {
            pace.booted();
            pace.died_young("it died".into(), now, 1.0);
            now = pace.next(false, now).unwrap();
        }
        pace.died_young("it died".into(), now, 1.0);
        assert!(pace.next(false, now).unwrap() - now > Duration::from_secs(20));
        pace.proved_sound();
        assert_eq!(pace.next(false, now), None);
    }

    #[test]
    fn without_room_claims_look_again_soon_and_the_reserve_later() {
        let now = Instant::now();
        let mut pace = Pace::new();
        pace.no_room(Boot::Claim, Room { live: 4, spare: 1 }, now, 0.0);
        assert_eq!(pace.boots(DEMAND, now), Boots::default());
        let then = pace.next(true, now).unwrap();
        assert!(then - now <= Duration::from_millis(100));
        assert_eq!(
            pace.boots(DEMAND, then),
            Boots {
                claims: 1,
                reserve: 0
            }
        );
        pace.looked(Room { live: 2, spare: 0 }, now);
        assert_eq!(pace.boots(DEMAND, now), Boots::default());
        let then = now + RESERVE_RETRY.mul_f64(1.5);
        assert_eq!(
            pace.boots(DEMAND, then),
            Boots {
                claims: 1,
                reserve: 1
            }
        );
    }

    #[test]
    fn readiness_says_why_not() {
        let spec = crate::pool::tests::spec(0, 2);
        let now = Instant::now();
        let mut pace = Pace::new();
        let unready = |pace: &Pace| match pace.readiness(&spec) {
            Readiness::Ready => String::new(),
            Readiness::Unready(why) => why.to_string(),
        };
        assert_eq!(unready(&pace), "the pool is starting");
        pace.looked(Room { live: 2, spare: 1 }, now);
        assert_eq!(unready(&pace), "", "one of them will make room");
        pace.looked(Room { live: 2, spare: 0 }, now);
        assert!(unready(&pace).contains("limit max = 2"), "{}", unready(&pace));
        pace.boot_failed(&failure(), now, 1.0);
        assert!(unready(&pace).contains("no python"), "{}", unready(&pace));
    }
}
