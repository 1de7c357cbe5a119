//! Workers that come, go and fall.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use seldon_core::{
    Event, Now, Order, State,
    Worker::{Engine, ModelGateway, PipelineGateway},
};

use seldon_proto::{
    chainer::{
        PipelineUpdateMessage, PipelineUpdateStatusMessage,
        pipeline_update_message::PipelineOperation,
    },
    scheduler::{
        ModelUpdateMessage, ModelUpdateStatusMessage, model_update_message::ModelOperation,
    },
};

use crate::bench::{Bench, chain, ordinal};

#[test]
fn an_engine_that_comes_takes_over_only_after_the_former_let_go() {
    let mut bench = Bench::whole();
    let names: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    for name in &names {
        bench.load(chain(name)).unwrap();
    }
    bench.settle();
    bench.connect(Engine, "engine-1");
    let second = (Engine, Arc::from("engine-1"));
    assert!(bench.workers[&second].inbox.is_empty());
    let moving = bench.workers[&(Engine, Arc::from("engine-0"))].inbox.len();
    assert!((1..8).contains(&moving), "{moving} of 8 move");
    bench.settle();
    assert_eq!(bench.workers[&second].has.len(), moving);
    for name in &names {
        assert!(
            bench.ready(name) && bench.running(name).len() == 1,
            "{name}"
        );
    }
    // It is lost: for a while it keeps what it owns, then it is replaced.
    bench.disconnect(Engine, "engine-1");
    assert!(names.iter().all(|name| bench.ready(name)));
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert_eq!(bench.workers[&(Engine, Arc::from("engine-0"))].has.len(), 8);
    // It comes back and still runs what others run now: nobody else is told before it is clear.
    bench.connect(Engine, "engine-1");
    bench.settle();
    for name in &names {
        assert!(
            bench.ready(name) && bench.running(name).len() == 1,
            "{name}"
        );
    }
    // One that does not answer is waited for, but not for ever.
    bench.disconnect(Engine, "engine-1");
    bench.advance(bench.config.replace_after);
    bench.settle();
    bench.connect(Engine, "engine-2");
    bench.advance(bench.config.replace_after * 3);
    let third = (Engine, Arc::from("engine-2"));
    assert!(!bench.workers[&third].inbox.is_empty());
}

#[test]
fn an_engine_that_leaves_is_replaced_at_once() {
    let mut bench = Bench::whole();
    bench.connect(Engine, "engine-1");
    let names: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
    for name in &names {
        bench.load(chain(name)).unwrap();
    }
    bench.settle();
    let (first, second) = ((Engine, "engine-0".into()), (Engine, "engine-1".into()));
    let moving = bench.workers[&second].has.len();
    assert!((1..8).contains(&moving), "{moving} of 8 are on it");
    let report = Box::new(PipelineUpdateStatusMessage {
        update: Some(PipelineUpdateMessage {
            op: PipelineOperation::Rebalance.into(),
            stream: "engine-1".into(),
            ..Default::default()
        }),
        success: true,
        reason: String::new(),
    });
    let worker = Engine;
    bench
        .step(Event::PipelineReported { worker, report })
        .unwrap();
    assert_eq!(bench.workers[&first].inbox.len(), moving);
    assert!(
        bench.workers[&second].inbox.is_empty(),
        "it has nothing to give up"
    );
    bench.workers.get_mut(&second).unwrap().has.clear();
    bench.disconnect(Engine, "engine-1");
    bench.settle();
    assert_eq!(bench.workers[&first].has.len(), 8);
    // It may come back. What moves is given up at once, with nothing to clean.
    bench.connect(Engine, "engine-1");
    let Some(Order::Update(order)) = bench.workers[&first].inbox.front() else {
        panic!("no order");
    };
    assert_eq!(order.op(), PipelineOperation::Rebalance);
    assert!(order.updates.is_empty());
    bench.settle();
    assert_eq!(bench.workers[&second].has.len(), moving);
    assert!(names.iter().all(|name| bench.ready(name)));
}

#[test]
fn a_model_gateway_that_leaves_is_replaced_at_once() {
    let mut bench = Bench::whole();
    bench.connect(ModelGateway, "mg-1");
    for number in 0..8 {
        bench.load(chain(&format!("p{number}"))).unwrap();
    }
    bench.settle();
    let leaver = (ModelGateway, Arc::from("mg-1"));
    let moving = bench.workers[&leaver].has.len();
    assert!(moving > 0);
    let others = |bench: &Bench| -> usize {
        let gateways = bench.workers.iter();
        let others = gateways.filter(|(key, _)| key.0 == ModelGateway && **key != leaver);
        others.map(|(_, hand)| hand.inbox.len()).sum()
    };
    assert_eq!(others(&bench), 0);
    let report = Box::new(ModelUpdateStatusMessage {
        update: Some(ModelUpdateMessage {
            op: ModelOperation::Delete.into(),
            stream: "mg-1".into(),
            ..Default::default()
        }),
        success: true,
        reason: String::new(),
    });
    bench.step(Event::ModelReported(report)).unwrap();
    assert_eq!(others(&bench), moving);
    assert!(bench.workers[&leaver].inbox.is_empty());
    bench.workers.get_mut(&leaver).unwrap().has.clear();
    bench.disconnect(ModelGateway, "mg-1");
    bench.settle();
    // It comes back as if it had never been there.
    bench.connect(ModelGateway, "mg-1");
    bench.settle();
    assert_eq!(bench.workers[&leaver].has.len(), moving);
}

#[test]
fn gateways_share_pipelines_and_leave_routes_before_they_let_go() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.settle();
    for gateway in ["pg-1", "pg-2", "pg-3"] {
        bench.connect(PipelineGateway, gateway);
        assert!(!bench.route("p").is_empty());
    }
    bench.settle();
    let owners = bench.route("p");
    assert_eq!(owners.len(), 2, "as many as are of use");
    assert!(bench.ready("p"));
    let holders = |bench: &Bench| -> BTreeSet<u32> {
        let gateways = bench
            .workers
            .iter()
            .filter(|((kind, _), _)| *kind == PipelineGateway);
        let having = gateways.filter(|(_, hand)| !hand.has.is_empty());
        having.map(|((_, name), _)| ordinal(name)).collect()
    };
    assert_eq!(holders(&bench), owners);
    // One that is lost is left out at once, and replaced after a while.
    let lost = *owners.first().unwrap();
    bench.disconnect(PipelineGateway, &format!("pg-{lost}"));
    assert_eq!(bench.route("p").len(), 1);
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert_eq!(bench.route("p").len(), 2);
    assert!(!bench.route("p").contains(&lost));
    bench.step(Event::Shards(3)).unwrap();
    bench.settle();
    assert_eq!(bench.route("p").len(), 3);
    // All are lost, as when only the scheduler is cut off: the route stays.
    for gateway in 0..4 {
        bench.disconnect(PipelineGateway, &format!("pg-{gateway}"));
    }
    assert!(!bench.route("p").is_empty());
    bench.advance(Duration::from_secs(300));
    assert!(!bench.route("p").is_empty());
}

#[test]
fn workers_beyond_the_most_own_nothing() {
    let mut bench = Bench::new();
    (
        bench.config.model_gateways_max,
        bench.config.pipeline_gateways_max,
    ) = (1, 1);
    bench.state = State::new(bench.config.clone(), Now::default());
    bench.step(Event::Tick).unwrap();
    bench.connect(Engine, "engine-0");
    for number in 0..3 {
        bench.connect(ModelGateway, &format!("mg-{number}"));
        bench.connect(PipelineGateway, &format!("pg-{number}"));
    }
    for number in 0..8 {
        bench.load(chain(&format!("p{number}"))).unwrap();
        bench.load_model(&format!("m{number}"));
    }
    bench.settle();
    assert!((0..8).all(|number| bench.route(&format!("p{number}")) == [0].into()));
    assert!((0..8).all(|number| bench.reading(&format!("m{number}")) == ["mg-0"]));
    // Times the multiplier.
    bench.step(Event::Shards(2)).unwrap();
    bench.settle();
    let owners: BTreeSet<String> = (0..8)
        .flat_map(|number| bench.reading(&format!("m{number}")))
        .collect();
    assert_eq!(owners.len(), 2);
    assert!((0..8).all(|number| bench.route(&format!("p{number}")).len() == 2));
}
