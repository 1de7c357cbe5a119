//! Holds every message, field, enum value and RPC against `surface.txt`, which was written from the protocol's tables.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use seldon_proto::POOL;

/// The protocol's tables, one line a fact.
const SURFACE: &str = include_str!("surface.txt");

/// Packages that the tables describe; `seldon.mlops.introspect` is ours and not among them.
const PACKAGES: [&str; 8] = [
    "seldon.mlops.scheduler",
    "seldon.mlops.agent",
    "seldon.mlops.agent_debug",
    "seldon.mlops.chainer",
    "seldon.mlops.health",
    "seldon.mlops.proxy",
    "inference",
    "inferenceSchema",
];

/// What we added to those packages, and nothing else: cohorts, guarded roll-outs, the ports of pipeline gateways, versions
/// that an engine takes up together, and how replicas of servers are used.
const OURS: &str = "\
seldon.mlops.agent.ModelEventMessage field 100 usage ReplicaUsage
seldon.mlops.agent.ReplicaUsage message
seldon.mlops.agent.ReplicaUsage field 1 evictedModels uint32
seldon.mlops.agent.ReplicaUsage field 2 requestsInFlight uint32
seldon.mlops.agent.ModelOperationMessage field 100 resting bool
seldon.mlops.chainer.PipelineUpdateMessage field 100 others repeated PipelineUpdateMessage
seldon.mlops.scheduler.Experiment field 100 cohort optional ExperimentCohort
seldon.mlops.scheduler.Experiment field 101 rollout optional ExperimentRollout
seldon.mlops.scheduler.ExperimentCohort message
seldon.mlops.scheduler.ExperimentCohort field 1 header string
seldon.mlops.scheduler.ExperimentRollout message
seldon.mlops.scheduler.ExperimentRollout field 1 steps repeated uint32
seldon.mlops.scheduler.ExperimentRollout field 2 intervalSeconds uint32
seldon.mlops.scheduler.ExperimentRollout field 3 minRequests uint32
seldon.mlops.scheduler.ExperimentRollout field 4 maxErrorRateIncrease optional double
seldon.mlops.scheduler.ExperimentRollout field 5 maxLatencyRatio optional double
seldon.mlops.scheduler.PipelineSubscriptionRequest field 100 subscriberHttpPort uint32
seldon.mlops.scheduler.PipelineSubscriptionRequest field 101 subscriberGrpcPort uint32
seldon.mlops.scheduler.ServerReplicaResources field 100 evictedModels uint32
seldon.mlops.scheduler.ServerReplicaResources field 101 requestsInFlight uint32
";

#[test]
fn every_fact_of_the_tables_holds_and_nothing_is_added() {
    let known = known_types();
    let wanted: BTreeSet<String> = SURFACE
        .lines()
        .chain(OURS.lines())
        .filter(|line| !line.trim().is_empty())
        .map(|line| normalised(line, &known))
        .collect();
    let actual = actual_facts();
    let missing: Vec<_> = wanted.difference(&actual).collect();
    let extra: Vec<_> = actual.difference(&wanted).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "in the tables only: {missing:#?}\nin the .proto files only: {extra:#?}"
    );
}

#[test]
fn the_tables_are_whole() {
    let count = |word: &str| {
        SURFACE
            .lines()
            .filter(|line| line.split(' ').nth(1) == Some(word))
            .count()
    };
    assert_eq!(
        (
            count("message"),
            count("field"),
            count("enum"),
            count("rpc")
        ),
        (129, 388, 88, 39)
    );
}

#[test]
fn apis_is_a_link_to_proto() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let apis = root.join("apis");
    assert!(
        apis.is_symlink(),
        "documented grpcurl commands import from `apis`"
    );
    assert!(apis.join("mlops/scheduler/scheduler.proto").is_file());
    assert_eq!(
        apis.canonicalize().expect("the link resolves"),
        root.join("proto")
            .canonicalize()
            .expect("proto is a folder")
    );
}

fn in_tables(package: &str) -> bool {
    PACKAGES.contains(&package)
}

fn known_types() -> BTreeSet<String> {
    let messages = POOL
        .all_messages()
        .map(|message| message.full_name().to_owned());
    let enums = POOL.all_enums().map(|item| item.full_name().to_owned());
    messages.chain(enums).collect()
}

/// A line of the tables with every type name written in full.
fn normalised(line: &str, known: &BTreeSet<String>) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let owner = words[0];
    let resolve = |name: &str| resolved(name, owner, known);
    match words[1] {
        "rpc" => {
            let types = words[3..].iter().map(|word| match *word {
                "stream" | "->" => (*word).to_owned(),
                name => resolve(name),
            });
            let types: Vec<_> = types.collect();
            format!("{owner} rpc {} {}", words[2], types.join(" "))
        }
        "field" => {
            let mut parts: Vec<String> = words[3..].iter().map(|word| (*word).to_owned()).collect();
            let at = usize::from(matches!(parts[1].as_str(), "repeated" | "optional")) + 1;
            parts[at] = match parts[at]
                .strip_prefix("map<")
                .and_then(|rest| rest.strip_suffix('>'))
            {
                Some(pair) => {
                    let (key, value) = pair.split_once(',').expect("a map has two types");
                    format!("map<{key},{}>", resolve(value))
                }
                None => resolve(&parts[at]),
            };
            format!("{owner} field {} {}", words[2], parts.join(" "))
        }
        _ => line.to_owned(),
    }
}

/// Looks a name up as protobuf does: in the owner, then in each scope around it.
fn resolved(name: &str, owner: &str, known: &BTreeSet<String>) -> String {
    let mut scope = owner;
    loop {
        let candidate = format!("{scope}.{name}");
        if known.contains(&candidate) {
            return candidate;
        }
        match scope.rsplit_once('.') {
            Some((outer, _)) => scope = outer,
            None => return name.to_owned(),
        }
    }
}

fn actual_facts() -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for message in POOL.all_messages() {
        if in_tables(message.package_name()) && !message.is_map_entry() {
            message_facts(&message, &mut facts);
        }
    }
    for item in POOL.all_enums() {
        if in_tables(item.package_name()) {
            enum_facts(&item, &mut facts);
        }
    }
    for service in POOL
        .services()
        .filter(|service| in_tables(service.package_name()))
    {
        for method in service.methods() {
            let stream = |yes| if yes { "stream " } else { "" };
            facts.insert(format!(
                "{} rpc {} {}{} -> {}{}",
                service.full_name(),
                method.name(),
                stream(method.is_client_streaming()),
                method.input().full_name(),
                stream(method.is_server_streaming()),
                method.output().full_name()
            ));
        }
    }
    facts
}

fn message_facts(message: &MessageDescriptor, facts: &mut BTreeSet<String>) {
    let owner = message.full_name();
    facts.insert(format!("{owner} message"));
    // A synthetic oneof stands for `optional`.
    let mut oneofs = BTreeMap::new();
    for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
        for field in oneof.fields() {
            oneofs.insert(field.number(), oneof.name().to_owned());
        }
    }
    for field in message.fields() {
        let oneof = oneofs.get(&field.number());
        let label = match field.cardinality() {
            _ if field.is_map() => "",
            Cardinality::Repeated => "repeated ",
            _ if oneof.is_none() && field.field_descriptor_proto().proto3_optional() => "optional ",
            _ => "",
        };
        let tail = oneof
            .map(|name| format!(" oneof {name}"))
            .unwrap_or_default();
        facts.insert(format!(
            "{owner} field {} {} {label}{}{tail}",
            field.number(),
            field.name(),
            type_name(&field)
        ));
    }
}

fn enum_facts(item: &EnumDescriptor, facts: &mut BTreeSet<String>) {
    for value in item.values() {
        facts.insert(format!(
            "{} enum {} {}",
            item.full_name(),
            value.number(),
            value.name()
        ));
    }
}

fn type_name(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let key = entry.map_entry_key_field();
            let value = entry.map_entry_value_field();
            format!("map<{},{}>", type_name(&key), type_name(&value))
        }
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(item) => item.full_name().to_owned(),
        scalar => format!("{scalar:?}"),
    }
}
