//! Records: what is written is read, as it was and where it was.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{Timestamp, message::BorrowedMessage};

use crate::Case;
use crate::client::{Broker, Done, Got, LONG, SHORT, assign, distinct, ensure, read, text, until};

pub(crate) const CASES: &[Case] = &[
    ("headers", headers),
    ("offsets", offsets),
    ("out_of_range", out_of_range),
    ("idempotent", idempotent),
    ("concurrent", concurrent),
    ("compression", compression),
    ("large", large),
    ("big_batches", big_batches),
];

fn headers(broker: &Broker) -> Done {
    let topic = broker.name("headers");
    broker.create(&topic, 4, &[])?;
    let writer = broker.writer(&[])?;
    let given = OwnedHeaders::new()
        .insert(Header {
            key: "id",
            value: Some("r1"),
        })
        .insert(Header {
            key: "pipeline",
            value: Some("p"),
        })
        .insert(Header {
            key: "pipeline",
            value: Some("q"),
        })
        .insert(Header::<&str> {
            key: "null",
            value: None,
        })
        .insert(Header {
            key: "binary",
            value: Some(&[0u8, 255, 1][..]),
        });
    writer.record(
        BaseRecord::to(&topic)
            .key("full")
            .payload("v")
            .headers(given)
            .timestamp(1_234_567_890_123),
    )?;
    writer.record(BaseRecord::<str, str>::to(&topic).key("tombstone"))?;
    writer.record(
        BaseRecord::<str, str>::to(&topic)
            .payload("no key")
            .partition(2),
    )?;
    writer.record(BaseRecord::to(&topic).key("empty").payload(""))?;
    writer.flush()?;
    let reader = broker.reader(&broker.name("g-headers"), &[])?;
    assign(&reader, &topic, 0..4, Offset::Beginning)?;
    let mut seen = 0;
    until("all four are read", || {
        if let Some(message) = reader.poll(SHORT) {
            same(&message.map_err(text)?)?;
            seen += 1;
        }
        Ok(seen == 4)
    })
}

fn same(message: &BorrowedMessage<'_>) -> Done {
    let fits = match message.key() {
        Some(b"full") => {
            let headers = message.headers().ok_or("no headers")?;
            let found: Vec<(&str, Option<&[u8]>)> = headers
                .iter()
                .map(|header| (header.key, header.value))
                .collect();
            let wanted: [(&str, Option<&[u8]>); 5] = [
                ("id", Some(b"r1")),
                ("pipeline", Some(b"p")),
                ("pipeline", Some(b"q")),
                ("null", None),
                ("binary", Some(&[0, 255, 1])),
            ];
            let time = message.timestamp() == Timestamp::CreateTime(1_234_567_890_123);
            found == wanted && time && message.payload() == Some(b"v")
        }
        Some(b"tombstone") => message.payload().is_none(),
        Some(b"empty") => message.payload() == Some(b""),
        None => message.payload() == Some(b"no key") && message.partition() == 2,
        _ => false,
    };
    ensure(fits, || format!("not as it was written: {message:?}"))
}

fn offsets(broker: &Broker) -> Done {
    let topic = broker.name("offsets");
    broker.create(&topic, 2, &[])?;
    broker.write(&topic, Some(1), 0..100, "m", &[("linger.ms", "20")])?;
    let reader = broker.reader(&broker.name("g-offsets"), &[])?;
    for (partition, wanted) in [(1, (0, 100)), (0, (0, 0))] {
        let ends = reader
            .fetch_watermarks(&topic, partition, LONG)
            .map_err(text)?;
        ensure(ends == wanted, || {
            format!("partition {partition}: from and to {ends:?}")
        })?;
    }
    let from = |offset: Offset, first: i64, count: usize| -> Done {
        assign(&reader, &topic, 1..2, offset)?;
        let got = read(&reader, count)?;
        ensure(got[0].offset == first, || {
            format!("from {offset:?}: {:?}", got[0])
        })
    };
    from(Offset::Offset(40), 40, 60)?;
    reader
        .seek(&topic, 1, Offset::Offset(95), LONG)
        .map_err(text)?;
    let got = read(&reader, 5)?;
    ensure(got[0].offset == 95, || {
        format!("after a seek: {:?}", got[0])
    })?;
    from(Offset::OffsetTail(3), 97, 3)?;
    let at = |ms: i64| -> Result<Offset, String> {
        let mut times = TopicPartitionList::new();
        times
            .add_partition_offset(&topic, 1, Offset::Offset(ms))
            .map_err(text)?;
        Ok(reader
            .offsets_for_times(times, LONG)
            .map_err(text)?
            .elements()[0]
            .offset())
    };
    let (first, none) = (at(0)?, at(i64::MAX / 2)?);
    ensure(first == Offset::Offset(0) && none == Offset::End, || {
        format!("by time: {first:?}, {none:?}")
    })
}

fn out_of_range(broker: &Broker) -> Done {
    let topic = broker.name("range");
    broker.create(&topic, 1, &[])?;
    broker.write(&topic, Some(0), 0..10, "m", &[])?;
    let reader = broker.reader(&broker.name("g-range"), &[])?;
    assign(&reader, &topic, 0..1, Offset::Offset(1000))?;
    let got = read(&reader, 10)?;
    ensure(got[0].offset == 0, || {
        format!("begins again at {:?}", got[0])
    })
}

fn in_order(got: &[Got]) -> Done {
    let mut next: HashMap<i32, i64> = HashMap::new();
    for one in got {
        let wanted = next.entry(one.partition).or_insert(0);
        ensure(one.offset == *wanted, || {
            format!("{one:?} where {wanted} was next")
        })?;
        *wanted += 1;
    }
    Ok(())
}

fn idempotent(broker: &Broker) -> Done {
    let topic = broker.name("idempotent");
    broker.create(&topic, 4, &[])?;
    broker.write(
        &topic,
        None,
        0..10_000,
        "m",
        &[("enable.idempotence", "true"), ("linger.ms", "5")],
    )?;
    let got = broker.read_all(&topic, "read_uncommitted")?;
    ensure(got.len() == 10_000 && distinct(&got) == 10_000, || {
        format!("{} read, {} distinct", got.len(), distinct(&got))
    })?;
    in_order(&got)
}

fn concurrent(broker: &Broker) -> Done {
    const WRITERS: usize = 8;
    const EACH: usize = 3000;
    let topic = broker.name("concurrent");
    broker.create(&topic, 2, &[])?;
    let reader = broker.reader(&broker.name("g-concurrent"), &[])?;
    assign(&reader, &topic, 0..2, Offset::Beginning)?;
    let got = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let topic = &topic;
                let write = move || {
                    let partition = (writer % 2) as i32;
                    broker.write(
                        topic,
                        Some(partition),
                        0..EACH,
                        &format!("{writer}:"),
                        &[("batch.num.messages", "50")],
                    )
                };
                scope.spawn(write)
            })
            .collect();
        let got = read(&reader, WRITERS * EACH)?;
        for writer in writers {
            writer.join().map_err(|_| "a writer panicked")??;
        }
        Ok::<_, String>(got)
    })?;
    ensure(distinct(&got) == WRITERS * EACH, || {
        format!("{} distinct", distinct(&got))
    })?;
    let mut next: HashMap<&str, usize> = HashMap::new();
    for one in &got {
        let (writer, number) = one.value.split_once(':').ok_or("no number")?;
        let wanted = next.entry(writer).or_insert(0);
        ensure(number.parse() == Ok(*wanted), || {
            format!("{one:?} where {wanted} was next")
        })?;
        *wanted += 1;
    }
    Ok(())
}

fn compression(broker: &Broker) -> Done {
    let tail = "abcdefgh".repeat(200);
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let topic = broker.name(codec);
        broker.create(&topic, 1, &[])?;
        let writer = broker.writer(&[("compression.type", codec), ("linger.ms", "20")])?;
        for number in 0..200 {
            let value = format!("{number}{tail}");
            writer.record(
                BaseRecord::<str, str>::to(&topic)
                    .payload(&value)
                    .partition(0),
            )?;
        }
        writer.flush()?;
        let got = broker.read_all(&topic, "read_uncommitted")?;
        let last = got.last().map(|one| one.value.clone()).unwrap_or_default();
        ensure(got.len() == 200 && last == format!("199{tail}"), || {
            format!("{codec}: {} read", got.len())
        })?;
    }
    Ok(())
}

fn large(broker: &Broker) -> Done {
    let topic = broker.name("large");
    broker.create(&topic, 1, &[("max.message.bytes", "33554432")])?;
    for megabytes in [1usize, 4, 8, 16] {
        let size = megabytes * 1024 * 1024 - 1000;
        let value: Vec<u8> = (0..size)
            .map(|at| ((at as u64).wrapping_mul(2_654_435_761) >> 7) as u8)
            .collect();
        let writer = broker.writer(&[("message.max.bytes", "40000000")])?;
        for _ in 0..3 {
            writer.record(
                BaseRecord::<str, [u8]>::to(&topic)
                    .payload(&value[..])
                    .partition(0),
            )?;
        }
        writer.flush()?;
        let settings = [
            ("fetch.message.max.bytes", "1048576"),
            ("receive.message.max.bytes", "100000000"),
        ];
        let reader = broker.reader(&broker.name("g-large"), &settings)?;
        assign(&reader, &topic, 0..1, Offset::OffsetTail(3))?;
        let mut seen = 0;
        until("large records are read", || {
            if let Some(message) = reader.poll(SHORT) {
                let message = message.map_err(text)?;
                ensure(message.payload() == Some(&value[..]), || {
                    format!("{megabytes} MiB differ")
                })?;
                seen += 1;
            }
            Ok(seen == 3)
        })?;
    }
    // Beyond what the topic takes.
    let topic = broker.name("small");
    broker.create(&topic, 1, &[("max.message.bytes", "1000")])?;
    let refused = broker.writer(&[]).and_then(|writer| {
        writer.record(
            BaseRecord::<str, [u8]>::to(&topic)
                .payload(&[7u8; 5000][..])
                .partition(0),
        )?;
        writer.flush()
    });
    let refused = refused.err().unwrap_or_default();
    ensure(refused.contains("MessageSizeTooLarge"), || {
        format!("too large: {refused}")
    })
}

fn big_batches(broker: &Broker) -> Done {
    let topic = broker.name("batches");
    broker.create(&topic, 1, &[])?;
    let settings = [
        ("linger.ms", "50"),
        ("batch.num.messages", "10000"),
        ("acks", "all"),
    ];
    broker.write(
        &topic,
        Some(0),
        0..50_000,
        "0123456789012345678901234567890123456789-",
        &settings,
    )?;
    let got = broker.read_all(&topic, "read_uncommitted")?;
    ensure(got.len() == 50_000, || format!("{} read", got.len()))?;
    let client: BaseConsumer = broker.config(&[]).create().map_err(text)?;
    let ends = client
        .fetch_watermarks(&topic, 0, Duration::from_secs(5))
        .map_err(text)?;
    ensure(ends == (0, 50_000), || format!("from and to {ends:?}"))
}
