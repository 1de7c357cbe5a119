//! Random histories, and what a step costs.
use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use seldon_core::{
    Config, Effect, Endpoint, Event, Now, Order, State, Synchronisation, Worker,
    Worker::{Engine, ModelGateway, PipelineGateway},
};
use seldon_proto::{
    chainer::PipelineUpdateStatusMessage, scheduler::pipeline_version_state::PipelineStatus,
};

use crate::bench::{Bench, chain, ordinal, pipeline, step};

#[derive(Clone, Debug)]
enum Deed {
    Load(u8),
    Unload(u8),
    LoadModel(u8),
    UnloadModel(u8),
    Connect(u8),
    Disconnect(u8),
    Work(u8, bool, bool),
    Acknowledge,
    Wait(u16),
    Restart,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0u8..3).prop_map(Deed::Load),
        2 => (0u8..3).prop_map(Deed::Unload),
        1 => (0u8..2).prop_map(Deed::LoadModel),
        1 => (0u8..2).prop_map(Deed::UnloadModel),
        3 => (0u8..8).prop_map(Deed::Connect),
        2 => (0u8..8).prop_map(Deed::Disconnect),
        14 => (0u8..8, prop::bool::weighted(0.85), prop::bool::weighted(0.85))
            .prop_map(|(at, success, heard)| Deed::Work(at, success, heard)),
        4 => Just(Deed::Acknowledge),
        3 => (1u16..90).prop_map(Deed::Wait),
        1 => Just(Deed::Restart),
    ]
}

const MODELS: [&str; 2] = ["a", "b"];

const WORKERS: [(Worker, &str); 8] = [
    (Engine, "engine-0"),
    (Engine, "engine-1"),
    (Engine, "engine-2"),
    (PipelineGateway, "pg-0"),
    (PipelineGateway, "pg-1"),
    (PipelineGateway, "pg-2"),
    (ModelGateway, "mg-0"),
    (ModelGateway, "mg-1"),
];

fn act(bench: &mut Bench, deed: Deed) {
    let (worker, name) = match &deed {
        Deed::Connect(at) | Deed::Disconnect(at) | Deed::Work(at, _, _) => WORKERS[*at as usize],
        _ => WORKERS[0],
    };
    let known = bench.workers.contains_key(&(worker, name.into()));
    match deed {
        Deed::Load(which) => bench.load(chain(&format!("p{which}"))).unwrap(),
        Deed::LoadModel(which) => bench.load_model(MODELS[which as usize]),
        Deed::UnloadModel(which) => bench.try_unload_model(MODELS[which as usize]),
        Deed::Unload(which) => drop(bench.unload(&format!("p{which}"))),
        Deed::Connect(_) => bench.connect(worker, name),
        Deed::Disconnect(_) if known => bench.disconnect(worker, name),
        Deed::Work(_, success, heard) if known => drop(bench.work(worker, name, success, heard)),
        Deed::Acknowledge => bench.acknowledge(),
        Deed::Wait(seconds) => bench.advance(Duration::from_secs(seconds.into())),
        Deed::Restart => bench.restart(),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever happens, in the end every pipeline runs on one engine and answers on gateways that have it.
    #[test]
    fn everything_is_ready_in_the_end(deeds in prop::collection::vec(deed(), 1..60)) {
        let mut bench = Bench::whole();
        bench.load_model("a");
        for deed in deeds {
            act(&mut bench, deed);
        }
        for (worker, name) in WORKERS {
            bench.connect(worker, name);
        }
        for _ in 0..12 {
            bench.settle();
            bench.advance(Duration::from_secs(150));
        }
        bench.settle();
        let names: Vec<Arc<str>> = bench.state.pipeline_names().cloned().collect();
        let live = names.iter().any(|name| bench.states(name).0 != PipelineStatus::PipelineTerminated);
        for model in MODELS {
            let loaded = bench.state.model_status(model, false, Now::default());
            let wanted = live || loaded.is_some_and(|status| !status.deleted);
            let readers = bench.reading(model);
            prop_assert_eq!(readers.len(), usize::from(wanted), "{} is read by {:?}", model, readers);
        }
        for name in names {
            let gone = bench.states(&name).0 == PipelineStatus::PipelineTerminated;
            let running = bench.running(&name);
            if gone {
                prop_assert!(running.is_empty(), "{name} is gone and runs on {running:?}");
                continue;
            }
            prop_assert!(bench.ready(&name), "{name}: {:?}", bench.state.explain_pipeline(&name));
            prop_assert_eq!(running.len(), 1, "{} runs on {:?}", name, running);
            let version = bench.shown(&name).pipeline_version;
            prop_assert_eq!(running.into_values().next().unwrap(), vec![version]);
            let route = bench.route(&name);
            prop_assert_eq!(route.len(), 2);
            for ((worker, gateway), hand) in &bench.workers {
                let has = hand.has.iter().any(|(known, _)| **known == *name);
                if *worker == PipelineGateway {
                    prop_assert_eq!(has, route.contains(&ordinal(gateway)), "{} of {}", gateway, name);
                }
            }
        }
    }
}

/// A load and its orders cost as much among 4,000 pipelines as among a few.
#[test]
fn a_step_does_not_cost_more_where_there_are_many() {
    let config = Config::new(Synchronisation::AfterTimeout(Duration::ZERO));
    let mut state = State::new(config, Now::default());
    let now = Now {
        monotonic: Duration::from_secs(1),
        wall: Duration::from_secs(1),
    };
    for (stream, worker) in [(1, Engine), (2, PipelineGateway)] {
        let endpoint = (worker == PipelineGateway).then(|| Endpoint {
            replica: 0,
            host: "pg-0".into(),
            http_port: 9010,
            grpc_port: 9011,
            over_committed: false,
        });
        let event = Event::WorkerConnected {
            worker,
            stream,
            name: "one-0".into(),
            endpoint,
        };
        state.step(event, now).reply.unwrap();
    }
    let mut load = |from: usize| {
        let begun = std::time::Instant::now();
        for number in from..from + 500 {
            let name = format!("p{number}");
            let spec = pipeline(&name, vec![step(&format!("m{number}"), &[])]);
            let outcome = state.step(Event::LoadPipeline(Box::new(spec)), now);
            let orders = outcome
                .effects
                .into_iter()
                .filter_map(|effect| match effect {
                    Effect::Tell {
                        message: Order::Update(update),
                        ..
                    } => Some(*update),
                    _ => None,
                });
            for update in orders.collect::<Vec<_>>() {
                let report = Box::new(PipelineUpdateStatusMessage {
                    update: Some(update),
                    success: true,
                    reason: String::new(),
                });
                let event = Event::PipelineReported {
                    worker: Engine,
                    report,
                };
                state.step(event, now).reply.unwrap();
            }
        }
        begun.elapsed()
    };
    let first = load(0).min(load(500));
    for from in (1000..3000).step_by(500) {
        load(from);
    }
    let last = load(3000).min(load(3500));
    println!("500 pipelines: {first:?} as the first, {last:?} as the last of 4000");
    assert!(last < first * 4, "{first:?} became {last:?}");
}
