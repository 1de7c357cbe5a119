//! Topics: created, listed, changed, deleted.

use rdkafka::admin::{AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Case;
use crate::client::{Broker, Done, LONG, assign, ensure, read, text, until};

pub(crate) const CASES: &[Case] = &[
    ("metadata", metadata),
    ("create_topic", create_topic),
    ("auto_create", auto_create),
    ("delete_topic", delete_topic),
    ("delete_while_consuming", delete_while_consuming),
    ("create_partitions", create_partitions),
    ("configs", configs),
    ("delete_records", delete_records),
    ("compaction", compaction),
];

fn metadata(broker: &Broker) -> Done {
    let client: BaseConsumer = broker.config(&[]).create().map_err(text)?;
    let all = client.fetch_metadata(None, LONG).map_err(text)?;
    ensure(all.brokers().len() == 1, || {
        format!("{} brokers", all.brokers().len())
    })
}

fn create_topic(broker: &Broker) -> Done {
    let topic = broker.name("create");
    broker.create(&topic, 4, &[])?;
    let again = broker.create(&topic, 4, &[]).err().unwrap_or_default();
    ensure(again.contains("TopicAlreadyExists"), || {
        format!("a second time: {again}")
    })
}

fn auto_create(broker: &Broker) -> Done {
    broker.write(&broker.name("auto"), None, 0..10, "a", &[])
}

fn delete_topic(broker: &Broker) -> Done {
    let topic = broker.name("delete");
    broker.create(&topic, 2, &[])?;
    broker.write(&topic, Some(0), 0..10, "old", &[])?;
    broker.delete(&topic)?;
    until("the topic is not listed", || {
        Ok(broker.partitions(&topic)?.is_none())
    })?;
    let unknown = broker
        .delete(&broker.name("never"))
        .err()
        .unwrap_or_default();
    ensure(unknown.contains("UnknownTopicOrPartition"), || {
        format!("an unknown topic: {unknown}")
    })?;
    broker.create(&topic, 2, &[])?;
    broker.write(&topic, Some(0), 0..3, "new", &[])?;
    let got = broker.read_all(&topic, "read_uncommitted")?;
    let fresh =
        got.len() == 3 && got[0].offset == 0 && got.iter().all(|one| one.value.starts_with("new"));
    ensure(fresh, || format!("created anew it has {got:?}"))
}

fn delete_while_consuming(broker: &Broker) -> Done {
    let (gone, stays) = (broker.name("goes"), broker.name("stays"));
    for topic in [&gone, &stays] {
        broker.create(topic, 1, &[])?;
        broker.write(topic, Some(0), 0..5, "x", &[])?;
    }
    let reader = broker.reader(&broker.name("g-delete"), &[])?;
    reader.subscribe(&[&gone, &stays]).map_err(text)?;
    read(&reader, 10)?;
    broker.delete(&gone)?;
    until("the topic is not listed", || {
        Ok(broker.partitions(&gone)?.is_none())
    })?;
    broker.write(&stays, Some(0), 5..10, "x", &[])?;
    read(&reader, 5).map(drop)
}

fn create_partitions(broker: &Broker) -> Done {
    let topic = broker.name("grow");
    broker.create(&topic, 1, &[])?;
    let admin = broker.admin();
    for grown in broker
        .ask(admin.create_partitions(&[NewPartitions::new(&topic, 4)], &AdminOptions::new()))?
    {
        grown.map_err(text)?;
    }
    until("there are four", || {
        Ok(broker.partitions(&topic)? == Some(4))
    })?;
    broker.write(&topic, Some(3), 0..5, "x", &[])
}

fn configs(broker: &Broker) -> Done {
    let topic = broker.name("configs");
    broker.create(&topic, 1, &[("retention.ms", "12345678")])?;
    let admin = broker.admin();
    let retention = || -> Result<Option<String>, String> {
        let resources = [ResourceSpecifier::Topic(&topic)];
        let described = broker.ask(admin.describe_configs(&resources, &AdminOptions::new()))?;
        let found = described
            .into_iter()
            .next()
            .ok_or("nothing described")?
            .map_err(text)?;
        Ok(found
            .get("retention.ms")
            .and_then(|entry| entry.value.clone()))
    };
    let given = retention()?;
    ensure(given.as_deref() == Some("12345678"), || {
        format!("retention.ms is {given:?}")
    })?;
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.ms", "999");
    for altered in broker.ask(admin.alter_configs(&[change], &AdminOptions::new()))? {
        altered.map_err(text)?;
    }
    until("it is altered", || {
        Ok(retention()?.as_deref() == Some("999"))
    })
}

fn delete_records(broker: &Broker) -> Done {
    let topic = broker.name("trim");
    broker.create(&topic, 1, &[])?;
    broker.write(&topic, Some(0), 0..100, "x", &[])?;
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&topic, 0, Offset::Offset(50))
        .map_err(text)?;
    let admin = broker.admin();
    broker.ask(admin.delete_records(&before, &AdminOptions::new()))?;
    let reader = broker.reader(&broker.name("g-trim"), &[])?;
    let ends = reader.fetch_watermarks(&topic, 0, LONG).map_err(text)?;
    ensure(ends == (50, 100), || format!("from and to {ends:?}"))?;
    assign(&reader, &topic, 0..1, Offset::Beginning)?;
    let got = read(&reader, 50)?;
    ensure(got[0].offset == 50, || format!("the first is {:?}", got[0]))
}

fn compaction(broker: &Broker) -> Done {
    let topic = broker.name("compact");
    broker.create(&topic, 1, &[("cleanup.policy", "compact")])?;
    for round in 0..3 {
        let writer = broker.writer(&[])?;
        for key in 0..10 {
            let (key, value) = (format!("k{key}"), format!("{key}-{round}"));
            writer.record(
                BaseRecord::to(&topic)
                    .key(&key)
                    .payload(&value)
                    .partition(0),
            )?;
        }
        writer.flush()?;
    }
    let got = broker.read_all(&topic, "read_uncommitted")?;
    for key in 0..10 {
        let newest = got
            .iter()
            .rfind(|one| one.value.starts_with(&format!("{key}-")));
        ensure(newest.is_some_and(|one| one.value.ends_with("-2")), || {
            format!("k{key} is {newest:?}")
        })?;
    }
    Ok(())
}
