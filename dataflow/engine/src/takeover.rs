//! Becoming the owner of a pipeline: topics, former progress, a claim in the progress topic.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use seldon_flow::{Flow, InFlight, Limits};
use seldon_proto::chainer::PipelineUpdateMessage;

use crate::context::Context;
use crate::ledger::{Entry, Place, outgoing};
use crate::progress::Snapshot;
use crate::worker::At;

/// How long an owner may take to release what it was told to, before it is fenced.
const GRACE: Duration = Duration::from_secs(1);
/// How long a look at the progress topic may take, before owners that are known are fenced: the unfinished transaction
/// of a dead one hides what comes after.
const BARRIER: Duration = Duration::from_millis(700);

/// Versions of a pipeline that are taken up together: no record is read that is of one that is not known yet.
pub struct Versions {
    /// The one that was ordered, then the others.
    pub updates: Vec<PipelineUpdateMessage>,
    /// Topics that they read.
    pub reads: BTreeSet<Arc<str>>,
    /// Topics that they read or write.
    pub topics: Vec<String>,
}

impl Versions {
    /// Of an order to create one; an error says what is wrong with it. Others that cannot run are left out: they have
    /// orders of their own to say so.
    pub fn of(context: &Context, mut update: PipelineUpdateMessage) -> anyhow::Result<Self> {
        let mut flow = Flow::new(&update.pipeline, context.names.clone(), Limits::default());
        let others = std::mem::take(&mut update.others);
        flow.put(&update)?;
        let others = others.into_iter().filter(|other| flow.put(other).is_ok());
        let mut updates = vec![update];
        updates.extend(others);
        let reads = flow.topics();
        let mut topics: BTreeSet<String> = reads.iter().map(|topic| topic.to_string()).collect();
        for update in &updates {
            let steps = update.updates.iter();
            topics.extend(steps.filter_map(|step| Some(step.sink.as_ref()?.topic_name.clone())));
            topics.insert(update.pipeline_output_topic.clone());
            topics.insert(update.pipeline_error_topic.clone());
        }
        topics.remove("");
        Ok(Self {
            updates,
            reads,
            topics: topics.into_iter().collect(),
        })
    }
}

/// Makes topics and looks at their partitions.
pub async fn prepare(context: &Context, topics: &[String]) -> anyhow::Result<()> {
    // Asked each time: a topic that was known may have been deleted by others.
    context.admin.create(topics, false).await?;
    let known = context.admin.all_partitions(topics).await?;
    for topic in topics {
        let count = known
            .get(topic)
            .with_context(|| format!("topic {topic} is made but cannot be seen"))?;
        context.partitions.set(topic, *count);
    }
    Ok(())
}

/// What was claimed.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Where to begin.
    pub starts: Vec<(At, Entry)>,
    /// Another owner was there before: what it began may be in flight.
    pub inherited: bool,
    /// What that is, where it said so.
    pub in_flight: Option<Vec<InFlight>>,
    /// It has not let go: if it lives it may go on for a moment.
    pub unsure: bool,
}

/// Claims what a pipeline reads and this engine does not read for it yet.
pub async fn claim(
    context: &Context,
    pipeline: &Arc<str>,
    topics: &BTreeSet<Arc<str>>,
    mine: &HashSet<At>,
) -> anyhow::Result<Claimed> {
    let wanted: Vec<At> = topics
        .iter()
        .flat_map(|topic| {
            let count = context.partitions.of(topic).unwrap_or(1);
            (0..count).map(|partition| (topic.clone(), partition))
        })
        .filter(|at| !mine.contains(at))
        .collect();
    if wanted.is_empty() {
        return Ok(Claimed::default());
    }
    let known = settle(context, pipeline, &wanted).await?;
    let mut starts = starts(context, &wanted, &known).await?;
    let records = starts.iter().map(|((topic, partition), entry)| {
        let place = Place {
            pipeline: pipeline.clone(),
            topic: topic.clone(),
            partition: *partition,
        };
        context
            .producer
            .send(outgoing(&context.progress, &place, Some(entry)))
    });
    try_join_all(records)
        .await
        .context("the progress cannot be written")?;
    barrier(context).await?;
    let now = context.ledger.of(pipeline);
    if let Some(other) = starts
        .iter()
        .filter_map(|(at, _)| now.get(at))
        .find(|entry| entry.owner != context.me)
    {
        bail!("{} takes the pipeline over at the same time", other.owner);
    }
    let of_others = || wanted.iter().filter_map(|at| known.get(at));
    let unsure = !context.exact && of_others().any(|entry| !entry.released);
    if unsure {
        // What a former owner did until it could know of the claim may be done again too.
        let ends = context.consumer.ends(&wanted).await?;
        for ((at, entry), end) in starts.iter_mut().zip(ends) {
            let is_held = known.get(at).is_some_and(|former| !former.released);
            entry.replay = later(entry.replay, end, is_held);
        }
    }
    Ok(Claimed {
        inherited: mine.is_empty() && of_others().next().is_some(),
        in_flight: of_others().find_map(|former| {
            let runs = former.runs.as_ref()?.iter().cloned();
            Some(runs.map(in_flight).collect())
        }),
        unsure,
        starts,
    })
}

fn in_flight((version, until_ms, requests): (u32, i64, Vec<u32>)) -> InFlight {
    InFlight {
        version,
        until_ms,
        requests,
    }
}

/// Up to where things may be handled again, when the end was looked at again. Pure.
fn later(replay: Option<i64>, end: i64, is_held: bool) -> Option<i64> {
    if is_held {
        replay.max(Some(end))
    } else {
        replay
    }
}

/// What is known of a pipeline when nobody else writes about it any more.
async fn settle(
    context: &Context,
    pipeline: &str,
    wanted: &[At],
) -> anyhow::Result<HashMap<At, Entry>> {
    let start = tokio::time::Instant::now();
    loop {
        let seen = tokio::time::timeout(BARRIER, barrier(context)).await;
        let known = context.ledger.of(pipeline);
        let others: BTreeSet<&str> = wanted
            .iter()
            .filter_map(|at| known.get(at))
            .filter(|entry| context.exact && !entry.released && entry.owner != context.me)
            .map(|entry| entry.owner.as_str())
            .collect();
        let fenced = context.fenced.lock().await.clone();
        let all_fenced = others.iter().all(|owner| fenced.contains(*owner));
        match seen {
            Ok(Ok(())) if all_fenced => return Ok(known),
            Ok(Err(error)) => return Err(error),
            Err(_) if start.elapsed() > Duration::from_secs(60) => {
                bail!("the progress topic cannot be read to its end")
            }
            _ => {}
        }
        if seen.is_err() || start.elapsed() > GRACE {
            for owner in others {
                context
                    .fence(owner)
                    .await
                    .with_context(|| format!("{owner} cannot be fenced"))?;
            }
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until all that was written to the progress topic before is known.
pub async fn barrier(context: &Context) -> anyhow::Result<()> {
    let (record, seen) = context.ledger.barrier(&context.progress, &context.me);
    context
        .producer
        .send(record)
        .await
        .context("the progress topic cannot be written")?;
    seen.await.context("the engine ends")
}

async fn starts(
    context: &Context,
    wanted: &[At],
    known: &HashMap<At, Entry>,
) -> anyhow::Result<Vec<(At, Entry)>> {
    let consumer = &context.consumer;
    let (ends, beginnings) = tokio::try_join!(consumer.ends(wanted), consumer.beginnings(wanted))?;
    let epoch = known.values().map(|entry| entry.epoch).max().unwrap_or(0) + 1;
    let mut starts = Vec::new();
    for ((at, end), beginning) in wanted.iter().zip(ends).zip(beginnings) {
        let former = known.get(at);
        // A partition that came after the pipeline holds nothing that was seen.
        let grown = former.is_none() && known.keys().any(|(topic, _)| *topic == at.0);
        let first = if former.is_some() || grown {
            beginning
        } else {
            end
        };
        let (at_, replay) = start(former, first, end, context.exact);
        let entry = Entry {
            at: at_,
            replay,
            owner: context.me.clone(),
            epoch,
            released: false,
            enters: former
                .filter(|former| former.at.offset <= end)
                .map_or_else(Vec::new, |former| former.enters.clone()),
            runs: former.and_then(|former| former.runs.clone()),
        };
        starts.push((at.clone(), entry));
    }
    Ok(starts)
}

/// Where to begin in a partition that holds `first..end`, and up to where things may be handled again. Pure.
pub fn start(former: Option<&Entry>, first: i64, end: i64, exact: bool) -> (Snapshot, Option<i64>) {
    let Some(former) = former else {
        return (Snapshot::at(first), None);
    };
    if former.at.offset > end {
        // The topic was made again: nothing in it was seen.
        return (Snapshot::at(first), None);
    }
    let at = if former.at.offset >= first {
        former.at.clone()
    } else {
        // What was held is gone from the topic, but for what is above its beginning.
        let left = |distance: &i64| {
            let distance = former.at.offset + distance - first;
            (distance >= 0).then_some(distance)
        };
        let held = former.at.held.as_ref();
        let waits = former.at.waits.iter();
        Snapshot {
            offset: first,
            until: former.at.until.filter(|until| *until > first),
            held: held.map(|held| held.iter().filter_map(left).collect()),
            waits: waits
                .filter_map(|(distance, places)| Some((left(distance)?, places.clone())))
                .collect(),
        }
    };
    let replay = match (exact, former.released) {
        (true, _) => None,
        (false, true) => former.replay,
        (false, false) => Some(end.max(former.replay.unwrap_or(end))),
    };
    (at, replay.filter(|replay| *replay > former.at.offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(released: bool) -> Entry {
        Entry {
            at: Snapshot {
                offset: 5,
                until: Some(8),
                held: Some(vec![0, 2]),
                waits: vec![(0, vec![7]), (2, vec![8])],
            },
            replay: None,
            owner: "a".to_owned(),
            epoch: 1,
            released,
            enters: Vec::new(),
            runs: None,
        }
    }

    #[test]
    fn where_an_owner_begins() {
        assert_eq!(start(None, 9, 9, false), (Snapshot::at(9), None));
        let kept = entry(false).at;
        assert_eq!(
            start(Some(&entry(false)), 0, 20, false),
            (kept.clone(), Some(20))
        );
        assert_eq!(
            start(Some(&entry(true)), 0, 20, false),
            (kept.clone(), None)
        );
        assert_eq!(start(Some(&entry(false)), 0, 20, true), (kept, None));
        // What came while the claim was written; of what was let go nothing did.
        assert_eq!(later(Some(20), 25, true), Some(25));
        assert_eq!(
            (later(None, 25, true), later(None, 25, false)),
            (Some(25), None)
        );
        // The topic was made again, or its beginning was deleted.
        assert_eq!(
            start(Some(&entry(true)), 0, 2, false),
            (Snapshot::at(0), None)
        );
        let (at, _) = start(Some(&entry(true)), 6, 20, false);
        assert_eq!((at.offset, at.until, at.held), (6, Some(8), Some(vec![1])));
        assert_eq!(at.waits, [(1, vec![8])]);
    }
}
