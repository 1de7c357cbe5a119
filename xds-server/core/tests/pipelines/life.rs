//! A pipeline from its load to its end, over versions and restarts.
use std::{sync::Arc, time::Duration};

use seldon_core::{
    Event, Order, Record,
    Worker::{Engine, ModelGateway, PipelineGateway},
};
use seldon_proto::{
    chainer::{
        PipelineUpdateMessage, PipelineUpdateStatusMessage,
        pipeline_update_message::PipelineOperation,
    },
    scheduler::{DataflowSpec, KubernetesMeta, Pipeline, pipeline_version_state::PipelineStatus},
};

use crate::bench::{Bench, chain};

fn cleaning(name: &str) -> Pipeline {
    Pipeline {
        dataflow_spec: Some(DataflowSpec {
            clean_topics_on_delete: true,
        }),
        ..chain(name)
    }
}

#[test]
fn a_pipeline_is_ready_when_its_workers_and_envoys_have_it_and_says_what_models_lack() {
    let mut bench = Bench::new();
    bench.load(chain("p")).unwrap();
    assert_eq!(bench.states("p").0, PipelineStatus::PipelineCreate);
    assert_eq!(bench.shown("p").reason, "no dataflow engine is available");
    bench.connect(PipelineGateway, "pg-0");
    bench.settle();
    assert!(bench.route("p").is_empty(), "no engine has it yet");
    bench.connect(Engine, "engine-0");
    assert!(bench.work(Engine, "engine-0", false, true));
    assert_eq!(bench.states("p").0, PipelineStatus::PipelineFailed);
    assert!(bench.shown("p").reason.contains("engine-0: it broke"));
    bench.advance(bench.config.retry_first);
    assert!(bench.work(Engine, "engine-0", true, true));
    assert_eq!(bench.route("p"), [0].into());
    assert!(!bench.ready("p"), "Envoys have yet to take the route");
    bench.acknowledge();
    assert!(bench.ready("p"));
    let shown = bench.shown("p");
    assert!(!shown.models_ready);
    assert!(
        shown.reason.starts_with("created pipeline: 1/1 ready"),
        "{}",
        shown.reason
    );
    assert!(
        shown.reason.contains("model a is not loaded"),
        "{}",
        shown.reason
    );
    let why = bench.state.explain_pipeline("p").unwrap();
    assert_eq!((why.steps.len(), why.workers.len()), (2, 2));
    assert_eq!(why.steps[1].waits_for, "model b is not loaded");
}

#[test]
fn an_order_without_an_answer_is_repeated_and_older_answers_do_not_count() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    while bench.work(ModelGateway, "mg-0", true, true) {}
    assert!(bench.work(Engine, "engine-0", true, false));
    bench.advance(bench.config.order_timeout);
    assert!(bench.shown("p").reason.contains("did not answer in time"));
    bench.advance(bench.config.retry_first);
    bench.settle();
    assert!(bench.ready("p"));
    let report = |timestamp, stream: &str| PipelineUpdateStatusMessage {
        update: Some(PipelineUpdateMessage {
            op: PipelineOperation::Create.into(),
            pipeline: "p".into(),
            version: 1,
            timestamp,
            stream: stream.to_owned(),
            ..Default::default()
        }),
        success: false,
        reason: "late".into(),
    };
    for report in [
        report(1, "engine-0"),
        report(u64::MAX, "engine-0"),
        report(1, "x"),
    ] {
        let report = Box::new(report);
        bench
            .step(Event::PipelineReported {
                worker: Engine,
                report,
            })
            .unwrap();
    }
    assert!(bench.ready("p"));
}

#[test]
fn a_new_version_runs_before_the_old_one_ends() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.settle();
    let first = bench.state.pipeline_status("p", false).unwrap();
    bench.load(chain("p")).unwrap();
    assert!(bench.work(PipelineGateway, "pg-0", true, true));
    assert_eq!(bench.running("p")["engine-0"], [1]);
    assert_eq!(bench.route("p"), [0].into());
    let Record::Pipeline { versions, .. } = &bench.stored["p"] else {
        panic!("another record");
    };
    assert_eq!(versions.len(), 2);
    bench.settle();
    assert_eq!(bench.running("p")["engine-0"], [2]);
    assert!(bench.ready("p"));
    let all = bench.state.pipeline_status("p", true).unwrap();
    let states: Vec<PipelineStatus> = all
        .versions
        .iter()
        .map(|version| version.state.clone().unwrap().status())
        .collect();
    assert_eq!(
        states,
        [
            PipelineStatus::PipelineTerminated,
            PipelineStatus::PipelineReady
        ]
    );
    let uid = |status: &seldon_proto::scheduler::PipelineStatusResponse, at: usize| {
        status.versions[at].pipeline.clone().unwrap().uid
    };
    assert_ne!(uid(&first, 0), uid(&all, 1));
    // The same generation of a manifest is the same wish.
    let mut spec = chain("p");
    spec.kubernetes_meta = Some(KubernetesMeta {
        generation: 7,
        ..Default::default()
    });
    bench.load(spec.clone()).unwrap();
    bench.settle();
    bench.load(spec.clone()).unwrap();
    assert_eq!(bench.shown("p").pipeline_version, 3);
    // In another object of the name it is another's generation.
    spec.uid = "another".into();
    bench.load(spec.clone()).unwrap();
    bench.load(spec).unwrap();
    assert_eq!(bench.shown("p").pipeline_version, 4);
}

#[test]
fn a_version_that_has_ended_is_shown_for_a_while_and_no_longer() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.settle();
    bench.load(chain("p")).unwrap();
    bench.settle();
    let shown = |bench: &Bench| {
        bench
            .state
            .pipeline_status("p", true)
            .unwrap()
            .versions
            .len()
    };
    assert_eq!(shown(&bench), 2);
    bench.advance(bench.config.keep_terminated);
    assert_eq!(shown(&bench), 1);
}

#[test]
fn a_version_ends_only_when_every_gateway_has_the_next() {
    let mut bench = Bench::whole();
    bench.connect(PipelineGateway, "pg-1");
    bench.load(chain("p")).unwrap();
    bench.settle();
    assert_eq!(bench.route("p").len(), 2);
    bench.load(chain("p")).unwrap();
    while bench.work(Engine, "engine-0", true, true) {}
    assert!(bench.work(PipelineGateway, "pg-0", true, true));
    bench.acknowledge();
    assert!(
        !bench.work(Engine, "engine-0", true, true),
        "pg-1 lets requests into it"
    );
    assert!(bench.work(PipelineGateway, "pg-1", true, true));
    assert!(bench.work(Engine, "engine-0", true, true));
    assert_eq!(bench.running("p")["engine-0"], [2]);
    // One that cannot take it, or is away, holds nothing up.
    bench.load(chain("p")).unwrap();
    assert!(bench.work(PipelineGateway, "pg-1", false, true));
    bench.settle();
    assert_eq!(bench.running("p")["engine-0"], [3]);
    bench.load(chain("p")).unwrap();
    bench.disconnect(PipelineGateway, "pg-1");
    bench.settle();
    assert_eq!(bench.running("p")["engine-0"], [4]);
}

#[test]
fn topics_go_last_whatever_happens() {
    let topic = "pipeline.p".to_owned();
    // Two versions: the topics go when both have ended.
    let mut bench = Bench::whole();
    bench.load(cleaning("p")).unwrap();
    bench.settle();
    bench.load(cleaning("p")).unwrap();
    assert!(bench.work(Engine, "engine-0", true, true));
    assert_eq!(bench.running("p")["engine-0"], [1, 2]);
    bench.unload("p").unwrap();
    bench.acknowledge();
    while bench.work(PipelineGateway, "pg-0", true, true) {}
    assert!(bench.work(Engine, "engine-0", true, true));
    assert_eq!(bench.running("p")["engine-0"].len(), 1);
    assert!(
        bench.topics.contains(&topic),
        "the other version still writes"
    );
    bench.settle();
    assert!(!bench.topics.contains(&topic));
    assert!(bench.stored.is_empty());

    // Its engine is lost: another deletes them.
    let mut bench = Bench::whole();
    bench.load(cleaning("p")).unwrap();
    bench.settle();
    bench.unload("p").unwrap();
    bench.disconnect(Engine, "engine-0");
    bench.connect(Engine, "engine-1");
    bench.settle();
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert!(!bench.topics.contains(&topic));

    // No engine is there: it has ended, and the first that comes deletes them, also after a restart.
    let mut bench = Bench::whole();
    bench.load(cleaning("p")).unwrap();
    bench.settle();
    bench.disconnect(Engine, "engine-0");
    bench.unload("p").unwrap();
    bench.settle();
    bench.advance(bench.config.replace_after);
    assert_eq!(bench.states("p").0, PipelineStatus::PipelineTerminated);
    bench.restart();
    bench.connect(Engine, "engine-1");
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert!(!bench.topics.contains(&topic));

    // Asked for again, it keeps them.
    bench.connect(PipelineGateway, "pg-0");
    bench.connect(ModelGateway, "mg-0");
    bench.load(cleaning("p")).unwrap();
    bench.settle();
    bench.advance(Duration::from_secs(30));
    bench.settle();
    assert!(bench.ready("p") && bench.topics.contains(&topic));
}

#[test]
fn an_engine_that_was_away_keeps_nothing_of_a_former_life() {
    let mut bench = Bench::whole();
    for _ in 0..3 {
        bench.load(chain("p")).unwrap();
        bench.settle();
    }
    assert_eq!(bench.running("p")["engine-0"], [3]);
    bench.disconnect(Engine, "engine-0");
    bench.connect(Engine, "engine-1");
    bench.unload("p").unwrap();
    bench.settle();
    bench.advance(bench.config.replace_after);
    bench.load(chain("p")).unwrap();
    bench.settle();
    assert_eq!(bench.shown("p").pipeline_version, 1);
    let Record::Pipeline { former, .. } = &bench.stored["p"] else {
        panic!("another record");
    };
    assert_eq!(
        former.iter().map(|one| one.version).collect::<Vec<_>>(),
        [3]
    );
    bench.restart();
    for (worker, name) in [
        (PipelineGateway, "pg-0"),
        (ModelGateway, "mg-0"),
        (Engine, "engine-0"),
        (Engine, "engine-1"),
    ] {
        bench.connect(worker, name);
    }
    bench.advance(bench.config.replace_after);
    bench.settle();
    let running = bench.running("p");
    let versions: Vec<&Vec<u32>> = running.values().collect();
    assert_eq!(versions, [&[1]], "{running:?}");
    assert!(bench.ready("p"));
    // When the time of doubt is over, they are remembered no longer.
    bench.advance(bench.config.keep_terminated);
    let Record::Pipeline { former, .. } = &bench.stored["p"] else {
        panic!("another record");
    };
    assert!(former.is_empty());
}

#[test]
fn unloading_takes_the_route_first_and_topics_last() {
    let mut bench = Bench::whole();
    let spec = cleaning("p");
    bench.load(spec.clone()).unwrap();
    bench.settle();
    bench.unload("p").unwrap();
    assert!(bench.route("p").is_empty());
    assert!(
        bench.workers.values().all(|hand| hand.inbox.is_empty()),
        "Envoys may still ask"
    );
    bench.acknowledge();
    let engine = (Engine, Arc::from("engine-0"));
    assert!(
        bench.workers[&engine].inbox.is_empty(),
        "the gateway may still wait"
    );
    assert!(bench.work(PipelineGateway, "pg-0", true, true));
    let Some(Order::Update(order)) = bench.workers[&engine].inbox.front() else {
        panic!("no order");
    };
    assert_eq!(
        (order.op(), order.updates.len()),
        (PipelineOperation::Delete, 1)
    );
    assert!(bench.unload("p").unwrap_err().contains("being removed"));
    // Asked for again meanwhile, it begins anew when the former one has ended.
    bench.load(spec).unwrap();
    assert_eq!(bench.shown("p").pipeline_version, 1);
    assert!(bench.shown("p").reason.contains("former"));
    bench.settle();
    assert!(bench.ready("p"));
    assert_eq!(bench.running("p")["engine-0"], [1]);
    bench.unload("p").unwrap();
    bench.settle();
    assert_eq!(bench.states("p").0, PipelineStatus::PipelineTerminated);
    assert_eq!(bench.shown("p").reason, "pipeline removed");
    assert!(bench.stored.is_empty() && bench.running("p").is_empty());
    assert!(bench.unload("p").unwrap_err().contains("not known"));
    bench.advance(bench.config.keep_terminated);
    assert_eq!(bench.state.pipeline_names().count(), 0);
}

#[test]
fn a_restart_tears_nothing_down() {
    let mut bench = Bench::whole();
    bench.connect(Engine, "engine-1");
    bench.connect(PipelineGateway, "pg-1");
    let mut looped = cleaning("p");
    (looped.allow_cycles, looped.max_step_revisits) = (true, 9);
    bench.load(looped.clone()).unwrap();
    bench.load(chain("q")).unwrap();
    bench.settle();
    bench.load(looped).unwrap();
    bench.restart();
    for engine in ["engine-0", "engine-1"] {
        bench.connect(Engine, engine);
    }
    for gateway in ["pg-0", "pg-1"] {
        bench.connect(PipelineGateway, gateway);
    }
    assert!(
        !bench.state.synchronised(),
        "Envoys would lose their routes"
    );
    bench.settle();
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert!(bench.state.synchronised());
    bench.settle();
    for name in ["p", "q"] {
        assert!(bench.ready(name), "{name} {:?}", bench.shown(name));
        assert_eq!(bench.running(name).len(), 1);
        assert_eq!(bench.route(name).len(), 2);
    }
    assert_eq!(bench.shown("p").pipeline_version, 2);
    let kept = bench.state.pipeline_status("p", false).unwrap();
    let kept = kept.versions[0].pipeline.clone().unwrap();
    assert!(kept.allow_cycles && kept.max_step_revisits == 9 && kept.dataflow_spec.is_some());
    // Without any worker Envoys are served in the end.
    bench.restart();
    bench.advance(bench.config.replace_after * 2);
    assert!(bench.state.synchronised());
}
