//! Who reads models' topics.
use std::sync::Arc;

use seldon_core::{
    Event, Now, State,
    Worker::{Engine, ModelGateway},
};

use crate::bench::{Bench, chain, pipeline, step};

#[test]
fn models_have_one_gateway_each_and_do_not_depend_on_it() {
    let mut bench = Bench::new();
    bench.load_model("a");
    let gateway = |bench: &Bench| {
        let status = bench
            .state
            .model_status("a", false, Now::default())
            .unwrap();
        status.versions[0].state.clone().unwrap().model_gw_state()
    };
    use seldon_proto::scheduler::model_status::ModelState::*;
    assert_eq!(gateway(&bench), ModelCreate);
    bench.connect(ModelGateway, "mg-0");
    assert_eq!(gateway(&bench), ModelProgressing);
    assert!(bench.work(ModelGateway, "mg-0", false, true));
    assert_eq!(gateway(&bench), ModelFailed);
    bench.advance(bench.config.retry_first);
    bench.settle();
    assert_eq!(gateway(&bench), ModelAvailable);
    bench.disconnect(ModelGateway, "mg-0");
    bench.connect(ModelGateway, "mg-1");
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert_eq!(gateway(&bench), ModelAvailable);
    bench
        .step(Event::UnloadModel {
            name: "a".into(),
            kubernetes_meta: None,
        })
        .unwrap();
    bench.settle();
    bench.connect(ModelGateway, "mg-0");
    bench.settle();
    assert_eq!(gateway(&bench), ModelTerminated);
}

#[test]
fn on_demand_only_models_that_pipelines_use_have_topics() {
    let mut bench = Bench::new();
    bench.config.topics_on_demand = true;
    bench.state = State::new(bench.config.clone(), Now::default());
    bench.step(Event::Tick).unwrap();
    bench.connect(ModelGateway, "mg-0");
    bench.load_model("a");
    bench.load_model("c");
    let key = (ModelGateway, Arc::from("mg-0"));
    assert!(bench.workers[&key].inbox.is_empty());
    bench.load(chain("p")).unwrap();
    assert_eq!(bench.workers[&key].inbox.len(), 2);
    bench.settle();
    bench.unload("p").unwrap();
    assert_eq!(bench.workers[&key].inbox.len(), 2);
}

#[test]
fn a_pipeline_begins_when_its_models_topics_are_read_loaded_or_not() {
    let mut bench = Bench::whole();
    bench.load_model("a");
    bench.load(chain("p")).unwrap();
    assert_eq!(bench.inbox(ModelGateway, "mg-0").len(), 2);
    assert!(
        bench.inbox(Engine, "engine-0").is_empty(),
        "what it sends would be missed"
    );
    let reason = bench.shown("p").reason;
    assert_eq!(reason, "waits for the topics of a, b to be read");
    assert!(bench.work(ModelGateway, "mg-0", true, true));
    assert!(bench.inbox(Engine, "engine-0").is_empty());
    assert!(bench.work(ModelGateway, "mg-0", true, true));
    assert_eq!(bench.inbox(Engine, "engine-0").len(), 1);
    bench.settle();
    assert!(bench.ready("p"));
    assert_eq!((bench.reading("a").len(), bench.reading("b").len()), (1, 1));
    let why = bench.state.explain_pipeline("p").unwrap();
    assert_eq!(why.steps[1].gateway.as_deref(), Some("mg-0"));
    assert_eq!(why.steps[1].waits_for, "model b is not loaded");
    // A gateway that fails, or does not answer, holds nothing up for long; without one nobody is waited for.
    bench.load(pipeline("q", vec![step("c", &[])])).unwrap();
    assert!(bench.work(ModelGateway, "mg-0", false, true));
    assert_eq!(bench.inbox(Engine, "engine-0").len(), 1);
    bench.load(pipeline("r", vec![step("d", &[])])).unwrap();
    bench.advance(bench.config.replace_after * 23);
    assert_eq!(bench.inbox(Engine, "engine-0").len(), 1);
    bench.advance(bench.config.replace_after);
    assert_eq!(bench.inbox(Engine, "engine-0").len(), 2);
    bench.disconnect(ModelGateway, "mg-0");
    bench.load(pipeline("s", vec![step("e", &[])])).unwrap();
    assert_eq!(bench.inbox(Engine, "engine-0").len(), 3);
}

#[test]
fn an_unloaded_model_is_read_for_as_long_as_a_pipeline_uses_it() {
    let mut bench = Bench::whole();
    bench.load_cleaning("a", true);
    bench.load(chain("p")).unwrap();
    bench.settle();
    bench.unload_model("a");
    bench.settle();
    assert_eq!(bench.reading("a"), ["mg-0"]);
    assert!(bench.topics.contains("model.a"));
    assert!(bench.shown("p").reason.contains("model a is not loaded"));
    // It is remembered, also over a restart, for the sake of its topics.
    bench.advance(bench.config.keep_terminated * 2);
    assert!(bench.models.contains_key("a"));
    bench.restart();
    for (worker, name) in [
        (seldon_core::Worker::PipelineGateway, "pg-0"),
        (ModelGateway, "mg-0"),
        (Engine, "engine-0"),
    ] {
        bench.connect(worker, name);
    }
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert_eq!(bench.reading("a"), ["mg-0"]);
    bench.unload("p").unwrap();
    bench.settle();
    assert!(bench.reading("a").is_empty() && bench.reading("b").is_empty());
    assert!(!bench.topics.contains("model.a"), "as its manifest wants");
    assert!(bench.topics.contains("model.b"), "nobody wants them gone");
    bench.advance(bench.config.keep_terminated);
    assert!(bench.models.is_empty() && bench.state.model_names().count() == 0);
}

#[test]
fn topics_of_a_model_go_with_it_even_if_its_gateway_is_lost() {
    let mut bench = Bench::new();
    bench.connect(ModelGateway, "mg-0");
    bench.load_cleaning("a", true);
    bench.settle();
    bench.unload_model("a");
    bench.settle();
    assert!(!bench.topics.contains("model.a"));
    assert!(bench.models.is_empty());
    bench.load_cleaning("a", true);
    bench.settle();
    bench.disconnect(ModelGateway, "mg-0");
    bench.unload_model("a");
    bench.connect(ModelGateway, "mg-1");
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert!(!bench.topics.contains("model.a"));
}

#[test]
fn a_model_is_not_forgotten_while_a_gateway_that_is_away_has_it() {
    let mut bench = Bench::new();
    bench.connect(ModelGateway, "mg-0");
    bench.load_model("a");
    bench.settle();
    bench.disconnect(ModelGateway, "mg-0");
    bench.unload_model("a");
    bench.settle();
    assert!(bench.models.contains_key("a"), "a restart would forget it");
    bench.restart();
    bench.connect(ModelGateway, "mg-0");
    bench.advance(bench.config.replace_after);
    bench.settle();
    assert!(bench.reading("a").is_empty());
}

#[test]
fn a_gateway_that_is_away_has_its_lease_and_no_more() {
    let mut bench = Bench::new();
    bench.connect(ModelGateway, "mg-0");
    let names: Vec<String> = (0..8).map(|number| format!("m{number}")).collect();
    names.iter().for_each(|name| bench.load_model(name));
    bench.settle();
    bench.connect(ModelGateway, "mg-1");
    let moving = bench.inbox(ModelGateway, "mg-0").len();
    assert!((1..8).contains(&moving), "{moving} of 8 move");
    bench.disconnect(ModelGateway, "mg-0");
    assert!(
        bench.inbox(ModelGateway, "mg-1").is_empty(),
        "it may still work on them"
    );
    bench.advance(bench.config.replace_after);
    assert_eq!(bench.inbox(ModelGateway, "mg-1").len(), 8);
}
