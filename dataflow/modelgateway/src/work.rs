//! Working on one record: ask the model, write what came of it.
use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use seldon_kafka::SendError;
use seldon_records::{Headers, Outgoing, header};
use seldon_telemetry::RequestSpan;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    ask::{Answer, late},
    bucket::Bucket,
    failure::Failure,
    metrics::OfModel,
    model::{Job, Model},
    result,
};

/// No request takes longer, whatever it says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A topic that does not exist (any more) is waited for.
pub(crate) const NO_TOPIC_FOR: Duration = Duration::from_secs(30);

impl Bucket {
    /// Works on a record, and then on those of the same key that came meanwhile.
    pub(crate) async fn work(self: Arc<Self>, model: &Model, job: Job) {
        let mut next = Some(job);
        while let Some(job) = next {
            self.one(model, &job).await;
            next = model.next(job.record.key.as_ref());
        }
    }

    async fn one(&self, model: &Model, job: &Job) {
        let outcome = AssertUnwindSafe(self.outcome(model, job)).catch_unwind();
        // A panic must not keep the partition from going on.
        let outgoing = outcome.await.unwrap_or_else(|_| {
            let text = format!("model {}: the gateway failed: see its log", model.name);
            let failure = Failure::new(Code::Internal, text);
            result::error(&self.shared.errors, model, job, &failure, None)
        });
        if job.replayed {
            self.shared.metrics.repeats.inc();
        }
        if self.shared.exactly_once() {
            return self.finish(&job.place(), Some(outgoing));
        }
        // What could not be written is not done: it is read again by the next owner.
        if self.write(model, outgoing).await {
            self.finish(&job.place(), None);
        }
    }

    async fn outcome(&self, model: &Model, job: &Job) -> Outgoing {
        let headers = &job.record.headers;
        let span = RequestSpan::begin("modelgateway.infer", &trace(headers));
        if let Some(span) = &span {
            span.set("model", model.name.to_string());
            let id = headers.text(header::REQUEST_ID).unwrap_or_default();
            span.set("request_id", id.to_owned());
        }
        match self.answer(model, job, span.as_ref()).await {
            Ok(answer) => {
                self.count(model, "ok");
                result::result(model, job, answer, span.as_ref())
            }
            Err(failure) => {
                if let Some(span) = &span {
                    span.fail();
                }
                self.count(model, &failure.http.to_string());
                tracing::debug!(model = %model.name, status = failure.http, reason = failure.text, "no result");
                result::error(&self.shared.errors, model, job, &failure, span.as_ref())
            }
        }
    }

    async fn answer(
        &self,
        model: &Model,
        job: &Job,
        span: Option<&RequestSpan>,
    ) -> Result<Answer, Failure> {
        let deadline = self.deadline(model, &job.record.headers)?;
        let permit = tokio::time::timeout_at(deadline, model.permits.acquire()).await;
        let _permit = permit.map_err(|_| late(&model.name))?;
        let start = Instant::now();
        let answer = self
            .shared
            .asker
            .ask(model, &job.record, deadline, span)
            .await;
        let of = OfModel {
            model: model.name.to_string(),
        };
        let seconds = self.shared.metrics.seconds.get_or_create(&of);
        seconds.observe(start.elapsed().as_secs_f64());
        answer
    }

    /// The caller's, else that of the settings. Nobody is asked for what nobody waits for.
    fn deadline(&self, model: &Model, headers: &Headers) -> Result<Instant, Failure> {
        let now = Instant::now();
        let of_record = headers.text(header::DEADLINE);
        let Some(deadline) = of_record.and_then(|text| text.parse::<i64>().ok()) else {
            return Ok(now + self.shared.options.timeout());
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0));
        match u64::try_from(deadline.saturating_sub(now_ms)) {
            Ok(left) if left > 0 => Ok(now + Duration::from_millis(left).min(LONGEST)),
            _ => Err(Failure::new(
                Code::DeadlineExceeded,
                format!(
                    "the time of the request was over before model {} was asked",
                    model.name
                ),
            )),
        }
    }

    /// Writes until it is written; false where it cannot be.
    async fn write(&self, model: &Model, mut outgoing: Outgoing) -> bool {
        let (start, mut pause) = (Instant::now(), Duration::from_millis(20));
        loop {
            let error = match self.shared.producer.send(outgoing.clone()).await {
                Ok(_) => return true,
                Err(error) => error,
            };
            match &error {
                SendError::TooLarge => {
                    let (errors, why) = (&self.shared.errors, error.to_string());
                    match result::instead(errors, &model.name, &outgoing, &why) {
                        Some(error) => outgoing = error,
                        None => {
                            tracing::error!(model = %model.name, "an error is given up: {why}");
                            return true;
                        }
                    }
                    continue;
                }
                SendError::UnknownTopic(_) if start.elapsed() > NO_TOPIC_FOR => {
                    // Deleted by hand: nobody can read it.
                    tracing::error!(model = %model.name, "a result is given up: {error}");
                    return true;
                }
                // It may have been written all the same.
                SendError::Other(_) => outgoing.headers.set(header::REPEAT, "1"),
                error if error.is_retryable() => {}
                error => {
                    self.shared
                        .fail(format!("results cannot be written: {error}"));
                    return false;
                }
            }
            tracing::warn!(model = %model.name, "{error}");
            if self.shared.stop.is_cancelled() && start.elapsed() > Duration::from_secs(5) {
                return false;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

fn trace(headers: &Headers) -> HeaderMap {
    let mut found = HeaderMap::new();
    for (name, value) in headers.iter() {
        if matches!(name, "traceparent" | "tracestate" | "baggage")
            && let (Ok(name), Ok(value)) = (
                HeaderName::try_from(name),
                HeaderValue::from_maybe_shared(value.clone()),
            )
        {
            found.append(name, value);
        }
    }
    found
}
