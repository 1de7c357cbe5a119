//! Two versions of a pipeline, and engines that fall, return and come.
use std::sync::Arc;

use seldon_core::{
    Order, Record,
    Worker::{Engine, PipelineGateway},
};
use seldon_proto::{
    chainer::pipeline_update_message::PipelineOperation::{self, Create, Delete, Rebalance},
    scheduler::pipeline_version_state::PipelineStatus,
};

use crate::bench::{Bench, chain};

/// What an engine was told of a pipeline: to do what, with which version, and with which others.
fn told(bench: &Bench, engine: &str, pipeline: &str) -> Vec<(PipelineOperation, u32, Vec<u32>)> {
    let orders = bench.inbox(Engine, engine).iter();
    let updates = orders.filter_map(|order| match order {
        Order::Update(update) if update.pipeline == pipeline => Some(update),
        _ => None,
    });
    let told = updates.map(|update| {
        let others = update.others.iter();
        for other in &update.others {
            assert_eq!((other.op(), &other.pipeline), (Create, &update.pipeline));
            assert!(!other.updates.is_empty());
        }
        (
            update.op(),
            update.version,
            others.map(|other| other.version).collect(),
        )
    });
    told.collect()
}

/// Both are taken up together.
fn both() -> Vec<(PipelineOperation, u32, Vec<u32>)> {
    vec![(Create, 1, vec![2]), (Create, 2, vec![1])]
}

fn status(bench: &Bench, pipeline: &str, version: u32) -> PipelineStatus {
    let all = bench.state.pipeline_status(pipeline, true).unwrap();
    let states = all.versions.into_iter().filter_map(|one| one.state);
    let mut of = states.filter(|state| state.pipeline_version == version);
    of.next().unwrap().status()
}

/// The second version runs, and the first is told to end and does not yet.
fn updating(names: &[&str]) -> Bench {
    let mut bench = Bench::whole();
    for name in names {
        bench.load(chain(name)).unwrap();
    }
    bench.settle();
    for name in names {
        bench.load(chain(name)).unwrap();
    }
    for _ in names {
        assert!(bench.work(Engine, "engine-0", true, true));
    }
    while bench.work(PipelineGateway, "pg-0", true, true) {}
    bench.acknowledge();
    for name in names {
        assert_eq!(told(&bench, "engine-0", name), [(Delete, 1, vec![])]);
        assert_eq!(status(&bench, name, 1), PipelineStatus::PipelineTerminating);
    }
    let engine = (Engine, Arc::from("engine-0"));
    bench.workers.get_mut(&engine).unwrap().inbox.clear();
    bench
}

/// An engine takes up both and lets the first end.
fn takes_up(bench: &mut Bench, engine: &str) {
    assert_eq!(told(bench, engine, "p"), both());
    assert!(bench.work(Engine, engine, true, true));
    assert_eq!(told(bench, engine, "p")[1..], [(Delete, 1, vec![])]);
    assert!(bench.work(Engine, engine, true, true));
    assert_eq!(bench.running("p")[engine], [1, 2]);
    assert_eq!(status(bench, "p", 1), PipelineStatus::PipelineTerminating);
    bench.settle();
    assert_eq!(bench.running("p")[engine], [2]);
    assert_eq!(status(bench, "p", 1), PipelineStatus::PipelineTerminated);
    assert!(bench.ready("p"));
}

#[test]
fn an_engine_takes_up_both_versions_of_one_that_is_lost() {
    let mut bench = updating(&["p"]);
    bench.disconnect(Engine, "engine-0");
    bench.connect(Engine, "engine-1");
    bench.advance(bench.config.replace_after);
    takes_up(&mut bench, "engine-1");
    // The former one, when it is back, is told to let go, or takes both up again.
    bench.connect(Engine, "engine-0");
    bench.settle();
    let running: Vec<Vec<u32>> = bench.running("p").into_values().collect();
    assert!(running.contains(&vec![2]), "{running:?}");
    assert!(bench.ready("p"));
}

#[test]
fn a_version_that_ends_waits_for_an_engine_where_there_is_none() {
    let mut bench = updating(&["p"]);
    bench.disconnect(Engine, "engine-0");
    bench.advance(bench.config.replace_after * 2);
    assert_eq!(status(&bench, "p", 1), PipelineStatus::PipelineTerminating);
    bench.connect(Engine, "engine-1");
    takes_up(&mut bench, "engine-1");
    // One that goes while it is told of both.
    let mut bench = updating(&["p"]);
    bench.disconnect(Engine, "engine-0");
    bench.connect(Engine, "engine-1");
    bench.advance(bench.config.replace_after);
    assert_eq!(told(&bench, "engine-1", "p"), both());
    bench.disconnect(Engine, "engine-1");
    bench.connect(Engine, "engine-2");
    bench.advance(bench.config.replace_after);
    takes_up(&mut bench, "engine-2");
}

#[test]
fn an_engine_that_returns_takes_up_both_versions_again() {
    let mut bench = updating(&["p"]);
    bench.disconnect(Engine, "engine-0");
    bench.connect(Engine, "engine-0");
    takes_up(&mut bench, "engine-0");
    // Also where it was not told yet that the first ends.
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.settle();
    bench.load(chain("p")).unwrap();
    assert!(bench.work(Engine, "engine-0", true, true));
    bench.disconnect(Engine, "engine-0");
    while bench.work(PipelineGateway, "pg-0", true, true) {}
    bench.acknowledge();
    bench.connect(Engine, "engine-0");
    takes_up(&mut bench, "engine-0");
}

#[test]
fn both_versions_of_a_pipeline_move_together_and_at_once() {
    let names = ["p", "q", "r", "s", "t", "u"];
    let mut bench = updating(&names);
    bench.connect(Engine, "engine-1");
    let moving: Vec<&str> = names
        .into_iter()
        .filter(|name| !told(&bench, "engine-0", name).is_empty())
        .collect();
    assert!((1..6).contains(&moving.len()), "{moving:?}");
    for name in &moving {
        let both = [(Rebalance, 1, vec![]), (Rebalance, 2, vec![])];
        assert_eq!(told(&bench, "engine-0", name), both);
    }
    assert!(bench.inbox(Engine, "engine-1").is_empty());
    let begun = bench.now;
    while bench.work(Engine, "engine-0", true, true) {}
    for name in &moving {
        assert_eq!(told(&bench, "engine-1", name), both());
        assert_eq!(status(&bench, name, 1), PipelineStatus::PipelineTerminating);
    }
    bench.settle();
    for name in &moving {
        assert_eq!(bench.running(name)["engine-1"], [2]);
        assert_eq!(status(&bench, name, 1), PipelineStatus::PipelineTerminated);
    }
    assert_eq!(bench.now, begun);
}

#[test]
fn a_version_that_never_ran_is_not_taken_up() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    while bench.work(seldon_core::Worker::ModelGateway, "mg-0", true, true) {}
    assert!(bench.work(Engine, "engine-0", false, true));
    bench.load(chain("p")).unwrap();
    assert!(bench.work(Engine, "engine-0", true, true));
    while bench.work(PipelineGateway, "pg-0", true, true) {}
    bench.acknowledge();
    assert_eq!(told(&bench, "engine-0", "p"), [(Delete, 1, vec![])]);
    bench.disconnect(Engine, "engine-0");
    bench.connect(Engine, "engine-1");
    bench.advance(bench.config.replace_after);
    assert_eq!(told(&bench, "engine-1", "p"), [(Create, 2, vec![])]);
    assert_eq!(status(&bench, "p", 1), PipelineStatus::PipelineTerminated);
}

/// An engine that has only a version of a former life is told of it again on each stream.
#[test]
fn an_engine_with_a_former_life_is_told_again_when_it_reconnects() {
    let mut apart = 0;
    for name in ["p", "q", "r", "s"] {
        let mut bench = Bench::whole();
        for _ in 0..2 {
            bench.load(chain(name)).unwrap();
            bench.settle();
        }
        bench.disconnect(Engine, "engine-0");
        bench.connect(Engine, "engine-1");
        bench.unload(name).unwrap();
        bench.settle();
        bench.advance(bench.config.replace_after);
        bench.load(chain(name)).unwrap();
        bench.settle();
        let Record::Pipeline { former, .. } = &bench.stored[name] else {
            panic!("another record");
        };
        assert_eq!(former[0].version, 2);
        bench.connect(Engine, "engine-0");
        let first = told(&bench, "engine-0", name);
        assert!(first.contains(&(Delete, 2, vec![])), "{first:?}");
        apart += u32::from(first.len() == 1);
        // Its answer is lost with the stream.
        bench.disconnect(Engine, "engine-0");
        bench.connect(Engine, "engine-0");
        assert_eq!(told(&bench, "engine-0", name), first);
        bench.settle();
        let running: Vec<Vec<u32>> = bench.running(name).into_values().collect();
        assert_eq!(running, [[1]]);
    }
    assert!(apart > 0, "each has the new life as well");
}

#[test]
fn a_pipeline_that_is_unloaded_while_it_moves_ends_where_it_is() {
    let names = ["p", "q", "r", "s", "t", "u"];
    let mut bench = updating(&names);
    bench.settle();
    bench.connect(Engine, "engine-1");
    let moving = |bench: &Bench, name: &&str| {
        let told = told(bench, "engine-0", name);
        told.iter().any(|(doing, _, _)| *doing == Rebalance)
    };
    let moving: Vec<&str> = names
        .into_iter()
        .filter(|name| moving(&bench, name))
        .collect();
    assert!((1..6).contains(&moving.len()), "{moving:?}");
    for name in &moving {
        bench.unload(name).unwrap();
    }
    while bench.work(PipelineGateway, "pg-0", true, true) {}
    bench.acknowledge();
    while bench.work(PipelineGateway, "pg-0", true, true) {}
    for name in &moving {
        let told = told(&bench, "engine-0", name);
        assert_eq!(told.last(), Some(&(Delete, 2, vec![])), "{told:?}");
    }
    bench.settle();
    for name in &moving {
        assert_eq!(status(&bench, name, 2), PipelineStatus::PipelineTerminated);
        assert!(!bench.running(name).values().any(|all| !all.is_empty()));
    }
}

#[test]
fn a_version_whose_engine_cannot_take_it_up_is_not_said_to_have_ended() {
    let mut bench = updating(&["p"]);
    bench.disconnect(Engine, "engine-0");
    bench.connect(Engine, "engine-1");
    bench.advance(bench.config.replace_after);
    assert_eq!(told(&bench, "engine-1", "p"), both());
    for _ in 0..bench.config.retry_limit + 2 {
        while bench.work(Engine, "engine-1", false, true) {}
        bench.advance(bench.config.order_timeout);
        let told = told(&bench, "engine-1", "p");
        assert!(told.iter().all(|(doing, ..)| *doing == Create), "{told:?}");
    }
    assert_eq!(status(&bench, "p", 1), PipelineStatus::PipelineTerminating);
    bench.settle();
    assert_eq!(status(&bench, "p", 1), PipelineStatus::PipelineTerminated);
    assert_eq!(bench.running("p")["engine-1"], [2]);
}
