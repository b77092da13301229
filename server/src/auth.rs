//! Who calls, and what they may do: identities, their scopes and pools, whatever protocol the call came by.

pub mod commands;
pub mod gate;
mod issuer;
mod key;
mod key_file;
mod keyring;
mod token;

use std::{fmt, str::FromStr, sync::Arc};

pub(crate) use self::issuer::is_trustworthy;
pub use self::{
    gate::{Gate, GateError, Required},
    key::{ApiKey, BadKey, Fingerprint, KeyId},
    key_file::{Former, KeyError, KeyFile, Order, Record},
    keyring::{Keyring, Keys},
    token::Signing,
};
use crate::conversation::{PoolName, Principal};

/// What a caller may do. Each call needs one of them, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// To run code and commands, and what goes with it: following, cancelling, ending a session.
    Run,
    /// To list, read, write and delete files.
    Files,
    /// To see what is nobody's own: lists of sessions, logs, metrics.
    Admin,
}

impl Scope {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Run, Self::Files, Self::Admin];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Files => "files",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no scope: there are run, files and admin"))
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Scopes(u8);

impl Scopes {
    /// All of them.
    pub const ALL: Self = Self(Scope::Run.bit() | Scope::Files.bit() | Scope::Admin.bit());

    /// Whether one is among them.
    #[must_use]
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Which pools a caller may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedPools {
    /// Every one.
    All,
    /// These; the first is the one of a call that names none.
    Only(Arc<[PoolName]>),
}

impl AllowedPools {
    /// Whether a pool of this name, be there one or not, is among them.
    #[must_use]
    pub fn allow(&self, pool: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(pools) => pools.iter().any(|allowed| allowed.as_str() == pool),
        }
    }

    /// The pool of a call that names none, if it is not the configured one.
    #[must_use]
    pub fn first(&self) -> Option<&PoolName> {
        match self {
            Self::All => None,
            Self::Only(pools) => pools.first(),
        }
    }
}

/// What a caller's word is worth where it says which conversation a call belongs to, and which user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is believed: the caller is a host that knows, or nobody else can be harmed.
    Believed,
    /// It is not even read.
    Ignored,
}

/// Who calls, and what they may do. HTTP's layer puts one into each request; stdio's caller is [`Identity::LOCAL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who: part of the names of their sessions.
    pub principal: Principal,
    /// What they may do.
    pub scopes: Scopes,
    /// Where.
    pub pools: AllowedPools,
    /// What their word of conversations and users is worth.
    pub word: Word,
}

/// Why an identity may not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It lacks a scope.
    #[error("this needs the scope {0}, which this credential does not have")]
    Scope(Scope),
    /// The pool, should it exist, is for others.
    #[error("this credential is not for this pool")]
    Pool,
}

impl Identity {
    /// Whoever reaches this machine's loopback, where nobody is asked, or stdio.
    pub const LOCAL: Self = Self {
        principal: Principal::Local,
        scopes: Scopes::ALL,
        pools: AllowedPools::All,
        word: Word::Believed,
    };

    /// Whether it may do what needs a scope.
    ///
    /// # Errors
    /// [`Denied::Scope`].
    pub const fn may(&self, scope: Scope) -> Result<(), Denied> {
        if self.scopes.has(scope) {
            Ok(())
        } else {
            Err(Denied::Scope(scope))
        }
    }

    /// Whether it may use a pool of this name. To be asked before whether there is one: who may not use it need not
    /// know.
    ///
    /// # Errors
    /// [`Denied::Pool`].
    pub fn may_use(&self, pool: &str) -> Result<(), Denied> {
        if self.pools.allow(pool) {
            Ok(())
        } else {
            Err(Denied::Pool)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_may_what_its_scopes_and_pools_say() {
        let pool = |name: &str| PoolName::parse(name).unwrap();
        let only = AllowedPools::Only([pool("b"), pool("a")].into());
        let runner = Identity {
            scopes: [Scope::Run].into_iter().collect(),
            pools: only.clone(),
            ..Identity::LOCAL
        };
        for (identity, scope, allowed) in [
            (&Identity::LOCAL, Scope::Run, Ok(())),
            (&Identity::LOCAL, Scope::Admin, Ok(())),
            (&runner, Scope::Run, Ok(())),
            (&runner, Scope::Files, Err(Denied::Scope(Scope::Files))),
            (&runner, Scope::Admin, Err(Denied::Scope(Scope::Admin))),
        ] {
            assert_eq!(identity.may(scope), allowed, "{identity:?} {scope}");
        }
        for (identity, pool, allowed) in [
            (&Identity::LOCAL, "any", Ok(())),
            (&runner, "a", Ok(())),
            (&runner, "c", Err(Denied::Pool)),
            (&runner, "", Err(Denied::Pool)),
        ] {
            assert_eq!(identity.may_use(pool), allowed, "{identity:?} {pool}");
        }
        assert_eq!(only.first(), Some(&pool("b")));
        assert_eq!(AllowedPools::All.first(), None);
    }

    #[test]
    fn scopes_are_words() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        assert!("root".parse::<Scope>().is_err());
        let some: Scopes = [Scope::Admin, Scope::Run, Scope::Run].into_iter().collect();
        assert_eq!(some.iter().collect::<Vec<_>>(), [Scope::Run, Scope::Admin]);
        assert_eq!(Scope::ALL.into_iter().collect::<Scopes>(), Scopes::ALL);
    }
}
