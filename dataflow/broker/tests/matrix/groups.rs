//! Groups: partitions are shared, taken over, and read on from where they were left.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::admin::AdminOptions;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Case;
use crate::client::{
    Broker, Done, Got, LONG, Reader, committed, ensure, joined, read, text, until,
};

pub(crate) const CASES: &[Case] = &[
    ("group_range", |broker| group(broker, "range")),
    ("group_cooperative", |broker| {
        group(broker, "cooperative-sticky")
    }),
    ("session_timeout", session_timeout),
    ("static_member", static_member),
    ("commit_resume", commit_resume),
    ("commit_simple", commit_simple),
    ("regex", regex),
    ("resubscribe", resubscribe),
    ("groups_admin", groups_admin),
    ("new_protocol", new_protocol),
];

/// A member that reads and commits until it is told to stop.
#[derive(Default)]
struct Worker {
    stop: AtomicBool,
    assigned: AtomicUsize,
    values: Mutex<Vec<String>>,
}

impl Worker {
    fn work(&self, reader: &Reader) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Some(Ok(message)) = reader.poll(Duration::from_millis(20)) {
                self.values.lock().unwrap().push(Got::from(&message).value);
                let _ = reader.commit_message(&message, CommitMode::Sync);
            }
            let assigned = reader.assignment().map_or(0, |list| list.count());
            self.assigned.store(assigned, Ordering::SeqCst);
        }
    }

    fn count(&self) -> usize {
        self.values.lock().unwrap().len()
    }

    fn has(&self, partitions: usize) -> bool {
        self.assigned.load(Ordering::SeqCst) == partitions
    }
}

/// A second member comes and goes; each record is read by one of them.
fn group(broker: &Broker, strategy: &str) -> Done {
    let topic = broker.name(&format!("shared-{strategy}"));
    let group = broker.name(&format!("g-{strategy}"));
    broker.create(&topic, 4, &[])?;
    let member = || -> Result<Reader, String> {
        let reader = broker.reader(&group, &[("partition.assignment.strategy", strategy)])?;
        reader.subscribe(&[&topic]).map_err(text)?;
        Ok(reader)
    };
    let write = |round: usize| -> Done {
        (0..4).try_for_each(|partition| {
            let first = round * 1000 + partition as usize * 100;
            broker.write(&topic, Some(partition), first..first + 10, "x", &[])
        })
    };
    let (one, two) = (Worker::default(), Worker::default());
    std::thread::scope(|scope| {
        let first = member()?;
        scope.spawn(|| {
            one.work(&first);
            drop(first);
        });
        let done = (|| {
            until("one has all", || Ok(one.has(4)))?;
            write(0)?;
            until("one has read 40", || Ok(one.count() >= 40))?;
            let second = member()?;
            let second = scope.spawn(|| {
                two.work(&second);
                drop(second);
            });
            let shared = until("they share", || Ok(one.has(2) && two.has(2)));
            let both = || one.count() + two.count();
            let read = shared
                .and_then(|()| write(1))
                .and_then(|()| until("both have read 80", || Ok(both() >= 80)));
            two.stop.store(true, Ordering::SeqCst);
            second.join().map_err(|_| "the second member panicked")?;
            read?;
            until("one has all again", || Ok(one.has(4)))?;
            write(2)?;
            until("they have read 120", || Ok(both() >= 120))
        })();
        one.stop.store(true, Ordering::SeqCst);
        done
    })?;
    let all: HashSet<String> = [&one, &two]
        .iter()
        .flat_map(|worker| worker.values.lock().unwrap().clone())
        .collect();
    ensure(all.len() == 120, || format!("{} of 120 read", all.len()))
}

fn session_timeout(broker: &Broker) -> Done {
    let (topic, group) = (broker.name("session"), broker.name("g-session"));
    broker.create(&topic, 4, &[])?;
    let settings = [
        ("session.timeout.ms", "6000"),
        ("max.poll.interval.ms", "6000"),
    ];
    let silent = broker.reader(&group, &settings)?;
    silent.subscribe(&[&topic]).map_err(text)?;
    joined(&silent, 4)?;
    // From here on the first does not poll: it is out of the group by itself or by the broker.
    let next = broker.reader(&group, &settings[..1])?;
    next.subscribe(&[&topic]).map_err(text)?;
    joined(&next, 4)
}

fn static_member(broker: &Broker) -> Done {
    let (topic, group) = (broker.name("static"), broker.name("g-static"));
    broker.create(&topic, 2, &[])?;
    let settings = [
        ("group.instance.id", "one"),
        ("session.timeout.ms", "30000"),
    ];
    for _ in 0..2 {
        let reader = broker.reader(&group, &settings)?;
        reader.subscribe(&[&topic]).map_err(text)?;
        joined(&reader, 2)?;
    }
    Ok(())
}

fn commit_resume(broker: &Broker) -> Done {
    let (topic, group) = (broker.name("resume"), broker.name("g-resume"));
    broker.create(&topic, 4, &[])?;
    for partition in 0..4 {
        let first = partition as usize * 1000;
        broker.write(&topic, Some(partition), first..first + 100, "m", &[])?;
    }
    let reader = broker.reader(&group, &[])?;
    reader.subscribe(&[&topic]).map_err(text)?;
    let before = read(&reader, 150)?;
    reader
        .commit_consumer_state(CommitMode::Sync)
        .map_err(text)?;
    drop(reader);
    let reader = broker.reader(&group, &[])?;
    reader.subscribe(&[&topic]).map_err(text)?;
    let after = read(&reader, 250)?;
    let seen: HashSet<_> = before.iter().map(|one| &one.value).collect();
    let twice = after.iter().filter(|one| seen.contains(&one.value)).count();
    ensure(twice == 0, || format!("{twice} read twice"))
}

fn commit_simple(broker: &Broker) -> Done {
    let topic = broker.name("simple");
    broker.create(&topic, 1, &[])?;
    broker.write(&topic, Some(0), 0..5, "m", &[])?;
    let reader = broker.reader(&broker.name("g-simple"), &[])?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(3))
        .map_err(text)?;
    reader.commit(&list, CommitMode::Sync).map_err(text)?;
    let found = committed(&reader, &topic, 0)?;
    ensure(found == Offset::Offset(3), || {
        format!("committed is {found:?}")
    })?;
    let other = committed(&broker.reader(&broker.name("g-other"), &[])?, &topic, 0)?;
    ensure(other == Offset::Invalid, || {
        format!("an unknown group has {other:?}")
    })
}

fn regex(broker: &Broker) -> Done {
    let start = broker.name("regex");
    let reader = broker.reader(&broker.name("g-regex"), &[])?;
    reader
        .subscribe(&[&format!("^{start}\\..*")])
        .map_err(text)?;
    for name in ["one", "two"] {
        let topic = format!("{start}.{name}");
        broker.create(&topic, 1, &[])?;
        broker.write(&topic, Some(0), 0..3, name, &[])?;
        let got = read(&reader, 3)?;
        ensure(got.iter().all(|one| one.value.starts_with(name)), || {
            format!("{got:?}")
        })?;
        // Both are given up and taken again when the second topic comes.
        reader
            .commit_consumer_state(CommitMode::Sync)
            .map_err(text)?;
    }
    Ok(())
}

fn resubscribe(broker: &Broker) -> Done {
    let start = broker.name("more");
    let reader = broker.reader(
        &broker.name("g-more"),
        &[("partition.assignment.strategy", "cooperative-sticky")],
    )?;
    let mut topics: Vec<String> = Vec::new();
    for number in 0..5 {
        topics.push(format!("{start}-{number}"));
        let topic = &topics[number];
        broker.create(topic, 1, &[])?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        reader.subscribe(&names).map_err(text)?;
        broker.write(topic, Some(0), 0..2, &format!("{number}:"), &[])?;
        let got = read(&reader, 2)?;
        ensure(
            got.iter()
                .all(|one| one.value.starts_with(&format!("{number}:"))),
            || format!("{got:?}"),
        )?;
        reader
            .commit_consumer_state(CommitMode::Sync)
            .map_err(text)?;
    }
    Ok(())
}

fn groups_admin(broker: &Broker) -> Done {
    let (topic, group) = (broker.name("admin"), broker.name("g-admin"));
    broker.create(&topic, 1, &[])?;
    broker.write(&topic, Some(0), 0..5, "x", &[])?;
    let reader = broker.reader(&group, &[])?;
    reader.subscribe(&[&topic]).map_err(text)?;
    read(&reader, 5)?;
    reader
        .commit_consumer_state(CommitMode::Sync)
        .map_err(text)?;
    let listed = reader.fetch_group_list(Some(&group), LONG).map_err(text)?;
    let known = listed
        .groups()
        .iter()
        .find(|known| known.name() == group)
        .ok_or("the group is not listed")?;
    ensure(
        known.state() == "Stable" && known.members().len() == 1,
        || format!("it is {}", known.state()),
    )?;
    let admin = broker.admin();
    let delete = || -> Result<bool, String> {
        let deleted = broker.ask(admin.delete_groups(&[&group], &AdminOptions::new()))?;
        Ok(deleted.iter().all(Result::is_ok))
    };
    ensure(!delete()?, || "a group with members was deleted".to_owned())?;
    drop(listed);
    drop(reader);
    until("the group is deleted", delete)?;
    let after = committed(&broker.reader(&group, &[])?, &topic, 0)?;
    ensure(after == Offset::Invalid, || {
        format!("committed is {after:?} still")
    })
}

/// The protocol of Kafka 4. The embedded broker does not have it and says so; librdkafka would only wait, so the
/// request is made by hand.
fn new_protocol(broker: &Broker) -> Done {
    if broker.embedded {
        return refused(broker).map_err(text)?;
    }
    let topic = broker.name("protocol");
    broker.create(&topic, 2, &[])?;
    broker.write(&topic, Some(0), 0..5, "x", &[])?;
    let mut config = broker.config(&[
        ("group.protocol", "consumer"),
        ("auto.offset.reset", "earliest"),
    ]);
    config
        .set("group.id", broker.name("g-protocol"))
        .set("enable.auto.commit", "false");
    let reader = Reader::from_config_and_context(&config, Default::default()).map_err(text)?;
    reader.subscribe(&[&topic]).map_err(text)?;
    read(&reader, 5).map(drop)
}

fn refused(broker: &Broker) -> std::io::Result<Done> {
    const HEARTBEAT: i16 = 68;
    const UNSUPPORTED_VERSION: [u8; 2] = [0, 35];
    let mut stream = TcpStream::connect(&broker.bootstrap)?;
    stream.set_read_timeout(Some(LONG))?;
    let mut ask = |request: &[u8]| -> std::io::Result<Vec<u8>> {
        stream.write_all(&(request.len() as u32).to_be_bytes())?;
        stream.write_all(request)?;
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut answer = vec![0; u32::from_be_bytes(size) as usize];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    // ApiVersions 0: correlation, error, count; then key, oldest and newest of each.
    let listed = ask(&[0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff])?;
    let has = listed[10..]
        .chunks(6)
        .any(|api| api[..2] == HEARTBEAT.to_be_bytes());
    // Flexible header and no body: it is not looked at. The answer: correlation, tags, throttling, error.
    let answer = ask(&[0, 68, 0, 0, 0, 0, 0, 2, 0xff, 0xff, 0])?;
    Ok(ensure(!has && answer[9..11] == UNSUPPORTED_VERSION, || {
        format!("listed: {has}, answered {answer:?}")
    }))
}
