//! The scheduler's store: what is written is durable with the next commit, and only then answered.
use seldon_core::{Effect, Record};

use crate::{
    scheduler::{Scheduler, Ticket},
    world::{Happening, World},
};

pub type Key = (&'static str, String);

/// Writes of one step, and who is answered when they are durable.
#[derive(Default)]
pub struct Job {
    pub writes: Vec<(Key, Option<Record>)>,
    pub answer: Option<(Ticket, Result<(), String>)>,
}

/// What an effect has the store do.
pub fn write(effect: &Effect) -> Option<(Key, Option<Record>)> {
    Some(match effect {
        Effect::Persist(record) => {
            let key = match record {
                Record::Model { name, .. } => ("model", name),
                Record::Server { name, .. } => ("server", name),
                Record::Experiment { name, .. } => ("experiment", name),
                Record::Pipeline { name, .. } => ("pipeline", name),
            };
            ((key.0, key.1.to_string()), Some(record.clone()))
        }
        Effect::ForgetModel(name) => (("model", name.to_string()), None),
        Effect::ForgetServer(name) => (("server", name.to_string()), None),
        Effect::ForgetExperiment(name) => (("experiment", name.to_string()), None),
        Effect::ForgetPipeline(name) => (("pipeline", name.to_string()), None),
        _ => return None,
    })
}

impl Scheduler {
    pub fn write(&mut self, (key, record): (Key, Option<Record>)) {
        match record {
            Some(record) => drop(self.store.insert(key, record)),
            None => drop(self.store.remove(&key)),
        }
    }
}

impl World {
    pub fn submit(&mut self, job: Job) {
        if job.writes.is_empty() && job.answer.is_none() {
            return;
        }
        self.scheduler.jobs.push_back(job);
        if !std::mem::replace(&mut self.scheduler.committing, true) {
            let slow = self.random.chance(50);
            let after = if slow {
                self.random.millis(200, 3_000)
            } else {
                self.random.millis(1, 20)
            };
            self.queue.after(
                after,
                Happening::Commit {
                    life: self.scheduler.life,
                },
            );
        }
    }

    /// All that has gathered is durable at once, and then answered.
    pub fn commit(&mut self, life: u64) {
        if !self.scheduler.is(life) {
            return;
        }
        self.scheduler.committing = false;
        for job in std::mem::take(&mut self.scheduler.jobs) {
            job.writes
                .into_iter()
                .for_each(|write| self.scheduler.write(write));
            if let Some((ticket, outcome)) = job.answer {
                let after = self.random.delay();
                let lost = self.troubled && self.random.chance(50);
                self.queue.after(
                    after,
                    match lost {
                        true => Happening::Lost { ticket },
                        false => Happening::Answered { ticket, outcome },
                    },
                );
            }
        }
    }
}
