//! A system with a pipeline of two steps, records and callers.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_e2e::faults::{Fleet, chain, model};
use seldon_kafka::Settings;
use seldon_local::{Builder, System};
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::model_status::ModelState::ModelAvailable;
use seldon_records::Names;
use tokio::task::JoinHandle;

use crate::callers::{Answers, Callers, Calling, FIRST_KEY};
use crate::outputs::{Outputs, Seen};
use crate::topics::{KEYS, Writing};

pub(crate) const PIPELINE: &str = "chained";
pub(crate) const PARTITIONS: i32 = 4;
/// Callers a second.
pub(crate) const CALLS: f64 = 50.0;

/// A running system.
pub(crate) struct Scene {
    pub(crate) fleet: Fleet,
    pub(crate) settings: Settings,
    pub(crate) names: Names,
}

/// A system with one process of each kind.
pub(crate) fn small() -> Builder {
    let builder = System::builder().servers(1).envoys(1).pipelines();
    let parts = ["dataflow-engine", "modelgateway", "pipelinegateway"];
    parts.into_iter().fold(builder, |builder, part| {
        builder.env(part, "KAFKA_DEFAULT_NUM_PARTITIONS", PARTITIONS.to_string())
    })
}

impl Scene {
    /// Starts it with models that answer with what they are asked, and the pipeline.
    pub(crate) async fn new(builder: Builder) -> Result<Self> {
        let fleet = Fleet::start_from(builder, &[("FAKE_ECHO_PREFIX", "echo")]).await?;
        let bootstrap = fleet.system.config().kafka_bootstrap().context("a Kafka")?;
        let settings = Settings::local(&bootstrap);
        let names = settings.names("")?;
        let scene = Self {
            fleet,
            settings,
            names,
        };
        scene.models(&["echo-1", "echo-2"]).await?;
        let pipeline = chain(PIPELINE, &["echo-1", "echo-2"]);
        scene.pipeline(pipeline, 1).await?;
        Ok(scene)
    }

    pub(crate) async fn models(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let mut model = model(name, 1000, 1);
            model.dataflow_spec = Some(pb::DataflowSpec {
                clean_topics_on_delete: true,
            });
            self.fleet.load(model).await?;
        }
        for name in names {
            self.fleet.reaches(name, ModelAvailable, 1, 30).await?;
        }
        Ok(())
    }

    /// Loads a version of a pipeline and waits until it is ready.
    pub(crate) async fn pipeline(&self, mut pipeline: pb::Pipeline, version: u32) -> Result<()> {
        pipeline.dataflow_spec = Some(pb::DataflowSpec {
            clean_topics_on_delete: true,
        });
        let name = pipeline.name.clone();
        self.fleet.load_pipeline(pipeline).await?;
        self.fleet.pipeline_ready(&name, version, 30).await
    }

    /// Begins with records by topic, and with callers.
    pub(crate) async fn load(&self, records: i64, rate: f64, committed_only: bool) -> Result<Load> {
        let callers = self.callers(FIRST_KEY, CALLS);
        let answered = async || {
            ensure!(callers.right() > 5, "no caller is answered");
            Ok(())
        };
        seldon_e2e::eventually_async(20, answered).await?;
        let outputs = self.names.pipeline_outputs(PIPELINE);
        let outputs = Outputs::follow(&self.settings, &outputs, PARTITIONS, committed_only)?;
        let topic = self.names.pipeline_inputs(PIPELINE);
        let writing = Writing {
            topic,
            records,
            rate,
        }
        .start(&self.settings)?;
        Ok(Load {
            records,
            outputs,
            writing,
            callers,
        })
    }

    pub(crate) fn callers(&self, key: i64, rate: f64) -> Callers {
        self.calling(PIPELINE, key, rate).start()
    }

    pub(crate) fn calling(&self, pipeline: &str, key: i64, rate: f64) -> Calling {
        Calling {
            target: self.fleet.targets().swap_remove(0),
            pipeline: pipeline.to_owned(),
            rate,
            key,
            request_id: None,
        }
    }
}

/// Records and callers under way.
pub(crate) struct Load {
    records: i64,
    pub(crate) outputs: Outputs,
    writing: JoinHandle<Result<i64>>,
    callers: Callers,
}

impl Load {
    /// Waits for the end of all, and checks what must always hold.
    pub(crate) async fn survived(self, what: &str, seconds: u64) -> Result<Answers> {
        let writing = tokio::time::timeout(Duration::from_secs(60), self.writing).await;
        let written = writing.context("the records are not written")???;
        let begin = std::time::Instant::now();
        let complete = self.outputs.complete(written, KEYS, seconds).await;
        let settled = begin.elapsed();
        let answers = self.callers.stop().await?;
        self.outputs
            .with(|seen| tell(what, self.records, seen, &answers));
        eprintln!(
            "{what}: complete {:.1} s after the last record",
            settled.as_secs_f32()
        );
        complete?;
        self.outputs.with(|seen| {
            none(&seen.wrong, "results are wrong")?;
            none(&seen.unmarked_repeats, "repeats are not marked")?;
            none(&seen.disorder, "results of a key are out of order")?;
            ensure!(
                seen.errors.is_empty(),
                "results are errors: {:?}",
                seen.errors
            );
            Ok(())
        })?;
        answers.honest()?;
        Ok(answers)
    }
}

fn none(found: &[String], what: &str) -> Result<()> {
    let some = &found[..found.len().min(5)];
    ensure!(found.is_empty(), "{} {what}, such as {some:?}", found.len());
    Ok(())
}

fn tell(what: &str, records: i64, seen: &Seen, answers: &Answers) {
    println!(
        "{what}: {} of {records} records have a result; {} written again, {} marked ({} of them the first); {} errors, {} of callers; \
         {} out of order, {} wrong, {} repeats unmarked",
        seen.of_topics(KEYS),
        seen.repeated(),
        seen.marked,
        seen.marked_first,
        seen.errors.values().sum::<u64>(),
        seen.of_callers,
        seen.disorder.len(),
        seen.wrong.len(),
        seen.unmarked_repeats.len(),
    );
    answers.tell(what);
}
