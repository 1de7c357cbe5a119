//! What holds for any manifest of pipelines.
use std::time::Duration;

use seldon_core::{Config, Event, Now, State, Synchronisation, Worker, invariants};
use seldon_resources::Manifest;

/// Each is accepted, and can be asked about and taken out again, or refused with a text.
pub fn manifest(text: &str) {
    let Ok(documents) = seldon_resources::read("fuzz.yaml", text) else {
        return;
    };
    let config = Config::new(Synchronisation::AfterTimeout(Duration::ZERO));
    let mut state = State::new(config, Now::default());
    let now = Now {
        monotonic: Duration::from_secs(1),
        wall: Duration::from_secs(1),
    };
    let mut step = |event| {
        let reply = state.step(event, now).reply;
        if let Err(broken) = invariants::check(&state) {
            panic!("{broken}");
        }
        reply
    };
    step(Event::Tick).expect("time passes");
    let engine = Event::WorkerConnected {
        worker: Worker::Engine,
        stream: 1,
        name: "engine-0".into(),
        endpoint: None,
    };
    step(engine).expect("an engine comes");
    let mut accepted = Vec::new();
    for document in documents {
        let Manifest::Pipeline(pipeline) = document.manifest else {
            continue;
        };
        let pipeline = pipeline.to_proto();
        let name = pipeline.name.clone();
        match step(Event::LoadPipeline(Box::new(pipeline))) {
            Ok(()) => accepted.push(name),
            Err(refusal) => assert!(refusal.to_string().contains(&name)),
        }
    }
    accepted.sort();
    accepted.dedup();
    for name in accepted {
        // Others may read from it: they are told so.
        if let Err(refusal) = step(Event::UnloadPipeline { name }) {
            assert!(!refusal.to_string().is_empty());
        }
    }
}
