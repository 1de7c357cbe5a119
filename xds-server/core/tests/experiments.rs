//! The rules of experiments, one scene each.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::time::Duration;

use seldon_core::{
    Config, Effect, Event, Measurement, Record, Refusal, RolloutOutcome, Synchronisation,
};
use seldon_proto::scheduler::{
    Experiment, ExperimentCohort, ExperimentRollout, KubernetesMeta, ResourceType,
};
use sim::{Sim, agent, experiment, mirror, model, spec};

const ACTIVE: (bool, &str) = (true, "experiment active");

fn empty() -> Sim {
    Sim::new(Config::new(Synchronisation::AfterTimeout(Duration::ZERO)))
}

/// Each of `iris`, `iris2` and `shadow` on a server of its own, so that one can be lost alone.
fn world() -> Sim {
    let mut sim = empty();
    for name in ["iris", "iris2", "shadow"] {
        sim.add_server(&format!("on-{name}"), 1, 1000, &["sklearn"]);
        sim.load(pinned(name));
    }
    sim.settle();
    sim
}

fn pinned(name: &str) -> seldon_proto::scheduler::Model {
    let mut wanted = model(name, 1);
    spec(&mut wanted).server = Some(format!("on-{name}"));
    wanted
}

fn halves() -> Experiment {
    experiment("e", Some("iris"), &[("iris", 50), ("iris2", 50)])
}

fn status(sim: &Sim, name: &str) -> (bool, String) {
    sim.experiment(name)
}

fn check(sim: &Sim, expected: (bool, &str)) {
    let (active, text) = status(sim, "e");
    assert_eq!((active, text.as_str()), expected);
}

fn started(spec: Experiment) -> Sim {
    let mut sim = world();
    sim.start(spec).unwrap();
    sim.settle();
    sim.effects.clear();
    sim
}

fn refused(spec: Experiment) -> String {
    let mut sim = world();
    let before = sim.state.generation();
    let Err(Refusal::Precondition(text)) = sim.start(spec) else {
        panic!("accepted");
    };
    assert!(sim.state.generation() == before && sim.experiments_stored.is_empty());
    text
}

#[test]
fn an_experiment_is_started_taken_and_stopped() {
    let mut sim = world();
    let mut wanted = halves();
    wanted.mirror = mirror("shadow", 10);
    sim.effects.clear();
    sim.start(wanted).unwrap();
    check(&sim, (false, "waiting for Envoys to take the split"));
    assert_eq!(sim.split("e"), ["iris*50", "iris2*50", "+shadow*10"]);
    let route = sim.state.experiment_route("e").unwrap();
    assert_eq!(route.endpoint.as_deref(), Some("iris"));
    let of = |sim: &Sim, name: &str| sim.state.route(name).unwrap();
    let (iris, iris2, shadow) = (of(&sim, "iris"), of(&sim, "iris2"), of(&sim, "shadow"));
    assert_eq!(iris.split_by.as_deref(), Some("e"));
    assert!(iris.candidate && iris2.candidate && !shadow.candidate);
    assert!(iris2.split_by.is_none());
    assert!(
        matches!(&sim.effects[0], Effect::Persist(Record::Experiment { name, .. }) if **name == *"e")
    );
    sim.settle();
    check(&sim, ACTIVE);
    let shown = sim.state.experiment_status("e").unwrap();
    assert!(shown.candidates_ready && shown.mirror_ready);

    sim.stop("e").unwrap();
    check(&sim, (false, "experiment stopped"));
    assert!(sim.experiments_stored.is_empty() && sim.state.experiment_route("e").is_none());
    assert!(sim.state.experiment_names().next().is_none());
    assert_eq!(sim.state.known_experiment_names().count(), 1);
    let iris = of(&sim, "iris");
    assert!(iris.split_by.is_none() && !iris.candidate);
    sim.stop("e").unwrap();
    sim.settle();
    sim.advance(Duration::from_secs(3601));
    assert!(sim.state.experiment_status("e").is_none());
    let Err(Refusal::Precondition(text)) = sim.stop("e") else {
        panic!("an unknown experiment was stopped");
    };
    assert_eq!(
        text,
        "experiment e is not known: see the names by experiment list"
    );
    sim.start(halves()).unwrap();
    sim.stop("e").unwrap();
    sim.start(halves()).unwrap();
    sim.settle();
    check(&sim, ACTIVE);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let with = |change: fn(&mut Experiment)| {
        let mut spec = halves();
        change(&mut spec);
        refused(spec)
    };
    assert_eq!(
        with(|spec| spec.name = "E_1".into()),
        "experiment \"E_1\" has no valid name: use lower-case letters, digits, inner hyphens and dots, 242 at most"
    );
    assert_eq!(
        with(|spec| spec.candidates.clear()),
        "experiment e has neither candidates nor a mirror: give it at least one"
    );
    assert_eq!(
        with(|spec| spec.candidates[1].name = "p.pipeline".into()),
        "experiment e names \"p.pipeline\", which no model can have as a name: use lower-case letters, digits and inner hyphens"
    );
    assert_eq!(
        with(|spec| spec.mirror = mirror("iris2", 10)),
        "experiment e names iris2 twice: each candidate and the mirror must be another model"
    );
    assert_eq!(
        with(|spec| spec.default = Some("shadow".into())),
        "experiment e: the default \"shadow\" is not among the candidates: add it, or choose one of them"
    );
    assert_eq!(
        with(|spec| spec.cohort = Some(ExperimentCohort {
            header: "x user".into()
        })),
        "experiment e: \"x user\" cannot be the cohort's header: use a header of your own, such as x-user"
    );
    assert_eq!(
        with(|spec| (spec.default, spec.rollout) = (None, Some(ExperimentRollout::default()))),
        "experiment e: a roll-out needs a default and exactly two candidates, one of them the default"
    );
    let rollout = |rollout: ExperimentRollout| {
        let mut spec = halves();
        spec.rollout = Some(rollout);
        refused(spec)
    };
    assert_eq!(
        rollout(ExperimentRollout {
            steps: vec![50, 10],
            ..Default::default()
        }),
        "experiment e: the roll-out's steps [50, 10] must rise from 1 to 100 percent at most"
    );
    assert_eq!(
        rollout(ExperimentRollout {
            max_error_rate_increase: Some(101.0),
            ..Default::default()
        }),
        "experiment e: maxErrorRateIncrease is in percentage points, 0 to 100"
    );
    assert_eq!(
        rollout(ExperimentRollout {
            max_latency_ratio: Some(f64::NAN),
            ..Default::default()
        }),
        "experiment e: maxLatencyRatio must be above 0"
    );
}

#[test]
fn nobody_takes_anothers_default() {
    let mut sim = started(halves());
    let other = experiment("other", Some("iris"), &[("iris", 1)]);
    let text = "experiment other: iris is the default of experiment e: stop that one first, or choose another default";
    let reply = sim.start(other.clone());
    assert_eq!(reply, Err(Refusal::Precondition(text.into())));
    check(&sim, ACTIVE);
    // A pipeline of the same name is another thing, and so is a candidate that is not the default.
    let mut pipelines = other.clone();
    (pipelines.name, pipelines.resource_type) = ("p".into(), ResourceType::Pipeline.into());
    sim.start(pipelines).unwrap();
    sim.start(experiment(
        "beside",
        Some("iris2"),
        &[("iris", 1), ("iris2", 1)],
    ))
    .unwrap();
    let route = sim.state.experiment_route("p").unwrap();
    assert_eq!(route.endpoint.as_deref(), Some("iris.pipeline"));
    assert!(route.candidates.is_empty());
    let (active, text) = status(&sim, "p");
    assert_eq!(
        (active, text.as_str()),
        (false, "pipeline iris is not loaded")
    );
    sim.stop("e").unwrap();
    sim.start(other).unwrap();
    sim.settle();
    assert_eq!(status(&sim, "other").1, "experiment active");
    assert_eq!(sim.state.split_by("iris").as_deref(), Some("other"));
}

#[test]
fn what_cannot_be_in_force_leaves_the_last_good_split() {
    let mut sim = started(halves());
    let zero = experiment("e", Some("iris2"), &[("iris", 0), ("iris2", 0)]);
    sim.start(zero.clone()).unwrap();
    check(
        &sim,
        (
            false,
            "all weights of experiment e are 0: give at least one candidate a weight; the last good split stays in force",
        ),
    );
    assert_eq!(sim.split("e"), ["iris*50", "iris2*50"]);
    assert_eq!(sim.state.split_by("iris").as_deref(), Some("e"));
    let why = sim.state.explain_experiment("e").unwrap();
    assert!(why.candidates[0].wanted == 0 && why.candidates[0].in_force == 50);
    // The default that it still has, and the one it wants, are both its own.
    for default in ["iris", "iris2"] {
        let taker = experiment("taker", Some(default), &[(default, 1)]);
        assert!(sim.start(taker).is_err());
    }
    sim.restart();
    let keys: Vec<_> = sim.agents.keys().cloned().collect();
    keys.iter().for_each(|key| sim.connect(key));
    sim.settle();
    assert_eq!(sim.split("e"), ["iris*50", "iris2*50"]);

    let mut far = halves();
    far.mirror = mirror("shadow", 101);
    sim.start(far).unwrap();
    assert!(
        status(&sim, "e").1.starts_with(
            "experiment e: the mirror's percent is 101: give one of 0 to 100; the last"
        )
    );
    let mut never = empty();
    never.start(zero).unwrap();
    let text = status(&never, "e").1;
    assert!(text.ends_with("; nothing is in force"), "{text}");
    assert!(never.state.experiment_route("e").is_none());
}

#[test]
fn weight_goes_only_to_who_can_answer() {
    let mut sim = world();
    sim.start(experiment(
        "e",
        None,
        &[("iris", 3), ("late", 1), ("huge", u32::MAX)],
    ))
    .unwrap();
    sim.settle();
    assert_eq!(sim.split("e"), ["iris*3"]);
    check(&sim, (false, "model late is not loaded"));
    assert!(!sim.state.experiment_status("e").unwrap().candidates_ready);
    sim.add_server("on-late", 1, 1000, &["sklearn"]);
    sim.load(pinned("late"));
    check(&sim, (false, "model late is not ready yet"));
    sim.settle();
    assert_eq!(sim.split("e"), ["iris*3", "late*1"]);
    check(&sim, (false, "model huge is not loaded"));
    let mut huge = model("huge", 1);
    spec(&mut huge).requirements = vec!["lightgbm".into()];
    sim.load(huge);
    assert!(
        status(&sim, "e")
            .1
            .starts_with("model huge cannot be placed: ")
    );
    sim.unload("huge");
    sim.settle();
    sim.start(experiment("e", None, &[("iris", 3), ("late", 1)]))
        .unwrap();
    sim.settle();
    check(&sim, ACTIVE);

    // An agent that is lost takes its share away at once, and gives it back.
    sim.disconnect(&agent("on-late", 0));
    assert_eq!(sim.split("e"), ["iris*3"]);
    check(
        &sim,
        (
            false,
            "no replica of model late has an agent that is connected and stays",
        ),
    );
    let why = sim.state.explain_experiment("e").unwrap();
    let late = &why.candidates[1];
    assert!(late.wanted == 1 && late.in_force == 0 && !late.live && !late.reason.is_empty());
    // With all agents away the control network may be cut: nobody loses what he has.
    sim.disconnect(&agent("on-iris", 0));
    assert_eq!(sim.split("e"), ["iris*3", "late*1"]);
    sim.connect(&agent("on-late", 0));
    assert_eq!(sim.split("e"), ["late*1"]);
    sim.connect(&agent("on-iris", 0));
    sim.settle();
    check(&sim, ACTIVE);

    sim.unload("late");
    assert_eq!(sim.split("e"), ["iris*3"]);
    check(&sim, (false, "model late is being unloaded"));
    sim.settle();
    check(&sim, (false, "model late is not loaded"));
    let mut none = pinned("late");
    none.deployment_spec.as_mut().unwrap().replicas = 0;
    sim.load(none);
    sim.settle();
    check(&sim, (false, "model late is scaled to no replica"));
    sim.load(pinned("late"));
    assert!(sim.work(&agent("on-late", 0), false));
    check(&sim, (false, "model late failed: the artefact is broken"));
}

#[test]
fn a_mirror_may_be_away_or_silent() {
    let mut wanted = halves();
    wanted.mirror = mirror("shadow", 100);
    let mut sim = started(wanted.clone());
    sim.disconnect(&agent("on-shadow", 0));
    assert_eq!(sim.split("e"), ["iris*50", "iris2*50"]);
    assert!(!status(&sim, "e").0);
    sim.connect(&agent("on-shadow", 0));
    wanted.mirror = mirror("shadow", 0);
    sim.start(wanted).unwrap();
    sim.settle();
    assert_eq!(sim.split("e"), ["iris*50", "iris2*50"]);
    check(&sim, ACTIVE);
    let why = sim.state.explain_experiment("e").unwrap().mirror.unwrap();
    assert!(!why.in_force && why.reason == "its percent is 0");
    let mut lonely = experiment("lonely", None, &[]);
    lonely.mirror = mirror("shadow", 10);
    sim.start(lonely).unwrap();
    sim.settle();
    assert_eq!(
        status(&sim, "lonely").1,
        "experiment lonely has no candidates, so nothing answers: give it one"
    );
}

#[test]
fn a_refused_filter_configuration_is_told() {
    let mut sim = started(halves());
    let refuse = |reason: Option<&str>| Event::FilterRejected {
        reason: reason.map(str::to_owned),
    };
    sim.step(refuse(Some("too long"))).unwrap();
    check(
        &sim,
        (
            false,
            "an Envoy refuses the filter's configuration: too long",
        ),
    );
    sim.step(refuse(None)).unwrap();
    check(&sim, ACTIVE);
}

#[test]
fn a_default_without_a_route_has_its_scope_told_of() {
    let mut sim = empty();
    sim.start(experiment("e", Some("ghost"), &[("ghost", 1)]))
        .unwrap();
    let told = |sim: &Sim| {
        let ghost = Effect::RouteChanged("ghost".into());
        sim.effects
            .iter()
            .filter(|effect| **effect == ghost)
            .count()
    };
    assert_eq!((told(&sim), sim.split("e").len()), (1, 0));
    assert!(sim.state.experiment_route("e").is_some());
    assert_eq!(sim.state.split_by("ghost").as_deref(), Some("e"));
    sim.stop("e").unwrap();
    assert_eq!((told(&sim), sim.state.split_by("ghost")), (2, None));
}

#[test]
fn the_same_again_changes_nothing_but_the_meta() {
    let mut sim = started(rolling());
    let before = sim.state.generation();
    sim.start(rolling()).unwrap();
    assert!(sim.effects.is_empty(), "{:?}", sim.effects);
    let mut renamed = rolling();
    renamed.kubernetes_meta = Some(KubernetesMeta {
        namespace: "ns".into(),
        generation: 2,
    });
    sim.start(renamed).unwrap();
    assert_eq!(sim.state.generation(), before);
    let shown = sim.state.experiment_status("e").unwrap();
    assert_eq!(shown.kubernetes_meta.unwrap().generation, 2);
    assert!(sim.effects.contains(&Effect::ExperimentChanged("e".into())));
}

fn rolling() -> Experiment {
    let mut spec = halves();
    spec.cohort = Some(ExperimentCohort {
        header: "X-User".into(),
    });
    spec.rollout = Some(ExperimentRollout {
        steps: vec![10, 100],
        interval_seconds: 30,
        min_requests: 50,
        ..Default::default()
    });
    spec
}

/// Three readings, of which two may reach back to before; requests of each, errors of the candidate, and its mean latency.
fn measure(sim: &mut Sim, requests: u64, errors: u64, ms: u64) {
    let of = |candidate: &str, errors: u64, ms: u64| Measurement {
        experiment: "e".into(),
        candidate: candidate.into(),
        begun: requests,
        requests,
        errors,
        microseconds: requests * ms * 1000,
    };
    let reading = vec![of("iris", 0, 10), of("iris2", errors, ms)];
    for readings in [Vec::new(), Vec::new(), reading] {
        sim.step(Event::Measured(readings)).unwrap();
    }
}

fn rollout_of(sim: &Sim) -> seldon_core::RolloutVerdict {
    sim.state.explain_experiment("e").unwrap().rollout.unwrap()
}

#[test]
fn a_roll_out_goes_up_step_by_step() {
    let mut sim = world();
    sim.start(rolling()).unwrap();
    assert_eq!(sim.split("e"), ["iris*90", "iris2*10"]);
    let route = sim.state.experiment_route("e").unwrap();
    assert_eq!(route.cohort_header.as_deref(), Some("x-user"));
    assert_eq!(sim.state.measured_experiments().count(), 1);
    assert_eq!(rollout_of(&sim).waits_for, "Envoys to take the split");
    sim.settle();
    check(
        &sim,
        (
            true,
            "experiment active; roll-out of iris2 at step 1 of 2, 10 %",
        ),
    );
    assert_eq!(rollout_of(&sim).state, "running");
    sim.advance(Duration::from_secs(31));
    assert_eq!(
        rollout_of(&sim).waits_for,
        "more requests: 0 of 50 requests of the candidate"
    );
    measure(&mut sim, 60, 0, 12);
    assert_eq!(sim.split("e"), ["iris*0", "iris2*100"]);
    let Some(Record::Experiment {
        rollout: Some(stored),
        ..
    }) = sim.experiments_stored.get("e")
    else {
        panic!("the decision is not stored");
    };
    assert_eq!((stored.step, stored.history.len()), (1, 2));
    sim.settle();
    // At 100 % the default's step before is compared with.
    measure(&mut sim, 60, 0, 14);
    assert_eq!(rollout_of(&sim).waits_for, "the interval to end");
    // Time alone decides nothing.
    sim.advance(Duration::from_secs(31));
    assert_eq!(rollout_of(&sim).waits_for, "the next reading");
    sim.step(Event::Unmeasured).unwrap();
    let waits = "the counters of an Envoy to be readable";
    assert_eq!(rollout_of(&sim).waits_for, waits);
    sim.step(Event::Measured(Vec::new())).unwrap();
    check(
        &sim,
        (true, "experiment active; roll-out of iris2 complete"),
    );
    assert_eq!(sim.split("e"), ["iris*0", "iris2*100"]);
    let told = rollout_of(&sim);
    assert_eq!((told.state, told.history.len()), ("complete", 3));
    assert_eq!(
        told.history[2].reason,
        "0.00 % errors of 60 requests against 0.00 % of the default's 60, 14.0 ms on average against 10.0 ms"
    );
    assert_eq!(sim.state.measured_experiments().count(), 0);
}

#[test]
fn a_roll_out_goes_back_when_the_candidate_is_worse() {
    for (errors, ms, reason) in [
        (
            20,
            10,
            "33.33 % errors of 60 requests against 0.00 % of the default's 60",
        ),
        (0, 16, "16.0 ms on average against 10.0 ms"),
    ] {
        let mut sim = started(rolling());
        measure(&mut sim, 60, errors, ms);
        assert_eq!(sim.split("e"), ["iris*100"]);
        sim.settle();
        let text = format!("experiment active; roll-out of iris2 rolled back: {reason}");
        check(&sim, (true, &text));
        // So it stays, through a restart and through a change that is not about the roll-out.
        sim.restart();
        let keys: Vec<_> = sim.agents.keys().cloned().collect();
        keys.iter().for_each(|key| sim.connect(key));
        sim.settle();
        check(&sim, (true, &text));
        let mut wanted = rolling();
        wanted.mirror = mirror("shadow", 5);
        sim.start(wanted.clone()).unwrap();
        sim.settle();
        check(&sim, (true, &text));
        wanted.rollout.as_mut().unwrap().min_requests = 60;
        sim.start(wanted).unwrap();
        assert_eq!(sim.split("e"), ["iris*90", "iris2*10", "+shadow*5"]);
    }
}

#[test]
fn a_step_waits_while_it_is_doubtful_or_the_candidate_is_away() {
    let mut sim = started(rolling());
    measure(&mut sim, 60, 1, 10);
    sim.advance(Duration::from_secs(40));
    assert_eq!(sim.split("e"), ["iris*90", "iris2*10"]);
    assert_eq!(
        rollout_of(&sim).waits_for,
        "better figures: 1.67 % errors of 60 requests against 0.00 % of the default's 60"
    );
    sim.disconnect(&agent("on-iris2", 0));
    assert_eq!(rollout_of(&sim).waits_for, "iris2 to be live");
    assert_eq!(
        (sim.split("e"), rollout_of(&sim).state),
        (vec!["iris*90".to_owned()], "waiting")
    );
    sim.connect(&agent("on-iris2", 0));
    sim.settle();
    assert_eq!(
        rollout_of(&sim).waits_for,
        "more requests: 0 of 50 requests of the candidate"
    );
    let kept = sim.experiments_stored.get("e").unwrap();
    let running = |record: &Record| matches!(record, Record::Experiment { rollout: Some(kept), .. } if kept.outcome == RolloutOutcome::Running);
    assert!(running(kept));
}

#[test]
fn a_restart_in_the_last_step_remembers_what_the_default_did() {
    let mut sim = started(rolling());
    sim.advance(Duration::from_secs(31));
    measure(&mut sim, 60, 0, 10);
    sim.settle();
    assert_eq!(sim.split("e"), ["iris*0", "iris2*100"]);
    sim.restart();
    let keys: Vec<_> = sim.agents.keys().cloned().collect();
    keys.iter().for_each(|key| sim.connect(key));
    sim.settle();
    measure(&mut sim, 60, 0, 16);
    assert_eq!(sim.split("e"), ["iris*100"], "too slow for the step before");
}

#[test]
fn another_version_begins_the_step_again() {
    let mut sim = started(rolling());
    measure(&mut sim, 60, 0, 10);
    let mut next = pinned("iris2");
    spec(&mut next).uri = "gs://models/next".into();
    sim.load(next);
    sim.settle();
    sim.advance(Duration::from_secs(31));
    sim.step(Event::Measured(Vec::new())).unwrap();
    sim.step(Event::Measured(Vec::new())).unwrap();
    sim.step(Event::Measured(Vec::new())).unwrap();
    assert_eq!(sim.split("e"), ["iris*90", "iris2*10"]);
    assert_eq!(
        rollout_of(&sim).waits_for,
        "more requests: 0 of 50 requests of the candidate"
    );
}

#[test]
fn the_default_stands_in_where_it_alone_is_left() {
    let mut sim = started(experiment(
        "e",
        Some("iris"),
        &[("iris", 0), ("iris2", 100)],
    ));
    assert_eq!(sim.split("e"), ["iris*0", "iris2*100"]);
    sim.disconnect(&agent("on-iris2", 0));
    assert_eq!(sim.split("e"), ["iris*1"]);
    let told = sim.state.explain_experiment("e").unwrap();
    assert_eq!(
        told.candidates[0].reason,
        "no candidate with a weight can answer, so the default does"
    );
    sim.connect(&agent("on-iris2", 0));
    assert_eq!(sim.split("e"), ["iris*0", "iris2*100"]);
}

/// 1,000 experiments over 2,000 models: what one change costs.
#[test]
fn a_thousand_experiments_cost_a_step_little() {
    let mut sim = empty();
    sim.strict = false;
    for replica in 0..20 {
        sim.add_agent("mlserver", replica, 10_000_000, &["sklearn"]);
        sim.connect(&agent("mlserver", replica));
    }
    for number in 0..2_000 {
        sim.load(model(&format!("model-{number}"), 2));
    }
    sim.settle();
    let of = |number: usize, weight: u32| {
        let (one, two) = (
            format!("model-{number}"),
            format!("model-{}", number + 1000),
        );
        let candidates = [(one.as_str(), 50), (two.as_str(), weight)];
        experiment(&format!("e-{number}"), Some(&one), &candidates)
    };
    let start = std::time::Instant::now();
    for number in 0..1000 {
        sim.start(of(number, 50)).unwrap();
    }
    println!("1,000 StartExperiment: {:?}", start.elapsed());
    sim.settle();
    assert!((0..1000).all(|number| status(&sim, &format!("e-{number}")).0));
    let start = std::time::Instant::now();
    for number in 0..1000 {
        sim.start(of(number, 60)).unwrap();
    }
    println!("1,000 changes of weights: {:?}", start.elapsed());
    let start = std::time::Instant::now();
    sim.disconnect(&agent("mlserver", 3));
    let lost = start.elapsed();
    sim.connect(&agent("mlserver", 3));
    println!(
        "an agent of 200 models lost: {lost:?}, and back: {:?}",
        start.elapsed() - lost
    );
    sim.settle();
    assert!((0..1000).all(|number| status(&sim, &format!("e-{number}")).0));
}
