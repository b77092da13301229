//! A model of how sessions get and lose their sandboxes, searched exhaustively: two servers that may die between any
//! two steps, two conversations, three sandboxes that may end at any time, and an engine with names.
//!
//! It is the protocol of `sessions` without its code: what is checked here is that the rules suffice, and that each of
//! them is needed. The code's own steps are tested in `lifecycle_sessions*`.

use std::collections::{HashSet, VecDeque};

const SERVERS: usize = 2;
const SESSIONS: usize = 2;
const SANDBOXES: usize = 3;

/// How much of it is searched: all of both at once is more than a quick test can look at.
#[derive(Clone, Copy, Debug)]
struct Size {
    sessions: usize,
    sandboxes: usize,
}

/// One conversation that loses its sandbox twice.
const LOSSES: Size = Size {
    sessions: 1,
    sandboxes: 3,
};
/// Two conversations that might get the same one.
const NEIGHBOURS: Size = Size {
    sessions: 2,
    sandboxes: 2,
};

/// The rules under which the servers play.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// Only the server that created a warm sandbox gives it a name.
    only_the_creator_renames: bool,
    /// A tombstone goes only once its news was told.
    tombstones_go_last: bool,
    /// Who has got the name looks again for what was set aside while it waited for its sandbox.
    looks_again: bool,
}

const OURS: Rules = Rules {
    only_the_creator_renames: true,
    tombstones_go_last: true,
    looks_again: true,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Running,
    Exited,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name {
    Own,
    Session(usize),
    Aside(usize),
}

/// What a lease answers until that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    New,
    Existing,
    Restarted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sandbox {
    creator: usize,
    life: Life,
    name: Name,
    lease: Option<(usize, Standing)>,
}

/// A sandbox in a server's hand, for a session, and whether that session has lost something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Hand {
    session: usize,
    sandbox: usize,
    lost: bool,
}

/// Where a server stands in the one call that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// It looks for the session's sandbox next.
    Find(usize),
    /// It has claimed one, and knows what is in the name's way.
    Claimed(Hand, Option<usize>),
    /// What was in the way is out of it.
    Adopt(Hand),
    /// The name is the sandbox's.
    LookAgain(Hand),
    Lease(Hand),
    /// The answer is ready.
    Answer(Hand, Standing),
    /// It was written out.
    Told(Hand),
    /// The agent has heard so.
    Clear(Hand),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    sessions: usize,
    sandboxes: [Sandbox; SANDBOXES],
    servers: [Step; SERVERS],
    /// The sandbox that holds each conversation's state, by the last answer that its client read.
    clients: [Option<usize>; SESSIONS],
}

/// Something that must never happen.
type Violation = String;

impl World {
    fn start(size: Size) -> Self {
        let sandbox = |number: usize| Sandbox {
            creator: number % SERVERS,
            life: if number < size.sandboxes {
                Life::Running
            } else {
                Life::Gone
            },
            name: Name::Own,
            lease: None,
        };
        Self {
            sessions: size.sessions,
            sandboxes: std::array::from_fn(sandbox),
            servers: [Step::Idle; SERVERS],
            clients: [None; SESSIONS],
        }
    }

    fn named(&self, name: Name) -> Option<usize> {
        self.sandboxes
            .iter()
            .position(|one| one.life != Life::Gone && one.name == name)
    }

    /// Docker's rename: refused where another has the name; of two renames of one sandbox the last wins.
    fn rename(&mut self, sandbox: usize, name: Name) -> bool {
        let holder = self.named(name);
        let free = holder.is_none() || holder == Some(sandbox);
        if free {
            self.sandboxes[sandbox].name = name;
        }
        free
    }

    /// Every world that may come next.
    fn next(&self, rules: Rules) -> Result<Vec<Self>, Violation> {
        let mut worlds = Vec::new();
        for server in 0..SERVERS {
            self.steps(server, rules, &mut worlds)?;
            if self.servers[server] != Step::Idle {
                // SIGKILL, at any moment.
                worlds.push(self.with(server, Step::Idle));
            }
        }
        for sandbox in 0..SANDBOXES {
            let one = self.sandboxes[sandbox];
            // A bound one ends when it likes. An unbound one in somebody's hand or name ends once nobody has it.
            let held = self.servers.iter().any(|step| step.holds(sandbox));
            if one.life == Life::Running && (one.lease.is_some() || one.name != Name::Own && !held) {
                let mut world = self.clone();
                world.sandboxes[sandbox].life = Life::Exited;
                worlds.push(world);
            }
        }
        Ok(worlds)
    }

    fn with(&self, server: usize, step: Step) -> Self {
        let mut world = self.clone();
        world.servers[server] = step;
        world
    }

    fn steps(&self, server: usize, rules: Rules, worlds: &mut Vec<Self>) -> Result<(), Violation> {
        match self.servers[server] {
            Step::Idle => {
                worlds.extend((0..self.sessions).map(|session| self.with(server, Step::Find(session))))
            }
            Step::Find(session) => self.find(server, session, rules, worlds),
            Step::Claimed(hand, aside) => {
                let mut world = self.with(server, Step::Adopt(hand));
                // By id: it may have been done, or be gone, by now.
                if let Some(ended) = aside
                    && world.sandboxes[ended].life != Life::Gone
                {
                    if rules.tombstones_go_last {
                        world.sandboxes[ended].name = Name::Aside(hand.session);
                    } else {
                        world.sandboxes[ended].life = Life::Gone;
                    }
                }
                worlds.push(world);
            }
            Step::Adopt(hand) => {
                let mut world = self.with(server, Step::LookAgain(hand));
                if !world.rename(hand.sandbox, Name::Session(hand.session)) {
                    world.servers[server] = Step::Find(hand.session);
                }
                worlds.push(world);
            }
            Step::LookAgain(hand) => {
                let recorded = rules.looks_again && self.named(Name::Aside(hand.session)).is_some();
                let lost = hand.lost || recorded;
                worlds.push(self.with(server, Step::Lease(Hand { lost, ..hand })));
            }
            Step::Lease(hand) => worlds.push(self.lease(server, hand)),
            Step::Answer(hand, standing) => worlds.push(self.answer(server, hand, standing)?),
            Step::Told(hand) => {
                let mut world = self.with(server, Step::Clear(hand));
                if let Some((_, standing)) = &mut world.sandboxes[hand.sandbox].lease {
                    *standing = Standing::Existing;
                }
                worlds.push(world);
            }
            Step::Clear(Hand { session, sandbox, .. }) => {
                let mut world = self.with(server, Step::Idle);
                // While the sandbox that told has the name, all that was set aside is older than it.
                let holder = world.named(Name::Session(session));
                if holder == Some(sandbox) && world.sandboxes[sandbox].life == Life::Running {
                    for one in &mut world.sandboxes {
                        if one.name == Name::Aside(session) {
                            one.life = Life::Gone;
                        }
                    }
                }
                worlds.push(world);
            }
        }
        Ok(())
    }

    fn find(&self, server: usize, session: usize, rules: Rules, worlds: &mut Vec<Self>) {
        let recorded = self.named(Name::Aside(session)).is_some();
        let place = self.named(Name::Session(session));
        match place.map(|one| (one, self.sandboxes[one])) {
            Some((sandbox, one)) if one.life == Life::Running => {
                let lost = recorded;
                worlds.push(self.with(
                    server,
                    Step::Lease(Hand {
                        session,
                        sandbox,
                        lost,
                    }),
                ));
            }
            // It ended as nobody's: there is no news in it.
            Some((sandbox, one)) if one.lease.is_none() => {
                let mut world = self.clone();
                world.sandboxes[sandbox].life = Life::Gone;
                worlds.push(world);
            }
            ended => {
                for sandbox in 0..SANDBOXES {
                    let one = self.sandboxes[sandbox];
                    let warm = one.life == Life::Running && one.name == Name::Own && one.lease.is_none();
                    let mine = one.creator == server || !rules.only_the_creator_renames;
                    if warm && mine {
                        let lost = recorded || ended.is_some();
                        let hand = Hand {
                            session,
                            sandbox,
                            lost,
                        };
                        worlds.push(self.with(server, Step::Claimed(hand, place)));
                    }
                }
            }
        }
    }

    /// The second fence: the agent grants its lease to one session.
    fn lease(&self, server: usize, hand: Hand) -> Self {
        let one = self.sandboxes[hand.sandbox];
        let standing = match one.lease {
            _ if one.life != Life::Running => return self.with(server, Step::Find(hand.session)),
            None if hand.lost => Standing::Restarted,
            None => Standing::New,
            Some((owner, standing)) if owner == hand.session => standing,
            // "Belongs to another session": an error, and no answer.
            Some(_) => return self.with(server, Step::Idle),
        };
        let mut world = self.with(server, Step::Answer(hand, standing));
        world.sandboxes[hand.sandbox].lease = Some((hand.session, standing));
        world
    }

    /// The client reads the answer. It has state in the sandbox from now on.
    fn answer(&self, server: usize, hand: Hand, standing: Standing) -> Result<Self, Violation> {
        let Hand { session, sandbox, .. } = hand;
        let elsewhere = self.clients[session].is_some_and(|had| had != sandbox);
        if elsewhere && self.sandboxes[sandbox].life != Life::Running {
            // Two calls at once: this answer was made before that sandbox ended, and is read after the one that said so.
            return Ok(self.with(server, Step::Idle));
        }
        if elsewhere && standing != Standing::Restarted {
            return Err(format!(
                "session {session} got {sandbox} and heard {standing:?}: {self:#?}"
            ));
        }
        if (0..SESSIONS).any(|other| other != session && self.clients[other] == Some(sandbox)) {
            return Err(format!("{sandbox} serves {session} and another: {self:#?}"));
        }
        let next = match standing {
            Standing::Existing => Step::Idle,
            Standing::New | Standing::Restarted => Step::Told(hand),
        };
        let mut world = self.with(server, next);
        world.clients[session] = Some(sandbox);
        Ok(world)
    }
}

impl Step {
    fn holds(self, which: usize) -> bool {
        match self {
            Self::Claimed(hand, _) | Self::Adopt(hand) | Self::LookAgain(hand) | Self::Lease(hand) => {
                hand.sandbox == which
            }
            Self::Idle | Self::Find(_) | Self::Answer(..) | Self::Told(_) | Self::Clear(_) => false,
        }
    }
}

/// Looks at every world that can be reached; answers how many there are.
fn search(size: Size, rules: Rules) -> Result<usize, Violation> {
    let mut seen = HashSet::from([World::start(size)]);
    let mut open = VecDeque::from([World::start(size)]);
    while let Some(world) = open.pop_front() {
        for next in world.next(rules)? {
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_state_is_lost_in_silence_whatever_dies_when() {
    for size in [LOSSES, NEIGHBOURS] {
        let worlds = search(size, OURS).unwrap();
        assert!(
            worlds > 5_000,
            "only {worlds}: {size:?} is not the model that was meant"
        );
    }
}

#[test]
fn a_sandbox_that_anybody_may_rename_is_adopted_twice() {
    let rules = Rules {
        only_the_creator_renames: false,
        ..OURS
    };
    let violation = search(NEIGHBOURS, rules).unwrap_err();
    assert!(
        violation.contains("heard New") || violation.contains("serves"),
        "{violation}"
    );
}

#[test]
fn a_tombstone_that_goes_first_takes_its_news_along() {
    let rules = Rules {
        tombstones_go_last: false,
        ..OURS
    };
    let violation = search(LOSSES, rules).unwrap_err();
    assert!(violation.contains("heard New"), "{violation}");
}

/// A claim may wait for half a minute, in which another server's sandbox for the session comes and goes.
#[test]
fn what_was_seen_before_the_claim_is_out_of_date_after_it() {
    let rules = Rules {
        looks_again: false,
        ..OURS
    };
    let violation = search(LOSSES, rules).unwrap_err();
    assert!(violation.contains("heard New"), "{violation}");
}
