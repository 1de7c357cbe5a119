//! A world for pipelines: topics, models and engines in memory, with a clock that the test sets.
#![allow(dead_code)]

pub mod models;
pub mod spec;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use prost::Message;
use seldon_flow::{Emit, Flow, Input, Limits};
use seldon_proto::inference::{ModelInferRequest, ModelInferResponse};
use seldon_records::{
    Headers, Names, Outgoing, Record, Topic, decode_request, decode_response, header,
};

pub use spec::{Spec, Step, update};

/// A model: its answer, or the text of its error.
pub type Model = fn(&ModelInferRequest) -> Result<ModelInferResponse, String>;

pub fn names() -> Names {
    Names::new(None, "", None).unwrap()
}

pub struct World {
    pub names: Names,
    pub flows: Vec<Flow>,
    pub models: HashMap<String, Model>,
    /// Written and not yet read, by topic.
    pub open: BTreeMap<Arc<str>, VecDeque<Record>>,
    /// All that was written.
    pub log: Vec<Record>,
    pub now_ms: i64,
    /// Requests that each model saw.
    pub calls: HashMap<String, Vec<ModelInferRequest>>,
    ids: u32,
}

impl World {
    pub fn new(specs: &[Spec], models: &[(&str, Model)]) -> Self {
        let flows = specs.iter().map(|spec| {
            let mut flow = Flow::new(&spec.name, names(), Limits::default());
            flow.put(&update(spec, 1)).unwrap();
            flow
        });
        Self {
            names: names(),
            flows: flows.collect(),
            models: models
                .iter()
                .map(|(name, model)| ((*name).to_owned(), *model))
                .collect(),
            open: BTreeMap::new(),
            log: Vec::new(),
            now_ms: 1_000_000,
            calls: HashMap::new(),
            ids: 0,
        }
    }

    /// A call as the pipeline gateway writes it.
    pub fn call(&mut self, pipeline: &str, key: &str, request: &ModelInferRequest) {
        self.ids += 1;
        let headers = [
            (header::PIPELINE, pipeline.to_owned()),
            (header::REQUEST_ID, key.to_owned()),
            (header::ID, format!("id{}", self.ids)),
        ];
        let topic = self.names.pipeline_inputs(pipeline);
        self.write(
            &topic,
            key,
            headers.into_iter().collect(),
            request.encode_to_vec(),
        );
    }

    pub fn write(&mut self, topic: &str, key: &str, headers: Headers, value: Vec<u8>) {
        self.append(Outgoing {
            topic: topic.into(),
            partition: Some(0),
            key: Some(key.to_owned().into()),
            value: Some(value.into()),
            headers,
        });
    }

    fn append(&mut self, record: Outgoing) {
        let offset = self
            .log
            .iter()
            .filter(|known| known.topic == record.topic)
            .count();
        let record = Record {
            topic: record.topic,
            partition: record.partition.unwrap_or(0),
            offset: offset as i64,
            key: record.key,
            value: record.value,
            headers: record.headers,
            timestamp_ms: self.now_ms,
        };
        self.log.push(record.clone());
        self.open
            .entry(record.topic.clone())
            .or_default()
            .push_back(record);
    }

    /// Reads all there is, the topic of each next record as the number says.
    pub fn run_in_order(&mut self, mut order: impl FnMut(usize) -> usize) {
        loop {
            self.open.retain(|_, records| !records.is_empty());
            if self.open.is_empty() {
                return;
            }
            let topic = self
                .open
                .keys()
                .nth(order(self.open.len()) % self.open.len())
                .unwrap()
                .clone();
            let record = self.open.get_mut(&topic).unwrap().pop_front().unwrap();
            self.read(&record);
        }
    }

    pub fn run(&mut self) {
        self.run_in_order(|_| 0);
    }

    /// Lets time pass and reads what that brings.
    pub fn wait(&mut self, ms: i64) {
        self.now_ms += ms;
        let now_ms = self.now_ms;
        let emits: Vec<Emit> = self
            .flows
            .iter_mut()
            .flat_map(|flow| flow.tick(now_ms))
            .collect();
        emits.into_iter().for_each(|emit| self.append(emit.record));
        self.run();
    }

    fn read(&mut self, record: &Record) {
        let mut emits = Vec::new();
        for flow in &mut self.flows {
            if flow.topics().contains(&record.topic) {
                let record = record.clone();
                let input = Arc::new(Input {
                    record,
                    replayed: false,
                });
                emits.extend(flow.handle(input, self.now_ms));
            }
        }
        emits.into_iter().for_each(|emit| self.append(emit.record));
        if let Some(Topic::ModelInputs(model)) = self.names.parse(&record.topic) {
            self.infer(&model, record);
        }
    }

    fn infer(&mut self, model: &str, record: &Record) {
        let Some(run) = self.models.get(model).copied() else {
            return;
        };
        let request = decode_request(&record.headers, record.value.as_ref().unwrap()).unwrap();
        self.calls
            .entry(model.to_owned())
            .or_default()
            .push(request.clone());
        let mut headers = record.headers.clone();
        let (topic, value) = match run(&request) {
            Ok(mut response) => {
                headers.push(header::ROUTE, format!(":{model}_1:"));
                response.model_name = format!("{model}_1");
                (self.names.model_outputs(model), response.encode_to_vec())
            }
            Err(text) => {
                headers.set(header::ERROR, model.to_owned());
                headers.set(header::STATUS, "400");
                headers.set(header::GRPC_STATUS, "3");
                (self.names.errors(), text.into_bytes())
            }
        };
        self.append(Outgoing {
            topic: topic.into(),
            partition: Some(record.partition),
            key: record.key.clone(),
            value: Some(value.into()),
            headers,
        });
    }

    pub fn records(&self, topic: &str) -> Vec<Record> {
        self.log
            .iter()
            .filter(|record| *record.topic == *topic)
            .cloned()
            .collect()
    }

    pub fn answers(&self, pipeline: &str) -> Vec<Record> {
        self.records(&self.names.pipeline_outputs(pipeline))
    }

    /// The answers with a key: `name=values` of each tensor, or the error.
    pub fn answers_to(&self, pipeline: &str, key: &str) -> Vec<String> {
        let answers = self.answers(pipeline).into_iter();
        answers
            .filter(|record| record.key.as_deref() == Some(key.as_bytes()))
            .map(|record| text(&record))
            .collect()
    }

    /// All windows pass: nothing may be left.
    pub fn drained(&mut self) {
        for _ in 0..50 {
            if self.flows.iter().all(|flow| flow.is_empty()) {
                return;
            }
            self.wait(200_000);
        }
        let counts: Vec<_> = self.flows.iter().map(|flow| flow.counts()).collect();
        panic!("something is left: {counts:?}");
    }
}

/// What an answer says.
pub fn text(record: &Record) -> String {
    let value = record.value.as_ref().unwrap();
    if let Some(step) = record.headers.text(header::ERROR) {
        let status = record.headers.text(header::STATUS).unwrap_or_default();
        return format!("{step} {status}: {}", String::from_utf8_lossy(value));
    }
    let response = decode_response(&record.headers, value).unwrap();
    assert_eq!(
        response.model_name, "",
        "a pipeline's answer names no model"
    );
    let mut request = seldon_records::Contents::Response(response).into_request();
    seldon_inference::unpack_request(&mut request).unwrap();
    let tensors = request.inputs.iter().map(|tensor| {
        let values = models::numbers(tensor);
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        format!("{}={}", tensor.name, values.join(","))
    });
    tensors.collect::<Vec<_>>().join(" ")
}
