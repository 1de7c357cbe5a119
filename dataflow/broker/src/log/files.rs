//! A partition's files: segments of batches, each named by its first offset.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::batch::{self, Header};
use crate::disk::Disk;

/// The size at which a new file is begun.
const SEGMENT: u64 = 16 << 20;
/// Bytes between two entries of a segment's index.
const STEP: u64 = 64 << 10;
/// Files of all partitions that may stay open; beyond it a file is open only while it is written.
const OPEN: usize = 400;
static OPENED: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    disk: Arc<Disk>,
    /// Something was written that the disk was not yet asked for.
    pending: bool,
    /// In order; the last one is written to.
    segments: Vec<Segment>,
    writer: Option<Writer>,
}

#[derive(Debug)]
struct Segment {
    base: i64,
    size: u64,
    max_ms: i64,
    /// Where some of its batches begin.
    index: Vec<(i64, u64)>,
}

/// The open file of the last segment; counts as open while it lives.
#[derive(Debug)]
struct Writer {
    file: File,
    used: Instant,
}

impl Drop for Writer {
    fn drop(&mut self) {
        OPENED.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Segment {
    fn new(base: i64) -> Self {
        Self {
            base,
            size: 0,
            max_ms: i64::MIN,
            index: Vec::new(),
        }
    }

    fn note(&mut self, header: &Header) {
        if self
            .index
            .last()
            .is_none_or(|(_, at)| self.size - at >= STEP)
        {
            self.index.push((header.base, self.size));
        }
        self.size += header.size as u64;
        self.max_ms = self.max_ms.max(header.max_ms);
    }
}

fn path(folder: &Path, base: i64) -> PathBuf {
    folder.join(format!("{base:020}.log"))
}

impl Files {
    /// Opens a partition's folder; each batch found is handed over, in order. What is torn, and what follows, is cut.
    pub(crate) fn open(
        folder: &Path,
        disk: Arc<Disk>,
        mut found: impl FnMut(Header, &[u8]),
    ) -> io::Result<Self> {
        if !folder.exists() {
            fs::create_dir_all(folder)?;
            // Its own name, and those of what was made for it.
            for above in folder.ancestors().skip(1).take(3) {
                disk.folder(above)?;
            }
        }
        let mut bases = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            match name
                .strip_suffix(".log")
                .and_then(|base| base.parse::<i64>().ok())
            {
                Some(base) => bases.push(base),
                None => fs::remove_file(folder.join(&*name))?,
            }
        }
        bases.sort_unstable();
        let mut files = Self {
            folder: folder.to_owned(),
            disk,
            pending: false,
            segments: Vec::new(),
            writer: None,
        };
        let mut torn = false;
        for base in bases {
            let path = path(folder, base);
            if torn {
                fs::remove_file(&path)?;
                continue;
            }
            let bytes = fs::read(&path)?;
            let mut segment = Segment::new(base);
            let mut rest = &bytes[..];
            while let Some(header) = Header::read(rest).filter(|header| batch::intact(header, rest))
            {
                found(header, &rest[..header.size]);
                segment.note(&header);
                rest = &rest[header.size..];
            }
            if !rest.is_empty() {
                torn = true;
                OpenOptions::new()
                    .write(true)
                    .open(&path)?
                    .set_len(segment.size)?;
            }
            files.segments.push(segment);
        }
        Ok(files)
    }

    /// The first offset that the next file would have if there were no batch.
    pub(crate) fn last_base(&self) -> Option<i64> {
        self.segments.last().map(|segment| segment.base)
    }

    pub(crate) fn first_base(&self) -> Option<i64> {
        self.segments.first().map(|segment| segment.base)
    }

    pub(crate) fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    pub(crate) fn append(&mut self, header: &Header, bytes: &[u8]) -> io::Result<()> {
        let full = |last: &Segment| last.size > 0 && last.size + bytes.len() as u64 > SEGMENT;
        if self.segments.last().is_none_or(full) {
            self.roll(header.base)?;
        }
        let Some(segment) = self.segments.last_mut() else {
            return Err(io::Error::other("no file to write to"));
        };
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path(&self.folder, segment.base))?;
                OPENED.fetch_add(1, Ordering::Relaxed);
                Writer {
                    file,
                    used: Instant::now(),
                }
            }
        };
        if let Err(error) = writer.file.write_all(bytes) {
            writer.file.set_len(segment.size)?;
            return Err(error);
        }
        segment.note(header);
        writer.used = Instant::now();
        if OPENED.load(Ordering::Relaxed) <= OPEN {
            self.writer = Some(writer);
            self.pending = true;
        } else {
            self.disk.file(&writer.file)?;
        }
        Ok(())
    }

    /// Returns once all that was appended is on the disk, if that is asked for.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        if let (true, Some(writer)) = (self.pending, &self.writer) {
            self.disk.file(&writer.file)?;
        }
        self.pending = false;
        Ok(())
    }

    /// Begins a new file. It exists from here on, so that its name tells the next offset.
    pub(crate) fn roll(&mut self, base: i64) -> io::Result<()> {
        self.settle()?;
        self.writer = None;
        if self.segments.last().is_some_and(|last| last.base == base) {
            return Ok(());
        }
        File::create(path(&self.folder, base))?;
        self.disk.folder(&self.folder)?;
        self.segments.push(Segment::new(base));
        Ok(())
    }

    pub(crate) fn close_idle(&mut self, idle: Duration) {
        self.writer.take_if(|writer| writer.used.elapsed() > idle);
    }

    /// Reads whole batches from the one that holds `offset`, or the next: some up to `max` bytes and at least one, of one
    /// file, those that begin before `end`.
    pub(crate) fn read(&self, offset: i64, end: i64, max: usize) -> io::Result<Vec<u8>> {
        let first = self
            .segments
            .partition_point(|segment| segment.base <= offset)
            .saturating_sub(1);
        for segment in &self.segments[first..] {
            let at = segment
                .index
                .partition_point(|(base, _)| *base <= offset)
                .saturating_sub(1);
            let Some((_, at)) = segment.index.get(at) else {
                continue;
            };
            let bytes = self.read_segment(segment, *at, offset, end, max)?;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
        }
        Ok(Vec::new())
    }

    fn read_segment(
        &self,
        segment: &Segment,
        mut at: u64,
        offset: i64,
        end: i64,
        max: usize,
    ) -> io::Result<Vec<u8>> {
        let file = File::open(path(&self.folder, segment.base))?;
        let mut head = [0; batch::HEADER];
        let (mut start, mut stop) = (None, at);
        while at < segment.size {
            file.read_exact_at(&mut head, at)?;
            let header = Header::read(&head)
                .ok_or_else(|| io::Error::other(format!("{} is damaged", self.folder.display())))?;
            if header.base >= end {
                break;
            }
            let size = header.size as u64;
            if header.last() >= offset {
                let from = *start.get_or_insert(at);
                if at > from && at + size - from > max as u64 {
                    break;
                }
                stop = at + size;
            }
            at += size;
        }
        let Some(from) = start else {
            return Ok(Vec::new());
        };
        let mut bytes = vec![0; (stop - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }

    /// Removes the oldest files while `gone` says so of their last offset, size and time; the last one stays.
    pub(crate) fn trim(&mut self, mut gone: impl FnMut(i64, u64, i64) -> bool) -> io::Result<()> {
        while let [first, second, ..] = &self.segments[..] {
            if !gone(second.base - 1, first.size, first.max_ms) {
                break;
            }
            fs::remove_file(path(&self.folder, first.base))?;
            self.segments.remove(0);
        }
        Ok(())
    }

    /// The newest time of the file that is written to, if there is anything in it.
    pub(crate) fn newest_ms(&self) -> Option<i64> {
        self.segments
            .last()
            .filter(|last| last.size > 0)
            .map(|last| last.max_ms)
    }

    /// The first offset whose batch may have a record at or after a time.
    pub(crate) fn not_before(&self, ms: i64) -> Option<i64> {
        self.segments
            .iter()
            .find(|segment| segment.max_ms >= ms)
            .map(|segment| segment.base)
    }

    /// Writes every file but the last anew, with what `keep` makes of each batch.
    pub(crate) fn rewrite(
        &mut self,
        mut keep: impl FnMut(&Header, &[u8]) -> Option<bytes::Bytes>,
    ) -> io::Result<()> {
        let closed = self.segments.len().saturating_sub(1);
        for segment in &mut self.segments[..closed] {
            let path = path(&self.folder, segment.base);
            let bytes = fs::read(&path)?;
            let mut new = Segment::new(segment.base);
            let mut kept = Vec::with_capacity(bytes.len());
            let mut rest = &bytes[..];
            while let Some(header) = Header::read(rest).filter(|header| header.size <= rest.len()) {
                if let Some(batch) = keep(&header, &rest[..header.size]) {
                    new.note(&Header {
                        size: batch.len(),
                        ..header
                    });
                    kept.extend_from_slice(&batch);
                }
                rest = &rest[header.size..];
            }
            if kept.len() < bytes.len() {
                let temporary = path.with_extension("clean");
                let mut file = File::create(&temporary)?;
                file.write_all(&kept)?;
                self.disk.file(&file)?;
                fs::rename(&temporary, &path)?;
                self.disk.folder(&self.folder)?;
                *segment = new;
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.writer = None;
        self.segments.clear();
        fs::remove_dir_all(&self.folder)
    }
}
