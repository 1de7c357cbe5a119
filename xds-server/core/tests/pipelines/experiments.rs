//! Pipelines in experiments.
use seldon_core::Event;
use seldon_proto::scheduler::{Experiment, ExperimentCandidate, ResourceType};

use crate::bench::{Bench, chain, pipeline, step};

#[test]
fn experiments_split_pipelines() {
    let mut bench = Bench::whole();
    bench.load(chain("p")).unwrap();
    bench.load(pipeline("q", vec![step("c", &[])])).unwrap();
    let candidates = ["p", "q"].map(|name| ExperimentCandidate {
        name: name.into(),
        weight: 50,
    });
    let spec = Experiment {
        name: "e".into(),
        default: Some("p".into()),
        candidates: candidates.into(),
        resource_type: ResourceType::Pipeline.into(),
        ..Default::default()
    };
    bench.step(Event::StartExperiment(Box::new(spec))).unwrap();
    let status = bench.state.experiment_status("e").unwrap();
    assert!(
        !status.active
            && status
                .status_description
                .contains("pipeline p is not ready")
    );
    bench.settle();
    bench.settle();
    assert!(bench.state.experiment_status("e").unwrap().active);
    let route = bench.state.experiment_route("e").unwrap();
    assert!(route.pipelines && route.candidates.len() == 2);
    assert_eq!(route.endpoint.as_deref(), Some("p.pipeline"));
    let p = bench.state.route("p.pipeline").unwrap();
    assert!(p.candidate && p.split_by.as_deref() == Some("e"));
    bench.unload("q").unwrap();
    let route = bench.state.experiment_route("e").unwrap();
    assert_eq!(route.candidates.len(), 1);
    bench
        .step(Event::StopExperiment { name: "e".into() })
        .unwrap();
    assert!(bench.state.route("p.pipeline").unwrap().split_by.is_none());
}
