//! Who reads what: the cost of a record does not grow with the pipelines that share its topic. Pure.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use seldon_records::{Names, Record, Topic, header};

/// Topics, each with the pipeline whose records are read.
type Reads = HashSet<(Arc<str>, Arc<str>)>;

/// The readers of each topic by the pipeline that a record belongs to.
#[derive(Default)]
pub struct Index {
    topics: HashMap<Arc<str>, Readers>,
    /// What each pipeline reads.
    reads: HashMap<Arc<str>, Reads>,
}

#[derive(Default)]
struct Readers {
    /// A pipeline of others' records, and who reads them.
    by_pipeline: HashMap<Arc<str>, Vec<Arc<str>>>,
    all: HashSet<Arc<str>>,
    /// The pipeline whose topic it is.
    own: Option<Arc<str>>,
}

impl Index {
    /// Replaces what a pipeline reads; nothing removes it.
    pub fn put(
        &mut self,
        pipeline: &Arc<str>,
        reads: HashSet<(Arc<str>, Arc<str>)>,
        names: &Names,
    ) {
        for (topic, of) in self.reads.remove(pipeline).unwrap_or_default() {
            let Some(readers) = self.topics.get_mut(&topic) else {
                continue;
            };
            readers.all.remove(pipeline);
            if let Some(list) = readers.by_pipeline.get_mut(&of) {
                list.retain(|reader| reader != pipeline);
                if list.is_empty() {
                    readers.by_pipeline.remove(&of);
                }
            }
            if readers.all.is_empty() {
                self.topics.remove(&topic);
            }
        }
        for (topic, of) in &reads {
            let readers = self.topics.entry(topic.clone()).or_default();
            readers.own = match names.parse(topic) {
                Some(Topic::PipelineInputs(name) | Topic::PipelineOutputs(name)) => {
                    Some(name.into())
                }
                _ => None,
            };
            readers.all.insert(pipeline.clone());
            let list = readers.by_pipeline.entry(of.clone()).or_default();
            list.push(pipeline.clone());
        }
        if !reads.is_empty() {
            self.reads.insert(pipeline.clone(), reads);
        }
    }

    /// The pipelines that a record concerns. Without the header it is of the pipeline whose topic it is in.
    pub fn of(&self, record: &Record) -> &[Arc<str>] {
        let Some(readers) = self.topics.get(&record.topic) else {
            return &[];
        };
        let pipeline = record.headers.text(header::PIPELINE);
        let pipeline = pipeline.or(readers.own.as_deref()).unwrap_or_default();
        readers.by_pipeline.get(pipeline).map_or(&[], Vec::as_slice)
    }

    /// All pipelines that read a topic.
    pub fn readers(&self, topic: &str) -> impl Iterator<Item = &Arc<str>> {
        self.topics.get(topic).into_iter().flat_map(|r| &r.all)
    }

    /// Topics that are read.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<str>> {
        self.topics.keys()
    }
}
