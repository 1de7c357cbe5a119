//! Transactions: all or nothing, once, and only by who holds the id.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Case;
use crate::client::{Broker, Done, Got, LONG, Writer, distinct, ensure, text, until};

pub(crate) const CASES: &[Case] = &[
    ("txn_commit", txn_commit),
    ("txn_abort", txn_abort),
    ("txn_fence", txn_fence),
    ("txn_exactly_once", txn_exactly_once),
    ("txn_timeout", txn_timeout),
];

fn begun(broker: &Broker, id: &str, timeout: &str) -> Result<Writer, String> {
    let writer = broker.writer(&[
        ("transactional.id", id),
        ("transaction.timeout.ms", timeout),
        ("message.timeout.ms", timeout),
    ])?;
    writer.producer.init_transactions(LONG).map_err(text)?;
    writer.producer.begin_transaction().map_err(text)?;
    Ok(writer)
}

fn commit(writer: &Writer) -> Done {
    writer.flush()?;
    writer.producer.commit_transaction(LONG).map_err(text)
}

fn counts(broker: &Broker, topic: &str) -> Result<(usize, usize), String> {
    Ok((
        broker.read_all(topic, "read_committed")?.len(),
        broker.read_all(topic, "read_uncommitted")?.len(),
    ))
}

fn txn_commit(broker: &Broker) -> Done {
    let topic = broker.name("commit");
    broker.create(&topic, 2, &[])?;
    let writer = begun(broker, &broker.name("t-commit"), "20000")?;
    for partition in 0..2 {
        writer.send(&topic, Some(partition), 0..10, "c")?;
    }
    writer.flush()?;
    let open = counts(broker, &topic)?;
    ensure(open == (0, 20), || format!("while it is open: {open:?}"))?;
    commit(&writer)?;
    until(
        "all are visible",
        || Ok(counts(broker, &topic)? == (20, 20)),
    )?;
    writer.producer.begin_transaction().map_err(text)?;
    writer.send(&topic, Some(0), 10..15, "c")?;
    commit(&writer)?;
    until("those of the second too", || {
        Ok(counts(broker, &topic)? == (25, 25))
    })
}

fn txn_abort(broker: &Broker) -> Done {
    let topic = broker.name("abort");
    broker.create(&topic, 1, &[])?;
    let writer = begun(broker, &broker.name("t-abort"), "20000")?;
    writer.send(&topic, Some(0), 0..10, "bad")?;
    writer.flush()?;
    writer.producer.abort_transaction(LONG).map_err(text)?;
    writer.producer.begin_transaction().map_err(text)?;
    writer.send(&topic, Some(0), 0..5, "good")?;
    commit(&writer)?;
    until("the second is visible", || {
        Ok(counts(broker, &topic)? == (5, 15))
    })?;
    let got = broker.read_all(&topic, "read_committed")?;
    ensure(got.iter().all(|one| one.value.starts_with("good")), || {
        format!("{got:?}")
    })
}

fn txn_fence(broker: &Broker) -> Done {
    let (topic, id) = (broker.name("fence"), broker.name("t-fence"));
    broker.create(&topic, 1, &[])?;
    let old = begun(broker, &id, "20000")?;
    old.send(&topic, Some(0), 0..5, "old")?;
    old.flush()?;
    let new = begun(broker, &id, "20000")?;
    new.send(&topic, Some(0), 0..5, "new")?;
    commit(&new)?;
    let late = old.producer.commit_transaction(Duration::from_secs(10));
    ensure(late.is_err(), || "the old one could commit".to_owned())?;
    until("only the new ones are visible", || {
        let got = broker.read_all(&topic, "read_committed")?;
        Ok(got.len() == 5 && got.iter().all(|one| one.value.starts_with("new")))
    })
}

/// Reads, writes and commits what was read in one transaction; each third is aborted, and all begins again from there.
fn txn_exactly_once(broker: &Broker) -> Done {
    const ALL: usize = 600;
    let (from, to, group) = (
        broker.name("from"),
        broker.name("to"),
        broker.name("g-once"),
    );
    broker.create(&from, 2, &[])?;
    broker.create(&to, 2, &[])?;
    for partition in 0..2 {
        let first = partition as usize * 10_000;
        broker.write(
            &from,
            Some(partition),
            first..first + ALL / 2,
            "m",
            &[("batch.num.messages", "40")],
        )?;
    }
    let writer = begun(broker, &broker.name("t-once"), "20000")?;
    writer.producer.abort_transaction(LONG).map_err(text)?;
    let (mut round, mut done) = (0, 0);
    let start = Instant::now();
    while done < ALL {
        let reader = broker.reader(&group, &[("isolation.level", "read_committed")])?;
        reader.subscribe(&[&from]).map_err(text)?;
        loop {
            ensure(start.elapsed() < LONG * 2, || {
                format!("{done} after {round} transactions")
            })?;
            let mut got: Vec<Got> = Vec::new();
            while got.len() < 30 {
                match reader.poll(Duration::from_millis(50)) {
                    Some(message) => got.push(Got::from(&message.map_err(text)?)),
                    None if !got.is_empty() || done >= ALL => break,
                    None => ensure(start.elapsed() < LONG * 2, || format!("starved at {done}"))?,
                }
            }
            if got.is_empty() {
                break;
            }
            writer.producer.begin_transaction().map_err(text)?;
            let mut next: HashMap<i32, i64> = HashMap::new();
            for one in &got {
                writer.record(BaseRecord::<str, str>::to(&to).payload(&one.value))?;
                next.insert(one.partition, one.offset + 1);
            }
            let mut offsets = TopicPartitionList::new();
            for (partition, offset) in next {
                offsets
                    .add_partition_offset(&from, partition, Offset::Offset(offset))
                    .map_err(text)?;
            }
            let member = reader.group_metadata().ok_or("no group")?;
            writer
                .producer
                .send_offsets_to_transaction(&offsets, &member, LONG)
                .map_err(text)?;
            round += 1;
            if round % 3 == 0 {
                writer.flush()?;
                writer.producer.abort_transaction(LONG).map_err(text)?;
                break;
            }
            commit(&writer)?;
            done += got.len();
        }
    }
    let mut got = Vec::new();
    until("all are there", || {
        got = broker.read_all(&to, "read_committed")?;
        Ok(got.len() >= ALL)
    })?;
    ensure(got.len() == ALL && distinct(&got) == ALL, || {
        format!("{} read, {} distinct", got.len(), distinct(&got))
    })
}

fn txn_timeout(broker: &Broker) -> Done {
    let topic = broker.name("hang");
    broker.create(&topic, 1, &[])?;
    let hanging = begun(broker, &broker.name("t-hang"), "3000")?;
    hanging.send(&topic, Some(0), 0..5, "hangs")?;
    hanging.flush()?;
    broker.write(&topic, Some(0), 0..5, "after", &[])?;
    until("the broker aborts it", || {
        let got = broker.read_all(&topic, "read_committed")?;
        ensure(got.iter().all(|one| one.value.starts_with("after")), || {
            format!("{got:?}")
        })?;
        Ok(got.len() == 5)
    })
}
