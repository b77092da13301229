//! The tools as one caller is offered them: with the pools that it may use. Tools for which it lacks the scope are among
//! them, since a client can ask for more.

use std::collections::BTreeMap;

use greenroom_protocol::Language;
use greenroom_tool_schemas::{Definition, Folder, Pools, ToolName};
use serde_json::Value;

use crate::{
    auth::Identity,
    config::{Aliases, Config, Offer, PoolConfig},
};

/// Every tool that is configured, once for servers with one pool and once for those with several: which of the two this
/// server is may change while it runs.
#[derive(Debug)]
pub(in crate::mcp) struct Definitions {
    one: BTreeMap<ToolName, Definition>,
    several: BTreeMap<ToolName, Definition>,
}

impl Definitions {
    pub(super) fn new(config: &Config, folder: Folder) -> Self {
        let define = |pools| {
            configured(config)
                .map(|name| (name, Definition::offering(name, pools, folder)))
                .collect()
        };
        Self {
            one: define(Pools::One),
            several: define(Pools::Several),
        }
    }

    pub(super) fn find(&self, name: ToolName, offer: &Offer) -> Option<&Definition> {
        self.under(offer).get(&name)
    }

    /// All of them, in the order of their names.
    pub(super) fn list(&self, offer: &Offer, caller: &Identity) -> Vec<Definition> {
        let choice = choice(offer, caller);
        let own = self.under(offer).values();
        own.map(|tool| {
            let mut tool = tool.clone();
            if let Some(text) = tool
                .input_schema
                .get_mut("properties")
                .and_then(description_of_pool)
            {
                *text = choice.as_str().into();
            }
            tool
        })
        .collect()
    }

    fn under(&self, offer: &Offer) -> &BTreeMap<ToolName, Definition> {
        if offer.pools.len() > 1 {
            &self.several
        } else {
            &self.one
        }
    }
}

/// The tools that are configured, and those that go by other systems' names.
fn configured(config: &Config) -> impl Iterator<Item = ToolName> {
    let aliases: &[ToolName] = match config.aliases {
        Aliases::None => &[],
        Aliases::Azure => &ToolName::AZURE,
    };
    config.tools.iter().chain(aliases).copied()
}

fn description_of_pool(properties: &mut Value) -> Option<&mut Value> {
    properties.get_mut("pool")?.get_mut("description")
}

/// What a model reads of the pools: those that its caller may use, the one of calls that name none first.
fn choice(offer: &Offer, caller: &Identity) -> String {
    let first = caller.pools.first().unwrap_or(&offer.default_pool);
    let mut own: Vec<_> = offer.pools.iter().collect();
    own.retain(|(name, _)| caller.pools.allow(name.as_str()));
    own.sort_by_key(|(name, _)| *name != first);
    let mut text =
        "Which kind of sandbox. Each kind that you use is a computer of its own, with files of its own:"
            .to_owned();
    for (name, pool) in own {
        let default = if name == first { " (default)" } else { "" };
        text.push_str(&format!("\n- {name}{default}: {}", described(pool)));
    }
    text
}

/// As its operator describes it, or what its configuration tells.
fn described(pool: &PoolConfig) -> String {
    if let Some(text) = &pool.description {
        return text.clone();
    }
    let languages: Vec<&str> = pool.languages.iter().map(Language::as_str).collect();
    match (pool.container(), languages.as_slice()) {
        (Some(_), []) => "a program of its own".to_owned(),
        (Some(_), languages) => format!("a program of its own; {}", languages.join(", ")),
        (None, languages) => languages.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        auth::AllowedPools,
        config::{Inputs, Loaded},
        conversation::PoolName,
    };

    fn listed(toml: &str, caller: &Identity) -> Vec<Definition> {
        let inputs = Inputs {
            text: toml.to_owned(),
            ..Inputs::default()
        };
        let config = Loaded::read(&inputs).unwrap().config;
        Definitions::new(&config, Folder::None).list(&Offer::of(&config), caller)
    }

    fn pool_text(tools: &[Definition]) -> Option<&str> {
        tools[0].input_schema["properties"].get("pool")?["description"].as_str()
    }

    const THREE: &str = "[pool.python]\n[pool.geo]\ndescription = \"Python with maps\"\n\
                         [pool.app]\nkind = \"container\"\nimage = \"app\"";

    #[test]
    fn a_model_reads_which_pools_it_may_choose_from() {
        assert_eq!(pool_text(&listed("", &Identity::LOCAL)), None);
        let all = listed(THREE, &Identity::LOCAL);
        assert_eq!(
            pool_text(&all),
            Some(
                "Which kind of sandbox. Each kind that you use is a computer of its own, with files of its own:\n\
                 - python (default): python, bash\n- app: a program of its own\n- geo: Python with maps"
            )
        );
        let geo: Arc<[PoolName]> = [PoolName::parse("geo").unwrap()].into();
        let caller = Identity {
            pools: AllowedPools::Only(geo),
            ..Identity::LOCAL
        };
        let own = listed(THREE, &caller);
        let own = pool_text(&own).unwrap();
        assert!(own.ends_with(":\n- geo (default): Python with maps"), "{own}");
    }
}
