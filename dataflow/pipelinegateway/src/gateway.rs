//! One request: from its arrival into Kafka, and from Kafka to its answer.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use prost::Message as _;
use seldon_kafka::Producer;
use seldon_proto::inference::ModelInferResponse;
use seldon_records::{Identity, Outgoing, Record, decode_response, header};
use seldon_telemetry::RequestSpan;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    failure::Failure,
    headers,
    metrics::{self, Exchange, Method, Metrics},
    room::Room,
    routes::{Route, Routes},
    target::Target,
    upstream::Models,
    waiting::{Place, Waiting},
};

/// Bounds of a gateway.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a caller waits that does not say so itself.
    pub request: Duration,
    /// How long any caller waits.
    pub longest: Duration,
    /// How long Kafka may take to accept a request.
    pub produce: Duration,
    /// Requests that wait for their answers at once.
    pub in_flight: usize,
    /// Bytes of all those.
    pub bytes: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// How long requests may go on after a pipeline left or the gateway is stopped.
    pub drain: Duration,
}

/// What all requests share.
pub(crate) struct Gateway {
    pub(crate) routes: Arc<Routes>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) producer: Producer,
    pub(crate) models: Models,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) turns: Arc<Semaphore>,
    pub(crate) room: Arc<Room>,
    pub(crate) stopping: AtomicBool,
}

/// Leave to ask: holds the place among those in flight, and counts the answer.
pub(crate) struct Permit {
    pub(crate) route: Arc<Route>,
    pub(crate) exchange: Exchange,
    span: Option<RequestSpan>,
    _turn: OwnedSemaphorePermit,
    _flight: TaskTrackerToken,
}

impl Gateway {
    /// Finds who answers, and a place among those in flight.
    pub(crate) async fn admit(
        &self,
        target: &Target,
        method: Method,
        fields: &HeaderMap,
    ) -> Result<Permit, Failure> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Failure::stopping(target));
        }
        let route = match (self.routes.get(target), target) {
            (Some(route), _) => Some(route),
            (None, Target::Pipeline(_)) => None,
            (None, Target::Model(model)) => {
                let found = tokio::time::timeout(self.limits.produce, self.routes.model(model));
                match found.await {
                    Ok(Ok(route)) => route,
                    Ok(Err(error)) => {
                        let message = format!("{}: {error:#}", target.describe());
                        return Err(Failure::kafka(message));
                    }
                    Err(_) => return Err(Failure::unwritten(target, self.limits.produce)),
                }
            }
        };
        let route = route.ok_or_else(|| Failure::unknown(target, fields))?;
        let mut exchange = Exchange::begin(&self.metrics, route.name.clone(), method);
        // The token first, then the look: a pipeline that leaves waits for those that hold one.
        let flight = route.flights.token();
        if route.flights.is_closed() {
            let failure = Failure::unknown(target, fields);
            exchange.finish(refused(method, &failure));
            return Err(failure);
        }
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            let failure = Failure::busy(target);
            exchange.finish(refused(method, &failure));
            return Err(failure);
        };
        Ok(Permit {
            route,
            exchange,
            span: RequestSpan::begin("seldon-pipelinegateway", fields),
            _turn: turn,
            _flight: flight,
        })
    }

    /// Writes a request's record and waits for its answer. Dropping this gives the place up.
    pub(crate) async fn infer(
        &self,
        permit: &Permit,
        fields: &HeaderMap,
        request_id: &HeaderValue,
        value: Bytes,
    ) -> Result<Record, Failure> {
        let route = &permit.route;
        let patience = headers::patience(fields).unwrap_or(self.limits.request);
        let patience = patience.min(self.limits.longest);
        let place = self.waiting.register(route.answers.clone());
        let record = outgoing(permit, fields, request_id, value, patience, place.number);
        // A little earlier than the caller: our answer names the pipeline.
        let ours = patience - (patience / 10).min(Duration::from_millis(50));
        let answered = tokio::time::timeout(ours, self.exchange(route, record, place)).await;
        let record = answered.unwrap_or_else(|_| Err(Failure::late(&route.target, patience)))?;
        match Failure::of_record(&record) {
            Some(failure) => Err(failure),
            None => Ok(record),
        }
    }

    async fn exchange(
        &self,
        route: &Route,
        record: Outgoing,
        mut place: Place,
    ) -> Result<Record, Failure> {
        let target = &route.target;
        let delivery = self.producer.enqueue(record);
        let delivery = delivery.map_err(|cause| Failure::unsent(target, &cause))?;
        let written = tokio::time::timeout(self.limits.produce, delivery);
        let lost = |_| Failure::stopping(target);
        tokio::select! {
            biased;
            answer = &mut place.answer => return answer.map_err(lost),
            written = written => match written {
                Ok(Ok(_)) => {}
                Ok(Err(cause)) => return Err(Failure::unsent(target, &cause)),
                Err(_) => return Err(Failure::unwritten(target, self.limits.produce)),
            },
        }
        (&mut place.answer).await.map_err(lost)
    }
}

fn refused(method: Method, failure: &Failure) -> String {
    match method {
        Method::Rest => failure.status.as_str().to_owned(),
        Method::Grpc => metrics::grpc_code(failure.grpc),
    }
}

fn outgoing(
    permit: &Permit,
    fields: &HeaderMap,
    request_id: &HeaderValue,
    value: Bytes,
    patience: Duration,
    number: u128,
) -> Outgoing {
    let route = &permit.route;
    let id = String::from_utf8_lossy(request_id.as_bytes());
    let mut headers = headers::of_request(fields, &id);
    if let Target::Pipeline(pipeline) = &route.target {
        headers.push(header::PIPELINE, pipeline.clone());
    }
    let identity = Identity::of_number(number);
    headers.push(header::ID, identity.as_str().to_owned());
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let deadline = now.saturating_add(patience).as_millis();
    headers.push(header::DEADLINE, deadline.to_string());
    if let Some(span) = &permit.span {
        let mut context = HeaderMap::new();
        span.inject(&mut context);
        for (name, value) in &context {
            headers.set(name.as_str(), value.as_bytes().to_vec());
        }
    }
    Outgoing {
        topic: route.inputs.clone(),
        partition: Some(route.partition()),
        key: Some(Bytes::copy_from_slice(request_id.as_bytes())),
        value: Some(value),
        headers,
    }
}

/// The request's id: the client's, else a new one.
pub(crate) fn request_id(fields: &HeaderMap) -> HeaderValue {
    let given = fields.get(headers::REQUEST_ID).filter(|id| !id.is_empty());
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&seldon_telemetry::request_id())
            .expect("letters and digits make a header value")
    })
}

/// Reads an answer. What our own engine writes is read without copying raw tensors.
pub(crate) fn response(target: &Target, record: &Record) -> Result<ModelInferResponse, Failure> {
    let value = record.value.clone().unwrap_or_default();
    if let Some(response) = protobuf(record, &value) {
        return Ok(response);
    }
    decode_response(&record.headers, &value).map_err(|cause| Failure::unreadable(target, cause))
}

/// The answer where it is a protobuf response for sure, so that its bytes are one, too.
pub(crate) fn protobuf(record: &Record, value: &Bytes) -> Option<ModelInferResponse> {
    if record.headers.has(header::INFER_TYPE) || matches!(value.first(), Some(b'{' | 0)) {
        return None;
    }
    let response = ModelInferResponse::decode(value.clone()).ok()?;
    (!response.outputs.is_empty()).then_some(response)
}

/// Keeps the outputs that were asked for by name, all where none was.
pub(crate) fn select(
    target: &Target,
    response: &mut ModelInferResponse,
    wanted: &[String],
) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    let keeps: Vec<bool> = response
        .outputs
        .iter()
        .map(|output| wanted.contains(&output.name))
        .collect();
    if !keeps.contains(&true) {
        let has: Vec<&str> = response.outputs.iter().map(|o| o.name.as_str()).collect();
        let message = format!(
            "{}: its answer has none of the outputs asked for ({}), it has {}",
            target.describe(),
            wanted.join(", "),
            has.join(", ")
        );
        return Err(Failure::invalid(message));
    }
    let mut each = keeps.iter();
    response.outputs.retain(|_| each.next() == Some(&true));
    if response.raw_output_contents.len() == keeps.len() {
        let mut each = keeps.iter();
        response
            .raw_output_contents
            .retain(|_| each.next() == Some(&true));
    }
    Ok(())
}
