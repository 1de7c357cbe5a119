//! Which servers and replicas may take a model, and the rule that says no.
use std::fmt;

use seldon_proto::scheduler::Model;

use crate::{
    model::{Version, is_explainer, pinned, required_memory},
    server::{Server, ServerReplica, missing_requirement},
    size::Size,
};

const EXPLAINER_CAPABILITY: &str = "alibi-explain";

/// Why a server or a replica was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    NoReplica,
    NotShared,
    NotTheOneAsked(String),
    ScaledToZero,
    Requirement {
        missing: String,
        capabilities: String,
    },
    Memory {
        replica: u32,
        needs: u64,
        free: u64,
    },
    /// More than the replica has even when nothing else is loaded: over-commitment does not help.
    TooLarge {
        replica: u32,
        needs: u64,
        total: u64,
    },
    NoExplainer {
        replica: u32,
    },
    Lost {
        replica: u32,
    },
    Draining {
        replica: u32,
    },
    Surplus {
        replica: u32,
    },
    StillUnloading {
        replica: u32,
    },
    FailedThere {
        replica: u32,
    },
    TooFew {
        wanted: usize,
        suitable: usize,
        reasons: Vec<Rule>,
    },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::NoReplica => f.write_str("no replica is connected"),
            Rule::NotShared => f.write_str("not shared, and the model does not name it"),
            Rule::NotTheOneAsked(server) => write!(f, "the model asks for server {server}"),
            Rule::ScaledToZero => f.write_str("scaled to 0 replicas"),
            Rule::Requirement {
                missing,
                capabilities,
            } => {
                write!(
                    f,
                    "requirement {missing} not among capabilities {capabilities}"
                )
            }
            Rule::Memory {
                replica,
                needs,
                free,
            } => {
                let short = Size(needs - free);
                let (needs, free) = (Size(*needs), Size(*free));
                write!(
                    f,
                    "needs {needs}, replica {replica} has {free} free: {short} short"
                )
            }
            Rule::TooLarge {
                replica,
                needs,
                total,
            } => {
                let (needs, total) = (Size(*needs), Size(*total));
                write!(f, "needs {needs}, replica {replica} has {total} in all")
            }
            Rule::NoExplainer { replica } => write!(
                f,
                "replica {replica} lacks capability {EXPLAINER_CAPABILITY}"
            ),
            Rule::Lost { replica } => write!(f, "replica {replica} is not connected"),
            Rule::Draining { replica } => write!(f, "replica {replica} is draining"),
            Rule::Surplus { replica } => {
                write!(f, "replica {replica} is beyond the replicas expected")
            }
            Rule::StillUnloading { replica } => {
                write!(f, "replica {replica} is still unloading it")
            }
            Rule::FailedThere { replica } => write!(f, "replica {replica} failed to load it"),
            Rule::TooFew {
                wanted,
                suitable,
                reasons,
            } => {
                let noun = if *wanted == 1 { "replica" } else { "replicas" };
                write!(f, "{wanted} {noun} wanted, {suitable} suitable")?;
                let shown = 3;
                for (at, reason) in reasons.iter().take(shown).enumerate() {
                    write!(f, "{}{reason}", if at == 0 { ": " } else { ", " })?;
                }
                match reasons.len().saturating_sub(shown) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
        }
    }
}

/// The server filters, in their documented order.
pub(crate) fn server_passes(spec: &Model, name: &str, server: &Server) -> Result<(), Rule> {
    if server.connected().next().is_none() {
        return Err(Rule::NoReplica);
    }
    match pinned(spec) {
        Some(asked) if asked != name => return Err(Rule::NotTheOneAsked(asked.to_owned())),
        None if !server.shared => return Err(Rule::NotShared),
        _ => {}
    }
    if server.expected == Some(0) {
        return Err(Rule::ScaledToZero);
    }
    match missing_requirement(server, spec) {
        None => Ok(()),
        Some(missing) => {
            let known: Vec<&str> = server.capabilities.iter().map(String::as_str).collect();
            Err(Rule::Requirement {
                missing: missing.to_owned(),
                capabilities: known.join(", "),
            })
        }
    }
}

/// The replica filters, for a replica that does not have the model yet.
pub(crate) fn replica_passes(
    version: &Version,
    index: u32,
    replica: &ServerReplica,
) -> Result<(), Rule> {
    if replica.stream.is_none() {
        return Err(Rule::Lost { replica: index });
    }
    if replica.drain.is_some() {
        return Err(Rule::Draining { replica: index });
    }
    if replica.surplus {
        return Err(Rule::Surplus { replica: index });
    }
    let spec = &version.spec;
    let needs = required_memory(spec);
    let on_demand = replica.over_commit > 0 || version.resting;
    if needs > replica.total_memory && on_demand {
        return Err(Rule::TooLarge {
            replica: index,
            needs,
            total: replica.total_memory,
        });
    }
    // Agents of others know no rest.
    let needs = match replica.is_ours() {
        true => version.required(),
        false => needs,
    };
    let free = replica.free();
    if needs > free {
        return Err(Rule::Memory {
            replica: index,
            needs,
            free,
        });
    }
    if is_explainer(spec) && !replica.capabilities.contains(EXPLAINER_CAPABILITY) {
        return Err(Rule::NoExplainer { replica: index });
    }
    Ok(())
}
