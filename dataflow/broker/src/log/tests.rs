use super::*;

/// A batch with one uncompressed record of a key, at a time.
fn batch(key: &str, ms: i64, size: usize) -> (Header, Bytes) {
    use bytes::BufMut as _;
    let varint = |out: &mut Vec<u8>, value: usize| {
        let mut value = (value << 1) as u64;
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    };
    let mut record = vec![0, 0, 0];
    varint(&mut record, key.len());
    record.extend(key.as_bytes());
    varint(&mut record, size);
    record.resize(record.len() + size, b'x');
    record.push(0);
    let mut body = BytesMut::new();
    body.put_i16(0);
    body.put_i32(0);
    body.put_i64(ms);
    body.put_i64(ms);
    body.put_i64(-1);
    body.put_i16(-1);
    body.put_i32(-1);
    body.put_i32(1);
    let mut length = Vec::new();
    varint(&mut length, record.len());
    body.put_slice(&length);
    body.put_slice(&record);
    let mut bytes = BytesMut::new();
    bytes.put_i64(0);
    bytes.put_i32(body.len() as i32 + 9);
    bytes.put_i32(0);
    bytes.put_u8(2);
    bytes.put_u32(crc32c::crc32c(&body));
    bytes.put_slice(&body);
    let mut batches = batch::received(bytes.freeze()).unwrap();
    batches.remove(0)
}

fn open(memory: &Arc<Memory>, folder: Option<&Path>) -> Partition {
    Partition::open(memory.clone(), &Arc::default(), folder, 0).unwrap()
}

/// The offset and key of each record that is left.
fn left(log: &Log) -> Vec<(i64, String)> {
    let mut found = Vec::new();
    let mut offset = log.ends().start;
    while offset < log.ends().next {
        let read = log.read(offset, false, 1 << 20, true).unwrap();
        let mut rest = &read.records[..];
        if rest.is_empty() {
            break;
        }
        while let Some(header) = Header::read(rest) {
            for record in batch::records(&header, rest).unwrap() {
                let key = String::from_utf8_lossy(record.key.unwrap()).into_owned();
                found.push((record.offset, key));
            }
            offset = header.last() + 1;
            rest = &rest[header.size..];
        }
    }
    found
}

/// Calls with a partition in memory and with one in files.
fn both(check: impl Fn(&Arc<Memory>, Option<&Path>)) {
    let folder = tempfile::tempdir().unwrap();
    for folder in [None, Some(folder.path())] {
        check(&Arc::new(Memory::new(1 << 30)), folder);
    }
}

#[test]
fn old_records_go_by_time_and_the_offsets_stay() {
    both(|memory, folder| {
        let partition = open(memory, folder);
        let mut log = partition.lock();
        log.append(&[batch("a", 100, 10), batch("b", 200, 10)])
            .unwrap();
        log.retain(1000, Some(10_000), None).unwrap();
        assert_eq!(left(&log).len(), 2);
        log.retain(20_000, Some(10_000), None).unwrap();
        assert_eq!(
            (left(&log).len(), log.ends().start, log.ends().next),
            (0, 2, 2)
        );
        assert_eq!(log.append(&[batch("c", 20_000, 10)]), Ok(2));
        log.retain(20_000, Some(10_000), None).unwrap();
        assert_eq!(left(&log), [(2, "c".to_owned())]);
    });
}

#[test]
fn a_partition_stays_near_its_size() {
    both(|memory, folder| {
        let partition = open(memory, folder);
        let mut log = partition.lock();
        for _ in 0..80 {
            log.append(&[batch("a", 100, 1 << 20)]).unwrap();
        }
        log.retain(100, None, Some(40 << 20)).unwrap();
        // By whole files, where there are files.
        assert!(
            (40 << 20..=57 << 20).contains(&log.size()),
            "{}",
            log.size()
        );
        assert_eq!(log.ends().next, 80);
    });
}

#[test]
fn only_the_newest_of_each_key_is_left_and_that_is_so_after_a_restart() {
    both(|memory, folder| {
        let partition = open(memory, folder);
        let mut log = partition.lock();
        for round in 0..100 {
            for key in ["a", "b", "c"] {
                log.append(&[batch(key, round, 500)]).unwrap();
            }
        }
        let used = memory.used();
        log.clean().unwrap();
        let newest = [(297, "a"), (298, "b"), (299, "c")].map(|(at, key)| (at, key.to_owned()));
        assert_eq!(left(&log), newest);
        assert!(memory.used() < used / 10, "its memory is given back");
        assert_eq!(log.append(&[batch("d", 100, 1)]), Ok(300));
        drop(log);
        drop(partition);
        if folder.is_some() {
            let partition = open(memory, folder);
            let log = partition.lock();
            assert_eq!(left(&log)[..3], newest);
            assert_eq!(log.ends().next, 301);
        }
    });
}

#[test]
fn what_is_torn_at_the_end_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(Memory::new(1 << 30));
    let partition = open(&memory, Some(folder.path()));
    for key in ["a", "b"] {
        partition.lock().append(&[batch(key, 1, 100)]).unwrap();
    }
    let file = folder.path().join(format!("{:020}.log", 0));
    let whole = std::fs::metadata(&file).unwrap().len();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let partition = open(&memory, Some(folder.path()));
    let mut log = partition.lock();
    assert_eq!(left(&log), [(0, "a".to_owned())]);
    assert_eq!(log.append(&[batch("c", 1, 100)]), Ok(1));
    assert_eq!(std::fs::metadata(&file).unwrap().len(), whole);
}

#[test]
fn what_left_memory_is_read_from_files_or_gone() {
    both(|_, folder| {
        let memory = Arc::new(Memory::new(100_000));
        let partition = open(&memory, folder);
        let mut log = partition.lock();
        for number in 0..200 {
            log.append(&[batch("k", number, 1000)]).unwrap();
        }
        assert!(memory.over());
        log.evict(u64::MAX);
        assert!(!memory.over() && !memory.tight());
        let there = left(&log);
        assert_eq!(there.last().unwrap().0, 199);
        assert_eq!(there.len() == 200, folder.is_some());
        assert_eq!(log.ends().start == 0, folder.is_some());
        let at = log.at_time(150).unwrap();
        assert_eq!(at, Some((150, 150)));
        assert_eq!(log.delete_before(190), Ok(190));
        assert_eq!(left(&log).len(), 10);
    });
}

/// One wait for each request, and one for each file that is full.
#[test]
fn the_disk_is_waited_for_where_that_is_asked_for() {
    for sync in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let memory = Arc::new(Memory::new(1 << 30));
        let disk = Arc::new(Disk::new(sync));
        let partition = Partition::open(memory, &disk, Some(folder.path()), 0).unwrap();
        let mut log = partition.lock();
        log.append(&[batch("a", 100, 10), batch("b", 100, 10)])
            .unwrap();
        assert_eq!(disk.waited(), u64::from(sync));
        log.append(&[batch("c", 100, 9 << 20), batch("d", 100, 9 << 20)])
            .unwrap();
        assert_eq!(disk.waited(), if sync { 3 } else { 0 });
        log.end_transaction(7, 0, true, 100).unwrap();
        assert_eq!(
            disk.waited(),
            if sync { 3 } else { 0 },
            "it has written nothing"
        );
    }
}
