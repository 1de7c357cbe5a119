//! Requests that fail: their callers are told.
use std::sync::Arc;

use seldon_records::{Identity, Outgoing, Topic, Visits, header};

use crate::{
    Emit, Flow, Input,
    arrival::{self, Failure},
    remembered::{self, Seen},
    write,
};

impl Flow {
    /// Tells the caller of a request that no version takes any more; `version`: the one that it was in.
    pub(crate) fn refuse(
        &mut self,
        input: &Arc<Input>,
        version: Option<u32>,
        topic: Option<&Topic>,
        is_own: bool,
        out: &mut Vec<Emit>,
    ) {
        let record = &input.record;
        let is_read = self
            .versions
            .values()
            .any(|live| live.graph.readers.contains_key(&record.topic));
        let is_ours = matches!(
            topic,
            Some(Topic::PipelineInputs(_) | Topic::ModelOutputs(_))
        );
        if !is_own || !is_ours || record.headers.has(header::ERROR) || !is_read && version.is_none()
        {
            self.counts.foreign += 1;
            return;
        }
        let text = match version {
            Some(version) => format!(
                "pipeline {:?} version {version} was removed while the request was in it: send it again",
                self.pipeline
            ),
            None => format!("pipeline {:?} is being removed", self.pipeline),
        };
        self.counts.gone += 1;
        let members = arrival::members(record).ok().flatten();
        for failure in arrival::failures(record, members, 503, &text) {
            self.fail(version, failure, vec![input.clone()], false, out);
        }
    }

    /// Errors of all steps are answers.
    pub(crate) fn forward(&mut self, input: &Arc<Input>, now_ms: i64, out: &mut Vec<Emit>) {
        let record = &input.record;
        let named = record.headers.text(header::PIPELINE_VERSION);
        let named: Option<u32> = named.and_then(|version| version.parse().ok());
        let of = named.and_then(|version| self.versions.get(&version));
        let newest = self.versions.values().next_back();
        let Some(topic) = of.or(newest).and_then(|live| live.graph.answers.clone()) else {
            return;
        };
        let members = arrival::members(record).ok().flatten();
        for failure in arrival::failures(record, members, 500, "") {
            let mark = remembered::error_mark(record, failure.identity.as_str());
            if self.remembered.add(mark, record, now_ms) != Seen::Never {
                self.counts.repeats += 1;
                continue;
            }
            let mut headers = failure.headers;
            headers.remove(header::BATCH);
            for name in [header::ERROR, header::STATUS, header::GRPC_STATUS] {
                if let Some(value) = record.headers.get(name) {
                    headers.set(name, value.clone());
                }
            }
            if !headers.has(header::ERROR) {
                write::mark_error(&mut headers, &self.pipeline, 500);
            }
            let pipeline = self.pipeline.as_bytes();
            headers.set(header::PIPELINE, bytes::Bytes::copy_from_slice(pipeline));
            if input.replayed || record.headers.has(header::REPEAT) {
                headers.set(header::REPEAT, "1");
            }
            if let Some(version) = named {
                self.end(version, &failure.identity, now_ms);
            }
            let causes = vec![input.clone()];
            let record = Outgoing {
                topic: topic.clone(),
                partition: write::partition(&causes),
                key: failure.key,
                value: record.value.clone(),
                headers,
            };
            out.push(Emit { record, causes });
        }
    }

    /// Under which identity a failure is told; `foreign`: what failed is another pipeline's.
    pub(crate) fn failing(&self, identity: &Identity, foreign: bool) -> Identity {
        if foreign {
            Identity::derived(&[identity.as_str().as_bytes(), self.pipeline.as_bytes()])
        } else {
            identity.clone()
        }
    }

    /// Writes an error record; it comes back to [`Flow::forward`]. `foreign`: what failed is another pipeline's.
    pub(crate) fn fail(
        &mut self,
        version: Option<u32>,
        failure: Failure,
        causes: Vec<Arc<Input>>,
        foreign: bool,
        out: &mut Vec<Emit>,
    ) {
        self.counts.errors += 1;
        let mut headers = failure.headers;
        let mut visits = Visits::of(&headers);
        let identity = self.failing(&failure.identity, foreign);
        if foreign {
            visits = Visits::default();
            headers.remove(header::DEADLINE);
        }
        let repeat = headers.has(header::REPEAT) || causes.iter().any(|cause| cause.replayed);
        write::sign(
            &mut headers,
            &self.pipeline,
            version,
            &identity,
            &visits,
            repeat,
        );
        write::mark_error(&mut headers, &self.pipeline, failure.status);
        let record = Outgoing {
            topic: self.errors.clone(),
            partition: write::partition(&causes),
            key: failure.key,
            value: Some(failure.text.into()),
            headers,
        };
        out.push(Emit { record, causes });
    }
}
